//! `compile`: compiles all programs of a model, for this or another machine, into a bundle for
//! `--bundle`.

use std::{io::Write, path::PathBuf};

use anyhow::Result;
use clap::ValueEnum;

use super::{Outcome, note, plan::MachineArgs, process::size};
use crate::{compile::Bundle, runtime::session_modules, sampling::Sampler};

/// A sampler, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SamplerName {
    /// Temperature 0
    Greedy,
    /// Temperature, top-k of at most 128, top-p
    TopK,
    /// Temperature, top-p, any top-k
    Sample,
    /// Also penalties and biases
    Penalties,
    /// Also log-probabilities
    Logprobs,
    /// Temperature 0, for answers that are held to a form
    MaskedGreedy,
    /// As penalties, for answers that are held to a form
    Masked,
    /// As logprobs, for answers that are held to a form
    MaskedLogprobs,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// Sequences that run at the same time; generate, chat and score need 1
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(i64).range(1..=1024))]
    slots: i64,
    /// Compile programs for these samplers
    #[arg(long, value_enum, value_delimiter = ',', default_value = "greedy,top-k")]
    samplers: Vec<SamplerName>,
    /// Also the programs that score texts, for eval and for prompts' log-probabilities
    #[arg(long)]
    scores: bool,
    /// Directory to write; programs of the same bundle that it holds are kept
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let deployment = args.machine.deployment(args.slots)?;
    let target = args.machine.open()?;
    let sampler = |name: &SamplerName| match name {
        SamplerName::Greedy => Sampler::Greedy,
        SamplerName::TopK => Sampler::TopK,
        SamplerName::Sample => Sampler::Stochastic,
        SamplerName::Penalties => Sampler::Penalized,
        SamplerName::Logprobs => Sampler::Logprobs,
        SamplerName::MaskedGreedy => Sampler::MaskedGreedy,
        SamplerName::Masked => Sampler::Masked,
        SamplerName::MaskedLogprobs => Sampler::MaskedLogprobs,
    };
    let samplers: Vec<Sampler> = args.samplers.iter().map(sampler).collect();
    let mut report = |name: &str, i: usize, all: usize| note(&format!("[{} of {all}] {name}", i + 1));
    let shape = (deployment.slots, deployment.context);
    let modules = session_modules(&deployment.model, shape, &samplers, args.scores)?;
    let bundle = Bundle::write(&args.out, &target, &deployment.model, shape, &modules, &mut report)?;
    let (manifest, out) = (&bundle.manifest, args.out.display());
    writeln!(
        std::io::stdout(),
        "{out}: {} programs, {}, by {}. Use it with --bundle {out}",
        manifest.programs.len(),
        size(bundle.size()),
        manifest.plugin
    )?;
    Ok(Outcome::Done)
}
