//! What compiled CPU programs and the kernels that they call agree on, said once. `gemma` emits the
//! calls, `kernels` answers them, `checkpoint` stores weights in the layouts that both know.

/// Custom-call targets. Operands and results are documented at the handlers in
/// `kernels/handlers.rs`.
pub const LINEAR: &str = "gemma_pjrt.linear";
pub const GATE_UP: &str = "gemma_pjrt.gate_up";
pub const LINEAR_MAX: &str = "gemma_pjrt.linear_max";
pub const LINEAR_TOP: &str = "gemma_pjrt.linear_top";
pub const LINEAR_SCORE: &str = "gemma_pjrt.linear_score";
pub const ATTENTION: &str = "gemma_pjrt.attention";

/// Elements of a row that share a scale in four-bit weights.
pub const GROUP: usize = 32;

/// Address alignment, in bytes, of arrays that XLA:CPU uses where they lie. An unaligned weight is
/// passed inside an array that has as many bytes more than the weight.
pub const ALIGNMENT: usize = 64;

/// Numbers of a segment of a step's tokens: first row on the token axis, slot, position of its
/// first token, number of tokens. A segment without tokens is padding.
pub const SEGMENT_FIELDS: usize = 4;
