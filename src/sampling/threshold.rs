//! Top-k and top-p as thresholds, found without sorting.
//!
//! Floats are mapped to integer keys of the same order. Bisection over the keys keeps the largest
//! key for which a monotone property of "all tokens at or above it" still holds; 32 steps find it
//! exactly.

use crate::hlo::{DType, Mesh, Op, Shape};

/// u32 keys in the same order as the f32 numbers (-0 below +0).
pub fn key(x: Op<'_>) -> Op<'_> {
    let graph = x.graph();
    let bits = x.bitcast_convert(DType::U32);
    let sign = graph.scalar(DType::U32, f64::from(0x8000_0000_u32));
    let negative = bits.ge(sign);
    negative.select(bits.not(), bits.or(sign))
}

/// The largest key `u32[rows, 1]` for which at least `k` tokens are at or above it; 0 where `k` is
/// 0 (keep all).
pub fn top_k<'g>(logits: Op<'g>, k: Op<'g>, mesh: Mesh) -> Op<'g> {
    bisect([key(logits), k], |[keys, k], candidate| {
        let above = keys.ge(candidate).convert(DType::S32).reduce_sum(&[1]);
        let count = mesh.sum(above).reshape(&[candidate.dim(0), 1]);
        // With k = 0 every count is enough, which would drive the key up to the maximum: answer no
        // instead, and stay at 0.
        count.ge(k).and(k.gt(k.graph().s32(0)))
    })
}

/// The largest key `u32[rows, 1]`, not below `floor`, for which the tokens at or above it hold at
/// least `p` of the probability of those at or above `floor`. `floor` itself where `p` is 1 or
/// more.
pub fn top_p<'g>(logits: Op<'g>, floor: Op<'g>, p: Op<'g>, mesh: Mesh) -> Op<'g> {
    let rows = logits.dim(0);
    let column = |x: Op<'g>| x.reshape(&[rows, 1]);
    let graph = logits.graph();
    let largest = column(mesh.max(logits.reduce_max(&[1])));
    let keys = key(logits);
    let weights = keys.ge(floor).select((logits - largest).exp(), graph.f32(0.0)); // [rows, vocab/m], unnormalised
    let wanted = p * column(mesh.sum(weights.reduce_sum(&[1])));
    let found = bisect([keys, weights, wanted], |[keys, weights, wanted], candidate| {
        let mass = keys.ge(candidate).select(weights, candidate.graph().f32(0.0)).reduce_sum(&[1]);
        mesh.sum(mass).reshape(&[candidate.dim(0), 1]).ge(wanted)
    });
    p.ge(graph.f32(1.0)).select(floor, found.max(floor))
}

/// The largest u32 key [rows, 1] for which `holds` says yes, found bit by bit from the top. `holds`
/// must be monotone; it is given `state` and the candidate.
fn bisect<'g, const N: usize>(state: [Op<'g>; N], holds: impl for<'b> FnOnce([Op<'b>; N], Op<'b>) -> Op<'b>) -> Op<'g> {
    let graph = state[0].graph();
    let rows = state[0].dim(0);
    let found = graph.full(&Shape::new(DType::U32, [rows, 1]), 0.0);
    let (found, _) = graph.repeat(32, &(found, state), |bits, (found, state)| {
        let high_bit = bits.graph().scalar(DType::U32, f64::from(0x8000_0000_u32));
        let bit = high_bit.shift_right_logical(bits.convert(DType::U32));
        let candidate = found.or(bit.broadcast_to(&found.shape().dims));
        (holds(state, candidate).select(candidate, found), state)
    });
    found
}
