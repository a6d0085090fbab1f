//! `eval`: the model card's benchmarks, document for document as lm-evaluation-harness scores them.

mod merge;
mod results;
mod shard;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use indicatif::HumanDuration;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::{
    results::{Key, write},
    shard::Shard,
};
use super::{
    Outcome, interrupt,
    journal::{Journal, RunIdentity},
    model_args::{ModelArgs, OpenedModel},
    note,
    progress::Counter,
};
use crate::{
    engine::Engine,
    eval::{
        self, ChatFormat, Dataset, Evaluation, GradedResponse, Item, Metric, PromptFormat, Response, Task, digest,
        grade, items, run_programs, sample_json, score_texts, table, tasks_by_name,
    },
    whole_file::beside,
};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    model: ModelArgs,
    /// Tasks by their names in lm-evaluation-harness, such as mmlu,hellaswag; "list" lists them all
    #[arg(long, value_name = "TASKS", value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// Directory with the datasets, in the hub's layout: DIR/cais/mmlu/... or DIR/mmlu/...
    #[arg(long, value_name = "DIR", default_value = ".")]
    data: PathBuf,
    /// Few-shot examples in each prompt [default: the task's own number, mostly 0]
    #[arg(long, value_name = "K")]
    num_fewshot: Option<usize>,
    /// Put prompts into the chat format, which instruction-tuned models expect. Examples become
    /// turns of the conversation. The task's description is the system's message; it is left out
    /// where the template has no such role, as Gemma's
    #[arg(long)]
    apply_chat_template: bool,
    /// With the chat format: put each example into turns of its own (true), or all into one turn
    /// with the question (false)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, requires = "apply_chat_template")]
    fewshot_as_multiturn: bool,
    /// Evaluate only the first N documents of each task
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Write results to this file, in the harness's JSON format, and beside it a page with plots
    /// (.html) and a log of each document (.samples.jsonl). An interrupted run resumes where it
    /// stopped
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Evaluate only every N-th document, starting at the I-th. I runs from 0 to N-1, as in Slurm
    /// arrays and Kubernetes indexed jobs. `eval merge` joins the shards
    #[arg(long, value_name = "I/N", requires = "output")]
    shard: Option<Shard>,
    /// Answers that are generated at the same time on each replica of the model (the mesh's DATA
    /// axis)
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..))]
    slots: u16,
    /// Run the programs that the model writes (humaneval, mbpp) with python3, in processes with
    /// limits on time, memory and disk. That protects from accidents, not from malice: use a
    /// container or a virtual machine
    #[arg(long)]
    allow_code_execution: bool,
    /// Score generated texts (bold, realtoxicityprompts, tasks with the metric "score") with this
    /// shell command. It is started once, gets a JSON line {"text": ...} for each text, and answers
    /// each with a line: a number, or {"score": number}
    #[arg(long, value_name = "CMD")]
    scorer: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Join the results of all shards of a run
    Merge(merge::Args),
}

pub fn run(args: &Args) -> Result<Outcome> {
    if let Some(Command::Merge(args)) = &args.command {
        return merge::run(args);
    }
    if args.tasks == ["list"] {
        return list();
    }
    interrupt::install();
    let tasks = tasks_by_name(&args.tasks)?;
    if args.scorer.is_some() && !tasks.iter().any(|task| task.metrics.contains(&Metric::Score)) {
        bail!("--scorer has nothing to score: no task has the metric \"score\", as bold and realtoxicityprompts have");
    }
    let opened = args.model.open()?;
    let EvalData { items: all, mut evaluations, digests } = EvalData::read(args, &tasks, &opened)?;
    let identity = args.run_identity(&tasks, &all, &opened)?;
    let mut finished = FinishedResponses::open(args.output.as_deref(), &identity, &tasks)?;
    let remaining: BTreeMap<Key, &Item> =
        all.iter().filter(|(key, _)| !finished.responses.contains_key(key)).map(|(key, item)| (*key, item)).collect();
    if remaining.len() < all.len() {
        note(&format!("{} of {} documents were finished before", all.len() - remaining.len(), all.len()));
    }
    if !remaining.is_empty() {
        respond(args, &tasks, &remaining, &opened, &mut finished)?;
    }
    let graded = if interrupt::is_requested() { None } else { grade_all(args, &tasks, &all, &finished.responses)? };
    let Some(graded) = graded else {
        if args.output.is_some() {
            note("interrupted; the same command resumes from there");
        }
        return Ok(Outcome::Interrupted);
    };
    let mut samples = Vec::new();
    for (key, graded) in &graded {
        evaluations[key.0].add(graded);
        let sample = |graded| sample_json(&tasks[key.0], &all[key], &finished.responses[key], graded);
        samples.extend(graded.iter().map(sample));
    }
    let config = json!({
        "model": "gemma-pjrt",
        "model_args": format!("{:?}", args.model.identity()),
        "version": env!("CARGO_PKG_VERSION"),
        "mesh": args.model.mesh.to_string(),
        "max_length": opened.context,
        "limit": args.limit,
        "num_fewshot": args.num_fewshot,
        "apply_chat_template": args.apply_chat_template,
        "fewshot_as_multiturn": args.chat() == Some(ChatFormat::Multiturn),
        "tasks": args.tasks,
        "digest": args.digest_of_run(&tasks, &opened),
        "data": digests,
        "shard": args.shard.map(|shard| shard.to_string()),
    });
    if let Some(output) = &args.output {
        write(output, &evaluations, &samples, config)?;
    }
    let printed = write!(std::io::stdout(), "{}", table(&evaluations)).and_then(|()| std::io::stdout().flush());
    // If the table could not be written, the same command writes it from the journal.
    if printed.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::BrokenPipe) {
        finished.remove()?;
    }
    printed.context("cannot write the table to standard output")?;
    Ok(Outcome::Done)
}

/// Has the model score choices and generate answers. Each response goes to `finished` at once.
fn respond(
    args: &Args,
    tasks: &[Task],
    remaining: &BTreeMap<Key, &Item>,
    opened: &OpenedModel,
    finished: &mut FinishedResponses<'_>,
) -> Result<()> {
    let platform = args.model.platform(opened)?;
    let loaded = args.model.load(opened, &platform)?;
    let counter = Counter::new("documents", remaining.len() as u64);
    let failed = RefCell::new(None);
    let goes_on = || failed.borrow().is_none() && !interrupt::is_requested();
    let mut keep = |key: Key, response: Response| {
        // Documents of one group finish together: after a line that could not be written there must
        // be no other.
        if failed.borrow().is_none() {
            counter.advance(1, remaining[&key].tokens() as u64);
            failed.replace(finished.add(tasks, key, response).err());
        }
    };
    interrupt::begin_writing();

    let generation = |key: &Key| tasks[key.0].generate.as_ref();
    let length = |(key, item): (&Key, &&Item)| item.tokens() + generation(key).map_or(0, |g| g.max_tokens);
    let longest = remaining.iter().map(length).max().unwrap_or(1);
    let tokenizer = opened.tokenizer()?;
    let cache_len = opened.cache_len(longest as i64);
    let mut engine = Engine::new(loaded.model, tokenizer.clone(), args.slots.into(), cache_len)?;
    // In a conversation an answer ends with its turn.
    let keys: Vec<Key> = remaining.keys().copied().collect();
    let items: Vec<_> = remaining.iter().map(|(key, item)| (*item, generation(key))).collect();
    eval::respond(&mut engine, &items, &tokenizer.stop_ids().ids, goes_on, |i, response| keep(keys[i], response))?;
    let stats = engine.stats();
    note(&format!(
        "{} tokens of documents were computed, {} came from the cache; {} tokens were generated",
        stats.prefilled, stats.cached, stats.generated
    ));
    let (tokens, time) = counter.finish();
    if let Some(error) = failed.take() {
        return Err(error);
    }
    note(&format!("{} documents of {tokens} tokens in {}", remaining.len(), HumanDuration(time)));
    Ok(())
}

/// Grades all responses. `None` if it was interrupted.
fn grade_all(
    args: &Args,
    tasks: &[Task],
    all: &BTreeMap<Key, Item>,
    responses: &BTreeMap<Key, Response>,
) -> Result<Option<BTreeMap<Key, Vec<GradedResponse>>>> {
    let grade_item = |(key, item): (&Key, &Item)| Ok((*key, grade(&tasks[key.0], item, &responses[key])?));
    let mut graded: BTreeMap<Key, Vec<GradedResponse>> = all.iter().map(grade_item).collect::<Result<_>>()?;
    let (mut places, mut programs) = (vec![], vec![]);
    for (key, graded) in &mut graded {
        for graded in graded {
            if let Some(program) = graded.program(&tasks[key.0], &all[key]) {
                programs.push(program);
                places.push((&tasks[key.0], graded));
            }
        }
    }
    if !programs.is_empty() && !args.allow_code_execution {
        note(&format!("{} programs were not run; --allow-code-execution runs them", programs.len()));
    } else if !programs.is_empty() {
        interrupt::begin_writing();
        for ((task, graded), passes) in places.into_iter().zip(run_programs(&programs, || !interrupt::is_requested())?)
        {
            let Some(passes) = passes else { return Ok(None) };
            graded.set_passes(task, passes);
        }
    }
    match score_all(args, tasks, &mut graded) {
        // Ctrl-C ends the scorer, too.
        Err(_) if interrupt::is_requested() => Ok(None),
        scored => scored.map(|()| Some(graded)),
    }
}

/// Has the user's command score the texts of tasks that need that.
fn score_all(args: &Args, tasks: &[Task], graded: &mut BTreeMap<Key, Vec<GradedResponse>>) -> Result<()> {
    let (mut texts, mut places) = (vec![], vec![]);
    for (key, responses) in graded {
        let task = &tasks[key.0];
        for response in responses {
            if let Some(text) = response.text_to_score(task) {
                texts.push(text.to_owned());
                places.push((task, response));
            }
        }
    }
    match &args.scorer {
        _ if texts.is_empty() => {}
        None => note(&format!("{} texts were not scored; --scorer scores them with a command of yours", texts.len())),
        Some(command) => {
            for ((task, response), score) in places.into_iter().zip(score_texts(command, &texts)?) {
                response.set_score(task, score);
            }
        }
    }
    Ok(())
}

/// The responses so far, kept on disk if there is an output.
struct FinishedResponses<'p> {
    journal: Option<(&'p Path, Journal)>,
    responses: BTreeMap<Key, Response>,
}

impl<'p> FinishedResponses<'p> {
    /// Reads the responses that an earlier attempt of this run finished.
    fn open(output: Option<&'p Path>, identity: &RunIdentity, tasks: &[Task]) -> Result<Self> {
        let Some(output) = output else { return Ok(Self { journal: None, responses: BTreeMap::new() }) };
        let (journal, lines) = Journal::open(&beside(output, PARTIAL), identity)?;
        let response = |line: Value| {
            let task = tasks.iter().position(|task| line["task"] == task.name.as_str())?;
            Some(((task, line["doc_id"].as_u64()? as usize), serde_json::from_value(line["resps"].clone()).ok()?))
        };
        let responses = lines.into_iter().map(response).collect::<Option<_>>();
        let responses = responses.with_context(|| format!("{} is damaged; remove it", journal.path.display()))?;
        Ok(Self { journal: Some((output, journal)), responses })
    }

    fn add(&mut self, tasks: &[Task], key: Key, response: Response) -> Result<()> {
        if let Some((_, journal)) = &mut self.journal {
            journal.write(&json!({"task": tasks[key.0].name, "doc_id": key.1, "resps": response}))?;
        }
        self.responses.insert(key, response);
        Ok(())
    }

    /// Removes the journal, after the results were written.
    fn remove(&self) -> Result<()> {
        let Some((output, _)) = &self.journal else { return Ok(()) };
        let partial = beside(output, PARTIAL);
        fs::remove_file(&partial).with_context(|| format!("cannot remove {}", partial.display()))
    }
}

fn list() -> Result<Outcome> {
    let mut out = std::io::stdout();
    for task in Task::all() {
        let parts = task.subjects.len();
        let parts = if parts > 0 { format!(", {parts} subjects") } else { String::new() };
        // Where each subject has a dataset of its own, their names have only the beginning in
        // common.
        let dataset = task.dataset.split("{{").next().unwrap_or_default();
        writeln!(out, "{} ({dataset}{parts})", task.name)?;
    }
    Ok(Outcome::Done)
}

/// The documents to evaluate.
struct EvalData {
    items: BTreeMap<Key, Item>,
    /// The tasks, with the sizes of their splits.
    evaluations: Vec<Evaluation>,
    /// A digest of each task's split, to check that all shards have the same rows.
    digests: Vec<String>,
}

impl EvalData {
    fn read(args: &Args, tasks: &[Task], opened: &OpenedModel) -> Result<Self> {
        let mut data = Self { items: BTreeMap::new(), evaluations: vec![], digests: vec![] };
        let (shard, limit) = (args.shard.unwrap_or(Shard::WHOLE), args.limit.map(NonZeroUsize::get));
        let format = PromptFormat {
            tokenizer: opened.tokenizer()?,
            num_fewshot: args.num_fewshot,
            max_length: opened.context as usize,
            chat: args.chat(),
        };
        for (i, task) in tasks.iter().enumerate() {
            let dataset = Dataset::open(&args.data, &task.dataset, task.config.as_deref())?;
            let docs = eval::docs(task, &dataset)?;
            let asked = &docs[..limit.unwrap_or(docs.len()).min(docs.len())];
            let items = items(task, &dataset, asked, format, |id| shard.has(id))?;
            data.items.extend(items.into_iter().map(|item| ((i, item.id), item)));
            data.evaluations.push(Evaluation::new(task.clone(), format.shots(task), docs.len()));
            data.digests.push(digest(&docs));
        }
        Ok(data)
    }
}

impl Args {
    fn chat(&self) -> Option<ChatFormat> {
        self.apply_chat_template.then_some(if self.fewshot_as_multiturn {
            ChatFormat::Multiturn
        } else {
            ChatFormat::SingleTurn
        })
    }

    /// Returns a digest by which shards of one run are recognised.
    fn digest_of_run(&self, tasks: &[Task], opened: &OpenedModel) -> String {
        let asked = (self.num_fewshot, self.chat(), self.limit);
        let of_run = (self.model.identity(), asked, opened.context, self.allow_code_execution, &self.scorer);
        format!("{:x}", Sha256::digest(format!("{of_run:?} {tasks:?}")))
    }

    /// Returns by what a resumed run is recognised.
    fn run_identity(&self, tasks: &[Task], all: &BTreeMap<Key, Item>, opened: &OpenedModel) -> Result<RunIdentity> {
        let mut identity = self.model.run_identity(opened)?;
        let mut digest = Sha256::new();
        digest.update(format!("{tasks:?}"));
        for (key, item) in all {
            digest.update(format!("{key:?} {:?}", item.request));
        }
        identity.insert("tasks or documents", format!("{:x}", digest.finalize()));
        identity.insert("shard", self.shard.unwrap_or(Shard::WHOLE).to_string());
        Ok(identity)
    }
}

/// Added to the results' name while the run goes on.
const PARTIAL: &str = ".partial";
