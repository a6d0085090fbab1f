//! `generate`: one prompt in, text out as it comes.

use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::json;

use super::{
    Outcome, interrupt,
    model_args::{Loaded, ModelArgs, Opened, SamplingArgs, parse_tokens, read_text},
    process::{Memory, size},
};
use crate::{
    runtime::{FinishReason, Generation, Request, Session, generate},
    tokenizer::{Detokenizer, Message, StopStrings, Tokenizer},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prompt; without it, standard input is read
    #[arg(conflicts_with_all = ["prompt_file", "prompt_tokens"])]
    prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt_tokens")]
    prompt_file: Option<PathBuf>,
    /// The prompt as token ids, taken as they are: 2,106,1645
    #[arg(long, value_name = "IDS", value_parser = parse_tokens)]
    // The full path keeps clap from taking the list for a repeated option.
    prompt_tokens: Option<std::vec::Vec<u32>>,
    #[command(flatten)]
    model: ModelArgs,
    /// Continue the text as it is, without the chat format
    #[arg(long)]
    raw: bool,
    /// Most tokens to generate
    #[arg(long, short = 'n', value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// End the text before this string (may be repeated)
    #[arg(long, value_name = "STR")]
    stop: Vec<String>,
    /// Print one JSON object instead of streaming text
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, started: Instant) -> Result<Outcome> {
    interrupt::install();
    let params = args.sampling.params()?;
    let opened = args.model.open()?;
    let text = prompt_text(args)?;
    let platform = args.model.platform(&opened)?;
    let prompt = prompt_tokens(args, &text, &opened)?;
    opened.check_prompt(&prompt, 1)?;

    let loaded = args.model.load(&opened, &platform)?;
    let wanted = prompt.len() as i64 + i64::from(args.max_tokens);
    let cache_len = opened.cache_len(wanted);
    let mut session = Session::new(loaded.model.clone(), 1, cache_len)?;
    session.prepare(0, prompt.len() as i64, params.sampler())?;

    interrupt::begin_writing();
    let tokenizer = opened.tokenizer()?;
    let mut writer = Writer::new(tokenizer, &args.stop, !args.json);
    let mut first_token = None;
    let mut failed = None;
    let stop_ids = tokenizer.stop_ids();
    let request =
        Request { prompt: &prompt, cached: 0, max_tokens: args.max_tokens as usize, params, stop_ids: &stop_ids };
    let generation = generate(&mut session, &request, |token| {
        first_token.get_or_insert_with(|| started.elapsed());
        match writer.push(token) {
            Ok(true) => Some(FinishReason::Stop),
            Ok(false) => interrupt::asked().then_some(FinishReason::Interrupted),
            Err(e) => {
                failed = Some(e);
                Some(FinishReason::Stop)
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let text = writer.finish()?;
    let stats = Stats { prompt: prompt.len(), generation: &generation, first_token, loaded: &loaded };
    if args.json {
        let object = json!({
            "prompt_tokens": prompt,
            "tokens": generation.tokens,
            "text": text,
            "finish_reason": generation.finish_reason.name(),
            "timings": stats.json(),
        });
        writeln!(std::io::stdout(), "{object}")?;
    } else {
        eprintln!("{}", stats.line());
    }
    Ok(match generation.finish_reason {
        FinishReason::Interrupted => Outcome::Interrupted,
        _ => Outcome::Done,
    })
}

/// The prompt, empty where its tokens are given.
fn prompt_text(args: &Args) -> Result<String> {
    if args.prompt_tokens.is_some() {
        return Ok(String::new());
    }
    read_text(args.prompt.as_deref(), args.prompt_file.as_deref())
}

fn prompt_tokens(args: &Args, text: &str, opened: &Opened) -> Result<Vec<u32>> {
    Ok(match &args.prompt_tokens {
        Some(tokens) => tokens.clone(),
        None if args.raw => opened.tokenizer()?.encode(text)?,
        None => opened.tokenizer()?.encode_chat(&[Message::user(text)])?,
    })
}

/// Turns tokens into text, looks for stop strings, and streams what is sure not to be part of one.
struct Writer<'a> {
    detokenizer: Detokenizer<'a>,
    stop: StopStrings,
    text: String,
    stream: bool,
}

impl<'a> Writer<'a> {
    fn new(tokenizer: &'a Tokenizer, stop: &[String], stream: bool) -> Self {
        let stop = StopStrings::new(stop.to_vec());
        Self { detokenizer: tokenizer.stream(), stop, text: String::new(), stream }
    }

    /// Returns whether a stop string ended the text.
    fn push(&mut self, token: u32) -> Result<bool> {
        let piece = self.detokenizer.push(token)?;
        let (piece, stopped) = self.stop.push(&piece);
        self.write(&piece)?;
        Ok(stopped)
    }

    fn write(&mut self, piece: &str) -> Result<()> {
        self.text.push_str(piece);
        if self.stream && !piece.is_empty() {
            let mut out = std::io::stdout().lock();
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<String> {
        let rest = self.detokenizer.finish()?;
        let (piece, stopped) = self.stop.push(&rest);
        self.write(&piece)?;
        if !stopped {
            let held = self.stop.take_held();
            self.write(&held)?;
        }
        if self.stream {
            writeln!(std::io::stdout())?;
        }
        Ok(self.text)
    }
}

struct Stats<'a> {
    prompt: usize,
    generation: &'a Generation,
    /// Since the process began.
    first_token: Option<Duration>,
    loaded: &'a Loaded,
}

impl Stats<'_> {
    /// Tokens after the first, which prefill gives, per second.
    fn decode_rate(&self) -> f64 {
        let decoded = self.generation.tokens.len().saturating_sub(1);
        decoded as f64 / self.generation.decode.as_secs_f64().max(1e-9)
    }

    fn prefill_rate(&self) -> f64 {
        self.prompt as f64 / self.generation.prefill.as_secs_f64().max(1e-9)
    }

    fn line(&self) -> String {
        let (compile, memory) = (self.loaded.model.compile_report(), Memory::now());
        format!(
            "[prompt {} tokens, {:.1} tok/s; new {} tokens, {:.1} tok/s ({}); first token after {:.2} s; load {:.2} s; \
             compile {:.2} s ({} new, {} cached); peak memory {}, of ours {}]",
            self.prompt,
            self.prefill_rate(),
            self.generation.tokens.len(),
            self.decode_rate(),
            self.generation.finish_reason.name(),
            self.first_token.unwrap_or_default().as_secs_f64(),
            self.loaded.time.as_secs_f64(),
            compile.time.as_secs_f64(),
            compile.compiled,
            compile.cached,
            size(memory.peak),
            size(memory.anonymous),
        )
    }

    fn json(&self) -> serde_json::Value {
        let (compile, memory) = (self.loaded.model.compile_report(), Memory::now());
        let placement = self.loaded.model.placement().unwrap_or_default(); // tokens were computed: it is there
        json!({
            "prefill_seconds": self.generation.prefill.as_secs_f64(),
            "prefill_tokens_per_second": self.prefill_rate(),
            "decode_seconds": self.generation.decode.as_secs_f64(),
            "decode_tokens_per_second": self.decode_rate(),
            "first_token_seconds": self.first_token.map(|t| t.as_secs_f64()),
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
