//! Errors of checkpoints.

use std::path::PathBuf;

/// An error of reading or writing a checkpoint. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("there is no model directory {0}; give the directory that holds config.json and *.safetensors")]
    NoDirectory(PathBuf),
    #[error("{dir} holds no safetensors files{hint}")]
    NoWeights { dir: PathBuf, hint: String },
    #[error("{tensor} shows that {explanation}")]
    QuantizedByOthers { tensor: String, explanation: String },
    #[error("{path} is damaged: {problem}. Download it again, or compare its size and sha256 with the source")]
    Damaged { path: PathBuf, problem: String },
    #[error("{path} cannot be read: {problem}")]
    Unreadable { path: PathBuf, problem: String },
    #[error("the checkpoint does not fit the model that its config.json describes:\n{0}")]
    Mismatch(String),
    #[error(
        "{tensor} is stored as {found}; only float checkpoints (BF16, F16, F32) can be quantised. Start from the original"
    )]
    NotQuantizable { tensor: String, found: String },
    #[error("the adapter {dir} cannot be merged: {problem}. Give a LoRA adapter of this model, as PEFT saves it")]
    Adapter { dir: PathBuf, problem: String },
    #[error("cannot write {path}: {cause}")]
    Write { path: PathBuf, cause: std::io::Error },
}
