//! Evaluation: the model card's benchmarks, document for document as lm-evaluation-harness 0.4.13
//! scores them, without Python.
//!
//! ```text
//! Task (tasks/*.toml) ┐
//! dataset files ──────┼► items ─► Engine: likelihoods, answers ─► filters, metrics ─► results
//! few-shot draws ─────┘           (response.rs)                   (grade.rs)         (report.rs)
//! ```

mod bias;
mod code;
mod data_file;
mod dataset;
mod filter;
mod grade;
mod html;
mod item;
mod math;
mod metric;
mod parquet_file;
mod python;
mod registry;
mod report;
mod response;
mod score;
mod scorer;
mod task;
mod template;
mod thrift;

pub use code::run_programs;
pub use data_file::Doc;
pub use dataset::{Dataset, digest};
pub use filter::{Expression, Filter};
pub use grade::{GradedResponse, grade};
pub use html::html;
pub use item::{ChatFormat, EvalRequest, Instance, Item, MultipleChoice, PromptFormat, docs, items};
pub use metric::{Metric, Summary, summarize};
pub use python::PythonRandom;
pub use registry::tasks_by_name;
pub use report::{Evaluation, MetricResult, graded_from_sample, group_results, results_json, sample_json, table};
pub use response::{Response, respond};
pub use score::{ContextGroup, InstanceIndex, context_groups};
pub use scorer::score_texts;
pub use task::{FewShot, GenerationConfig, ModelCardScores, Task};
pub use template::Templates;

/// An error of an evaluation. Each message says what was being done, and what to do.
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
