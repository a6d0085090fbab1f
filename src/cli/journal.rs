//! Keeps the finished part of a long run on disk, so that a run that is killed can be resumed.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A file of JSON lines. The first line identifies the run.
pub struct Journal {
    pub path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal of the run whose input and settings have this digest. Returns the lines
    /// that earlier attempts wrote.
    ///
    /// # Errors
    /// The file is of another run, damaged, or cannot be written.
    pub fn open(path: &Path, digest: &str) -> Result<(Self, Vec<Value>)> {
        let header = json!({"gemma-pjrt run": digest}).to_string();
        let mut lines = Vec::new();
        let mut whole = 0;
        if let Ok(file) = File::open(path) {
            let mut reader = BufReader::new(file);
            let mut line = String::new();
            // A line that was being written when the process was killed lacks its newline.
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
