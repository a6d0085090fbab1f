//! Evaluation: the model card's benchmarks, item for item as lm-evaluation-harness scores them (facts: its version 0.4.13), without
//! Python.
//!
//! ```text
//! Task (tasks/*.toml) ──┐
//! dataset files ────────┼─► items: contexts and continuations ─► Scorer (slots, shared beginnings) ─► metrics ─► results
//! few-shot draws ───────┘     (item.rs, as text and tokens)          (score.rs)                        (metrics.rs, report.rs)
//! ```

mod dataset;
mod html;
mod item;
mod metrics;
mod python;
mod report;
mod score;
mod task;
mod template;

pub use dataset::{Dataset, Doc};
pub use html::html;
pub use item::{Item, Pair, items};
pub use metrics::{Metric, Summary, summarize};
pub use python::Random;
pub use report::{Evaluation, group_of, results_json, sample_json, table};
pub use score::{Group, Likelihood, Scorer, groups};
pub use task::{Card, Task, named};
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
