//! The files of the model that `--model` names: the embedded demo model, a directory, or a model on
//! the hub.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{note, progress::DownloadProgress};
use crate::{
    checkpoint::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint, LoraAdapter, adapter_base},
    download::hex,
    gemma::Config,
    hub::{Hub, HubCache, Repo},
    model_file::parse_json,
    tokenizer::Tokenizer,
};
#[cfg(feature = "demo")]
use crate::{demo, gemma::tensors::num_parameters};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
/// Files beside weights and config: the tokenizer's, and the last one.
const OTHERS: [&str; 6] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_CONFIG,
];

/// A model's files.
pub enum ModelFiles {
    /// The demo model's, embedded in this program.
    #[cfg(feature = "demo")]
    Demo,
    Directory(PathBuf),
    /// Another model with a LoRA adapter, which is merged into its weights.
    Adapted {
        base: Box<Self>,
        adapter: PathBuf,
    },
}

impl ModelFiles {
    /// Finds the model, and downloads it if it is a name on the hub and not on this machine.
    ///
    /// # Errors
    /// There is no such model, or it cannot be downloaded.
    pub fn locate(model: &str, offline: bool) -> Result<Self> {
        if model == "demo" {
            #[cfg(feature = "demo")]
            return Ok(Self::Demo);
            #[cfg(not(feature = "demo"))]
            bail!(
                "this gemma-pjrt was built without the demo model; give --model DIR or a name on Hugging Face such as \
                 google/gemma-1.1-2b-it, or build it with --features demo"
            );
        }
        let path = PathBuf::from(model);
        if path.is_dir() {
            let has = |name: &str| path.join(name).exists();
            let is_adapter = has(ADAPTER_CONFIG);
            if is_adapter && !has("model.safetensors") && !has("model.safetensors.index.json") {
                return Self::locate_adapted(path, offline);
            }
            if is_adapter {
                note("note: the directory has full weights and an adapter, which is not used; --lora DIR merges one");
            }
            return Ok(Self::Directory(path));
        }
        let Some(repo) = Repo::parse(model) else {
            bail!(
                "there is no model directory {model}; give the directory that holds config.json and *.safetensors, a name on \
                 Hugging Face such as google/gemma-1.1-2b-it, or demo"
            );
        };
        let hub = Hub::from_env(offline);
        let found =
            HubCache::from_env().and_then(|cache| hub.get(&cache, &repo, &mut DownloadProgress::new("downloading")));
        Ok(Self::Directory(
            found.with_context(|| format!("there is no directory {model}, so it was taken for a name on the hub"))?,
        ))
    }

    /// Finds the model that an adapter in a directory of its own names as its base.
    fn locate_adapted(adapter: PathBuf, offline: bool) -> Result<Self> {
        let base = adapter_base(&adapter)?.with_context(|| {
            format!(
                "{} is a LoRA adapter that names no base; give the base with --model, and it with --lora",
                adapter.display()
            )
        })?;
        note(&format!("note: {} is a LoRA adapter of {base}, which it is merged into", adapter.display()));
        let finding = || {
            format!("{} is a LoRA adapter of {base}; give its base with --model, and it with --lora", adapter.display())
        };
        if Path::new(&base) == adapter {
            bail!(finding());
        }
        Ok(Self::locate(&base, offline).with_context(finding)?.with_adapter(&adapter))
    }

    /// Returns the model with an adapter.
    pub fn with_adapter(self, adapter: &Path) -> Self {
        Self::Adapted { base: Box::new(self), adapter: adapter.to_owned() }
    }

    /// Reads `config.json`. Remarks on it go to stderr.
    ///
    /// # Errors
    /// The file cannot be read, or describes a model that cannot be run.
    pub fn config(&self) -> Result<Config> {
        let (name, text) = self.config_text()?;
        let (config, remarks) = Config::parse(&text).context(name)?;
        remarks.iter().for_each(|remark| note(&format!("note: {remark}")));
        Ok(config)
    }

    /// Reads `config.json` as JSON, unchecked.
    ///
    /// # Errors
    /// The file cannot be read, or is not JSON.
    pub fn config_json(&self) -> Result<serde_json::Value> {
        let (name, text) = self.config_text()?;
        parse_json(&text).map_err(anyhow::Error::msg).context(name)
    }

    /// Returns the name of `config.json`, for errors, and its text.
    fn config_text(&self) -> Result<(String, String)> {
        let dir = match self {
            #[cfg(feature = "demo")]
            Self::Demo => return Ok(("the demo model".into(), demo::CONFIG.into())),
            Self::Directory(dir) => dir,
            Self::Adapted { base, .. } => return base.config_text(),
        };
        let path = dir.join(CONFIG);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read; copy it from the model's repository", path.display()))?;
        Ok((path.display().to_string(), text))
    }

    /// Reads the files beside weights and config. Returns their names and contents.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn others(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let read = |dir: &Path| -> Result<Vec<_>> {
            let present = OTHERS.into_iter().map(|name| (name, dir.join(name))).filter(|(_, path)| path.exists());
            let read = |(name, path): (_, PathBuf)| {
                Ok((name, std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?))
            };
            present.map(read).collect()
        };
        match self {
            #[cfg(feature = "demo")]
            Self::Demo => {
                Ok(vec![(TOKENIZER, demo::TOKENIZER.into()), (TOKENIZER_CONFIG, demo::TOKENIZER_CONFIG.into())])
            }
            Self::Directory(dir) => read(dir),
            Self::Adapted { base, adapter } if has_tokenizer(adapter) => {
                let (mut files, of_base) = (read(adapter)?, base.others()?);
                files.retain(|(name, _)| *name != GENERATION_CONFIG);
                files.extend(of_base.into_iter().filter(|(name, _)| *name == GENERATION_CONFIG));
                Ok(files)
            }
            Self::Adapted { base, .. } => base.others(),
        }
    }

    /// Returns the files of the model, each with what it is used for.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn meanings(&self, checkpoint: &Checkpoint) -> Result<Vec<(String, String)>> {
        let dir = match self {
            #[cfg(feature = "demo")]
            Self::Demo => return Ok(vec![]),
            Self::Directory(dir) => dir,
            Self::Adapted { base, adapter } => {
                let changed = LoraAdapter::open(adapter)?.targets().count();
                let mut all = base.meanings(checkpoint)?;
                let tokenizer = if has_tokenizer(adapter) { "; its tokenizer is used, not the base's" } else { "" };
                let meaning = format!("a LoRA adapter, merged into {changed} matrices{tokenizer}");
                all.push((adapter.display().to_string(), meaning));
                return Ok(all);
            }
        };
        let mut names = vec![];
        for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        let weights: Vec<_> = checkpoint.tensors().values().filter_map(|t| t.file.file_name()).collect();
        let meaning = |name: &str| match name {
            "config.json" => "sizes of the model".to_owned(),
            "tokenizer.json" => "vocabulary; truncation and padding in it have no effect".to_owned(),
            "tokenizer_config.json" => {
                "control tokens, and the chat template unless a chat_template file has it".to_owned()
            }
            "special_tokens_map.json" => "control tokens that tokenizer_config.json does not name".to_owned(),
            "chat_template.jinja" => "the chat template".to_owned(),
            "chat_template.json" => "the chat template, unless another file has it".to_owned(),
            "generation_config.json" => {
                "ids that end a generation; sampling is set by the command line alone".to_owned()
            }
            _ if weights.iter().any(|file| *file == name) => "weights".to_owned(),
            _ if name.ends_with(".safetensors.index.json")
                && weights.iter().all(|file| *file != "model.safetensors") =>
            {
                "which file has which tensor".to_owned()
            }
            _ => "not used".to_owned(),
        };
        Ok(names.into_iter().map(|name| (name.clone(), meaning(&name))).collect())
    }

    /// Returns a digest that identifies the model: of the paths, sizes and times of change of the
    /// files that it is read from, or of the demo model's bytes.
    ///
    /// # Errors
    /// A file's size or time cannot be read.
    pub fn fingerprint(&self, checkpoint: &Checkpoint) -> Result<[u8; 32]> {
        self.digest(checkpoint, |path, hasher| {
            let path = path.canonicalize()?; // the hub's cache has links
            let metadata = path.metadata()?;
            hasher.update(format!("{} {} {:?}\n", path.display(), metadata.len(), metadata.modified()?));
            Ok(())
        })
    }

    /// Returns a digest of the model's contents, which stays the same when the model is copied or
    /// downloaded again. Small files are read whole, large ones in [`SAMPLES`] places: training
    /// changes weights everywhere.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn content_digest(&self, checkpoint: &Checkpoint) -> Result<String> {
        let digest = self.digest(checkpoint, |path, hasher| {
            hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            sample(&File::open(path)?, hasher)
        })?;
        Ok(hex(&digest))
    }

    /// Hashes what `of_file` takes from each file that the model is read from. Other files in its
    /// directory do not count.
    fn digest(
        &self,
        checkpoint: &Checkpoint,
        of_file: impl Fn(&Path, &mut Sha256) -> io::Result<()> + Copy,
    ) -> Result<[u8; 32]> {
        let mut hasher = Sha256::new();
        let files: Vec<PathBuf> = match self {
            #[cfg(feature = "demo")]
            Self::Demo => {
                demo::FILES.iter().for_each(|bytes| hasher.update(Sha256::digest(bytes)));
                vec![]
            }
            Self::Directory(dir) => {
                let small = std::iter::once(CONFIG).chain(OTHERS).map(|name| dir.join(name));
                let small = small.filter(|path| path.exists());
                // An adapter's files are hashed below.
                let weights = checkpoint.files().into_iter().filter(|file| file.starts_with(dir));
                small.chain(weights.map(Path::to_owned)).collect()
            }
            Self::Adapted { base, adapter } => {
                hasher.update(base.digest(checkpoint, of_file)?);
                let used = [ADAPTER_CONFIG, ADAPTER_WEIGHTS].into_iter().chain(OTHERS);
                used.map(|name| adapter.join(name)).filter(|path| path.exists()).collect()
            }
        };
        for path in files {
            of_file(&path, &mut hasher).with_context(|| format!("cannot read {}", path.display()))?;
        }
        Ok(hasher.finalize().into())
    }

    /// Opens the checkpoint. Its weights are mapped, not read.
    ///
    /// # Errors
    /// The checkpoint is missing or damaged.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(match self {
            #[cfg(feature = "demo")]
            Self::Demo => demo::checkpoint(),
            Self::Directory(dir) => Checkpoint::open(dir)?,
            Self::Adapted { base, adapter } => {
                let mut checkpoint = base.checkpoint()?;
                checkpoint.merge(&LoraAdapter::open(adapter)?)?;
                checkpoint
            }
        })
    }

    /// Loads the tokenizer with its chat template.
    ///
    /// # Errors
    /// A file is missing or damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(match self {
            #[cfg(feature = "demo")]
            Self::Demo => demo::tokenizer(),
            Self::Directory(dir) => Tokenizer::from_dir(dir)?,
            Self::Adapted { base, adapter } if has_tokenizer(adapter) => {
                Tokenizer::from_dirs(adapter, base.dir().unwrap_or(adapter))?
            }
            Self::Adapted { base, .. } => base.tokenizer()?,
        })
    }

    /// The directory of the model, or of an adapter's base; none of the demo model.
    fn dir(&self) -> Option<&Path> {
        match self {
            #[cfg(feature = "demo")]
            Self::Demo => None,
            Self::Directory(dir) => Some(dir),
            Self::Adapted { base, .. } => base.dir(),
        }
    }

    /// Explains on stderr what the demo model is, if this is it.
    #[cfg(feature = "demo")]
    pub fn introduce(&self, config: &Config) {
        if let Self::Demo = self {
            note(&format!(
                "note: this is the tiny demo model ({:.1} million parameters). It knows capitals and other small facts, sums, \
                 sorting, spelling and the like, answers questions about a short passage, and remembers what you tell it. For \
                 Gemma itself: --model google/gemma-1.1-2b-it (with HF_TOKEN set), or --model DIR",
                num_parameters(config) as f64 / 1e6
            ));
        }
    }

    /// Says nothing: a model in a directory is known to its user.
    #[cfg(not(feature = "demo"))]
    pub fn introduce(&self, _: &Config) {}
}

/// Returns whether an adapter has a tokenizer of its own. It is used instead of the base's, as in
/// PEFT's `AutoPeftModelForCausalLM`.
fn has_tokenizer(adapter: &Path) -> bool {
    adapter.join(TOKENIZER).exists()
}

/// Places in which a large file is read for its digest, and bytes in each of them.
const SAMPLES: u64 = 256;
const SAMPLE_LEN: u64 = 4096;

/// Hashes a file's size, and its contents or samples of them.
fn sample(file: &File, hasher: &mut Sha256) -> io::Result<()> {
    let len = file.metadata()?.len();
    hasher.update(len.to_le_bytes());
    let mut block = vec![0; SAMPLE_LEN as usize];
    let last = len.saturating_sub(SAMPLE_LEN);
    let count = len.div_ceil(SAMPLE_LEN).min(SAMPLES);
    for i in 0..count {
        let start = if count > 1 { (u128::from(last) * u128::from(i) / u128::from(count - 1)) as u64 } else { 0 };
        let block = &mut block[..(len - start).min(SAMPLE_LEN) as usize];
        file.read_exact_at(block, start)?;
        hasher.update(&*block);
    }
    Ok(())
}
