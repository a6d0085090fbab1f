//! The ops: each checks its operands, infers its shape, and adds one instruction (or a few, where
//! HLO is more verbose than the maths). Semantics are those of the XLA operation reference.

mod collectives;
mod contraction;
mod control;
mod elementwise;
mod movement;
mod reduction;
mod sources;

pub use movement::Padding;
