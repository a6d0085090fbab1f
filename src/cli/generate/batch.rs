//! `generate --input`: answers many prompts from a file, into a file.
//!
//! During the run, finished lines are appended to `OUTPUT.partial`, so that a killed process loses
//! nothing that is finished. At the end they are put in the input's order and become OUTPUT.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fs,
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::HumanDuration;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    args::Args,
    line::Line,
    reply::{Answers, Body, Envelope, Failure},
};
use crate::{
    cli::{
        Outcome, interrupt,
        journal::{Journal, RunIdentity, write_whole},
        model_args::OpenedModel,
        note,
        progress::Counter,
    },
    engine::{Driven, Engine, Event, Request, RequestId, Workload, drive},
    model_file::without_mark,
    tokenizer::Tokenizer,
    whole_file::beside,
};

/// The lines of the input, and those of them that an earlier run answered.
pub struct Batch {
    /// Lines without an answer, with their indices.
    remaining: Vec<(usize, Line)>,
    finished: FinishedLines,
    total: usize,
    /// The tokens of the longest prompt together with its answer, of all lines: the same in each
    /// run, and with it the programs.
    pub longest: usize,
}

impl Batch {
    /// Reads the input, and the answers of an earlier run. An invalid line becomes an error in the
    /// output, and does not stop the others.
    ///
    /// # Errors
    /// The file cannot be read, has no lines, or the output is there already, belongs to another
    /// run, or cannot be written.
    pub fn open(path: &Path, output: &Path, args: &Args, opened: &OpenedModel) -> Result<Self> {
        if output.exists() {
            bail!("{} is there already; remove it, or choose another --output", output.display());
        }
        let tokenizer = opened.tokenizer()?;
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
            anyhow!("{} is not UTF-8 from line {line} on; save it as UTF-8", path.display())
        })?;
        let given = without_mark(text).lines().filter(|line| !line.trim().is_empty());
        let mut lines: Vec<_> = given.map(|line| Line::parse(line, args, tokenizer)).collect();
        refuse_second_ids(&mut lines);
        if lines.is_empty() {
            bail!("{} has no lines; give one JSON object a line, such as {{\"prompt\": \"...\"}}", path.display());
        }
        // A run with other settings must not resume this one.
        let settings =
            format!("{:?}", (args.max_tokens, &args.sampling, &args.penalties, &args.stop, args.raw, &args.constraint));
        let mut identity = args.model.run_identity(opened)?;
        identity.insert("input", format!("{:x}", Sha256::digest(&bytes)));
        identity.insert("settings", format!("{:x}", Sha256::digest(settings)));
        let finished = FinishedLines::open(output, &identity, lines.len())?;
        let longest = lines.iter().map(Line::tokens).max().unwrap_or_default().max(1);
        let (total, kept) = (lines.len(), finished.lines.len());
        if kept > 0 {
            note(&format!("{kept} of {total} lines were finished before"));
        }
        let remaining =
            lines.into_iter().enumerate().filter(|(index, _)| !finished.lines.contains_key(index)).collect();
        Ok(Self { remaining, finished, total, longest })
    }

    /// Returns whether an answer is held to a form.
    pub fn has_constraints(&self) -> bool {
        let has_one = |line: &Line| line.request.as_ref().is_ok_and(|(request, _)| request.constraint.is_some());
        self.remaining.iter().any(|(_, line)| has_one(line))
    }

    /// Returns whether all lines are answered, so that no model is needed.
    pub fn is_answered(&self) -> bool {
        self.remaining.is_empty()
    }

    /// Answers the lines that are not finished yet, and writes the output.
    ///
    /// # Errors
    /// The model fails to run, or the output cannot be written.
    pub fn run(self, engine: &mut Engine, tokenizer: &Tokenizer, output: &Path) -> Result<Outcome> {
        let counter = Counter::new("lines", self.remaining.len() as u64);
        let queue = self.remaining.into_iter();
        let mut lines = RunningLines { tokenizer, queue, running: HashMap::new(), finished: self.finished, counter };
        let driven = drive(engine, &mut lines)?;
        let RunningLines { finished, counter, .. } = lines;
        let (tokens, time) = counter.finish();
        if driven == Driven::Stopped {
            let path = finished.journal.path.display();
            note(&format!("interrupted; finished lines are in {path}; the same command resumes from there"));
            return Ok(Outcome::Interrupted);
        }
        let outcome = finished.complete(output)?;
        let rate = tokens as f64 / time.as_secs_f64().max(1e-9);
        note(&format!("{} lines; {tokens} tokens in {}, {rate:.1} tok/s", self.total, HumanDuration(time)));
        Ok(outcome)
    }

    /// Writes the output, if all lines are answered.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn complete(self, output: &Path) -> Result<Outcome> {
        self.finished.complete(output)
    }
}

/// Refuses lines of OpenAI's format whose id an earlier line has: their answers could not be told
/// apart.
fn refuse_second_ids(lines: &mut [Line]) {
    let mut seen = HashMap::new();
    for (index, line) in lines.iter_mut().enumerate().filter(|(_, line)| line.envelope == Envelope::OpenAi) {
        let Some(id) = line.id.as_str() else { continue };
        match seen.entry(id.to_owned()) {
            Entry::Vacant(free) => {
                free.insert(index);
            }
            Entry::Occupied(first) => {
                line.request =
                    Err(format!("\"custom_id\" is that of index {}, too; give each line its own", first.get()));
            }
        }
    }
}

/// Lines that are being answered.
struct RunningLines<'t> {
    tokenizer: &'t Tokenizer,
    /// Lines and their indices.
    queue: std::vec::IntoIter<(usize, Line)>,
    running: HashMap<RequestId, RunningRequest>,
    finished: FinishedLines,
    counter: Counter,
}

/// The place of a line in the output.
struct Place {
    index: usize,
    id: Value,
    envelope: Envelope,
}

impl RunningLines<'_> {
    /// Writes an error as the line's answer.
    fn fail(&mut self, place: &Place, failure: Failure, error: &str) -> Result<()> {
        let line = place.envelope.failed(place.index, &place.id, failure, error);
        self.finished.write(place.index, FinishedLine { failed: true, line })?;
        self.counter.advance(1, 0);
        Ok(())
    }

    /// Writes the answers of a request that is finished.
    fn complete(&mut self, done: &RunningRequest, tokens: u64) -> Result<()> {
        let RunningRequest { place, request, body, answers } = done;
        match body.json(request, answers, self.tokenizer) {
            Ok(body) => {
                let line = place.envelope.answered(place.index, &place.id, body);
                self.finished.write(place.index, FinishedLine { failed: false, line })?;
                self.counter.advance(1, tokens);
                Ok(())
            }
            Err(e) => self.fail(place, Failure::Step, &e.to_string()),
        }
    }
}

impl Workload for RunningLines<'_> {
    type Error = anyhow::Error;

    fn submit(&mut self, engine: &mut Engine) -> Result<bool> {
        let Some((index, Line { id, envelope, request })) = self.queue.next() else { return Ok(false) };
        let place = Place { index, id, envelope };
        let submitted = request.and_then(|(request, body)| {
            let name = engine.submit(request.clone()).map_err(|refusal| refusal.to_string())?;
            Ok((name, request, body))
        });
        match submitted {
            Ok((name, request, body)) => {
                self.running.insert(name, RunningRequest { place, request, body, answers: BTreeMap::new() });
            }
            Err(error) => self.fail(&place, Failure::Refused, &error)?,
        }
        Ok(true)
    }

    fn event(&mut self, _: &mut Engine, event: Event) -> Result<()> {
        match event {
            Event::Started { .. } | Event::Tokens { .. } | Event::Scored { .. } => {}
            Event::Finished { id, index, answer } => {
                let tokens = answer.generated() as u64;
                let request = self.running.get_mut(&id).expect("it was submitted");
                request.answers.insert(index, answer);
                if request.answers.len() < request.request.n {
                    self.counter.advance(0, tokens);
                    return Ok(());
                }
                let done = self.running.remove(&id).expect("it was there");
                self.complete(&done, tokens)?;
            }
            Event::Failed { id, error, .. } => {
                let request = self.running.remove(&id).expect("it was submitted");
                self.fail(&request.place, Failure::Step, &error)?;
            }
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        !interrupt::is_requested()
    }
}

/// A request that is running.
struct RunningRequest {
    place: Place,
    request: Request,
    body: Body,
    answers: Answers,
}

/// A line of the output. The journal has it with its index, which the line itself may lack.
struct FinishedLine {
    failed: bool,
    line: Value,
}

/// Finished lines, by index.
struct FinishedLines {
    journal: Journal,
    lines: BTreeMap<usize, FinishedLine>,
}

impl FinishedLines {
    /// Reads the lines that an earlier run with the same input and settings finished.
    fn open(output: &Path, identity: &RunIdentity, count: usize) -> Result<Self> {
        let (journal, kept) = Journal::open(&beside(output, ".partial"), identity)?;
        let mut lines = BTreeMap::new();
        for mut record in kept {
            let index = record["index"].as_u64().filter(|&i| i < count as u64);
            let line = record.get_mut("line").map(Value::take);
            let (Some(index), Some(failed), Some(line)) = (index, record["failed"].as_bool(), line) else {
                bail!("{} is damaged; remove it", journal.path.display());
            };
            lines.insert(index as usize, FinishedLine { failed, line });
        }
        Ok(Self { journal, lines })
    }

    fn write(&mut self, index: usize, finished: FinishedLine) -> Result<()> {
        let FinishedLine { failed, line } = &finished;
        self.journal.write(&json!({"index": index, "failed": failed, "line": line}))?;
        self.lines.insert(index, finished);
        Ok(())
    }

    /// Writes the output in the input's order, and says how many lines have an error.
    fn complete(self, output: &Path) -> Result<Outcome> {
        let path = &self.journal.path;
        write_whole(output, |out| self.lines.values().try_for_each(|done| writeln!(out, "{}", done.line)))
            .with_context(|| format!("all answers are in {}", path.display()))?;
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        let failed = self.lines.values().filter(|done| done.failed).count();
        if failed > 0 {
            note(&format!("{failed} lines could not be run; see \"error\" in {}", output.display()));
            return Ok(Outcome::Incomplete);
        }
        Ok(Outcome::Done)
    }
}
