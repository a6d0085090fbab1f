//! `eval merge`: joins the results of all shards of a run.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    results::{Key, SAMPLES, write},
    shard::Shard,
};
use crate::{
    cli::Outcome,
    eval::{Evaluation, graded_from_sample, table, tasks_by_name},
    whole_file::beside,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The --output of each shard; their .samples.jsonl files must be beside them
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Write the joined results to this file
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// A shard's results.
struct ShardResults {
    path: PathBuf,
    results: Value,
    shard: Shard,
}

impl ShardResults {
    fn read(path: &Path) -> Result<Self> {
        let reading = || format!("cannot read {}", path.display());
        let results: Value =
            serde_json::from_str(&fs::read_to_string(path).with_context(reading)?).with_context(reading)?;
        let shard = results["config"]["shard"].as_str().and_then(|text| text.parse().ok());
        let shard = shard.with_context(|| format!("{} is not a result of `eval --shard`", path.display()))?;
        Ok(Self { path: path.to_owned(), results, shard })
    }

    fn name(&self) -> String {
        format!("{} (shard {})", self.path.display(), self.shard)
    }
}

pub fn run(args: &Args) -> Result<Outcome> {
    let mut parts = args.results.iter().map(|path| ShardResults::read(path)).collect::<Result<Vec<_>>>()?;
    parts.sort_by_key(|part| part.shard.index);
    let first = &parts[0];
    for part in &parts[1..] {
        let differs = |what: &str| part.results["config"][what] != first.results["config"][what];
        let all = [("digest", "model, tasks or settings"), ("version", "version"), ("data", "data")];
        if let Some((_, what)) = all.into_iter().find(|(field, _)| differs(field)) {
            bail!("{} and {} are not of one run: they differ in {what}", first.name(), part.name());
        }
        if part.shard.count != first.shard.count {
            bail!("{} and {} are not of one run: it was split in another way", first.name(), part.name());
        }
    }
    for index in 0..first.shard.count {
        let found: Vec<&ShardResults> = parts.iter().filter(|part| part.shard.index == index).collect();
        match found[..] {
            [_] => {}
            [] => bail!("shard {index}/{} is missing: give the results of all", first.shard.count),
            _ => bail!("{} and {} are the same shard: give each once", found[0].name(), found[1].name()),
        }
    }

    let config = &first.results["config"];
    let names: Vec<String> = serde_json::from_value(config["tasks"].clone()).context("reading the tasks of a run")?;
    let tasks = tasks_by_name(&names)?;
    let figure = |of: &str, task: &str, field: &str| {
        let value = &first.results[of][task];
        let value = if field.is_empty() { value } else { &value[field] };
        value.as_u64().map(|n| n as usize).with_context(|| format!("{} has no {of} of {task}", first.name()))
    };
    let counts = tasks.iter().map(|task| figure("n-samples", &task.name, "original")).collect::<Result<Vec<_>>>()?;
    let shots = tasks.iter().map(|task| figure("n-shot", &task.name, "")).collect::<Result<Vec<_>>>()?;
    // In the order of documents, over all shards.
    let mut samples: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
    for part in &parts {
        let path = beside(&part.path, SAMPLES);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in text.lines() {
            let sample: Value = serde_json::from_str(line).with_context(|| format!("{} is damaged", path.display()))?;
            let task = tasks.iter().position(|task| sample["task"] == task.name.as_str());
            let id = sample["doc_id"].as_u64().map(|id| id as usize).filter(|&id| part.shard.has(id));
            let (Some(task), Some(id)) = (task, id) else {
                bail!("{} holds a document that is not of shard {}", path.display(), part.shard);
            };
            samples.entry((task, id)).or_default().push(sample);
        }
    }
    let limit = config["limit"].as_u64().map_or(usize::MAX, |limit| limit as usize);
    let mut evaluations = Vec::new();
    for (i, task) in tasks.into_iter().enumerate() {
        let (found, wanted) = (samples.range((i, 0)..(i + 1, 0)).count(), counts[i].min(limit));
        if found != wanted {
            bail!("{} has {found} documents in all shards together, {wanted} are expected", task.name);
        }
        evaluations.push(Evaluation::new(task, shots[i], counts[i]));
    }
    for ((task, id), samples) in &samples {
        let evaluation = &mut evaluations[*task];
        let of_task = |sample: &Value| graded_from_sample(&evaluation.task, sample);
        let graded = samples.iter().map(of_task).collect::<Option<Vec<_>>>();
        let graded = graded.filter(|graded| graded.len() == evaluation.task.filter_names().len());
        let damaged =
            || format!("the samples of {}, document {id}, are damaged: run its shard again", evaluation.task.name);
        evaluation.add(&graded.with_context(damaged)?);
    }
    let mut config = config.clone();
    config["shard"] = Value::Null;
    write(&args.output, &evaluations, &samples.into_values().flatten().collect::<Vec<_>>(), config)?;
    write!(std::io::stdout(), "{}", table(&evaluations))?;
    Ok(Outcome::Done)
}
