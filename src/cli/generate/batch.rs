//! `generate --input`: answers many prompts from a file, into a file.
//!
//! During the run, finished lines are appended to `OUTPUT.partial`, so that a killed process loses
//! nothing that is finished. At the end they are put in the input's order and become OUTPUT.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use indicatif::HumanDuration;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::args::Args;
use crate::{
    cli::{
        Outcome, interrupt,
        journal::{Journal, RunIdentity, beside, write_whole},
        model_args::OpenedModel,
        note,
        progress::Counter,
    },
    engine::{Answer, Driven, Engine, Event, Request, RequestId, Workload, drive},
    runtime::Token,
    tokenizer::{Message, Tokenizer},
};

/// One line of the input. Fields that it leaves out are as on the command line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    /// Anything; it is copied to the output.
    #[serde(default)]
    id: Value,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    /// Token ids, used as they are.
    tokens: Option<Vec<u32>>,
    /// True if to continue the prompt as it is, without the chat format.
    raw: Option<bool>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<i32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<u64>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    #[serde(default)]
    logit_bias: BTreeMap<String, f32>,
    stop: Option<Vec<String>>,
    #[serde(default)]
    stop_token_ids: Vec<u32>,
    n: Option<usize>,
    logprobs: Option<usize>,
    #[serde(default)]
    echo: bool,
}

impl RequestLine {
    fn request(self, args: &Args, tokenizer: &Tokenizer) -> Result<Request> {
        let prompt = match (self.prompt, self.messages, self.tokens) {
            (Some(text), None, None) if self.raw.unwrap_or(args.raw) => tokenizer.encode(&text)?,
            (Some(text), None, None) => tokenizer.encode_chat(&[Message::user(text)])?,
            (None, Some(messages), None) => tokenizer.encode_chat(&messages)?,
            (None, None, Some(tokens)) => tokens,
            _ => bail!("give one of \"prompt\", \"messages\" and \"tokens\""),
        };
        let mut request = args.request(prompt, tokenizer)?;
        let set = |target: &mut f32, given: Option<f32>| *target = given.unwrap_or(*target);
        set(&mut request.params.temperature, self.temperature);
        set(&mut request.params.top_p, self.top_p);
        set(&mut request.params.min_p, self.min_p);
        set(&mut request.penalties.repetition, self.repetition_penalty);
        set(&mut request.penalties.presence, self.presence_penalty);
        set(&mut request.penalties.frequency, self.frequency_penalty);
        request.params.top_k = self.top_k.unwrap_or(request.params.top_k);
        request.params.seed = self.seed.unwrap_or(request.params.seed);
        request.max_tokens = self.max_tokens.unwrap_or(request.max_tokens);
        request.n = self.n.unwrap_or(1);
        request.logprobs = self.logprobs;
        request.echo = self.echo;
        request.stop_ids.extend(self.stop_token_ids);
        request.stop = self.stop.unwrap_or(request.stop);
        for (id, bias) in self.logit_bias {
            let id = id.parse().with_context(|| format!("logit_bias names {id:?}, which is no token id"))?;
            request.logit_bias.push((id, bias));
        }
        Ok(request)
    }
}

/// The lines of the input: their ids and requests.
pub struct Batch {
    identity: RunIdentity,
    lines: Vec<(Value, Result<Request, String>)>,
}

impl Batch {
    /// Reads the input. An invalid line becomes an error in the output, and does not stop the
    /// others.
    ///
    /// # Errors
    /// The file cannot be read, or has no lines.
    pub fn read(path: &Path, args: &Args, opened: &OpenedModel) -> Result<Self> {
        let tokenizer = opened.tokenizer()?;
        let reading = || format!("cannot read {}", path.display());
        let bytes = fs::read(path).with_context(reading)?;
        let text = std::str::from_utf8(&bytes).with_context(reading)?;
        let parse = |line: &str| match serde_json::from_str::<RequestLine>(line) {
            Ok(line) => (line.id.clone(), line.request(args, tokenizer).map_err(|e| format!("{e:#}"))),
            Err(e) => (Value::Null, Err(format!("this is no valid request: {e}"))),
        };
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).map(parse).collect();
        if lines.is_empty() {
            bail!("{} has no lines; give one JSON object a line, such as {{\"prompt\": \"...\"}}", path.display());
        }
        // A run with other settings must not resume this one.
        let settings = format!("{:?}", (args.max_tokens, &args.sampling, &args.penalties, &args.stop, args.raw));
        let mut identity = args.model.run_identity(opened)?;
        identity.insert("input", format!("{:x}", Sha256::digest(&bytes)));
        identity.insert("settings", format!("{:x}", Sha256::digest(settings)));
        Ok(Self { identity, lines })
    }

    /// Returns the tokens of the longest prompt together with its answer.
    pub fn longest(&self) -> usize {
        let requests = self.lines.iter().filter_map(|(_, request)| request.as_ref().ok());
        requests.map(|request| request.prompt.len() + request.max_tokens).max().unwrap_or(1)
    }

    /// Answers the lines that are not finished yet.
    ///
    /// # Errors
    /// The model fails to run, or the output cannot be written.
    pub fn run(self, engine: &mut Engine, output: &Path) -> Result<Outcome> {
        let finished = FinishedLines::open(output, &self.identity, self.lines.len())?;
        let total = self.lines.len();
        let kept = finished.lines.len();
        if kept > 0 {
            note(&format!("{kept} of {total} lines were finished before"));
        }
        let remaining: Vec<_> =
            self.lines.into_iter().enumerate().filter(|(i, _)| !finished.lines.contains_key(i)).collect();
        let counter = Counter::new("lines", remaining.len() as u64);
        let mut lines = RunningLines { queue: remaining.into_iter(), running: HashMap::new(), finished, counter };
        let driven = drive(engine, &mut lines)?;
        let RunningLines { finished, counter, .. } = lines;
        let (tokens, time) = counter.finish();
        if driven == Driven::Stopped {
            let path = finished.journal.path.display();
            note(&format!("interrupted; finished lines are in {path}; the same command resumes from there"));
            return Ok(Outcome::Interrupted);
        }
        let failed = finished.complete(output)?;
        let rate = tokens as f64 / time.as_secs_f64().max(1e-9);
        note(&format!("{total} lines; {tokens} tokens in {}, {rate:.1} tok/s", HumanDuration(time)));
        if failed > 0 {
            note(&format!("{failed} lines could not be run; see \"error\" in {}", output.display()));
            return Ok(Outcome::Incomplete);
        }
        Ok(Outcome::Done)
    }
}

/// A line of the input: its index, its id, and its request or why there is none.
type Line = (usize, (Value, Result<Request, String>));

/// Lines that are being answered.
struct RunningLines {
    queue: std::vec::IntoIter<Line>,
    running: HashMap<RequestId, RunningRequest>,
    finished: FinishedLines,
    counter: Counter,
}

impl RunningLines {
    /// Writes an error as the line's answer.
    fn fail(&mut self, index: usize, id: &Value, error: &str) -> Result<()> {
        self.finished.write(index, json!({"index": index, "id": id, "error": error}))?;
        self.counter.advance(1, 0);
        Ok(())
    }
}

impl Workload for RunningLines {
    type Error = anyhow::Error;

    fn submit(&mut self, engine: &mut Engine) -> Result<bool> {
        let Some((index, (id, request))) = self.queue.next() else { return Ok(false) };
        match request.and_then(|r| Ok((r.clone(), engine.submit(r).map_err(|e| e.to_string())?))) {
            Ok((request, name)) => {
                self.running.insert(name, RunningRequest { index, id, request, answers: BTreeMap::new() });
            }
            Err(error) => self.fail(index, &id, &error)?,
        }
        Ok(true)
    }

    fn event(&mut self, _: &mut Engine, event: Event) -> Result<()> {
        match event {
            Event::Tokens { .. } | Event::Scored { .. } => {}
            Event::Finished { id, index, answer } => {
                let tokens = answer.tokens.len() as u64;
                let request = self.running.get_mut(&id).expect("it was submitted");
                request.answers.insert(index, answer);
                if request.answers.len() < request.request.n {
                    self.counter.advance(0, tokens);
                    return Ok(());
                }
                let done = self.running.remove(&id).expect("it was there");
                self.finished.write(done.index, done.json())?;
                self.counter.advance(1, tokens);
            }
            Event::Failed { id, error } => {
                let RunningRequest { index, id, .. } = self.running.remove(&id).expect("it was submitted");
                self.fail(index, &id, &error)?;
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
    index: usize,
    id: Value,
    request: Request,
    answers: BTreeMap<usize, Answer>,
}

impl RunningRequest {
    fn json(&self) -> Value {
        let first = &self.answers[&0];
        let choice = |(index, answer): (&usize, &Answer)| {
            let mut choice = json!({
                "index": index,
                "text": answer.text,
                "tokens": answer.tokens.iter().map(|token| token.id).collect::<Vec<_>>(),
                "finish_reason": answer.finish_reason.name(),
            });
            if self.request.logprobs.is_some() {
                choice["logprobs"] = answer.tokens.iter().map(logprobs).collect();
            }
            choice
        };
        let mut object = json!({
            "index": self.index,
            "id": self.id,
            "choices": self.answers.iter().map(choice).collect::<Vec<_>>(),
            "usage": {
                "prompt_tokens": self.request.prompt.len(),
                "cached_tokens": first.cached,
                "completion_tokens": self.answers.values().map(|answer| answer.tokens.len()).sum::<usize>(),
            },
        });
        if let Some(prompt) = &first.prompt {
            object["prompt_logprobs"] = prompt.iter().map(logprobs).collect();
        }
        object
    }
}

fn logprobs(token: &Token) -> Value {
    let logprobs = token.logprobs.as_ref();
    let top = logprobs.map_or(&[][..], |logprobs| &logprobs.top);
    let top: Vec<Value> = top.iter().map(|(id, logprob)| json!({"token": id, "logprob": logprob})).collect();
    json!({"token": token.id, "logprob": logprobs.map(|logprobs| logprobs.own), "top": top})
}

/// Finished lines, by index.
struct FinishedLines {
    journal: Journal,
    lines: BTreeMap<usize, Value>,
}

impl FinishedLines {
    /// Reads the lines that an earlier run with the same input and settings finished.
    fn open(output: &Path, identity: &RunIdentity, count: usize) -> Result<Self> {
        if output.exists() {
            bail!("{} is there already; remove it, or choose another --output", output.display());
        }
        let (journal, kept) = Journal::open(&beside(output, ".partial"), identity)?;
        let mut lines = BTreeMap::new();
        for line in kept {
            let index = line["index"].as_u64().filter(|&i| i < count as u64);
            lines.insert(
                index.with_context(|| format!("{} is damaged; remove it", journal.path.display()))? as usize,
                line,
            );
        }
        Ok(Self { journal, lines })
    }

    fn write(&mut self, index: usize, line: Value) -> Result<()> {
        self.journal.write(&line)?;
        self.lines.insert(index, line);
        Ok(())
    }

    /// Writes the output in the input's order. Returns the number of lines with an error.
    fn complete(self, output: &Path) -> Result<usize> {
        let path = &self.journal.path;
        write_whole(output, |out| self.lines.values().try_for_each(|line| writeln!(out, "{line}")))
            .with_context(|| format!("all answers are in {}", path.display()))?;
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        Ok(self.lines.values().filter(|line| line.get("error").is_some()).count())
    }
}
