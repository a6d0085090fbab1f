//! A mistake in a graph.

use std::panic::Location;

/// The first mistake made while a graph was built.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{op} at {location}: {message}; operands: {operands}")]
pub struct HloError {
    /// The op's HLO name.
    pub op: String,
    pub message: String,
    /// The operands' types, in HLO notation.
    pub operands: String,
    /// The caller's line.
    pub location: &'static Location<'static>,
}
