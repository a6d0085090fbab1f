//! Saved conversations.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::tokenizer::Message;

/// A saved conversation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    /// The model that answered, as `--model` named it.
    pub model: String,
    /// Text before the first message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Questions and answers, alternating.
    pub messages: Vec<Message>,
}

impl Transcript {
    /// Writes a temporary file and renames it, so that a full disk does not destroy a conversation
    /// saved before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let write = || -> Result<()> {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.persist(path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot save the conversation to {}", path.display()))
    }

    /// Reads a saved conversation.
    ///
    /// # Errors
    /// The file cannot be read, or is not a saved conversation.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a conversation that /save wrote", path.display()))
    }
}
