//! The architecture: embedding, RMSNorm, RoPE, attention, MLP, decoder layer, logits.
//!
//! Shapes in comments are those of one device. `heads`, `kv_heads`, `mlp` and `vocab` are this device's share;
//! everything else is whole. Prefill and decode are the same code: prefill has `batch` prompts and `seq` tokens, decode has
//! `batch` slots and `seq` 1.

use super::{
    Cache, Config, Target,
    weights::{LayerWeights, Shift, Weights},
};
use crate::hlo::{DType, Literal, Mesh, Op};

/// What the layers need to know besides their inputs.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub target: Target,
    pub config: &'a Config,
    pub mesh: Mesh,
    /// Type of activations. Norms, RoPE, softmax and GELU are computed in f32 whatever it is.
    pub dtype: DType,
}

/// Where a step's tokens stand.
#[derive(Clone, Copy)]
pub(super) struct Positions<'g> {
    /// `s32[batch, seq]`: position of each token in its sequence.
    pub tokens: Op<'g>,
    /// `s32[batch]`: how many tokens each row has; what follows them is padding, whose results mean nothing.
    pub lengths: Op<'g>,
    /// Where the step writes in the cache, and what it reads of it.
    pub access: CacheAccess<'g>,
    /// Number of cache positions that attention looks at; all tokens' positions are below it.
    pub window: i64,
}

impl<'g> Positions<'g> {
    /// The ops in it, to pass them to a computation.
    pub(super) fn to_list(self) -> Vec<Op<'g>> {
        match self.access {
            CacheAccess::Slots { slots, starts, .. } => vec![self.tokens, self.lengths, slots, starts],
            CacheAccess::EachRow => vec![self.tokens, self.lengths],
        }
    }

    /// The same, with the ops of another computation that [`Self::to_list`] gave to it.
    pub(super) fn within<'b>(&self, ops: &[Op<'b>]) -> Positions<'b> {
        let access = match self.access {
            CacheAccess::Slots { may_be_empty, .. } => {
                CacheAccess::Slots { slots: ops[2], starts: ops[3], may_be_empty }
            }
            CacheAccess::EachRow => CacheAccess::EachRow,
        };
        Positions { tokens: ops[0], lengths: ops[1], access, window: self.window }
    }
}

/// Which part of the cache belongs to a step.
#[derive(Clone, Copy)]
pub(super) enum CacheAccess<'g> {
    /// Row i of the batch is slot `slots[i]`, with tokens from position `starts[i]` on. Both `s32[batch]`. Where rows may have no
    /// tokens, such a row leaves the cache as it is.
    Slots { slots: Op<'g>, starts: Op<'g>, may_be_empty: bool },
    /// Row i of the batch is slot i, with one token.
    EachRow,
}

/// Token ids `s32[batch, seq]` to `[batch, seq, hidden]`, times sqrt(hidden) rounded to the compute dtype (gemma.py's
/// `normalizer`). Each device looks up the tokens that it has; the sum over devices has them all.
pub(super) fn embed<'g>(cx: Context<'_>, tokens: Op<'g>, weights: &Weights<'g>) -> Op<'g> {
    let graph = tokens.graph();
    let _scope = graph.scope("embed");
    let table = weights.embed_tokens; // [vocab, hidden]
    let look_up = |tokens: Op<'g>| {
        let rows = match table.shift {
            Some(Shift { first, dims: [_, width] }) => table.elements.take_parts(tokens * width as f64 + first, width),
            None => table.elements.take_rows(tokens),
        };
        let Some(scale) = table.scale else { return rows.convert(cx.dtype) };
        let scale = scale.reshape(&[table.rows(), 1]).take_rows(tokens); // [batch, seq, 1]
        (rows.convert(DType::F32) * scale).convert(cx.dtype)
    };
    let rows = if cx.mesh.model == 1 {
        look_up(tokens)
    } else {
        let vocab = table.rows();
        let local = tokens - cx.mesh.model_rank(graph) * vocab as f64;
        let (zero, end) = (graph.scalar(DType::S32, 0.0), graph.scalar(DType::S32, vocab as f64));
        let [batch, seq] = [tokens.dim(0), tokens.dim(1)];
        let here = local.ge(zero).and(local.lt(end)).reshape(&[batch, seq, 1]);
        let rows = look_up(local.clamp(zero, end - 1.0));
        cx.mesh.sum(here.select(rows, graph.scalar(cx.dtype, 0.0)))
    };
    rows * (cx.config.hidden_size as f64).sqrt() // [batch, seq, hidden]
}

/// `x / sqrt(mean(x²) + eps) · (1 + w)` over the last dimension, in f32 throughout. The checkpoint stores w.
pub(super) fn rms_norm<'g>(cx: Context<'_>, x: Op<'g>, weight: Op<'g>) -> Op<'g> {
    let hidden = x.dim(-1);
    let (last, column) = last_dimension(x);

    let x32 = x.convert(DType::F32);
    let mean_square = (x32 * x32).reduce_sum(&[last]) * (1.0 / hidden as f64);
    let scale = (mean_square + cx.config.rms_norm_eps).rsqrt().reshape(&column); // [..., 1]
    (x32 * scale * (weight.convert(DType::F32) + 1.0)).convert(cx.dtype)
}

/// Rotary position embedding (Su et al. 2021) of `[batch, seq, heads, head_dim]`, on pairs of elements half a head apart
/// (rotate_half). Angles, cosines and sines are f32: in bf16 positions beyond 256 would collide.
fn rope<'g>(cx: Context<'_>, x: Op<'g>, positions: Op<'g>) -> Op<'g> {
    let graph = x.graph();
    let half = cx.config.head_dim / 2;
    let [batch, seq] = [positions.dim(0), positions.dim(1)];

    // Computed here, in f64: an error in a frequency grows with the position.
    let frequency = |pair: i64| cx.config.rope_theta.powf(-2.0 * pair as f64 / cx.config.head_dim as f64) as f32;
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let frequency = graph.constant(Literal::f32s([half], &frequencies));
    let angle = positions.convert(DType::F32).reshape(&[batch, seq, 1]) * frequency;
    let angle = angle.reshape(&[batch, seq, 1, half]); // the same for all heads
    let (cos, sin) = (angle.cos(), angle.sin());

    let x32 = x.convert(DType::F32);
    let (first, second) = (x32.slice_in_dim(-1, 0, half), x32.slice_in_dim(-1, half, 2 * half));
    Op::concatenate(&[first * cos - second * sin, second * cos + first * sin], -1).convert(cx.dtype)
}

/// Causal attention over the cache: `[batch, seq, hidden]` to `[batch, seq, hidden]`, still to be summed over devices.
fn attention<'g>(
    cx: Context<'_>,
    x: Op<'g>,
    weights: &LayerWeights<'g>,
    cache: Cache<'g>,
    positions: &Positions<'g>,
) -> (Op<'g>, Cache<'g>) {
    let graph = x.graph();
    let _scope = graph.scope("attention");
    let head_dim = cx.config.head_dim;
    let ([batch, seq], lengths) = ([x.dim(0), x.dim(1)], positions.lengths);
    let heads = weights.q_proj.rows() / head_dim;
    let kv_heads = weights.k_proj.rows() / head_dim;

    let q = cx.target.linear(x, lengths, weights.q_proj, cx.dtype).reshape(&[batch, seq, heads, head_dim]);
    let k = cx.target.linear(x, lengths, weights.k_proj, cx.dtype).reshape(&[batch, seq, kv_heads, head_dim]);
    let v = cx.target.linear(x, lengths, weights.v_proj, cx.dtype).reshape(&[batch, seq, kv_heads, head_dim]);
    let q = rope(cx, q, positions.tokens);
    let k = rope(cx, k, positions.tokens);

    let cache = Cache {
        keys: cache.keys.updated(cx.target, k, positions),
        values: cache.values.updated(cx.target, v, positions),
    };
    let cache = cx.target.in_place(cache);
    let mixed = cx.target.attend(q, cache, positions); // [batch, seq, heads, head_dim]
    let mixed = mixed.reshape(&[batch, seq, heads * head_dim]);
    let out = cx.target.linear(mixed, lengths, weights.o_proj, cx.dtype);
    (out, cache)
}

/// Number of the last dimension, and the dims that broadcast what it is reduced to: `[..., 1]`.
pub(super) fn last_dimension(x: Op<'_>) -> (i64, Vec<i64>) {
    let mut column = x.shape().dims;
    column.pop();
    let last = column.len() as i64;
    column.push(1);
    (last, column)
}

/// `down(gelu(gate(x)) · up(x))`, still to be summed over devices.
fn mlp<'g>(cx: Context<'_>, x: Op<'g>, lengths: Op<'g>, weights: &LayerWeights<'g>) -> Op<'g> {
    let _scope = x.graph().scope("mlp");
    let hidden = cx.target.gated_linear(x, lengths, weights.gate_proj, weights.up_proj, cx.dtype); // [batch, seq, mlp]
    cx.target.linear(hidden, lengths, weights.down_proj, cx.dtype)
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`. Both partial results are summed over the devices, the only
/// communication of a layer.
pub(super) fn decoder_layer<'g>(
    cx: Context<'_>,
    x: Op<'g>,
    weights: &LayerWeights<'g>,
    cache: Cache<'g>,
    positions: &Positions<'g>,
) -> (Op<'g>, Cache<'g>) {
    let (attended, cache) = attention(cx, rms_norm(cx, x, weights.input_layernorm), weights, cache, positions);
    let x = x + cx.mesh.sum(attended);
    let x = x + cx.mesh.sum(mlp(cx, rms_norm(cx, x, weights.post_attention_layernorm), positions.lengths, weights));
    (x, cache)
}

/// `[rows, hidden]` to `f32[rows, vocab]`: this device's part of the vocabulary. Of the rows, those matter of which `lengths` says so.
pub(super) fn logits<'g>(cx: Context<'_>, x: Op<'g>, lengths: Op<'g>, weights: &Weights<'g>) -> Op<'g> {
    let _scope = x.graph().scope("logits");
    cx.target.linear(rms_norm(cx, x, weights.norm), lengths, weights.lm_head, DType::F32)
}

/// The largest of [`logits`] in each row, and its number in this device's part of the vocabulary: `f32[rows]`, `s32[rows]`.
pub(super) fn largest_logit<'g>(cx: Context<'_>, x: Op<'g>, lengths: Op<'g>, weights: &Weights<'g>) -> [Op<'g>; 2] {
    let _scope = x.graph().scope("logits");
    cx.target.linear_max(rms_norm(cx, x, weights.norm), lengths, weights.lm_head)
}

/// At least the `most` largest of [`logits`] in each row, and their numbers in this device's part of the vocabulary, if those are
/// not all: `f32[rows, n]`, `s32[rows, n]`.
pub(super) fn top_logits<'g>(
    cx: Context<'_>,
    x: Op<'g>,
    lengths: Op<'g>,
    weights: &Weights<'g>,
    most: i64,
) -> (Op<'g>, Option<Op<'g>>) {
    let _scope = x.graph().scope("logits");
    cx.target.linear_top(rms_norm(cx, x, weights.norm), lengths, weights.lm_head, most)
}
