//! Errors of devices, programs and running a model.

use crate::{
    checkpoint::CheckpointError, gemma::ConfigError, hlo::HloError, pjrt, plugins::PluginError,
    tokenizer::TokenizerError,
};

/// What can go wrong with running a model. Each message says what was being done and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("{doing}: {cause}")]
    Pjrt { doing: String, cause: pjrt::Error },
    #[error("the program {program} cannot be built: {cause}. This is a defect of gemma-pjrt: please report it")]
    Graph { program: String, cause: HloError },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("{0}")]
    Invalid(String),
    #[error(
        "the logits are not numbers: NaN or infinity appears first in {0}. They are \
         damaged, or the computation overflows: compare the file's sha256 with its source, or compute with --dtype f32"
    )]
    NotNumbers(String),
    #[error("the context is full: {prompt} tokens of conversation and {room} for an answer are more than {context}")]
    ContextFull { prompt: usize, room: usize, context: i64 },
    #[error(
        "not enough device memory while {doing}: {message}. Use a shorter --context, more devices (--mesh 1xN), or a machine \
         with more memory"
    )]
    OutOfMemory { doing: String, message: String },
}

/// [`std::result::Result`] with this room's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when a plugin refused.
pub trait During<T> {
    /// Adds what was being done to a plugin's error.
    ///
    /// # Errors
    /// The plugin's, as [`Error::Pjrt`], or as [`Error::OutOfMemory`] where memory ran out.
    fn during(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> During<T> for pjrt::Result<T> {
    fn during(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| match cause.code() {
            Some(pjrt::Code::ResourceExhausted) => Error::OutOfMemory { doing: doing(), message: cause.to_string() },
            _ => Error::Pjrt { doing: doing(), cause },
        })
    }
}
