//! The arguments of all commands that run a model, and opening the model that they name.

use std::{
    cell::{Cell, OnceCell},
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{
    journal::RunIdentity,
    model_files::ModelFiles,
    note,
    progress::{DownloadProgress, loading_progress},
    quantize::{WeightQuantization, quantized},
};
use crate::{
    checkpoint::Checkpoint,
    compile::{Bundle, Manifest, lowering},
    gemma::{self, Config},
    hlo::{DType, Mesh},
    kernels,
    model_file::without_mark,
    plugins::Kind,
    runtime::{Model, Platform, PlatformRequest, RunOptions, cache_len_for},
    sampling::{Params, Penalties},
    tokenizer::{Tokenizer, check_ids},
};

/// The type of activations and KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeType {
    Bf16,
    F32,
}

impl ComputeType {
    pub fn dtype(self) -> DType {
        match self {
            Self::Bf16 => DType::BF16,
            Self::F32 => DType::F32,
        }
    }
}

/// The type of a quantised KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvType {
    /// Eight bits, with a scale for each head of each token
    Int8,
}

/// Returns the type of the KV cache.
pub fn kv_dtype(kv: Option<KvType>, compute: ComputeType) -> DType {
    kv.map_or(compute.dtype(), |KvType::Int8| DType::S8)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlatformName {
    /// The first of tpu, cuda and cpu that this machine has
    Auto,
    Cpu,
    Tpu,
    Cuda,
}

/// The arguments that choose a platform.
#[derive(Debug, clap::Args)]
pub struct PlatformArgs {
    /// Platform to run on
    #[arg(long, value_enum, default_value = "auto")]
    pub platform: PlatformName,
    /// Use this PJRT plugin (.so), instead of searching for one
    #[arg(long, value_name = "PATH")]
    pub plugin: Option<PathBuf>,
    /// Never download anything
    #[arg(long)]
    pub offline: bool,
    /// On CUDA, the share of a GPU's memory to reserve at the start; 0 allocates on demand
    /// [default: 0.75]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub gpu_memory: Option<f32>,
}

fn share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is not a number from 0 to 1"))
}

impl PlatformArgs {
    /// Opens the platform with this many devices. Says on stderr which it is, if the user left the
    /// choice open.
    ///
    /// # Errors
    /// There is no plugin or too few devices, or the plugin fails.
    pub fn open(&self, devices: usize) -> Result<Platform> {
        let kind = match self.platform {
            PlatformName::Auto => None,
            PlatformName::Cpu => Some(Kind::Cpu),
            PlatformName::Tpu => Some(Kind::Tpu),
            PlatformName::Cuda => Some(Kind::Cuda),
        };
        let request = PlatformRequest {
            kind,
            plugin: self.plugin.clone(),
            devices,
            offline: self.offline,
            gpu_memory: self.gpu_memory,
        };
        let platform = Platform::open(&request, &mut DownloadProgress::of_plugin())?;
        if kind.is_none() {
            note(&platform.summary);
        }
        Ok(platform)
    }
}

/// A lowering other than the platform's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lowering {
    /// On CPU, XLA's own operations instead of this program's kernels
    Native,
    /// The programs and the weight loading of a TPU, on any platform
    Tpu,
}

/// The arguments that choose a model and how to run it.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// A Gemma checkpoint's directory (config.json, tokenizer.json, *.safetensors), a name on
    /// Hugging Face such as google/gemma-1.1-2b-it, or "demo" for the tiny built-in model
    #[arg(long, short, value_name = "MODEL", default_value = "demo")]
    pub model: String,
    #[command(flatten)]
    pub platform: PlatformArgs,
    /// Devices: DATAxMODEL, such as 1x4 for one model over 4 devices
    #[arg(long, value_name = "DxM", default_value = "1x1")]
    pub mesh: Mesh,
    /// Type of activations and KV cache; weights stay as they are stored
    #[arg(long, value_enum, default_value = "bf16")]
    pub dtype: ComputeType,
    /// Type of the KV cache [default: as activations]
    #[arg(long, value_enum)]
    pub kv: Option<KvType>,
    /// Quantise the model's matrices; the result is kept in the cache for the next run [default: as
    /// they are stored]
    #[arg(long, value_enum)]
    pub weights: Option<WeightQuantization>,
    /// Merge this LoRA adapter (a directory as PEFT saves it) into the model
    #[arg(long, value_name = "DIR")]
    pub lora: Option<PathBuf>,
    /// The longest context in tokens, prompt and answer together [default: the context that the
    /// model was trained for]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(i64).range(1..))]
    pub context: Option<i64>,
    /// Threads of the CPU kernels [default: as many as there are cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Use the programs that `gemma-pjrt compile` wrote for this platform, mesh and context
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Use another lowering than the platform's own, for comparisons and tests
    #[arg(long, value_enum)]
    pub lowering: Option<Lowering>,
}

/// The arguments of sampling.
#[derive(Clone, Debug, clap::Args)]
pub struct SamplingArgs {
    /// Sampling temperature; 0 is greedy decoding
    #[arg(long, value_name = "T", default_value = "0")]
    temperature: f32,
    /// Sample from the K most likely tokens only (0: all)
    #[arg(long, value_name = "K", default_value = "0")]
    top_k: i32,
    /// Sample only from the most likely tokens that together have probability P
    #[arg(long, value_name = "P", default_value = "1")]
    top_p: f32,
    /// Sample only tokens at least P times as probable as the most probable one
    #[arg(long, value_name = "P", default_value = "0")]
    min_p: f32,
    /// Seed of sampling; the same seed gives the same tokens
    #[arg(long, value_name = "SEED", default_value = "0")]
    seed: u64,
}

/// Penalties on tokens that have occurred before.
#[derive(Clone, Debug, clap::Args)]
pub struct PenaltyArgs {
    /// Divide the logits of tokens that occur in prompt or answer by R (1: no penalty)
    #[arg(long, value_name = "R", default_value = "1")]
    repetition_penalty: f32,
    /// Subtract P from the logits of tokens that occur in the answer
    #[arg(long, value_name = "P", default_value = "0", allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtract F from the logits of a token for each of its occurrences in the answer
    #[arg(long, value_name = "F", default_value = "0", allow_negative_numbers = true)]
    frequency_penalty: f32,
}

impl PenaltyArgs {
    /// Returns the penalties.
    ///
    /// # Errors
    /// One of them is out of range.
    pub fn penalties(&self) -> Result<Penalties> {
        let penalties = Penalties {
            repetition: self.repetition_penalty,
            presence: self.presence_penalty,
            frequency: self.frequency_penalty,
        };
        penalties.check().map_err(anyhow::Error::msg)?;
        Ok(penalties)
    }
}

impl SamplingArgs {
    /// Returns the sampling parameters.
    ///
    /// # Errors
    /// One of them is out of range.
    pub fn params(&self) -> Result<Params> {
        let params = Params {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
        };
        params.check().map_err(anyhow::Error::msg)?;
        Ok(params)
    }
}

/// A model whose small files have been read. The tokenizer may still be loading.
pub struct OpenedModel {
    pub config: Config,
    files: Arc<ModelFiles>,
    tokenizer: BackgroundTask<Arc<Tokenizer>>,
    checkpoint: Checkpoint,
    /// The longest context allowed, in tokens.
    pub context: i64,
    bundle: Option<Bundle>,
}

/// A task of another thread, and its result once it is done.
struct BackgroundTask<T> {
    thread: Cell<Option<JoinHandle<Result<T>>>>,
    result: OnceCell<T>,
}

impl<T: Send + 'static> BackgroundTask<T> {
    fn start(run: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
        Self { thread: Cell::new(Some(thread::spawn(run))), result: OnceCell::new() }
    }

    /// Waits for the result. Returns the task's error only once: no command continues after it.
    fn get(&self) -> Result<&T> {
        if let Some(thread) = self.thread.take() {
            let result = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let _ = self.result.set(result); // the thread is joined once
        }
        self.result.get().context("the background task failed before")
    }
}

/// A model that is ready to run.
pub struct LoadedModel {
    pub model: Arc<Model>,
    /// The platform's name.
    pub platform: String,
    /// True if the platform is this machine's processor.
    pub is_cpu: bool,
    /// True if this program's CPU kernels are used.
    pub kernels: bool,
    /// The time of opening the platform and placing the weights.
    pub time: Duration,
}

impl ModelArgs {
    /// Returns the settings on which a model's answers depend.
    #[cfg(feature = "eval")]
    pub fn identity(&self) -> impl std::fmt::Debug {
        (&self.model, self.dtype, self.kv, self.weights, &self.lora)
    }

    /// Returns by what a resumed run with this model is recognised.
    ///
    /// # Errors
    /// The model's files cannot be read.
    pub fn run_identity(&self, opened: &OpenedModel) -> Result<RunIdentity> {
        let (dtype, kv) = (self.dtype.dtype(), kv_dtype(self.kv, self.dtype));
        Ok(RunIdentity::from([
            ("model", self.model.clone()),
            ("types", format!("{dtype}, cache {kv}, weights {:?}", self.weights)),
            ("context", opened.context.to_string()),
            ("model files", opened.files.content_digest(&opened.checkpoint)?),
        ]))
    }

    /// Reads and checks all files but the weights. Gemma's tokenizer takes a second, so another
    /// thread reads it.
    ///
    /// # Errors
    /// The model is missing or damaged, or the arguments do not fit it.
    pub fn open(&self) -> Result<OpenedModel> {
        let mut files = ModelFiles::locate(&self.model, self.platform.offline)?;
        if let Some(adapter) = &self.lora {
            files = files.with_adapter(adapter);
        }
        let mut config = files.config()?;
        files.introduce(&config);
        if let Some(weights) = self.weights {
            (files, config) = quantized(files, config, weights)?;
        }
        let checkpoint = files.checkpoint()?;
        let files = Arc::new(files);
        let tokenizer_files = files.clone();
        let tokenizer = BackgroundTask::start(move || tokenizer_files.tokenizer().map(Arc::new));
        let trained = config.max_position_embeddings;
        if self.context.is_some_and(|context| context > trained) {
            bail!(
                "--context {} is more than the {trained} tokens that this model was trained for",
                self.context.unwrap()
            );
        }
        let bundle = self.bundle.as_deref().map(Bundle::read).transpose()?;
        if let Some(bundle) = &bundle {
            self.check_bundle(bundle)?;
        }
        let context = self.context.or(bundle.as_ref().map(|b| b.manifest.context)).unwrap_or(trained);
        Ok(OpenedModel { config, files, tokenizer, checkpoint, context, bundle })
    }

    /// Refuses a bundle for other settings, of which no program could be used.
    fn check_bundle(&self, bundle: &Bundle) -> Result<()> {
        let manifest = &bundle.manifest;
        let (mesh, kv, dtype) = (self.mesh.to_string(), kv_dtype(self.kv, self.dtype), self.dtype.dtype().to_string());
        let context = self.context.unwrap_or(manifest.context);
        let same = (&manifest.mesh, &manifest.kv, &manifest.activations) == (&mesh, &kv.to_string(), &dtype);
        if same && context == manifest.context {
            return Ok(());
        }
        let Manifest { mesh: m, kv: k, activations: a, context: c, .. } = manifest;
        bail!(
            "the bundle is for --mesh {m} --dtype {a} --context {c} with a cache in {k}; this command line asks for --mesh {mesh} --dtype \
             {dtype} --context {context} with a cache in {kv}. Use the same, or compile another bundle"
        )
    }

    /// Opens the platform, while the tokenizer is being read.
    ///
    /// # Errors
    /// The model cannot be divided over the mesh, or the platform cannot be opened.
    pub fn platform(&self, opened: &OpenedModel) -> Result<Platform> {
        opened.config.check_mesh(self.mesh)?; // before a plugin is loaded for nothing
        self.platform.open(self.mesh.devices())
    }

    /// Places the weights on the devices.
    ///
    /// # Errors
    /// The weights do not fit the devices' memory, or the plugin fails.
    pub fn load(&self, opened: &OpenedModel, platform: &Platform) -> Result<LoadedModel> {
        let started = Instant::now();
        if let Some(threads) = self.threads {
            kernels::set_threads(threads.into());
        }
        let kernels = self.lowering.is_none() && kernels::are_fast();
        let kv = kv_dtype(self.kv, self.dtype);
        let lowering = match self.lowering {
            Some(Lowering::Tpu) => gemma::Lowering::TPU,
            Some(Lowering::Native) | None => lowering(platform.kind, kernels),
        };
        let (compute, bundle) = (self.dtype.dtype(), opened.bundle.clone());
        let options = RunOptions { lowering, mesh: self.mesh, compute, kv, bundle };
        let config = opened.config.clone();
        let model = Model::load(platform, &opened.checkpoint, config, options, loading_progress())?;
        let is_cpu = platform.kind == Kind::Cpu;
        Ok(LoadedModel {
            model: Arc::new(model),
            platform: platform.kind.to_string(),
            is_cpu,
            kernels: is_cpu && kernels,
            time: platform.opened_in + started.elapsed(),
        })
    }

    /// Returns these arguments as a command line, for another process.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut list: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: Option<OsString>| {
            if let Some(value) = value {
                list.extend([name.into(), value]);
            }
        };
        let name = |value: Option<clap::builder::PossibleValue>| value.map(|v| v.get_name().into());
        add("--model", Some(self.model.as_str().into()));
        add("--platform", name(self.platform.platform.to_possible_value()));
        add("--plugin", self.platform.plugin.as_ref().map(Into::into));
        add("--mesh", Some(self.mesh.to_string().into()));
        add("--dtype", name(self.dtype.to_possible_value()));
        add("--kv", name(self.kv.and_then(|kv| kv.to_possible_value())));
        add("--weights", name(self.weights.and_then(|w| w.to_possible_value())));
        add("--lora", self.lora.as_ref().map(Into::into));
        add("--lowering", name(self.lowering.and_then(|l| l.to_possible_value())));
        add("--bundle", self.bundle.as_ref().map(Into::into));
        add("--context", self.context.map(|c| c.to_string().into()));
        add("--threads", self.threads.map(|t| t.to_string().into()));
        add("--gpu-memory", self.platform.gpu_memory.map(|share| share.to_string().into()));
        list.extend(self.platform.offline.then(|| "--offline".into()));
        list
    }
}

impl OpenedModel {
    /// Waits for the tokenizer.
    ///
    /// # Errors
    /// Its files are missing or damaged.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.tokenizer.get()
    }

    /// Returns the checkpoint. Its weights are mapped, not read.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Returns the number of cache positions to allocate for a sequence of `tokens` tokens.
    pub fn cache_len(&self, tokens: i64) -> i64 {
        // A bundle's programs are for its context.
        self.bundle.as_ref().map_or_else(|| cache_len_for(tokens, self.context), |bundle| bundle.manifest.context)
    }

    /// Checks that a prompt leaves room for an answer, and that its ids are in the vocabulary.
    ///
    /// # Errors
    /// It does not, or they are not.
    pub fn check_prompt(&self, tokens: &[u32], room: i64) -> Result<()> {
        check_ids(tokens, self.config.vocab_size as usize)?;
        let (len, context) = (tokens.len() as i64, self.context);
        if len + room > context {
            bail!(
                "the prompt has {len} tokens, which is too long for a context of {context}. Shorten it, or raise --context \
                 (this model was trained for {})",
                self.config.max_position_embeddings
            );
        }
        Ok(())
    }
}

/// Reads a prompt from the argument, a file, or standard input.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub fn read_text(argument: Option<&str>, file: Option<&Path>) -> Result<String> {
    if let Some(text) = argument {
        return Ok(text.to_owned());
    }
    let (name, bytes) = match file {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            (path.display().to_string(), bytes)
        }
        None => {
            if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
                note("reading from the terminal; end with Ctrl-D");
            }
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes).context("cannot read standard input")?;
            ("standard input".to_owned(), bytes)
        }
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{name} is not UTF-8 text (byte {at}); convert it, e.g. with iconv -t UTF-8")
    })?;
    Ok(without_mark(&text).to_owned())
}

/// Parses token ids, such as `2,106,1645`.
///
/// # Errors
/// A part is not a number.
pub fn parse_tokens(text: &str) -> Result<Vec<u32>, String> {
    let parse =
        |part: &str| part.trim().parse().map_err(|_| format!("{part:?} is no token id; give ids as 2,106,1645"));
    text.split(',').map(parse).collect()
}
