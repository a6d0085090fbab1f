//! Log-probabilities of tokens, from logits that may be split over devices.

use super::VocabSplit;
use crate::hlo::{DType, Mesh, Op, Shape};

/// Number of most likely tokens that are reported.
pub const TOP_LOGPROBS: i64 = 20;

/// Log-probability of each row's target: `f32[rows]` from `f32[rows, per_device]` and `s32[rows]`.
pub fn log_probability<'g>(logits: Op<'g>, targets: Op<'g>, vocab: VocabSplit) -> Op<'g> {
    let graph = logits.graph();
    let _scope = graph.scope("log_probability");
    let ids = graph.iota(logits.shape().with_dtype(DType::S32), 1) + vocab.first(graph);
    let none = graph.f32(f64::NEG_INFINITY);
    let is_target = ids.eq(targets.reshape(&[logits.dim(0), 1]));
    vocab.mesh.max(is_target.select(logits, none).reduce_max(&[1])) - log_total(logits, vocab.mesh)
}

/// Log-probability of each row's target, `f32[rows]`, from what each device has of its own part of
/// the vocabulary: the target's logit, minus infinity where another device has it, and the
/// log-sum-exp of all logits.
pub fn merged_log_probability<'g>(chosen: Op<'g>, log_total: Op<'g>, mesh: Mesh) -> Op<'g> {
    if mesh.model == 1 {
        return chosen - log_total;
    }
    let largest = mesh.max(log_total);
    mesh.max(chosen) - (largest + mesh.sum((log_total - largest).exp()).log())
}

/// The [`TOP_LOGPROBS`] most likely tokens of each row, `s32[rows, n]`, and their
/// log-probabilities, `f32[rows, n]`; of equal ones the first comes first.
pub fn top_logprobs<'g>(logits: Op<'g>, vocab: VocabSplit) -> [Op<'g>; 2] {
    let _scope = logits.graph().scope("top_logprobs");
    let (rows, mesh) = (logits.dim(0), vocab.mesh);
    let [tokens, values] = largest(logits, TOP_LOGPROBS.min(logits.dim(1)));
    let [tokens, values] = if mesh.model == 1 {
        [tokens, values]
    } else {
        let tokens = mesh.gather(tokens + vocab.first(logits.graph()), 1);
        let [at, values] = largest(mesh.gather(values, 1), TOP_LOGPROBS.min(vocab.tokens));
        let [n, all] = [at.dim(1), tokens.dim(1)];
        let is_there = at.reshape(&[rows, n, 1]).eq(logits.graph().iota(Shape::new(DType::S32, [rows, n, all]), 2));
        let zero = logits.graph().s32(0);
        [is_there.select(tokens.reshape(&[rows, 1, all]), zero).reduce_sum(&[2]), values]
    };
    [tokens, values - log_total(logits, mesh).reshape(&[rows, 1])]
}

/// Packs the log-probability of each row's token `s32[rows]` and, if `top`, the most likely tokens
/// and their log-probabilities: `s32[rows, 1]` or `s32[rows, 1 + 2 TOP_LOGPROBS]`, floats as their
/// bits. A vocabulary of fewer tokens leaves the rest 0.
pub fn packed_logprobs<'g>(logits: Op<'g>, tokens: Op<'g>, top: bool, vocab: VocabSplit) -> Op<'g> {
    let rows = logits.dim(0);
    let own = log_probability(logits, tokens, vocab).reshape(&[rows, 1]).bitcast_convert(DType::S32);
    if !top {
        return own;
    }
    let [tokens, values] = top_logprobs(logits, vocab);
    Op::concatenate(&[own, padded(tokens), padded(values.bitcast_convert(DType::S32))], 1)
}

/// Pads `s32[rows, n]` with zeros to `s32[rows, TOP_LOGPROBS]`.
fn padded(x: Op<'_>) -> Op<'_> {
    let missing = TOP_LOGPROBS - x.dim(1);
    let none = x.graph().full(&Shape::new(DType::S32, [x.dim(0), missing]), 0.0);
    if missing == 0 { x } else { Op::concatenate(&[x, none], 1) }
}

/// The `n` largest elements of each row, largest first: their indices and themselves. As many
/// passes over the row are faster than sorting a vocabulary.
fn largest(x: Op<'_>, n: i64) -> [Op<'_>; 2] {
    let graph = x.graph();
    let rows = x.dim(0);
    let indices = graph.full(&Shape::new(DType::S32, [rows, n]), 0.0);
    let values = graph.full(&Shape::new(DType::F32, [rows, n]), 0.0);
    let [_, indices, values] = graph.repeat(n, &[x, indices, values], |rank, [x, indices, values]| {
        let g = rank.graph();
        let [value, index] = x.max_with_index();
        let is_taken = g.iota(x.shape().with_dtype(DType::S32), 1).eq(index.reshape(&[rows, 1]));
        let at = [g.s32(0), rank];
        let [index, value] = [index, value].map(|found| found.reshape(&[rows, 1]));
        [
            is_taken.select(g.f32(f64::NEG_INFINITY), x),
            indices.dynamic_update_slice(index, &at),
            values.dynamic_update_slice(value, &at),
        ]
    });
    [indices, values]
}

/// log Σ exp of each row's logits: `f32[rows]`.
fn log_total(logits: Op<'_>, mesh: Mesh) -> Op<'_> {
    let largest = mesh.max(logits.reduce_max(&[1]));
    let total = mesh.sum((logits - largest.reshape(&[logits.dim(0), 1])).exp().reduce_sum(&[1]));
    largest + total.log()
}
