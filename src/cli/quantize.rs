//! `quantize`: writes a copy of a checkpoint with int8 or int4 weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{Outcome, model_files::ModelFiles, note, process::size, progress::Bar};
use crate::{
    cache_dir::cache_dir,
    checkpoint::{Checkpoint, Quantization, write_quantized},
    download::{Progress, hex},
    gemma::Config,
    runtime::{StoredModel, select},
    whole_file::write_whole,
};

/// A quantisation of matrices, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightQuantization {
    /// Eight bits, with a scale for each row
    Int8,
    /// Four bits, with a scale for each 32 elements; the embedding in eight
    Int4,
}

impl WeightQuantization {
    /// Returns the name on the command line and in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    fn quantization(self) -> Quantization {
        match self {
            Self::Int8 => Quantization::Int8,
            Self::Int4 => Quantization::Int4,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A checkpoint's directory, its name on Hugging Face, or "demo"
    #[arg(value_name = "MODEL")]
    model: String,
    /// Merge this LoRA adapter into the model first
    #[arg(long, value_name = "DIR")]
    lora: Option<PathBuf>,
    /// How to store matrices
    #[arg(long, value_enum)]
    weights: WeightQuantization,
    /// Directory to create
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Never download anything
    #[arg(long)]
    offline: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    if args.out.join("config.json").exists() {
        bail!("{} holds a model already; name a new directory", args.out.display());
    }
    let mut files = ModelFiles::locate(&args.model, args.offline)?;
    if let Some(adapter) = &args.lora {
        files = files.with_adapter(adapter);
    }
    let (config, checkpoint) = (files.config()?, files.checkpoint()?);
    write(&files, &config, &checkpoint, args.weights, &args.out)?;
    let before = checkpoint.tensors().values().map(|tensor| tensor.bytes.bytes().len() as u64).sum();
    let after = std::fs::metadata(args.out.join(WEIGHTS))?.len();
    let name = args.weights.name();
    note(&format!("{}: {} of weights in {name}, from {}", args.out.display(), size(after), size(before)));
    Ok(Outcome::Done)
}

const WEIGHTS: &str = "model.safetensors";

/// Returns the model with quantised matrices: the model itself if it has them, else a copy in the
/// cache, made now if there is none. Its config goes with it.
///
/// # Errors
/// The model cannot be read or quantised, or the copy cannot be written.
pub fn quantized(files: ModelFiles, config: Config, weights: WeightQuantization) -> Result<(ModelFiles, Config)> {
    if files.config_json()?["quantization_config"]["weights"] == weights.name() {
        return Ok((files, config));
    }
    let checkpoint = files.checkpoint()?;
    let key = hex(&files.fingerprint(&checkpoint)?[..8]);
    let Some(cache) = cache_dir() else {
        bail!(
            "there is no cache directory for the quantised weights (HOME is not set); use gemma-pjrt quantize --out DIR"
        );
    };
    let dir = cache.join("quantized").join(format!("{key}-{}", weights.name()));
    let mut config = config;
    if !dir.join("config.json").exists() {
        config = write(&files, &config, &checkpoint, weights, &dir)?;
        note(&format!("note: the quantised weights are kept in {}", dir.display()));
    }
    Ok((ModelFiles::Directory(dir), config))
}

/// Quantises a model into a directory: weights and tokenizer first, then the config, which marks
/// the copy as complete. Returns the copy's config.
///
/// # Errors
/// The tensors are not the model's, or a file cannot be written.
fn write(
    files: &ModelFiles,
    config: &Config,
    checkpoint: &Checkpoint,
    weights: WeightQuantization,
    dir: &Path,
) -> Result<Config> {
    let StoredModel { config, tensors, .. } = select(checkpoint, config)?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let before = tensors.iter().map(|(_, tensor)| tensor.bytes.bytes().len() as u64).sum();
    let mut bar = Bar::default();
    if before > 100_000_000 {
        bar = Bar::bytes(&format!("quantising to {}", weights.name()), before);
    }
    write_quantized(checkpoint, weights.quantization(), &dir.join(WEIGHTS), |bytes| bar.add(bytes)).inspect_err(
        |_| {
            let _ = std::fs::remove_dir(dir); // unless others' files are in it
        },
    )?;
    bar.finish();
    for (name, bytes) in files.others()? {
        let path = dir.join(name);
        write_whole(&path, |out| out.write_all(&bytes)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut json = files.config_json()?;
    json["quantization_config"] = serde_json::json!({"quant_method": "gemma-pjrt", "weights": weights.name()});
    json["tie_word_embeddings"] = config.tie_word_embeddings.into();
    let path = dir.join("config.json");
    write_whole(&path, |out| writeln!(out, "{json:#}")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(config)
}
