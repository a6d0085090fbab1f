//! Keeps the finished part of a long run on disk, so that a run that is killed can be resumed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, Metadata, TryLockError},
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::note;

/// The model, settings and inputs that determine a run's answers, by name. Only a run with the same
/// values may resume its journal.
pub type RunIdentity = BTreeMap<&'static str, String>;

/// Key of the first line, which identifies the run.
const RUN: &str = "gemma-pjrt run";

/// A file of JSON lines. The first line identifies the run. While it is open, it is locked.
pub struct Journal {
    pub path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal of this run. Returns the lines that earlier attempts wrote.
    ///
    /// # Errors
    /// Another process has it open, it is of another run, it is damaged, or it cannot be written.
    pub fn open(path: &Path, identity: &RunIdentity) -> Result<(Self, Vec<Value>)> {
        let mut file = open_locked(path)?;
        let mut lines = Vec::new();
        let mut whole = 0;
        let mut reader = BufReader::new(&file);
        let mut line = String::new();
        // A line that was being written when the process was killed lacks its newline.
        while reader.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
            if whole == 0 {
                check_identity(path, line.trim_end(), identity)?;
            } else {
                let damaged = || format!("{} is damaged; remove it", path.display());
                lines.push(serde_json::from_str(line.trim_end()).with_context(damaged)?);
            }
            whole += line.len() as u64;
            line.clear();
        }
        let writing = || format!("cannot write {}", path.display());
        file.set_len(whole).with_context(writing)?;
        if whole == 0 {
            file.write_all(format!("{}\n", json!({ RUN: identity })).as_bytes()).with_context(writing)?;
        }
        Ok((Self { path: path.to_owned(), file }, lines))
    }

    /// Appends a line, in one write: other processes see whole lines only.
    ///
    /// # Errors
    /// The line cannot be written.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes()).with_context(|| {
            let path = self.path.display();
            format!("cannot write {path}; it keeps what is finished, and the same command resumes from there")
        })
    }
}

/// Opens a journal, or creates it, and locks it until it is closed: two processes that append to
/// one file would mix their lines.
fn open_locked(path: &Path) -> Result<File> {
    loop {
        let opened = File::options().create(true).read(true).append(true).open(path);
        let file = opened.with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another process is writing {}: wait until it is done, or choose another --output",
                path.display()
            ),
            Err(TryLockError::Error(cause)) => {
                note(&format!(
                    "warning: {} cannot be locked ({cause}): make sure that no other process has this --output",
                    path.display()
                ));
                return Ok(file);
            }
        }
        // Between opening and locking, the process that had the lock may have finished, and removed
        // the file.
        let same = |there: &Metadata, ours: &Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if let (Ok(there), Ok(ours)) = (path.metadata(), file.metadata())
            && same(&there, &ours)
        {
            return Ok(file);
        }
    }
}

/// Checks that a journal's first line is this run's.
fn check_identity(path: &Path, line: &str, identity: &RunIdentity) -> Result<()> {
    let header: Value = serde_json::from_str(line).unwrap_or_default();
    let Some(before) = header[RUN].as_object() else {
        bail!("{} is no journal of this version; remove it, or choose another --output", path.display());
    };
    let names: BTreeSet<&str> = before.keys().map(String::as_str).chain(identity.keys().copied()).collect();
    let value = |name: &str| before.get(name).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let differences: Vec<String> = names
        .into_iter()
        .map(|name| (name, value(name), identity.get(name).map_or("unknown", String::as_str)))
        .filter(|(_, then, now)| then != now)
        .map(|(name, then, now)| {
            // Digests tell a reader nothing.
            if then.len().max(now.len()) > 40 { name.to_owned() } else { format!("{name} ({then}, now {now})") }
        })
        .collect();
    if differences.is_empty() {
        return Ok(());
    }
    bail!(
        "{} is of a run with other {}. Run it as before, remove the file, or choose another --output",
        path.display(),
        differences.join(", other ")
    )
}

/// Returns the path with a suffix appended to its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Writes a file that appears whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let temporary = beside(path, ".tmp");
    let attempt = || -> std::io::Result<()> {
        let mut writer = std::io::BufWriter::new(File::create(&temporary)?);
        write(&mut writer)?;
        writer.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(context: &str, weights: &str) -> RunIdentity {
        BTreeMap::from([("context", context.to_owned()), ("model files", weights.repeat(64))])
    }

    fn refusal(path: &Path, identity: &RunIdentity) -> String {
        Journal::open(path, identity).err().unwrap().to_string()
    }

    #[test]
    fn a_journal_has_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.partial");
        let run = identity("1024", "a");
        let (mut first, _) = Journal::open(&path, &run).unwrap();
        first.write(&json!({"index": 0})).unwrap();
        let said = refusal(&path, &run);
        assert!(said.contains("another process is writing") && said.contains("--output"), "{said}");
        drop(first);
        let (_second, lines) = Journal::open(&path, &run).unwrap();
        assert_eq!(lines, [json!({"index": 0})]);
    }

    #[test]
    fn another_run_is_refused_by_what_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.partial");
        drop(Journal::open(&path, &identity("1024", "a")).unwrap());
        let said = refusal(&path, &identity("2048", "a"));
        assert!(said.contains("other context (1024, now 2048). "), "{said}");
        let said = refusal(&path, &identity("1024", "b"));
        assert!(said.contains("with other model files. "), "{said}");
        let said = refusal(&path, &identity("2048", "b"));
        assert!(said.contains("other context (1024, now 2048), other model files. "), "{said}");
        std::fs::write(&path, "something else\n").unwrap();
        assert!(refusal(&path, &identity("1024", "a")).contains("is no journal of this version"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "something else\n", "it stays");
    }
}
