//! Downloads one file: resumes where it broke off, checks the hash, and links the file into the
//! snapshot.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{
    cache::HubCache,
    client::{Hub, RemoteFile, host},
    error::{HubError, Result},
    repo::Repo,
};
use crate::download::{Progress, copy_hashed, hex, patiently};

/// The download of a snapshot's files.
pub(super) struct SnapshotDownload<'a> {
    pub hub: &'a Hub,
    pub cache: &'a HubCache,
    pub repo: &'a Repo,
    pub commit: &'a str,
    pub progress: &'a mut dyn Progress,
}

/// A download is given up after this many attempts in a row without a byte.
const ATTEMPTS: u32 = 4;

impl SnapshotDownload<'_> {
    /// Downloads a file into the snapshot, unless it is there.
    pub fn file(&mut self, name: &str) -> Result<()> {
        let link_path = self.cache.snapshot_dir(self.repo, self.commit).join(name);
        if link_path.exists() {
            return Ok(());
        }
        let mut remote = self.hub.locate(self.repo, self.commit, name)?;
        let blob = self.cache.repo_dir(self.repo).join("blobs").join(&remote.etag);
        // Of two processes that need the same file, the second waits for the first, and finds it.
        let _lock = self.lock(&remote)?;
        if !blob.exists() {
            self.progress.start(name, remote.size);
            let result = self.blob(&mut remote, &blob);
            self.progress.finish();
            result?;
        }
        link(&blob, &link_path, |target, path| std::os::unix::fs::symlink(target, path))
            .map_err(|cause| HubError::Write { path: link_path, cause })
    }

    /// Takes the lock of a file's download, which is held until it is dropped or the process ends.
    /// A file system without locks is used without, and a warning says so.
    fn lock(&self, remote: &RemoteFile) -> Result<File> {
        let dir = self.cache.lock_dir(self.repo);
        let path = dir.join(format!("{}.lock", remote.etag));
        let open = || {
            fs::create_dir_all(&dir)?;
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            if let Err(cause) = file.lock() {
                tracing::warn!("{} cannot be locked ({cause}): let no other process download it", path.display());
            }
            Ok(file)
        };
        open().map_err(|cause| HubError::Write { path, cause })
    }

    /// Downloads the contents of a file to `blob`.
    fn blob(&mut self, remote: &mut RemoteFile, blob: &Path) -> Result<()> {
        let path = blob.with_file_name(format!("{}.incomplete", remote.etag));
        let written = |cause| HubError::Write { path: path.clone(), cause };
        fs::create_dir_all(blob.parent().expect("blobs/")).map_err(written)?;
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(written)?;
        let mut received = file.metadata().map_err(written)?.len();
        let (mut hash, mut failures) = (Hash::new(remote), 0);
        if received <= remote.size {
            file.rewind().map_err(written)?;
            hash.copy(&mut file, &mut io::sink(), |n| self.progress.advance(n)).map_err(written)?;
        } else {
            file.set_len(0).map_err(written)?; // from another program
            received = 0;
        }
        while received < remote.size {
            let before = received;
            let problem = match self.open(remote, received)? {
                Opened::Contents(mut body) => {
                    let mut out = CountingWriter { file: &mut file, written: &mut received, failed: false };
                    let result = hash
                        .copy(&mut body.by_ref().take(remote.size - before), &mut out, |n| self.progress.advance(n));
                    match result {
                        Err(cause) if out.failed => return Err(written(cause)),
                        Err(cause) => cause.to_string(),
                        Ok(()) => "the connection was closed".into(),
                    }
                }
                Opened::Refused(problem) => {
                    // A signed address holds for some minutes: the hub makes a new one.
                    let fresh = self.hub.locate(self.repo, self.commit, &remote.name)?;
                    if (&fresh.etag, fresh.size) != (&remote.etag, remote.size) {
                        let problem = format!("another hash or size of {} than before", remote.name);
                        return Err(HubError::Answer { url: host(&remote.url).to_owned(), problem });
                    }
                    tracing::warn!("{problem}; asked the hub for its address again");
                    *remote = fresh;
                    problem
                }
                Opened::WholeOnly => {
                    // The server cannot resume: from the beginning.
                    file.set_len(0).map_err(written)?;
                    (received, hash) = (0, Hash::new(remote));
                    continue;
                }
            };
            failures = if received > before { 1 } else { failures + 1 };
            if received < remote.size {
                if failures >= ATTEMPTS {
                    let (file, size) = (remote.name.clone(), remote.size);
                    return Err(HubError::BrokeOff { file, received, size, problem });
                }
                std::thread::sleep(Duration::from_millis(250) * 2_u32.pow(failures));
            }
        }
        if let Err(error) = hash.check(remote) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        // Its hash is not checked again: a power cut must not leave a name without contents.
        file.sync_all().map_err(written)?;
        fs::rename(&path, blob).map_err(written)
    }

    /// Opens the file's contents from `start` on.
    fn open(&self, remote: &RemoteFile, start: u64) -> Result<Opened<impl Read + use<>>> {
        let send = || {
            let mut request = self.hub.download_agent.get(&remote.url).header("Accept-Encoding", "identity");
            if start > 0 {
                request = request.header("Range", format!("bytes={start}-"));
            }
            if let (true, Some(token)) = (remote.on_hub, &self.hub.token) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            request.call()
        };
        let response = patiently(host(&remote.url), send).map_err(|e| HubError::Unreachable {
            repo: self.repo.clone(),
            endpoint: host(&remote.url).to_owned(),
            problem: e.to_string(),
        })?;
        let starts_there = |range: &str| range.trim_start_matches("bytes ").starts_with(&format!("{start}-"));
        let range = response.headers().get("content-range").and_then(|v| v.to_str().ok());
        let problem = || format!("{} for {}", response.status(), remote.name);
        match response.status().as_u16() {
            200 if start == 0 => {}
            200 => return Ok(Opened::WholeOnly),
            206 if range.is_some_and(starts_there) => {}
            400 | 401 | 403 | 410 if !remote.on_hub => {
                return Ok(Opened::Refused(format!("{} answered {}", host(&remote.url), problem())));
            }
            _ => return Err(HubError::Answer { url: host(&remote.url).to_owned(), problem: problem() }),
        }
        Ok(Opened::Contents(response.into_body().into_with_config().limit(u64::MAX).reader()))
    }
}

/// The answer to a request for a file's contents.
enum Opened<R> {
    Contents(R),
    /// The server can only send the whole file.
    WholeOnly,
    /// A server other than the hub does not accept its address any more.
    Refused(String),
}

/// The kind of hash that a file's etag is.
enum Hash {
    /// sha256 of the contents.
    Sha256(Sha256),
    /// git's blob id: sha1 of `blob <size>\0` and the contents.
    Git(Sha1),
    /// The hash is not known, and the contents are not checked.
    Unknown,
}

impl Hash {
    fn new(remote: &RemoteFile) -> Self {
        if !remote.is_hashed {
            Self::Unknown
        } else if remote.etag.len() == 64 {
            Self::Sha256(Sha256::new())
        } else {
            Self::Git(Sha1::new_with_prefix(format!("blob {}\0", remote.size)))
        }
    }

    fn copy(&mut self, from: &mut impl Read, to: &mut impl Write, progress: impl FnMut(u64)) -> io::Result<()> {
        match self {
            Self::Sha256(hasher) => copy_hashed(from, to, hasher, progress),
            Self::Git(hasher) => copy_hashed(from, to, hasher, progress),
            Self::Unknown => copy_hashed(from, to, &mut Sha256::new(), progress),
        }
    }

    fn check(self, remote: &RemoteFile) -> Result<()> {
        let (what, found) = match self {
            Self::Sha256(hasher) => ("sha256", hex(&hasher.finalize())),
            Self::Git(hasher) => ("git sha1", hex(&hasher.finalize())),
            Self::Unknown => return Ok(()),
        };
        if found == remote.etag {
            return Ok(());
        }
        Err(HubError::Damaged { file: remote.name.clone(), what, found, expected: remote.etag.clone() })
    }
}

/// A writer to a file that counts bytes, and records whether an error was the file's.
struct CountingWriter<'f> {
    file: &'f mut File,
    written: &'f mut u64,
    failed: bool,
}

impl Write for CountingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes).inspect_err(|_| self.failed = true)?;
        *self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Links the snapshot's file to the blob by a relative path, so that the cache can be moved. On a
/// file system without links the blob becomes the file, as in the `huggingface_hub` package.
fn link(blob: &Path, path: &Path, symlink: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    fs::create_dir_all(path.parent().expect("it lies in a snapshot"))?;
    let target = PathBuf::from("../../blobs").join(blob.file_name().expect("blobs have names"));
    let _ = fs::remove_file(path); // a link to a blob that is gone
    symlink(&target, path).or_else(|_| fs::rename(blob, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_links_the_blob_becomes_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, path) = (dir.path().join("blobs/0"), dir.path().join("snapshots/1/config.json"));
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, "{}").unwrap();
        link(&blob, &path, |_, _| Err(io::ErrorKind::Unsupported.into())).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
        assert!(!path.is_symlink() && !blob.exists(), "it is there once");
    }
}
