//! `generate`: streams the continuation of one prompt, or answers many prompts from a file.

mod args;
mod batch;
mod constraint_args;
mod line;
mod reply;

pub use args::Args;
pub use line::Line;
pub use reply::{Body, Envelope, Failure};

use std::{
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::json;

use self::batch::Batch;

use super::{
    Outcome, interrupt,
    model_args::{LoadedModel, OpenedModel, read_text},
    note,
    process::{ProcessMemory, size},
};
use crate::{
    constraint::Grammars,
    engine::{Engine, Event, FinishReason, Request, Workload, drive},
    tokenizer::Message,
};

pub(super) fn run(args: &Args, started: Instant) -> Result<Outcome> {
    interrupt::install();
    args.sampling.params()?;
    args.penalties.penalties()?;
    let opened = args.model.open()?;
    if let (Some(input), Some(output)) = (&args.input, &args.output) {
        return run_batch(args, &opened, input, output);
    }
    let text = prompt_text(args)?;
    let platform = args.model.platform(&opened)?;
    let prompt = prompt_tokens(args, &text, &opened)?;
    opened.check_prompt(&prompt, 1)?;
    let grammars = grammars(&opened, args.constraint.constraint().is_some())?;

    let loaded = args.model.load(&opened, &platform)?;
    let tokenizer = opened.tokenizer()?;
    let is_chat = args.prompt_tokens.is_none() && !args.raw;
    let stop_ids = if is_chat { tokenizer.chat_stop_ids() } else { tokenizer.stop_ids().ids.clone() };
    let request = args.request(prompt.clone(), stop_ids)?;
    let cache_len = opened.cache_len(prompt.len() as i64 + i64::from(args.max_tokens));
    let mut engine = Engine::new(loaded.model.clone(), tokenizer.clone(), 1, cache_len)?;
    engine.use_grammars(grammars);
    engine.prepare(&request)?;

    interrupt::begin_writing();
    let mut answer = StreamedAnswer::new(request, started, !args.json);
    drive(&mut engine, &mut answer)?;
    answer.time = answer.submitted.elapsed();
    if !args.json {
        writeln!(std::io::stdout())?;
    }
    let finish_reason = answer.finish_reason.unwrap_or(FinishReason::Interrupted);
    let stats = AnswerStats { prompt: prompt.len(), answer: &answer, finish_reason, loaded: &loaded };
    if args.json {
        let object = json!({
            "prompt_tokens": prompt,
            "tokens": answer.tokens,
            "text": answer.text,
            "finish_reason": finish_reason.name(),
            "timings": stats.json(),
        });
        writeln!(std::io::stdout(), "{object}")?;
    } else {
        note(&stats.line());
    }
    Ok(match finish_reason {
        FinishReason::Interrupted => Outcome::Interrupted,
        _ => Outcome::Done,
    })
}

fn run_batch(args: &Args, opened: &OpenedModel, input: &Path, output: &Path) -> Result<Outcome> {
    let tokenizer = opened.tokenizer()?;
    // What is wrong with the output is said before the model is loaded.
    let batch = Batch::open(input, output, args, opened)?;
    if batch.is_answered() {
        return batch.complete(output);
    }
    let platform = args.model.platform(opened)?;
    let grammars = grammars(opened, batch.has_constraints())?;
    let loaded = args.model.load(opened, &platform)?;
    let cache_len = opened.cache_len(i64::try_from(batch.longest).unwrap_or(i64::MAX));
    let mut engine = Engine::new(loaded.model, tokenizer.clone(), args.slots.into(), cache_len)?;
    engine.use_grammars(grammars);
    interrupt::begin_writing();
    batch.run(&mut engine, tokenizer, output)
}

/// Compiles constraints; if there are some, gets ready for them while the model is loaded.
fn grammars(opened: &OpenedModel, are_used: bool) -> Result<Arc<Grammars>> {
    let grammars = Arc::new(Grammars::new(opened.tokenizer()?.clone()));
    if are_used {
        grammars.prepare();
    }
    Ok(grammars)
}

/// An answer as it is streamed, with its times.
struct StreamedAnswer {
    request: Option<Request>,
    /// When the process began, and the request.
    started: Instant,
    submitted: Instant,
    /// Whether text is written as it comes.
    streams: bool,
    tokens: Vec<u32>,
    text: String,
    finish_reason: Option<FinishReason>,
    /// The time of the first token, since the start of the process and of the request.
    first_token: Option<(Duration, Duration)>,
    /// The time of the whole request.
    time: Duration,
}

impl StreamedAnswer {
    fn new(request: Request, started: Instant, streams: bool) -> Self {
        Self {
            request: Some(request),
            started,
            submitted: Instant::now(),
            streams,
            tokens: vec![],
            text: String::new(),
            finish_reason: None,
            first_token: None,
            time: Duration::ZERO,
        }
    }

    fn push(&mut self, piece: &str) -> Result<()> {
        self.text.push_str(piece);
        if self.streams && !piece.is_empty() {
            let mut out = std::io::stdout().lock();
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    }

    fn prefill(&self) -> Duration {
        self.first_token.map_or(self.time, |(_, since_request)| since_request)
    }
}

impl Workload for StreamedAnswer {
    type Error = anyhow::Error;

    fn submit(&mut self, engine: &mut Engine) -> Result<bool> {
        if let Some(request) = self.request.take() {
            engine.submit(request)?;
        }
        Ok(false)
    }

    fn event(&mut self, _: &mut Engine, event: Event) -> Result<()> {
        match event {
            Event::Tokens { tokens, text, .. } => {
                self.first_token.get_or_insert((self.started.elapsed(), self.submitted.elapsed()));
                self.tokens.extend(tokens.iter().map(|token| token.id));
                self.push(&text)?;
            }
            Event::Finished { answer, .. } => self.finish_reason = Some(answer.finish_reason),
            Event::Failed { error, .. } => bail!(error),
            Event::Started { .. } | Event::Scored { .. } => {}
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        !interrupt::is_requested()
    }
}

/// Reads the prompt; empty if it is given as tokens.
fn prompt_text(args: &Args) -> Result<String> {
    if args.prompt_tokens.is_some() {
        return Ok(String::new());
    }
    read_text(args.prompt.as_deref(), args.prompt_file.as_deref())
}

fn prompt_tokens(args: &Args, text: &str, opened: &OpenedModel) -> Result<Vec<u32>> {
    Ok(match &args.prompt_tokens {
        Some(tokens) => tokens.clone(),
        None if args.raw => opened.tokenizer()?.encode(text)?,
        None => opened.tokenizer()?.encode_chat(&[Message::user(text)])?,
    })
}

struct AnswerStats<'a> {
    prompt: usize,
    answer: &'a StreamedAnswer,
    finish_reason: FinishReason,
    loaded: &'a LoadedModel,
}

impl AnswerStats<'_> {
    /// Returns the tokens per second after the first one, which prefill computes.
    fn decode_rate(&self) -> f64 {
        let decoded = self.answer.tokens.len().saturating_sub(1);
        decoded as f64 / self.decode_seconds().max(1e-9)
    }

    fn decode_seconds(&self) -> f64 {
        (self.answer.time - self.answer.prefill()).as_secs_f64()
    }

    fn prefill_rate(&self) -> f64 {
        self.prompt as f64 / self.answer.prefill().as_secs_f64().max(1e-9)
    }

    /// Returns the seconds from the start of the process to the first token.
    fn first_token(&self) -> Option<f64> {
        self.answer.first_token.map(|(since_start, _)| since_start.as_secs_f64())
    }

    fn line(&self) -> String {
        let (compile, memory) = (self.loaded.model.compile_report(), ProcessMemory::now());
        format!(
            "[prompt {} tokens, {:.1} tok/s; new {} tokens, {:.1} tok/s ({}); first token after {:.2} s; load {:.2} s; \
             compile {:.2} s ({} new, {} cached); peak memory {}, {} allocated]",
            self.prompt,
            self.prefill_rate(),
            self.answer.tokens.len(),
            self.decode_rate(),
            self.finish_reason.name(),
            self.first_token().unwrap_or_default(),
            self.loaded.time.as_secs_f64(),
            compile.time.as_secs_f64(),
            compile.compiled,
            compile.cached,
            size(memory.peak),
            size(memory.anonymous),
        )
    }

    fn json(&self) -> serde_json::Value {
        let (compile, memory) = (self.loaded.model.compile_report(), ProcessMemory::now());
        let placement = self.loaded.model.placement().unwrap_or_default(); // there are tokens, so the weights are placed
        json!({
            "prefill_seconds": self.answer.prefill().as_secs_f64(),
            "prefill_tokens_per_second": self.prefill_rate(),
            "decode_seconds": self.decode_seconds(),
            "decode_tokens_per_second": self.decode_rate(),
            "first_token_seconds": self.first_token(),
            "load_seconds": self.loaded.time.as_secs_f64(),
            "compile_seconds": compile.time.as_secs_f64(),
            "programs_compiled": compile.compiled,
            "programs_cached": compile.cached,
            "peak_rss_bytes": memory.peak,
            "anonymous_rss_bytes": memory.anonymous,
            "weights_mapped_bytes": placement.borrowed,
            "weights_copied_bytes": placement.copied,
        })
    }
}
