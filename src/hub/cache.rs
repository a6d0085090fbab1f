//! Hugging Face's cache on this machine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{
    environment::Environment,
    error::{HubError, Result},
    repo::Repo,
};
use crate::model_file::{is_file_name, parse_json};

pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const SINGLE: &str = "model.safetensors";
/// The files that a model must have beside its weights, and those that it may have.
pub(super) const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
pub(super) const OPTIONAL: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// The directory that holds `models--organisation--name` directories.
#[derive(Clone, Debug)]
pub struct HubCache {
    root: PathBuf,
}

impl HubCache {
    /// Finds the cache by `HF_HUB_CACHE` or `HF_HOME`, as the `huggingface_hub` package does.
    ///
    /// # Errors
    /// No variable says where it is.
    pub fn from_env() -> Result<Self> {
        let root = Environment::of_process().cache().ok_or(HubError::NoCacheDir)?;
        Ok(Self { root })
    }

    /// Returns the directory of a model.
    pub(super) fn repo_dir(&self, repo: &Repo) -> PathBuf {
        self.root.join(format!("models--{}", repo.name.replace('/', "--")))
    }

    /// Returns the directory of the lock files of a model's downloads.
    pub(super) fn lock_dir(&self, repo: &Repo) -> PathBuf {
        self.root.join(".locks").join(format!("models--{}", repo.name.replace('/', "--")))
    }

    /// Returns the directory of a snapshot.
    pub(super) fn snapshot_dir(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.repo_dir(repo).join("snapshots").join(commit)
    }

    /// Returns the snapshot of the model's revision.
    ///
    /// # Errors
    /// The snapshot is missing or incomplete. The message says what is missing.
    pub fn find(&self, repo: &Repo) -> std::result::Result<PathBuf, String> {
        let dir = self.repo_dir(repo);
        if !dir.is_dir() {
            return Err(format!("there is no {}", dir.display()));
        }
        // A revision is a branch or tag in refs/, or a commit.
        let commit =
            fs::read_to_string(dir.join("refs").join(&repo.revision)).unwrap_or_else(|_| repo.revision.clone());
        let snapshot = self.snapshot_dir(repo, commit.trim());
        let missing = missing(&snapshot);
        if missing.is_empty() {
            return Ok(snapshot);
        }
        Err(format!("{} lacks {}", snapshot.display(), missing.join(", ")))
    }
}

/// Returns the names of files that a snapshot lacks.
fn missing(snapshot: &Path) -> Vec<String> {
    let absent = |name: &&str| !snapshot.join(name).exists(); // follows links: a blob may be gone
    let mut missing: Vec<String> = REQUIRED.iter().filter(|name| absent(name)).map(|&name| name.to_owned()).collect();
    if absent(&SINGLE) {
        let Ok(index) = fs::read_to_string(snapshot.join(INDEX)) else {
            missing.push(SINGLE.to_owned());
            return missing;
        };
        let shards = shards(&index).unwrap_or_default();
        missing.extend(shards.into_iter().filter(|name| absent(&name.as_str())));
    }
    missing
}

/// Returns the files that an index lists. `None` if it is not an index, or names files in other
/// directories.
pub fn shards(index: &str) -> Option<BTreeSet<String>> {
    let json = parse_json(index).ok()?;
    let files: Option<BTreeSet<String>> =
        json["weight_map"].as_object()?.values().map(|file| file.as_str().map(str::to_owned)).collect();
    let is_plain = |name: &String| is_file_name(name) && !name.starts_with('.');
    files.filter(|names| names.iter().all(is_plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_files_of_its_own_directory() {
        let of = |name: &str| shards(&serde_json::json!({"weight_map": {"a": name}}).to_string());
        assert_eq!(of("a.safetensors"), Some(BTreeSet::from(["a.safetensors".to_owned()])));
        for other in ["", "..", ".hidden", "/etc/passwd", "../a", "a/b", "a/"] {
            assert_eq!(of(other), None, "{other:?}");
        }
        assert_eq!(shards("[]"), None);
    }
}
