//! Downloads a model into the cache: a snapshot of one revision.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    cache::{HubCache, INDEX, OPTIONAL, REQUIRED, SINGLE, shards},
    client::Hub,
    error::{HubError, Result},
    fetch::SnapshotDownload,
    repo::Repo,
};
use crate::{download::Progress, whole_file::write_whole};

impl Hub {
    /// Returns the model's directory in the cache, after downloading it if it is not there.
    ///
    /// # Errors
    /// The client is offline, the hub refuses, the download fails, or the cache cannot be written.
    pub fn get(&self, cache: &HubCache, repo: &Repo, progress: &mut dyn Progress) -> Result<PathBuf> {
        match cache.find(repo) {
            Ok(snapshot) => Ok(snapshot),
            Err(missing) if self.offline => Err(HubError::Offline { repo: repo.clone(), missing }),
            Err(_) => self.download(cache, repo, progress),
        }
    }

    fn download(&self, cache: &HubCache, repo: &Repo, progress: &mut dyn Progress) -> Result<PathBuf> {
        let (commit, names) = self.list(repo)?;
        let unusable = |problem: String| HubError::NotAModel { repo: repo.clone(), problem };
        let snapshot = cache.snapshot_dir(repo, &commit);
        let has = |name: &str| names.iter().any(|n| n == name);
        if let Some(absent) = REQUIRED.iter().find(|name| !has(name)) {
            return Err(unusable(format!("it has no {absent}")));
        }
        let mut fetch = SnapshotDownload { hub: self, cache, repo, commit: &commit, progress };
        for name in REQUIRED.into_iter().chain(OPTIONAL.into_iter().filter(|name| has(name))) {
            fetch.file(name)?;
        }
        // As transformers: one file wins over shards.
        if has(SINGLE) {
            fetch.file(SINGLE)?;
        } else if has(INDEX) {
            fetch.file(INDEX)?;
            let path = snapshot.join(INDEX);
            let index = fs::read_to_string(&path).map_err(|cause| HubError::Write { path, cause })?;
            let shards = shards(&index).ok_or_else(|| unusable(format!("its {INDEX} names no files of its own")))?;
            for shard in &shards {
                fetch.file(shard)?;
            }
        } else {
            return Err(unusable("it has no safetensors files".into()));
        }
        // Last, so that an incomplete download is not taken for the model.
        let reference = cache.repo_dir(repo).join("refs").join(&repo.revision);
        write_reference(&reference, &commit).map_err(|cause| HubError::Write { path: reference, cause })?;
        Ok(snapshot)
    }
}

fn write_reference(path: &Path, commit: &str) -> std::io::Result<()> {
    fs::create_dir_all(path.parent().expect("it lies below refs"))?;
    write_whole(path, |out| out.write_all(commit.as_bytes()))
}
