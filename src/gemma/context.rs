//! What the layers know besides their inputs.

use super::ModelSpec;
use crate::hlo::Op;

/// The model, and how many rows of the activations are real.
#[derive(Clone, Copy)]
pub(super) struct Context<'m, 'g> {
    pub model: &'m ModelSpec,
    /// Rows from here on are padding: their results are undefined. `s32[]`.
    pub count: Op<'g>,
}
