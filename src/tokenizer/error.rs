//! Errors of loading and using a tokenizer.

use std::path::{Path, PathBuf};

/// An error of loading or using a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("there is no tokenizer {0}; copy tokenizer.json from the model's repository next to config.json")]
    Missing(PathBuf),
    #[error("{path} cannot be used: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    #[error("the chat template refuses this conversation: {0}")]
    Template(String),
    #[error("token id {id} is not in the vocabulary, which has {size} entries")]
    UnknownId { id: u32, size: usize },
}

impl TokenizerError {
    pub(super) fn damaged(path: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { path: path.into(), reason: reason.to_string() }
    }

    /// Names the directory of the file that is damaged.
    pub(super) fn in_dir(self, dir: &Path) -> Self {
        match self {
            Self::Damaged { path, reason } => Self::Damaged { path: dir.join(path), reason },
            other => other,
        }
    }
}
