//! `init`: writes checkpoints with random weights, in the layout of real ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Outcome, note, process::size, progress::Bar};
use crate::{
    checkpoint::write_random,
    download::Progress,
    gemma::{
        Config,
        tensors::{num_parameters, tensors},
    },
    tokenizer::minimal_tokenizer_json,
    whole_file::write_whole,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory to create
    dir: PathBuf,
    /// Take the model's sizes from this preset
    #[arg(long, value_parser = Config::PRESETS, default_value = "tiny")]
    preset: String,
    /// Take the model's sizes from this config.json instead
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    config: Option<PathBuf>,
    /// Seed of the weights; the same seed makes the same weights
    #[arg(long, default_value = "0")]
    seed: u64,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let config = match &args.config {
        None => Config::preset(&args.preset).expect("clap allows presets only"),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Config::parse(&text)?.0
        }
    };
    if args.dir.join("config.json").exists() {
        bail!("{} holds a model already; name a new directory", args.dir.display());
    }
    write(&args.dir, &config, args.seed)?;
    let parameters = num_parameters(&config);
    note(&format!("{}: {parameters} random parameters, {}", args.dir.display(), size(parameters as u64 * 2)));
    Ok(Outcome::Done)
}

/// Writes weights, a byte tokenizer, and the config last: a directory with a config.json is
/// complete.
///
/// # Errors
/// The vocabulary is too small for the tokenizer, or a file cannot be written.
pub fn write(dir: &Path, config: &Config, seed: u64) -> Result<()> {
    const SMALLEST_VOCABULARY: i64 = 473;
    if config.vocab_size < SMALLEST_VOCABULARY {
        bail!(
            "a vocabulary of {} has no room for the byte tokenizer; use at least {SMALLEST_VOCABULARY}",
            config.vocab_size
        );
    }
    let specs: Vec<(String, Vec<i64>)> = tensors(config).into_iter().map(|spec| (spec.name, spec.dims)).collect();
    let mut bar = Bar::default();
    if num_parameters(config) > 50_000_000 {
        bar = Bar::bytes("writing random weights", num_parameters(config) as u64 * 2);
    }
    write_random(dir, &specs, seed, |bytes| bar.add(bytes))?;
    bar.finish();
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        write_whole(&path, |out| out.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))
    };
    write("tokenizer.json", minimal_tokenizer_json(config.vocab_size as usize).to_string())?;
    write("config.json", format!("{:#}\n", config.to_json()))
}
