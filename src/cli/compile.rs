//! `compile`: all programs of a model for a machine that need not be here, as a bundle for `--bundle`.

use std::{io::Write, path::PathBuf};

use anyhow::Result;
use clap::ValueEnum;

use super::{Outcome, note, plan::MachineArgs, process::size};
use crate::{compile::Bundle, runtime::session_modules, sampling::Sampler};

/// How tokens will be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SamplerName {
    /// Temperature 0
    Greedy,
    /// Temperature, top-k of at most 128, top-p
    TopK,
    /// Temperature, top-p, any top-k
    Sample,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// Sequences at a time; generate, chat and score take 1
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(i64).range(1..=1024))]
    slots: i64,
    /// Programs for these ways to choose tokens
    #[arg(long, value_enum, value_delimiter = ',', default_value = "greedy,top-k")]
    samplers: Vec<SamplerName>,
    /// Directory to write; what it has of the same bundle is kept
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
    };
    let samplers: Vec<Sampler> = args.samplers.iter().map(sampler).collect();
    let mut tell = |name: &str, i: usize, all: usize| note(&format!("[{} of {all}] {name}", i + 1));
    let bundle = Bundle::write(&args.out, &machine, &setup, &samplers, &mut tell)?;
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
