//! What is finished of a long run, on disk at once: a run that is killed goes on from there.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A file of JSON lines; the first tells of which run they are.
pub struct Journal {
    pub path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal of a run with this digest of its input and settings; returns the lines of earlier runs of the same.
    pub fn open(path: &Path, digest: &str) -> Result<(Self, Vec<Value>)> {
        let header = json!({"gemma-pjrt run": digest}).to_string();
        let mut lines = Vec::new();
        let mut whole = 0;
        if let Ok(file) = File::open(path) {
            let mut reader = BufReader::new(file);
            let mut line = String::new();
            // A line that was being written when the process was killed has no end.
            while reader.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
                let text = line.trim_end();
                if whole == 0 && text != header {
                    bail!(
                        "{} is of another input, or was made with other settings; remove it, or choose another --output",
                        path.display()
                    );
                }
                if whole > 0 {
                    let damaged = || format!("{} is damaged; remove it", path.display());
                    lines.push(serde_json::from_str(text).with_context(damaged)?);
                }
                whole += line.len() as u64;
                line.clear();
            }
        }
        let writing = || format!("cannot write {}", path.display());
        let mut file = File::options().create(true).append(true).open(path).with_context(writing)?;
        file.set_len(whole).with_context(writing)?;
        if whole == 0 {
            file.write_all(format!("{header}\n").as_bytes()).with_context(writing)?;
        }
        Ok((Self { path: path.to_owned(), file }, lines))
    }

    /// Adds a line, in one write: what another process sees is whole lines.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes()).with_context(|| {
            let path = self.path.display();
            format!("cannot write {path}; what is finished is kept in it, and the same command goes on from there")
        })
    }
}

/// The path with this added to its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Writes a file so that it is there whole or not at all.
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
