//! Keeps the finished part of a long run on disk, so that a run that is killed can be resumed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, TryLockError},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::note;
use crate::whole_file::{self, is_at};

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
    /// Opens the journal of this run. Returns the lines that earlier attempts wrote. A journal of
    /// another run that has no lines yet is begun anew.
    ///
    /// # Errors
    /// Another process has it open, it is of another run, it is damaged, or it cannot be read or
    /// written.
    pub fn open(path: &Path, identity: &RunIdentity) -> Result<(Self, Vec<Value>)> {
        let mut file = open_locked(path)?;
        let mut lines = Vec::new();
        let mut whole = 0;
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        let mut other_run = None;
        loop {
            line.clear();
            reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read {}", path.display()))?;
            // A line that was being written when the process was killed lacks its newline.
            if !line.ends_with(b"\n") {
                break;
            }
            if whole == 0 {
                other_run = difference(path, &line, identity)?;
            } else if let Some(difference) = other_run {
                bail!(difference);
            } else {
                let damaged = || format!("{} is damaged; remove it", path.display());
                lines.push(serde_json::from_slice(&line).with_context(damaged)?);
            }
            whole += line.len() as u64;
        }
        if other_run.is_some() {
            whole = 0;
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
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

/// Compares a journal's first line with this run's. Describes the difference, if there is one.
///
/// # Errors
/// The line is not a journal's first.
fn difference(path: &Path, line: &[u8], identity: &RunIdentity) -> Result<Option<String>> {
    let header: Value = serde_json::from_slice(line).unwrap_or_default();
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
        return Ok(None);
    }
    Ok(Some(format!(
        "{} is of a run with other {}. Run it as before, remove the file, or choose another --output",
        path.display(),
        differences.join(", other ")
    )))
}

/// Writes a file that appears whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    whole_file::write_whole(path, write).with_context(|| format!("cannot write {}", path.display()))
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
    fn a_line_is_whole_or_was_never_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.partial");
        let run = identity("1024", "a");
        let line = json!({"text": "caf\u{e9}"});
        let (mut journal, _) = Journal::open(&path, &run).unwrap();
        journal.write(&line).unwrap();
        journal.write(&line).unwrap();
        drop(journal);
        let bytes = std::fs::read(&path).unwrap();
        let first = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        let length = format!("{line}\n").len();
        for cut in first..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let (_, lines) = Journal::open(&path, &run).unwrap();
            assert_eq!(lines.len(), (cut - first) / length, "cut at {cut}, in a character, too");
        }
        // Damage in the middle is no reason to throw away what comes after it.
        let mut damaged = bytes.clone();
        damaged[first + 12] = 0xFF;
        std::fs::write(&path, &damaged).unwrap();
        assert!(refusal(&path, &run).contains("is damaged; remove it"));
        assert_eq!(std::fs::read(&path).unwrap(), damaged);
    }

    #[test]
    fn another_run_is_refused_by_what_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.partial");
        drop(Journal::open(&path, &identity("512", "a")).unwrap());
        let (mut first, lines) = Journal::open(&path, &identity("1024", "a")).unwrap();
        assert!(lines.is_empty(), "a run that has finished nothing stands in nobody's way");
        first.write(&json!({"index": 0})).unwrap();
        drop(first);
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
