//! The files that a run writes.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::{
    cli::journal::write_whole,
    eval::{Evaluation, html, results_json},
    whole_file::beside,
};

/// A document: the index of its task, and its number in the split.
pub type Key = (usize, usize);

/// Writes the results, and beside them a page with plots and the log of each document.
///
/// # Errors
/// A file cannot be written.
pub fn write(output: &Path, evaluations: &[Evaluation], samples: &[Value], config: Value) -> Result<()> {
    write_whole(&beside(output, SAMPLES), |out| samples.iter().try_for_each(|line| writeln!(out, "{line}")))?;
    let line = |name: &str| {
        let value = &config[name];
        (name.replace('_', " "), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let about: Vec<(String, String)> =
        ["version", "model_args", "mesh", "max_length", "num_fewshot", "apply_chat_template", "limit"]
            .map(line)
            .into_iter()
            .filter(|(_, v)| v != "null")
            .collect();
    let page = html(evaluations, &about);
    write_whole(&beside(output, ".html"), |out| out.write_all(page.as_bytes()))?;
    let results = serde_json::to_string_pretty(&results_json(evaluations, config))?;
    write_whole(output, |out| writeln!(out, "{results}"))
}

/// Suffix of the documents' log, after the results' name.
pub const SAMPLES: &str = ".samples.jsonl";
