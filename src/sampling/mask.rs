//! Tokens that a request does not allow, such as those that do not fit its grammar.

use super::VocabSplit;
use crate::hlo::{DType, Op, Shape};

/// Tokens whose bits one number holds.
const BITS: i64 = 32;

impl VocabSplit {
    /// Numbers that hold a bit for each token.
    pub fn mask_words(self) -> i64 {
        (self.tokens + BITS - 1) / BITS
    }
}

/// Returns the logits `f32[rows, per_device]` with minus infinity for tokens that are not allowed.
/// `mask` `s32[rows, mask_words]` has the bits of the whole vocabulary: that of token i is bit i %
/// 32 of number i / 32.
pub fn allowed<'g>(logits: Op<'g>, mask: Op<'g>, vocab: VocabSplit) -> Op<'g> {
    let graph = logits.graph();
    let _scope = graph.scope("allowed");
    let [rows, words] = [mask.dim(0), mask.dim(1)];
    let bit = graph.iota(Shape::new(DType::U32, [rows, words, BITS]), 2);
    let words = mask.bitcast_convert(DType::U32).reshape(&[rows, words, 1]);
    let bits = words.shift_right_logical(bit).and(graph.scalar(DType::U32, 1.0)).reshape(&[rows, mask.dim(1) * BITS]);
    let held = match vocab.mesh.model {
        1 => bits.slice_in_dim(1, 0, vocab.tokens),
        _ => bits.dynamic_slice(&[graph.s32(0), vocab.first(graph)], &[rows, vocab.per_device()]),
    };
    held.eq(graph.scalar(DType::U32, 1.0)).select(logits, graph.f32(f64::NEG_INFINITY))
}
