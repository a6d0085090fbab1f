//! The files of the model that `--model` names: the embedded demo model, a directory, or a model on
//! the hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{note, progress::DownloadProgress};
use crate::{
    checkpoint::{Checkpoint, refuse_adapter},
    gemma::Config,
    hub::{Hub, HubCache, Repo},
    model_file::{LFS_POINTER, is_lfs_pointer_at, parse_json},
    tokenizer::Tokenizer,
};
#[cfg(feature = "demo")]
use crate::{demo, gemma::tensors::num_parameters};

const CONFIG: &str = "config.json";
/// Files beside weights and config. The first three are the tokenizer's.
const OTHERS: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// A model's files.
pub enum ModelFiles {
    /// The demo model's, embedded in this program.
    #[cfg(feature = "demo")]
    Demo,
    Directory(PathBuf),
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
        };
        let path = dir.join(CONFIG);
        if !path.exists() {
            refuse_adapter(dir)?;
        }
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read; copy it from the model's repository", path.display()))?;
        Ok((path.display().to_string(), text))
    }

    /// Reads the files beside weights and config. Returns their names and contents.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn others(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let dir = match self {
            #[cfg(feature = "demo")]
            Self::Demo => {
                return Ok(vec![(OTHERS[0], demo::TOKENIZER.into()), (OTHERS[1], demo::TOKENIZER_CONFIG.into())]);
            }
            Self::Directory(dir) => dir,
        };
        let present = OTHERS.into_iter().map(|name| (name, dir.join(name))).filter(|(_, path)| path.exists());
        let read = |(name, path): (&'static str, PathBuf)| {
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((name, bytes))
        };
        present.map(read).collect()
    }

    /// Returns a digest that identifies the model: of the paths, sizes and times of change of the
    /// files that it is read from, or of the demo model's bytes. Other files in its directory do
    /// not count.
    ///
    /// # Errors
    /// A file's size or time cannot be read.
    pub fn fingerprint(&self, checkpoint: &Checkpoint) -> Result<[u8; 32]> {
        let mut hasher = Sha256::new();
        match self {
            #[cfg(feature = "demo")]
            Self::Demo => demo::FILES.iter().for_each(|bytes| hasher.update(Sha256::digest(bytes))),
            Self::Directory(dir) => {
                let small = std::iter::once(CONFIG).chain(OTHERS).map(|name| dir.join(name));
                let small = small.filter(|path| path.exists());
                for path in small.chain(checkpoint.files().into_iter().map(Path::to_owned)) {
                    let describe = || -> std::io::Result<String> {
                        let path = path.canonicalize()?; // the hub's cache has links
                        let metadata = path.metadata()?;
                        Ok(format!("{} {} {:?}\n", path.display(), metadata.len(), metadata.modified()?))
                    };
                    hasher.update(describe().with_context(|| format!("cannot read {}", path.display()))?);
                }
            }
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
            Self::Directory(dir) => {
                for path in OTHERS[..3].iter().map(|name| dir.join(name)) {
                    if is_lfs_pointer_at(&path) {
                        bail!("{} cannot be read: {LFS_POINTER}", path.display());
                    }
                }
                Tokenizer::from_dir(dir)?
            }
        })
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
