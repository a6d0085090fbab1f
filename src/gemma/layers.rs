//! The architecture: embedding, RMSNorm, RoPE, attention, MLP, decoder layer, logits.
//!
//! Shapes in comments are those of one device. `heads`, `kv_heads`, `mlp` and `vocab` are this
//! device's share; everything else is whole. All tokens of a step are rows of one flat axis: T
//! tokens of any number of sequences. Only attention and the cache see which sequence a token
//! belongs to.

use super::{
    Context,
    attention::{Tokens, attend},
    cache::Cache,
    products::{gated_linear, linear, linear_logits, linear_max, linear_score, linear_top},
    weights::{LayerWeights, Weights},
};
use crate::hlo::{DType, Literal, Op};

/// Token ids `s32[T]` to `[T, hidden]`, times sqrt(hidden) rounded to the compute dtype (gemma.py's
/// `normalizer`). Each device looks up the tokens that it has; the sum over devices has them all.
pub(super) fn embed<'g>(cx: Context<'_, 'g>, ids: Op<'g>, weights: &Weights<'g>) -> Op<'g> {
    let graph = ids.graph();
    let _scope = graph.scope("embed");
    let (table, compute, mesh) = (weights.embed_tokens, cx.model.compute, cx.model.mesh); // [vocab, hidden]
    let look_up = |ids: Op<'g>| {
        let [vocab, hidden] = table.dims;
        let rows = match table.offset {
            Some(offset) => table.elements.gather_slices(ids * hidden + offset, hidden),
            None => table.elements.take_rows(ids),
        };
        let Some(scale) = table.scale else { return rows.convert(compute) };
        let scale = scale.reshape(&[vocab, 1]).take_rows(ids); // [T, 1]
        (rows.convert(DType::F32) * scale).convert(compute)
    };
    let rows = if mesh.model == 1 {
        look_up(ids)
    } else {
        let (split, vocab) = (cx.model.vocab(), table.rows());
        let local = split.on_this_device(ids);
        let first_own = split.first_own(graph).unwrap_or_else(|| graph.s32(0));
        let is_here = local.ge(first_own).and(local.lt(graph.s32(vocab))).reshape(&[ids.dim(0), 1]);
        let rows = look_up(local.clamp(graph.s32(0), graph.s32(vocab - 1)));
        mesh.sum(is_here.select(rows, graph.scalar(compute, 0.0)))
    };
    rows * (cx.model.config.hidden_size as f64).sqrt() // [T, hidden]
}

/// `x / sqrt(mean(x²) + eps) · (1 + w)` over the last dimension, in f32 throughout. The checkpoint
/// stores w.
pub(super) fn rms_norm<'g>(cx: Context<'_, 'g>, x: Op<'g>, weight: Op<'g>) -> Op<'g> {
    let hidden = x.dim(1);
    let x32 = x.convert(DType::F32);
    let mean_square = (x32 * x32).reduce_sum(&[1]) * (1.0 / hidden as f64);
    let scale = (mean_square + cx.model.config.rms_norm_eps).rsqrt().reshape(&[x.dim(0), 1]);
    (x32 * scale * (weight.convert(DType::F32) + 1.0)).convert(cx.model.compute)
}

/// Rotary position embedding (Su et al. 2021) of `[T, heads, head_dim]`, on pairs of elements half
/// a head apart (rotate_half). Angles, cosines and sines are f32: in bf16 positions beyond 256
/// would collide.
fn rope<'g>(cx: Context<'_, 'g>, x: Op<'g>, positions: Op<'g>) -> Op<'g> {
    let graph = x.graph();
    let (head_dim, theta) = (cx.model.config.head_dim, cx.model.config.rope_theta);
    let (tokens, half) = (x.dim(0), head_dim / 2);

    // Computed here, in f64: an error in a frequency grows with the position.
    let frequency = |pair: i64| theta.powf(-2.0 * pair as f64 / head_dim as f64) as f32;
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let frequency = graph.constant(Literal::f32s([half], &frequencies));
    let angle = positions.convert(DType::F32).reshape(&[tokens, 1]) * frequency;
    let angle = angle.reshape(&[tokens, 1, half]); // the same for all heads
    let (cos, sin) = (angle.cos(), angle.sin());

    let x32 = x.convert(DType::F32);
    let (first, second) = (x32.slice_in_dim(2, 0, half), x32.slice_in_dim(2, half, head_dim));
    Op::concatenate(&[first * cos - second * sin, second * cos + first * sin], 2).convert(cx.model.compute)
}

/// Causal attention over the cache: `[T, hidden]` to `[T, hidden]`, still to be summed over
/// devices.
fn attention<'g>(
    cx: Context<'_, 'g>,
    x: Op<'g>,
    weights: &LayerWeights<'g>,
    cache: Cache<'g>,
    tokens: &Tokens<'g>,
) -> (Op<'g>, Cache<'g>) {
    let _scope = x.graph().scope("attention");
    let (compute, head_dim) = (cx.model.compute, cx.model.config.head_dim);
    let in_heads = |x: Op<'g>| x.reshape(&[x.dim(0), x.dim(1) / head_dim, head_dim]);

    let q = in_heads(linear(cx, x, weights.q_proj, compute)); // [T, heads, head_dim]
    let k = in_heads(linear(cx, x, weights.k_proj, compute)); // [T, kv_heads, head_dim]
    let v = in_heads(linear(cx, x, weights.v_proj, compute));
    let q = rope(cx, q, tokens.positions);
    let k = rope(cx, k, tokens.positions);

    let (mixed, cache) = attend(cx, q, k, v, cache, tokens); // [T, heads, head_dim]
    let mixed = mixed.reshape(&[x.dim(0), q.dim(1) * head_dim]);
    (linear(cx, mixed, weights.o_proj, compute), cache)
}

/// `down(gelu(gate(x)) · up(x))`, still to be summed over devices.
fn mlp<'g>(cx: Context<'_, 'g>, x: Op<'g>, weights: &LayerWeights<'g>) -> Op<'g> {
    let _scope = x.graph().scope("mlp");
    let hidden = gated_linear(cx, x, weights.gate_proj, weights.up_proj, cx.model.compute); // [T, mlp]
    linear(cx, hidden, weights.down_proj, cx.model.compute)
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`. Both partial results are summed over the
/// devices, the only communication of a layer.
pub(super) fn decoder_layer<'g>(
    cx: Context<'_, 'g>,
    x: Op<'g>,
    weights: &LayerWeights<'g>,
    cache: Cache<'g>,
    tokens: &Tokens<'g>,
) -> (Op<'g>, Cache<'g>) {
    let mesh = cx.model.mesh;
    let (attended, cache) = attention(cx, rms_norm(cx, x, weights.input_layernorm), weights, cache, tokens);
    let x = x + mesh.sum(attended);
    let x = x + mesh.sum(mlp(cx, rms_norm(cx, x, weights.post_attention_layernorm), weights));
    (x, cache)
}

/// `[rows, hidden]` to `f32[rows, vocab]`: this device's part of the vocabulary, see
/// [`linear_logits`].
pub(super) fn logits<'g>(cx: Context<'_, 'g>, x: Op<'g>, weights: &Weights<'g>) -> Op<'g> {
    let _scope = x.graph().scope("logits");
    linear_logits(cx, rms_norm(cx, x, weights.norm), weights.output())
}

/// The largest of [`logits`] in each row, and its number in this device's part of the vocabulary:
/// `f32[rows]`, `s32[rows]`.
pub(super) fn largest_logit<'g>(cx: Context<'_, 'g>, x: Op<'g>, weights: &Weights<'g>) -> [Op<'g>; 2] {
    let _scope = x.graph().scope("logits");
    linear_max(cx, rms_norm(cx, x, weights.norm), weights.output())
}

/// At least the `most` largest of [`logits`] in each row, and their numbers in this device's part
/// of the vocabulary if those are not all: `f32[rows, n]`, `s32[rows, n]`.
pub(super) fn top_logits<'g>(
    cx: Context<'_, 'g>,
    x: Op<'g>,
    weights: &Weights<'g>,
    most: i64,
) -> (Op<'g>, Option<Op<'g>>) {
    let _scope = x.graph().scope("logits");
    linear_top(cx, rms_norm(cx, x, weights.norm), weights.output(), most)
}

/// The largest of [`logits`] in each row, its number, their log-sum-exp, and the logit of
/// `targets`, all in this device's part of the vocabulary; see [`linear_score`].
pub(super) fn score_logits<'g>(cx: Context<'_, 'g>, x: Op<'g>, weights: &Weights<'g>, targets: Op<'g>) -> [Op<'g>; 4] {
    let _scope = x.graph().scope("logits");
    linear_score(cx, rms_norm(cx, x, weights.norm), weights.output(), targets)
}
