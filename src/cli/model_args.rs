//! Arguments that all commands share that run something, and opening what they name.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{init, note, progress::InstallProgress};
use crate::{
    cache_dir::cache_dir,
    checkpoint::Checkpoint,
    gemma::Config,
    hlo::{DType, Mesh},
    plugins::Kind,
    runtime::{Model, ModelOptions, Platform, PlatformRequest},
    tokenizer::Tokenizer,
};

/// Type of activations and KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compute {
    Bf16,
    F32,
}

impl Compute {
    pub fn dtype(self) -> DType {
        match self {
            Self::Bf16 => DType::BF16,
            Self::F32 => DType::F32,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlatformName {
    /// The best that this machine has: tpu, cuda, cpu
    Auto,
    Cpu,
    Tpu,
    Cuda,
}

/// Which platform to use.
#[derive(Debug, clap::Args)]
pub struct PlatformArgs {
    /// Platform to run on
    #[arg(long, value_enum, default_value = "auto")]
    pub platform: PlatformName,
    /// A PJRT plugin (.so) to use, instead of searching for one
    #[arg(long, value_name = "PATH")]
    pub plugin: Option<PathBuf>,
    /// Never download anything
    #[arg(long)]
    pub offline: bool,
}

impl PlatformArgs {
    /// Opens the platform with this many devices, and says which it is where the user left the choice to us.
    pub fn open(&self, devices: usize) -> Result<Platform> {
        let kind = match self.platform {
            PlatformName::Auto => None,
            PlatformName::Cpu => Some(Kind::Cpu),
            PlatformName::Tpu => Some(Kind::Tpu),
            PlatformName::Cuda => Some(Kind::Cuda),
        };
        let request = PlatformRequest { kind, plugin: self.plugin.clone(), devices, offline: self.offline };
        let platform = Platform::open(&request, &mut InstallProgress::default())?;
        if kind.is_none() {
            note(&platform.summary);
        }
        Ok(platform)
    }
}

/// Which model to run, and how.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Directory of a Gemma checkpoint: config.json, tokenizer.json, *.safetensors. Without it, a tiny model with random
    /// weights is made and run
    #[arg(long, short, value_name = "DIR")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub platform: PlatformArgs,
    /// Devices: DATAxMODEL, such as 1x4 for one model over 4 devices
    #[arg(long, value_name = "DxM", default_value = "1x1")]
    pub mesh: Mesh,
    /// Type of activations and KV cache; weights stay as they are stored
    #[arg(long, value_enum, default_value = "bf16")]
    pub dtype: Compute,
    /// Longest context in tokens, prompt and answer together [default: what the model was trained for]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(i64).range(1..))]
    pub context: Option<i64>,
}

/// A model directory whose small files have been read.
pub struct Opened {
    pub config: Config,
    pub tokenizer: Tokenizer,
    checkpoint: Checkpoint,
    /// Longest context allowed.
    pub context: i64,
}

/// A model that is ready to run.
pub struct Loaded {
    pub model: Arc<Model>,
    pub time: Duration,
}

impl ModelArgs {
    /// Reads and checks everything but the weights.
    pub fn open(&self) -> Result<Opened> {
        let dir = match &self.model {
            Some(dir) => dir.clone(),
            None => random_demo()?,
        };
        let config = read_config(&dir)?;
        let checkpoint = Checkpoint::open(&dir)?;
        let tokenizer = Tokenizer::from_dir(&dir)?;
        let trained = config.max_position_embeddings;
        if self.context.is_some_and(|context| context > trained) {
            bail!(
                "--context {} is more than the {trained} tokens that this model was trained for",
                self.context.unwrap()
            );
        }
        let context = self.context.unwrap_or(trained);
        Ok(Opened { config, tokenizer, checkpoint, context })
    }

    /// Opens the platform and places the weights.
    pub fn load(&self, opened: &Opened) -> Result<Loaded> {
        opened.config.check_mesh(self.mesh)?; // before a plugin is loaded for nothing
        let started = Instant::now();
        let platform = self.platform.open(self.mesh.devices())?;
        let options = ModelOptions { mesh: self.mesh, compute: self.dtype.dtype() };
        let model = Model::load(&platform, &opened.checkpoint, opened.config.clone(), options, note)?;
        if self.mesh.data > 1 {
            note("note: one request uses one data row of the mesh; the others repeat its work");
        }
        Ok(Loaded { model: Arc::new(model), time: started.elapsed() })
    }
}

impl Opened {
    /// Refuses a prompt that leaves no room for an answer.
    pub fn check_prompt(&self, tokens: &[u32], room: i64) -> Result<()> {
        self.tokenizer.check_ids(tokens, self.config.vocab_size as usize)?;
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

/// `config.json` of a model directory; remarks go to stderr.
pub fn read_config(dir: &Path) -> Result<Config> {
    if !dir.is_dir() {
        bail!(
            "there is no model directory {}; give the directory that holds config.json and *.safetensors",
            dir.display()
        );
    }
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read; copy it from the model's repository", path.display()))?;
    let (config, remarks) = Config::parse(&text).with_context(|| format!("{}", path.display()))?;
    remarks.iter().for_each(|remark| note(&format!("note: {remark}")));
    Ok(config)
}

/// The tiny random model that stands in where none is named.
fn random_demo() -> Result<PathBuf> {
    let cache = cache_dir().context("no --model was given, and there is no place for a demo model: set HOME")?;
    let dir = cache.join("random-tiny");
    note(
        "note: no --model was given, so this runs a tiny model with random weights: its text is noise, but everything that \
         makes it is real. For real text give the directory of a Gemma 1.1 checkpoint: --model gemma-1.1-2b-it",
    );
    if !dir.join("model.safetensors").exists() {
        init::write(&dir, &Config::preset("tiny").expect("a preset"), 0)?;
    }
    Ok(dir)
}

/// Reads a prompt: from the argument, a file, or standard input.
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
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{name} is not UTF-8 text (byte {at}); convert it, e.g. with iconv -t UTF-8")
    })
}

/// `2,106,1645`.
pub fn parse_tokens(text: &str) -> Result<Vec<u32>, String> {
    let parse =
        |part: &str| part.trim().parse().map_err(|_| format!("{part:?} is no token id; give ids as 2,106,1645"));
    text.split(',').map(parse).collect()
}
