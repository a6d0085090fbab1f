//! `eval`: the model card's benchmarks, item for item as lm-evaluation-harness scores them.

mod merge;

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    io::Write,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result};
use indicatif::HumanDuration;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    Outcome, interrupt,
    journal::{Journal, beside, write_whole},
    model_args::{ModelArgs, Opened},
    note,
    progress::Counter,
};
use crate::eval::{
    Dataset, Evaluation, Item, Likelihood, Scorer, Task, groups, html, items, named, results_json, sample_json, table,
};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    model: ModelArgs,
    /// Tasks by their names in lm-evaluation-harness: mmlu,hellaswag,...; `list` shows them all
    #[arg(long, value_name = "TASKS", value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// Folder with the datasets, in the layouts of the Hugging Face hub: DIR/cais/mmlu/... or DIR/mmlu/...
    #[arg(long, value_name = "DIR", default_value = ".")]
    data: PathBuf,
    /// Examples in each prompt [default: what the task says, mostly none]
    #[arg(long, value_name = "K")]
    num_fewshot: Option<usize>,
    /// Only the first documents of each task
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Write results here, in the harness's JSON format; beside it a page with plots (.html) and what each document gave
    /// (.samples.jsonl). A run that was interrupted goes on where it was
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only every N-th document, from the I-th on: I is from 0 to N-1, as Slurm arrays and Kubernetes indexed jobs count. `eval merge`
    /// joins the parts
    #[arg(long, value_name = "I/N", requires = "output")]
    shard: Option<Shard>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Join the results of all shards of a run
    Merge(merge::Args),
}

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    const WHOLE: Self = Self { index: 0, count: 1 };

    fn has(self, document: usize) -> bool {
        document % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let shard = parts.map(|(index, count)| Self { index, count }).filter(|shard| shard.index < shard.count);
        shard.ok_or_else(|| format!("{text:?} is no shard: give 0/4, 1/4, 2/4 or 3/4 for four parts"))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// A document of one of the tasks, by their numbers.
type Key = (usize, usize);

pub fn run(args: &Args) -> Result<Outcome> {
    if let Some(Command::Merge(args)) = &args.command {
        return merge::run(args);
    }
    if args.tasks == ["list"] {
        return list();
    }
    interrupt::install();
    let tasks = named(&args.tasks)?;
    let opened = args.model.open()?;
    let (all, keys, counts) = read(args, &tasks, &opened)?;
    let mut journal = None;
    let mut kept: HashMap<Key, Value> = HashMap::new();
    if let Some(output) = &args.output {
        let digest = format!("{} {}", args.digest(&tasks, &opened)?, args.shard.unwrap_or(Shard::WHOLE));
        let (opened, lines) = Journal::open(&beside(output, ".partial"), &digest)?;
        for line in lines {
            let task = tasks.iter().position(|task| line["task"] == task.name.as_str());
            if let (Some(task), Some(id)) = (task, line["doc_id"].as_u64()) {
                kept.insert((task, id as usize), line);
            }
        }
        journal = Some(opened);
    }
    if !kept.is_empty() {
        note(&format!("{} of {} documents were finished before", kept.len(), all.len()));
    }

    // What is left: items and their keys.
    let (keys, left): (Vec<Key>, Vec<Item>) =
        keys.into_iter().zip(all).filter(|(key, _)| !kept.contains_key(key)).unzip();
    let mut samples: BTreeMap<Key, Value> = kept.into_iter().collect();
    if !left.is_empty() {
        let platform = args.model.platform(&opened)?;
        let loaded = args.model.load(&opened, &platform)?;
        let longest = left.iter().flat_map(|item| &item.pairs);
        let longest = longest.map(|pair| pair.context_tokens.len() + pair.continuation_tokens.len()).max().unwrap_or(1);
        let mut scorer = Scorer::new(loaded.model, opened.cache_len(longest as i64))?;
        let groups = groups(&left);
        let mut found: Vec<Vec<Option<Likelihood>>> = left.iter().map(|item| vec![None; item.pairs.len()]).collect();
        let counter = Counter::new("documents", left.len() as u64);
        let mut failed = None;
        interrupt::begin_writing();
        scorer.score(&groups, |group, likelihoods| {
            for (likelihood, wanted) in likelihoods.iter().zip(&groups[group].wanted) {
                for &(item, pair) in wanted {
                    found[item][pair] = Some(*likelihood);
                    let Some(whole) = found[item].iter().copied().collect::<Option<Vec<_>>>() else { continue };
                    let (task, item_of) = (&tasks[keys[item].0], &left[item]);
                    let values: Vec<f64> = task.metrics.iter().map(|metric| metric.of(item_of, &whole)).collect();
                    let sample = sample_json(task, item_of, &whole, &values);
                    if let Some(journal) = &mut journal
                        && let Err(error) = journal.write(&sample)
                    {
                        failed = Some(error);
                        return Ok(false);
                    }
                    samples.insert(keys[item], sample);
                    let tokens = item_of.pairs.iter().map(|p| p.context_tokens.len() + p.continuation_tokens.len());
                    counter.advance(1, tokens.sum::<usize>() as u64);
                }
            }
            Ok(!interrupt::asked())
        })?;
        let (tokens, time) = counter.finish();
        if let Some(error) = failed {
            return Err(error);
        }
        if interrupt::asked() {
            if args.output.is_some() {
                note("interrupted; the same command goes on from there");
            }
            return Ok(Outcome::Interrupted);
        }
        note(&format!(
            "{} documents of {tokens} tokens in {}; {} tokens were computed, others were shared",
            left.len(),
            HumanDuration(time),
            scorer.computed
        ));
    }
    let shots: Vec<usize> = tasks.iter().map(|task| args.num_fewshot.unwrap_or(task.num_fewshot)).collect();
    let config = json!({
        "model": "gemma-pjrt",
        "model_args": format!("{:?}", args.model.identity()),
        "version": env!("CARGO_PKG_VERSION"),
        "mesh": args.model.mesh.to_string(),
        "max_length": opened.context,
        "limit": args.limit,
        "num_fewshot": args.num_fewshot,
        "tasks": args.tasks,
        "digest": args.digest(&tasks, &opened)?,
        "shard": args.shard.map(|shard| shard.to_string()),
    });
    let evaluations = evaluations(tasks, &samples, &counts, &shots);
    if let Some(output) = &args.output {
        write(output, &evaluations, &samples, config)?;
        let partial = beside(output, ".partial");
        fs::remove_file(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    print!("{}", table(&evaluations));
    Ok(Outcome::Done)
}

fn list() -> Result<Outcome> {
    let mut out = std::io::stdout();
    for task in Task::all() {
        let parts: usize = task.subjects.values().map(Vec::len).sum();
        let parts = if parts > 0 { format!(", {parts} subjects") } else { String::new() };
        writeln!(out, "{} ({}{parts})", task.name, task.dataset)?;
    }
    Ok(Outcome::Done)
}

/// All documents, their keys, and how many each task's split has.
fn read(args: &Args, tasks: &[Task], opened: &Opened) -> Result<(Vec<Item>, Vec<Key>, Vec<usize>)> {
    let (mut all, mut keys, mut counts) = (vec![], vec![], vec![]);
    for (i, task) in tasks.iter().enumerate() {
        let dataset = Dataset::open(&args.data, &task.dataset, task.config.as_deref())?;
        let shots = args.num_fewshot.unwrap_or(task.num_fewshot);
        let (shard, max_length) = (args.shard.unwrap_or(Shard::WHOLE), opened.context as usize);
        let (items, documents) =
            items(task, &dataset, opened.tokenizer()?, shots, args.limit.map(NonZeroUsize::get), max_length, |id| {
                shard.has(id)
            })?;
        keys.extend(items.iter().map(|item| (i, item.id)));
        all.extend(items);
        counts.push(documents);
    }
    Ok((all, keys, counts))
}

impl Args {
    /// What tells whether two runs score the same in the same way.
    fn digest(&self, tasks: &[Task], opened: &Opened) -> Result<String> {
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        let all = format!("{:?}", (self.model.identity(), names, self.num_fewshot, self.limit, opened.context));
        Ok(format!("{:x}", Sha256::digest(all)))
    }
}

/// Each task with its documents' figures, from their samples.
fn evaluations(tasks: Vec<Task>, samples: &BTreeMap<Key, Value>, counts: &[usize], shots: &[usize]) -> Vec<Evaluation> {
    let of_task = |(i, task): (usize, Task)| {
        let own = samples.range((i, 0)..(i + 1, 0)).map(|(_, sample)| sample);
        let figure = |sample: &Value, name: &str| sample[name].as_f64().unwrap_or(f64::NAN);
        let outcomes = own.map(|sample| task.metrics.iter().map(|metric| figure(sample, metric.name())).collect());
        let outcomes = outcomes.collect();
        Evaluation { task, num_fewshot: shots[i], documents: counts[i], outcomes }
    };
    tasks.into_iter().enumerate().map(of_task).collect()
}

/// Results, and beside them a page with plots and each document's log.
fn write(output: &Path, evaluations: &[Evaluation], samples: &BTreeMap<Key, Value>, config: Value) -> Result<()> {
    write_whole(&beside(output, SAMPLES), |out| samples.values().try_for_each(|line| writeln!(out, "{line}")))?;
    let line = |name: &str| {
        let value = &config[name];
        (name.replace('_', " "), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let about: Vec<(String, String)> = ["version", "model_args", "mesh", "max_length", "num_fewshot", "limit"]
        .map(line)
        .into_iter()
        .filter(|(_, v)| v != "null")
        .collect();
    let page = html(evaluations, &about);
    write_whole(&beside(output, ".html"), |out| out.write_all(page.as_bytes()))?;
    let results = serde_json::to_string_pretty(&results_json(evaluations, config))?;
    write_whole(output, |out| writeln!(out, "{results}"))
}

/// Added to the results' name.
const SAMPLES: &str = ".samples.jsonl";
