//! What `--model` names: the embedded demo model, a directory, or a model on the hub.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{note, progress::DownloadProgress};
use crate::{
    checkpoint::Checkpoint,
    demo,
    gemma::{Config, weights::num_parameters},
    hub::{Cache, Hub, Repo},
    tokenizer::Tokenizer,
};

/// A model's files.
pub enum ModelFiles {
    /// Those in this program.
    Demo,
    Directory(PathBuf),
}

impl ModelFiles {
    /// Finds the model, and downloads it if it is named and not on this machine.
    pub fn locate(model: &str, offline: bool) -> Result<Self> {
        if model == "demo" {
            return Ok(Self::Demo);
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
            Cache::from_env().and_then(|cache| hub.get(&cache, &repo, &mut DownloadProgress::new("downloading")));
        Ok(Self::Directory(
            found.with_context(|| format!("there is no directory {model}, so it is a name on the hub"))?,
        ))
    }

    /// `config.json`; remarks go to stderr.
    pub fn config(&self) -> Result<Config> {
        let Self::Directory(dir) = self else {
            return Ok(Config::parse(demo::CONFIG).expect("the embedded config is right").0);
        };
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read; copy it from the model's repository", path.display()))?;
        let (config, remarks) = Config::parse(&text).with_context(|| format!("{}", path.display()))?;
        remarks.iter().for_each(|remark| note(&format!("note: {remark}")));
        Ok(config)
    }

    /// The weights, mapped.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(match self {
            Self::Demo => demo::checkpoint(),
            Self::Directory(dir) => Checkpoint::open(dir)?,
        })
    }

    /// The tokenizer with its chat template.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(match self {
            Self::Demo => demo::tokenizer(),
            Self::Directory(dir) => Tokenizer::from_dir(dir)?,
        })
    }

    /// Says of the demo model what it is.
    pub fn introduce(&self, config: &Config) {
        if let Self::Demo = self {
            note(&format!(
                "note: this is the tiny demo model ({:.1} million parameters), early in its training. It has begun to learn capitals \
                 and other small facts, and to remember what you tell it; sums, sorting and spelling are mostly wrong. For Gemma \
                 itself: --model google/gemma-1.1-2b-it (with HF_TOKEN set), or --model DIR",
                num_parameters(config) as f64 / 1e6
            ));
        }
    }
}
