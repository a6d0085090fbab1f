//! `chat`: a conversation. The KV cache is kept from turn to turn.

mod commands;
mod input;
mod transcript;

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use self::{
    commands::{COMMANDS, UserInput},
    input::{InputEvent, LineReader, colours},
    transcript::Transcript,
};
use super::{
    Outcome, interrupt,
    model_args::{LoadedModel, ModelArgs, SamplingArgs},
    note,
    process::{ProcessMemory, size},
};
use crate::{
    engine::{Conversation, FinishReason, Turn},
    runtime::Error,
    sampling::Params,
    tokenizer::Message,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Put TEXT before your first message: Gemma has no system role
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The most tokens of an answer
    #[arg(long, short = 'n', value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
}

const PROMPT: &str = "> ";
/// Positions of the context that must be left for an answer.
const ROOM: usize = 16;

pub fn run(args: &Args, started: Instant) -> Result<Outcome> {
    interrupt::install();
    let params = args.sampling.params()?;
    let opened = args.model.open()?;
    let platform = args.model.platform(&opened)?;
    let loaded = args.model.load(&opened, &platform)?;
    let system = args.system.clone().filter(|text| !text.is_empty());
    if system.is_some() {
        note("note: Gemma has no system role; the text of --system is put before your first message");
    }
    let conversation = Conversation::new(loaded.model.clone(), opened.tokenizer()?.clone(), opened.context, system)?;
    let input = LineReader::open()?;
    if input.is_terminal() {
        note(&format!(
            "{} is ready after {:.2} s. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves",
            args.model.model,
            started.elapsed().as_secs_f64()
        ));
    }
    let max_tokens = args.max_tokens as usize;
    let model = &args.model.model;
    let totals = Totals::default();
    Chat { conversation, input, params, max_tokens, model, loaded: &loaded, regenerated: 0, totals }.run()
}

struct Chat<'a> {
    conversation: Conversation,
    input: LineReader,
    params: Params,
    max_tokens: usize,
    model: &'a str,
    loaded: &'a LoadedModel,
    /// How many times the last question was answered again.
    regenerated: u64,
    totals: Totals,
}

/// Totals over all answers.
#[derive(Default)]
struct Totals {
    answers: usize,
    prefilled: usize,
    kept: usize,
    generated: usize,
    prefill: Duration,
    decode: Duration,
}

impl Chat<'_> {
    /// Handles lines until the user leaves. Errors are reported, and the conversation continues.
    /// Without a terminal they decide the exit code.
    fn run(mut self) -> Result<Outcome> {
        let mut failures = 0;
        for number in 1.. {
            let line = match self.input.line(PROMPT)? {
                InputEvent::Line(line) => line,
                InputEvent::NotText => {
                    failures += 1;
                    note(&format!(
                        "error: line {number} of standard input is not UTF-8 text, so it was not asked; convert it, e.g. with iconv \
                         -t UTF-8"
                    ));
                    continue;
                }
                InputEvent::Interrupt => {
                    note("Ctrl-D or /exit leaves");
                    continue;
                }
                InputEvent::End => break,
            };
            match self.handle(&line) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if super::is_broken_pipe(&error) => return Err(error),
                Err(error) => {
                    failures += 1;
                    note(&format!("error: {error:#}"));
                }
            }
        }
        if failures > 0 && !self.input.is_terminal() {
            return Err(anyhow!("{failures} of the lines failed, see above"));
        }
        Ok(Outcome::Done)
    }

    /// Handles a line. Returns whether to continue.
    fn handle(&mut self, line: &str) -> Result<bool> {
        match UserInput::parse(line).map_err(anyhow::Error::msg)? {
            UserInput::Empty => {}
            UserInput::Question(question) => {
                self.regenerated = 0;
                self.answer(question)?;
            }
            UserInput::Reset => {
                let system = self.conversation.system().map(str::to_owned);
                self.conversation.replace(vec![], system)?;
                note("a new conversation begins");
            }
            UserInput::Undo => match self.conversation.undo() {
                Some(question) => note(&format!("taken back: {question}")),
                None => note("there is nothing to take back"),
            },
            UserInput::Regenerate => self.regenerate()?,
            UserInput::Save(file) => {
                let system = self.conversation.system().map(str::to_owned);
                let messages = self.conversation.messages().to_vec();
                let turns = messages.len() / 2;
                Transcript { model: self.model.to_owned(), system, messages }.save(Path::new(file))?;
                note(&format!("saved {turns} turns to {file}"));
            }
            UserInput::Load(file) => {
                let Transcript { system, messages, model } = Transcript::load(Path::new(file))?;
                let turns = messages.len() / 2;
                self.conversation.replace(messages, system)?;
                let other = if model == self.model { String::new() } else { format!(", which {model} answered") };
                note(&format!("loaded {turns} turns from {file}{other}"));
            }
            UserInput::Stats => self.stats(),
            UserInput::Help => {
                for (name, takes, what) in COMMANDS {
                    note(&format!("{:<14}{what}", format!("{name}{takes}")));
                }
            }
            UserInput::Exit => return Ok(false),
        }
        Ok(true)
    }

    fn regenerate(&mut self) -> Result<()> {
        let Some(answer) = self.conversation.messages().last().cloned() else {
            note("there is no question to answer again");
            return Ok(());
        };
        let question = self.conversation.undo().expect("there is an answer, so there is a question");
        self.regenerated += 1;
        let result = self.answer(&question);
        // A question whose new answer failed keeps the old one.
        if !matches!(result, Ok(true)) {
            let system = self.conversation.system().map(str::to_owned);
            let mut messages = self.conversation.messages().to_vec();
            messages.extend([Message::user(question), answer]);
            self.conversation.replace(messages, system)?;
        }
        result.map(drop)
    }

    /// Asks the model and streams its answer. Returns false if the context is full and the user
    /// wants to keep it.
    fn answer(&mut self, question: &str) -> Result<bool> {
        let params = Params { seed: self.params.seed.wrapping_add(self.regenerated), ..self.params };
        let turn = match self.ask(question, params) {
            Err(error) => match error.downcast_ref() {
                Some(Error::ContextFull { .. }) => {
                    note(&format!("{error}"));
                    if !self.drop_oldest(question)? {
                        return Ok(false);
                    }
                    self.ask(question, params)?
                }
                _ => return Err(error),
            },
            Ok(turn) => turn,
        };
        self.totals.add(&turn);
        self.report(&turn);
        Ok(true)
    }

    fn ask(&mut self, question: &str, params: Params) -> Result<Turn> {
        interrupt::begin_writing();
        let mut failed = None;
        let result = self.conversation.ask(question, self.max_tokens, ROOM, params, |piece| {
            let mut out = io::stdout().lock();
            match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => interrupt::is_requested().then_some(FinishReason::Interrupted),
                Err(error) => {
                    failed = Some(error);
                    Some(FinishReason::Interrupted)
                }
            }
        });
        interrupt::end_writing();
        if let Some(error) = failed {
            return Err(error.into());
        }
        let turn = result?;
        writeln!(io::stdout())?;
        Ok(turn)
    }

    /// Drops the oldest turns to make room for an answer. Asks the user first, if there is a
    /// terminal. Returns whether turns were dropped.
    fn drop_oldest(&mut self, question: &str) -> Result<bool> {
        if self.input.is_terminal() {
            let answer = match self.input.line("Drop the oldest turns and continue? [Y/n] ")? {
                InputEvent::Line(line) => line.trim().to_lowercase(),
                InputEvent::NotText | InputEvent::Interrupt | InputEvent::End => "n".into(),
            };
            if !["", "y", "yes"].contains(&answer.as_str()) {
                note("nothing was asked; /reset begins a new conversation, /save FILE keeps this one");
                return Ok(false);
            }
        }
        // More room than for this turn alone, or the next turn would fill the context again.
        let room = ROOM.max(self.conversation.context() as usize / 4);
        let dropped = match self.conversation.drop_oldest(question, room) {
            Err(Error::ContextFull { .. }) => self.conversation.drop_oldest(question, ROOM)?,
            other => other?,
        };
        note(&format!("dropped the {dropped} oldest turns"));
        Ok(true)
    }

    fn report(&self, turn: &Turn) {
        let decoded = turn.tokens.len().saturating_sub(1);
        let line = format!(
            "[{} of {} prompt tokens prefilled in {:.2} s, {} kept; {} tokens, {:.1} tok/s ({}); context {} of {}]",
            turn.prompt - turn.kept,
            turn.prompt,
            turn.prefill.as_secs_f64(),
            turn.kept,
            turn.tokens.len(),
            rate(decoded, turn.decode),
            turn.finish_reason.name(),
            turn.prompt + turn.tokens.len(),
            self.conversation.context(),
        );
        note(&if colours(&io::stderr()) { format!("\x1b[2m{line}\x1b[0m") } else { line });
        let used = turn.prompt + turn.tokens.len();
        if turn.finish_reason == FinishReason::Length && used >= self.conversation.context() as usize {
            note("the answer reached the end of the context; /undo takes it back");
        }
    }

    fn stats(&self) {
        let Totals { answers, prefilled, kept, generated, prefill, decode } = &self.totals;
        let (compile, memory) = (self.loaded.model.compile_report(), ProcessMemory::now());
        note(&format!("answers     {answers}"));
        note(&format!(
            "prompts     {prefilled} tokens prefilled, {:.1} tok/s; {kept} were in the cache already",
            rate(*prefilled, *prefill)
        ));
        note(&format!(
            "generated   {generated} tokens, {:.1} tok/s",
            rate(generated.saturating_sub(*answers), *decode)
        ));
        note(&format!("context     {} of {} tokens", self.conversation.cached(), self.conversation.context()));
        note(&format!(
            "programs    {} compiled, {} from the cache, {:.2} s",
            compile.compiled,
            compile.cached,
            compile.time.as_secs_f64()
        ));
        note(&format!("memory      {} at peak, {} of it allocated now", size(memory.peak), size(memory.anonymous)));
    }
}

impl Totals {
    fn add(&mut self, turn: &Turn) {
        self.answers += 1;
        self.prefilled += turn.prompt - turn.kept;
        self.kept += turn.kept;
        self.generated += turn.tokens.len();
        self.prefill += turn.prefill;
        self.decode += turn.decode;
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}
