//! Why a request is refused, apart from why the engine cannot go on.

use crate::{constraint::ConstraintError, sampling::OutOfRange};

/// A request that is not taken. The engine is as before.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("the prompt is empty; it begins with <bos> at least")]
    EmptyPrompt,
    #[error(
        "the prompt has {tokens} tokens, which leaves no room for an answer in a context of {context}; shorten it, or use a \
         longer --context"
    )]
    TooLong { tokens: usize, context: i64 },
    #[error("token id {id} is not in the vocabulary, which has {vocab} entries")]
    UnknownToken { id: u32, vocab: i64 },
    #[error(transparent)]
    BadParameter(#[from] OutOfRange),
    #[error(transparent)]
    BadConstraint(#[from] ConstraintError),
    #[error("{waiting} answers wait already, at most {most} may; try again when some are finished")]
    QueueFull { waiting: usize, most: usize },
    #[error("the engine is shutting down and takes no more requests")]
    ShuttingDown,
}
