//! Errors of plugins, and of arguments that are refused before a plugin sees them.

use std::path::PathBuf;

use super::abi::Slot;

/// A PJRT status code (the absl codes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Cancelled,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    Unimplemented,
    Internal,
    Unavailable,
    /// Any other code, as the plugin gave it.
    Other(i32),
}

impl From<i32> for Code {
    fn from(code: i32) -> Self {
        match code {
            1 => Self::Cancelled,
            3 => Self::InvalidArgument,
            5 => Self::NotFound,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            other => Self::Other(other),
        }
    }
}

/// An error of loading a plugin, of a call that the plugin refused, or of arguments that were
/// refused before the call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the PJRT plugin refused {call}: {message} ({code:?})")]
    Plugin { call: &'static str, code: Code, message: String },
    #[error(
        "the PJRT plugin has no entry point {slot:?}: its table has {slots} slots (API {major}.{minor}). \
         Install a newer plugin: gemma-pjrt plugins install"
    )]
    MissingSlot { slot: Slot, slots: usize, major: i32, minor: i32 },
    #[error("the PJRT plugin has no {0} extension, so this program cannot run on it; install the default plugin")]
    MissingExtension(&'static str),
    #[error("cannot load the PJRT plugin {path}: {reason}")]
    Load { path: PathBuf, reason: String },
    #[error("{0}")]
    Argument(String),
    #[error("cannot read {path}: {cause}")]
    Io { path: PathBuf, cause: std::io::Error },
}

impl Error {
    /// Returns the plugin's status code, if the error is the plugin's.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Plugin { code, .. } => Some(*code),
            _ => None,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;
