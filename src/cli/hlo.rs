//! `hlo`: writes any program of a model as HLO text or proto, as we emit it or as the plugin
//! optimised it. No weights are needed.

use std::{io::Write, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use prost::Message;

use super::{
    Outcome,
    model_args::{ComputeType, KvType, Lowering, PlatformArgs, PlatformName, kv_dtype},
    note,
    process::size,
};
use crate::{
    compile::signature,
    gemma::{self, Config, Head, ModelSpec, Program, ProgramSpec, StoredTypes},
    hlo::{DType, Mesh, proto, to_text},
    pjrt::{self, CompileOptions, Device},
    runtime::window_for,
    sampling::Sampler,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProgramName {
    /// One pass over tokens of any slots
    Step,
    /// The next tokens of every slot, in a loop on the device
    Decode,
    /// One slot's keys and values, copied to another slot
    Copy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HeadName {
    /// Nothing: the step fills the cache
    None,
    /// The most likely token
    Greedy,
    /// A token sampled by temperature, top-k of at most 128, top-p
    TopK,
    /// A token sampled by temperature, top-k, top-p
    Sample,
    /// As sample, with penalties and biases
    Penalties,
    /// As penalties, with log-probabilities
    Logprobs,
    /// The most likely token of those that are allowed
    MaskedGreedy,
    /// As penalties, of tokens that are allowed
    Masked,
    /// As logprobs, of tokens that are allowed
    MaskedLogprobs,
    /// Log-probabilities of given tokens
    Score,
    /// Logits
    Logits,
    /// The input of each layer, for debugging
    Hidden,
}

impl HeadName {
    fn head(self) -> Head {
        match self {
            Self::None => Head::None,
            Self::Greedy => Head::Sample(Sampler::Greedy),
            Self::TopK => Head::Sample(Sampler::TopK),
            Self::Sample => Head::Sample(Sampler::Stochastic),
            Self::Penalties => Head::Sample(Sampler::Penalized),
            Self::Logprobs => Head::Sample(Sampler::Logprobs),
            Self::MaskedGreedy => Head::Sample(Sampler::MaskedGreedy),
            Self::Masked => Head::Sample(Sampler::Masked),
            Self::MaskedLogprobs => Head::Sample(Sampler::MaskedLogprobs),
            Self::Score => Head::Logprobs { top: false },
            Self::Logits => Head::Logits,
            Self::Hidden => Head::Hidden,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HloFormat {
    Text,
    Proto,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program
    #[arg(long, value_enum, default_value = "step")]
    program: ProgramName,
    /// A preset (tiny, gemma-1.1-2b, gemma-1.1-7b), a config.json, or a directory that holds one
    #[arg(long, default_value = "gemma-1.1-2b")]
    config: String,
    /// Devices: DATAxMODEL
    #[arg(long, value_name = "DxM", default_value = "1x1")]
    mesh: Mesh,
    /// Tokens of a step
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = clap::value_parser!(i64).range(1..=8192))]
    tokens: i64,
    /// Sequences in the cache
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(i64).range(1..=1024))]
    slots: i64,
    /// Tokens of each sequence that the cache holds
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = clap::value_parser!(i64).range(1..=1048576))]
    context: i64,
    /// Cache positions that decode reads [default: all]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(i64).range(1..=1048576))]
    window: Option<i64>,
    /// What a step or decode computes from the last hidden states
    #[arg(long, value_enum, default_value = "greedy")]
    head: HeadName,
    /// Type of activations
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: ComputeType,
    /// Type of the KV cache [default: as activations]
    #[arg(long, value_enum)]
    kv: Option<KvType>,
    /// Type of the stored matrices
    #[arg(long, value_enum, default_value = "bf16")]
    weights: WeightType,
    /// Emit the programs of another lowering than the platform's own
    #[arg(long, value_enum)]
    lowering: Option<Lowering>,
    /// Text, or a serialized HloModuleProto
    #[arg(long, value_enum, default_value = "text")]
    format: HloFormat,
    /// Show the program after the plugin's optimisations
    #[arg(long)]
    optimized: bool,
    #[command(flatten)]
    platform: PlatformArgs,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The type of stored matrices.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WeightType {
    Bf16,
    F32,
    Int8,
    Int4,
}

impl WeightType {
    /// Returns the types of all tensors.
    pub fn types(self) -> StoredTypes {
        match self {
            Self::Bf16 => StoredTypes::uniform(DType::BF16),
            Self::F32 => StoredTypes::uniform(DType::F32),
            Self::Int8 => StoredTypes::int8(DType::BF16),
            Self::Int4 => StoredTypes::int4(DType::BF16),
        }
    }
}

pub fn run(args: &Args) -> Result<Outcome> {
    let spec = spec(args)?;
    let module = spec.build()?;
    let proto = if args.optimized {
        let platform = args.platform.open(spec.model.mesh.devices())?;
        let ids = platform.devices(spec.model.mesh.devices())?.iter().map(Device::id).collect::<Result<Vec<_>, _>>()?;
        let code = module.encode();
        let program = pjrt::Program { code: &code, format: "hlo" };
        let executable = platform.client.compile(&program, &CompileOptions::replicas(ids), signature(&module))?;
        let memory = executable.memory_stats()?;
        note(&format!(
            "per device: arguments {}, temporaries {}, outputs {} of which {} reuse arguments",
            size(memory.arguments as u64),
            size(memory.temporaries as u64),
            size(memory.outputs as u64),
            size(memory.alias as u64)
        ));
        let (format, bytes) = executable.optimized_program()?;
        if format != "hlo_with_config" {
            bail!("this plugin returns optimized programs as {format:?}, which cannot be shown; try the CPU plugin");
        }
        let with_config = proto::ModuleWithConfig::decode(&bytes[..]).context("reading the optimized program")?;
        with_config.module.context("the plugin returned no module")?
    } else {
        module.to_proto()
    };
    let bytes = match args.format {
        HloFormat::Text => to_text(&proto).into_bytes(),
        HloFormat::Proto => proto.encode_to_vec(),
    };
    match &args.out {
        Some(path) => {
            std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => std::io::stdout().lock().write_all(&bytes)?,
    }
    Ok(Outcome::Done)
}

fn spec(args: &Args) -> Result<ProgramSpec> {
    let config = config(&args.config)?;
    config.check_mesh(args.mesh)?;
    let lowering = match (args.lowering, args.platform.platform) {
        (Some(Lowering::Tpu), _) | (None, PlatformName::Tpu) => gemma::Lowering::TPU,
        (Some(Lowering::Native), _) => gemma::Lowering::CPU_NATIVE,
        (None, PlatformName::Cuda) => gemma::Lowering::CUDA,
        (None, PlatformName::Auto | PlatformName::Cpu) => gemma::Lowering::CPU,
    };
    let program = match (args.program, args.head.head()) {
        (ProgramName::Step, head) => Program::Step { tokens: args.tokens, head },
        (ProgramName::Copy, _) => Program::Copy,
        (ProgramName::Decode, _) if !lowering.batches_decode => {
            bail!("on {} decoding is a step like any other; use --program step, or add --lowering tpu", lowering.name)
        }
        (ProgramName::Decode, Head::Sample(sampler)) => Program::Decode { sampler },
        (ProgramName::Decode, _) => {
            bail!("decode samples tokens; use --head greedy, top-k, sample, penalties or logprobs")
        }
    };
    let window = args.window.map_or(args.context, |window| window_for(window, args.context));
    let (compute, kv) = (args.dtype.dtype(), kv_dtype(args.kv, args.dtype));
    let model = ModelSpec { config, mesh: args.mesh, lowering, compute, kv, stored: args.weights.types() };
    model.check()?;
    let (slots, cache_len) = (args.slots, args.context);
    Ok(ProgramSpec { model: model.into(), program, slots, cache_len, window })
}

/// Returns the config of a preset, or of a config.json.
///
/// # Errors
/// The name is neither, or the file cannot be read or used.
pub fn config(name: &str) -> Result<Config> {
    if let Some(config) = Config::preset(name) {
        return Ok(config);
    }
    let path = PathBuf::from(name);
    let path = if path.is_dir() { path.join("config.json") } else { path };
    let text = std::fs::read_to_string(&path).with_context(|| {
        let presets = Config::PRESETS.join(", ");
        format!("{name:?} is neither a preset ({presets}) nor a config.json that can be read")
    })?;
    Ok(Config::parse(&text)?.0)
}
