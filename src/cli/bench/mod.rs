//! `bench`: how fast a model runs here, and how fast it could run. `bench serve` measures servers.
//!
//! Every measurement is compared with the machine's limit, which probes measure just before it. The
//! limit of a step is the larger of two times: its bytes over the memory's bandwidth, and its
//! operations over the peak of multiplying.

mod report;
#[cfg(feature = "serve")]
mod serve;

use std::{
    io::Write,
    process::{self, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use super::{
    Outcome,
    model_args::{LoadedModel, ModelArgs, OpenedModel},
    note,
    process::ProcessMemory,
};
use crate::{
    gemma::{Program, SequencePart},
    hlo::{DType, Mesh},
    kernels::{ExecContext, probe},
    runtime::Session,
    sampling::Params,
};
use report::{FIRST_TOKEN_PROMPT, MachineLimits, Measurement, Report};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[cfg(feature = "serve")]
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    model: ModelArgs,
    /// Lengths of prompts to prefill [default: 16,128,512, as far as they fit the context]
    #[arg(long, short = 'p', value_name = "TOKENS", value_delimiter = ',', value_parser = clap::value_parser!(i64).range(1..))]
    prompt: Option<Vec<i64>>,
    /// Tokens to decode; 0 for none
    #[arg(long, short = 'n', value_name = "TOKENS", default_value = "64", value_parser = clap::value_parser!(i64).range(0..))]
    decode: i64,
    /// Batch sizes: sequences that are decoded together
    #[arg(long, short = 'b', value_name = "N", value_delimiter = ',', default_value = "1,8", value_parser = clap::value_parser!(i64).range(1..=1024))]
    batch: Vec<i64>,
    /// Depths: tokens in the cache before the decoded ones
    #[arg(long, short = 'd', value_name = "TOKENS", value_delimiter = ',', default_value = "128", value_parser = clap::value_parser!(i64).range(0..))]
    depth: Vec<i64>,
    /// Repetitions of each measurement; the median is shown
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    reps: u32,
    /// Print one JSON object with all measurements
    #[arg(long)]
    json: bool,
}

#[cfg(feature = "serve")]
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Measure a server of OpenAI's API under load
    Serve(Box<serve::Args>),
}

pub fn run(args: &Args) -> Result<Outcome> {
    #[cfg(feature = "serve")]
    if let Some(Command::Serve(args)) = &args.command {
        return serve::run(args);
    }
    let opened = args.model.open()?;
    let prompts = prompts(args, &opened)?;
    let platform = args.model.platform(&opened)?;
    let loaded = args.model.load(&opened, &platform)?;
    let mut bench = Bench { args, opened: &opened, loaded: &loaded, limits: Vec::new() };
    let mut measurements = Vec::new();
    for tokens in prompts {
        measurements.push(bench.prefill(tokens)?);
    }
    for &depth in args.depth.iter().filter(|_| args.decode > 0) {
        for &batch in &args.batch {
            measurements.push(bench.decode(depth, batch)?);
        }
    }
    let report = Report {
        args: &args.model,
        opened: &opened,
        loaded: &loaded,
        memory: ProcessMemory::now(),
        limits: std::mem::take(&mut bench.limits),
        measurements,
        first_token: first_token(args, &opened)?,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", report.json())?;
    } else {
        write!(out, "{}", report.markdown())?;
    }
    Ok(Outcome::Done)
}

/// Returns the prompts' lengths, without default ones that are too long for this model.
fn prompts(args: &Args, opened: &OpenedModel) -> Result<Vec<i64>> {
    let context = opened.context;
    let needed = args.prompt.iter().flatten().copied().max().unwrap_or_default();
    let decoded = args.depth.iter().max().copied().unwrap_or_default() + args.decode;
    if needed > context || (args.decode > 0 && decoded > context) {
        bail!("prompts of {needed} tokens and {decoded} tokens after decoding do not fit a context of {context}");
    }
    Ok(args.prompt.clone().unwrap_or_else(|| [16, 128, 512].into_iter().filter(|&p| p <= context).collect()))
}

struct Bench<'a> {
    args: &'a Args,
    opened: &'a OpenedModel,
    loaded: &'a LoadedModel,
    /// One for each repetition of each measurement; empty on other platforms than CPU.
    limits: Vec<MachineLimits>,
}

impl Bench<'_> {
    /// Measures the tokens per second of a prompt's prefill.
    fn prefill(&mut self, tokens: i64) -> Result<Measurement> {
        let mut session = self.session(1, tokens)?;
        let prompt = self.tokens(tokens);
        let work = [SequencePart { start: 0, tokens }];
        self.figure(format!("pp{tokens}"), tokens, &work, || {
            session.prefill(0, 0, &prompt, &Params::GREEDY)?;
            Ok(1)
        })
    }

    /// Measures the tokens per second of decoding, over all sequences together.
    fn decode(&mut self, depth: i64, batch: i64) -> Result<Measurement> {
        let steps = self.args.decode;
        let mut session = self.session(batch, depth + steps)?;
        let tokens = self.tokens(batch);
        let params = vec![Params::GREEDY; batch as usize];
        // The cost of the step in the middle is the average.
        let work = vec![SequencePart { start: depth + steps / 2, tokens: 1 }; batch as usize];
        let name = format!("tg{steps} @ d{depth}{}", if batch > 1 { format!(", b{batch}") } else { String::new() });
        self.figure(name, batch * steps, &work, || {
            let mut next = tokens.clone();
            for step in 0..steps {
                next = session.decode_each(&next, &vec![depth + step; batch as usize], &params)?;
            }
            Ok(steps)
        })
    }

    fn session(&self, slots: i64, tokens: i64) -> Result<Session> {
        Ok(Session::new(self.loaded.model.clone(), slots, self.opened.cache_len(tokens))?)
    }

    /// Returns token ids without a pattern.
    fn tokens(&self, count: i64) -> Vec<u32> {
        let vocab = self.opened.config.vocab_size as u64;
        (1..=count as u64).map(|i| (i * 2_654_435_761 % vocab) as u32).collect()
    }

    /// Measures `run`, which processes `tokens` tokens and returns its number of steps. `work` is
    /// the work of one step.
    fn figure(
        &mut self,
        name: String,
        tokens: i64,
        work: &[SequencePart],
        mut run: impl FnMut() -> Result<i64>,
    ) -> Result<Measurement> {
        note(&format!("measuring {name}"));
        let model = &self.loaded.model;
        let cost = model.program_spec(Program::Copy, 1, 1, 1).cost(work);
        run()?; // compiles, and touches the weights
        let mut figure = Measurement { name, rates: vec![], shares: vec![] };
        for _ in 0..self.args.reps {
            let limits = self.probe();
            let started = Instant::now();
            let steps = run()? as f64;
            let seconds = started.elapsed().as_secs_f64();
            figure.rates.push(tokens as f64 / seconds);
            if let Some(limits) = limits {
                let least = steps * cost.seconds(limits.flops_per_second, limits.bytes_per_second);
                figure.shares.push(least / seconds);
            }
        }
        Ok(figure)
    }

    /// Measures the machine's limits. Only on one CPU device, where this process does the work
    /// itself.
    fn probe(&mut self) -> Option<MachineLimits> {
        if !self.loaded.is_cpu || self.args.model.mesh != Mesh::SINGLE {
            return None;
        }
        let weights: Vec<&[u8]> = self.opened.checkpoint().tensors().values().map(|t| t.bytes.bytes()).collect();
        let context = ExecContext::whole();
        let is_bf16 = self.args.model.dtype.dtype() == DType::BF16;
        let limits = MachineLimits {
            bytes_per_second: probe::read_bandwidth(context, &weights),
            flops_per_second: probe::peak_flops(context, is_bf16),
        };
        self.limits.push(limits);
        Some(limits)
    }
}

/// Measures the seconds from the start of a process to its first token, and how many of them are
/// prefill. Returns one pair for each repetition.
fn first_token(args: &Args, opened: &OpenedModel) -> Result<Vec<(f64, f64)>> {
    note(&format!("measuring the first token of {} processes", args.reps + 1));
    let tokens = FIRST_TOKEN_PROMPT.min(opened.context - 1);
    let ids: Vec<String> = (0..tokens).map(|i| (2 + i).to_string()).collect();
    let measure = || -> Result<(f64, f64)> {
        let mut command =
            process::Command::new(std::env::current_exe().context("this program does not know its own file")?);
        command.args(["generate", "-n", "1", "--json", "--prompt-tokens", &ids.join(",")]);
        let output = command.args(args.model.to_arguments()).stderr(Stdio::inherit()).output()?;
        let result: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the process that should generate one token ended with {}", output.status))?;
        let seconds = |name: &str| result["timings"][name].as_f64().context("no timings");
        Ok((seconds("first_token_seconds")?, seconds("prefill_seconds")?))
    };
    measure()?; // compiles
    (0..args.reps).map(|_| measure()).collect()
}
