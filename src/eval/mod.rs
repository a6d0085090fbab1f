//! Evaluation: the model card's benchmarks, item for item as lm-evaluation-harness scores them (facts: its version 0.4.13), without
//! Python.
//!
//! ```text
//! Task (tasks/*.toml) ──┐
//! dataset files ────────┼─► items: ┬ contexts and continuations ─► Scorer (slots, shared beginnings) ─┬► judged ─► results
//! few-shot draws ───────┘          └ questions ─► Engine, in words ─► filters, programs that are run ─┘  (metric.rs, report.rs)
//! ```

mod bias;
mod code;
mod dataset;
mod filter;
mod html;
mod item;
mod judge;
mod math;
mod metric;
mod python;
mod registry;
mod report;
mod response;
mod score;
mod task;
mod template;

pub use code::run_programs;
pub use dataset::{Dataset, Doc, digest};
pub use filter::{Expression, Filter};
pub use html::html;
pub use item::{Ask, Chat, Choices, Format, Item, Pair, items};
pub use judge::{Judged, judge};
pub use metric::{Metric, Summary, summarize};
pub use python::Random;
pub use registry::named;
pub use report::{Evaluation, Figure, group_of, judged_of, results_json, sample_json, table};
pub use response::{Response, generate, score};
pub use score::{Group, Likelihood, Scorer, groups};
pub use task::{Card, Generate, Shots, Task};
pub use template::Templates;

/// What can go wrong with an evaluation. Each message says what was being done and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Invalid(String),
    #[error("task {task}, document {doc}: {reason}")]
    Document { task: String, doc: usize, reason: String },
    #[error(transparent)]
    Run(#[from] crate::runtime::Error),
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
}

pub type Result<T> = std::result::Result<T, Error>;
