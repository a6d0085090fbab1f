//! Attention of a step's tokens over the cache: `softmax(q kᵀ / sqrt(head_dim)) v` over each
//! token's own position and all before it in its sequence. Three lowerings: a kernel; a loop over
//! segments with the softmax computed online; and for decoding, where row i is slot i, one product
//! over all slots.

use super::{
    Context, ModelSpec,
    cache::{Block, Cache, Cached},
};
use crate::{
    hlo::{DType, DotDims, Op, Shape, Tree},
    kernel_abi::{ATTENTION, SEGMENT_FIELDS},
    tree,
};

/// Where the tokens of a step stand.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'g> {
    /// Position of each token in its sequence, `s32[T]`.
    pub positions: Op<'g>,
    pub rows: Rows<'g>,
    /// Cache positions that attention over all slots looks at; all tokens' positions are below it.
    pub window: i64,
}
tree!(Tokens { positions, rows } keeping { window });

/// Which sequences the rows of the token axis belong to.
#[derive(Clone, Copy)]
pub(super) enum Rows<'g> {
    /// Consecutive rows of one slot are a segment: `s32[n, 4]` with the fields of
    /// [`SEGMENT_FIELDS`], in the order of their rows and without gaps; those with tokens come
    /// first. None has more than [`query_block`] tokens.
    Segments(Op<'g>),
    /// Row i is a token of slot i where `active` (`pred[slots]`) holds, else padding.
    Slots { active: Op<'g> },
}

impl<'g> Tree<'g> for Rows<'g> {
    type In<'b> = Rows<'b>;

    fn leaves(&self, out: &mut Vec<Op<'g>>) {
        match self {
            Self::Segments(op) | Self::Slots { active: op } => out.push(*op),
        }
    }

    fn names(&self, path: &str, out: &mut Vec<String>) {
        out.push(path.to_owned());
    }

    fn rebuild<'b>(&self, leaves: &mut dyn Iterator<Item = Op<'b>>) -> Rows<'b> {
        let leaf = leaves.next().expect("as many leaves as the tree has");
        match self {
            Self::Segments(_) => Rows::Segments(leaf),
            Self::Slots { .. } => Rows::Slots { active: leaf },
        }
    }
}

/// The most tokens of a segment in a step of `tokens` tokens: a kernel takes any number, the loop
/// one block of queries.
pub(super) fn query_block(kernels: bool, tokens: i64, cache_len: i64) -> i64 {
    if kernels { tokens } else { tokens.min(128).min(cache_len) }
}

/// Keys that the loop scores at a time.
const KEY_BLOCK: i64 = 512;

/// Above so many slots a step's keys and values are written by a loop: as many updates would take
/// minutes to compile.
const MAX_UNROLLED_SLOTS: i64 = 16;

/// Adds the step's keys and values `[T, kv_heads, head_dim]` to the cache and attends to it with
/// the queries `[T, heads, head_dim]`. Returns `[T, heads, head_dim]` and the updated cache;
/// results of padding rows are undefined.
pub(super) fn attend<'g>(
    cx: Context<'_, 'g>,
    q: Op<'g>,
    k: Op<'g>,
    v: Op<'g>,
    cache: Cache<'g>,
    tokens: &Tokens<'g>,
) -> (Op<'g>, Cache<'g>) {
    let new = [k, v].map(|x| Block::of_activations(cx.model, x));
    match tokens.rows {
        Rows::Segments(segments) if cx.model.lowering.kernels => kernel(q, new, cache, segments),
        Rows::Segments(segments) => {
            let cache = append_segments(cx, new, cache, segments).in_place(cx.model);
            (attend_segments(cx, q, cache, segments), cache)
        }
        Rows::Slots { active } => {
            let cache = append_slots(cx, new, cache, tokens.positions, active).in_place(cx.model);
            (attend_slots(cx, q, cache, tokens), cache)
        }
    }
}

/// Calls the kernel, which writes the cache in place.
fn kernel<'g>(q: Op<'g>, [k, v]: [Block<'g>; 2], cache: Cache<'g>, segments: Op<'g>) -> (Op<'g>, Cache<'g>) {
    let (keys, values) = (cache.keys, cache.values);
    let mut operands = vec![q, k.elements, v.elements, keys.elements, values.elements, segments];
    let mut results = vec![q.shape(), keys.elements.shape(), values.elements.shape()];
    let mut aliases = vec![(1, 3), (2, 4)];
    if let [Some(new_keys), Some(new_values), Some(of_keys), Some(of_values)] =
        [k.scale, v.scale, keys.scale, values.scale]
    {
        operands.extend([new_keys, new_values, of_keys, of_values]);
        results.extend([of_keys.shape(), of_values.shape()]);
        aliases.extend([(3, 8), (4, 9)]);
    }
    let out = q.graph().custom_call(ATTENTION, &operands, &results, &[], &aliases);
    let scales = |i: usize| out.get(i).copied();
    let cached = |elements: Op<'g>, scale| Cached { elements, scale };
    let updated = Cache { keys: cached(out[1], scales(3)), values: cached(out[2], scales(4)), ..cache };
    (out[0], updated)
}

/// The fields of segment `index`: first row, slot, position, number of tokens, `s32[]` each.
fn segment<'g>(segments: Op<'g>, index: Op<'g>) -> [Op<'g>; SEGMENT_FIELDS] {
    let fields = segments.row(index).reshape(&[SEGMENT_FIELDS as i64]);
    std::array::from_fn(|i| fields.scalar_at(i as i64))
}

/// Number of segments with tokens, `s32[]`.
fn num_segments(segments: Op<'_>) -> Op<'_> {
    let len = segments.slice_in_dim(1, 3, 4).reshape(&[segments.dim(0)]);
    len.gt(len.graph().s32(0)).convert(DType::S32).reduce_sum(&[0])
}

/// Pads the first dimension with zeros.
fn pad_rows(x: Op<'_>, low: i64, high: i64) -> Op<'_> {
    let graph = x.graph();
    let zeros = |rows: i64| {
        let mut shape = x.shape();
        shape.dims[0] = rows;
        graph.full(&Shape::new(shape.dtype, shape.dims), 0.0)
    };
    let parts: Vec<Op<'_>> =
        [(low > 0).then(|| zeros(low)), Some(x), (high > 0).then(|| zeros(high))].into_iter().flatten().collect();
    Op::concatenate(&parts, 0)
}

/// `len` rows of `x` `[rows, a, b]` from `start` on, as `[a, len, b]`.
fn block_of_rows<'g>(x: Op<'g>, start: Op<'g>, len: i64) -> Op<'g> {
    let [a, b] = [x.dim(1), x.dim(2)];
    let zero = x.graph().s32(0);
    x.dynamic_slice(&[start, zero, zero], &[len, a, b]).transpose(&[1, 0, 2])
}

/// Writes each segment's keys and values, one block of positions after the other. What else lies in
/// a block is kept, so that a block may begin before its segment where the cache ends.
fn append_segments<'g>(cx: Context<'_, 'g>, new: [Block<'g>; 2], cache: Cache<'g>, segments: Op<'g>) -> Cache<'g> {
    let graph = segments.graph();
    let (model, cache_len) = (cx.model, cache.cache_len());
    let block = query_block(false, new[0].elements.dim(0), cache_len);
    // A block may begin up to its length before a segment's first row, and end as far behind its
    // last one.
    let new = new.map(|new| new.map(|x| pad_rows(x, block, block)));
    let parts = new.map(|new| (new.elements, new.scale));
    let state = (cache, (segments, parts));
    let (cache, _) = graph.repeat_dynamic(num_segments(segments), &state, |index, (cache, (segments, parts))| {
        let graph = index.graph();
        let [row, slot, position, len] = segment(segments, index);
        let begin = position.min(graph.s32(cache_len - block));
        let before = position - begin; // positions of the block before the segment's first
        let blocks = parts.map(|(elements, scale)| {
            Block { elements, scale }.map(|x| block_of_rows(x, row - before + block, block)) // [kv_heads, block, ..]
        });
        let at = graph.iota(Shape::new(DType::S32, [1, block, 1]), 1);
        let is_new = at.ge(before).and(at.lt(before + len));
        let old = cache.read(slot, begin, block);
        let [keys, values] = blocks;
        let blocks = [keys.or(is_new, old[0]), values.or(is_new, old[1])];
        let cache = cache.write(slot, begin, blocks);
        (cache.in_loop(model), (segments, parts))
    });
    cache
}

/// Attention of each segment's tokens to its slot, over blocks of keys with the softmax computed
/// online (Milakov and Gimelshein 2018): `[T, heads, head_dim]`. Work goes with the tokens'
/// positions, not with the cache's length.
fn attend_segments<'g>(cx: Context<'_, 'g>, q: Op<'g>, cache: Cache<'g>, segments: Op<'g>) -> Op<'g> {
    let graph = q.graph();
    let (tokens, cache_len) = (q.dim(0), cache.cache_len());
    let block = query_block(false, tokens, cache_len);
    let padded = pad_rows(q, 0, block);
    let out = graph.full(&padded.shape(), 0.0);
    // A block's rows beyond its segment are overwritten by the next segment.
    let state = (out, (padded, segments, cache));
    let (out, _) = graph.repeat_dynamic(num_segments(segments), &state, |index, (out, (q, segments, cache))| {
        let [row, slot, position, len] = segment(segments, index);
        let cache = cache.in_loop(cx.model);
        let queries = block_of_rows(q, row, block); // [heads, block, head_dim]
        let mixed = attend_block(cx.model, queries, cache, slot, position, position + len);
        let zero = index.graph().s32(0);
        (out.dynamic_update_slice(mixed.transpose(&[1, 0, 2]), &[row, zero, zero]), (q, segments, cache))
    });
    out.slice_in_dim(0, 0, tokens)
}

/// Attention of consecutive tokens `[heads, n, head_dim]`, the first one at `position`, to the
/// positions of a slot before `end`.
fn attend_block<'g>(
    model: &ModelSpec,
    q: Op<'g>,
    cache: Cache<'g>,
    slot: Op<'g>,
    position: Op<'g>,
    end: Op<'g>,
) -> Op<'g> {
    let graph = q.graph();
    let [heads, n, head_dim] = [q.dim(0), q.dim(1), q.dim(2)];
    let (kv_heads, cache_len) = (cache.kv_heads(), cache.cache_len());
    let group = heads / kv_heads; // query heads that share a key/value head
    let rows = group * n;
    let key_block = KEY_BLOCK.min(cache_len);
    let compute = model.compute;

    let q = q.reshape(&[kv_heads, rows, head_dim]);
    let f32s = |dims: &[i64], value: f64| graph.full(&Shape::new(DType::F32, dims), value);
    let sums = f32s(&[kv_heads, rows, head_dim], 0.0);
    let [largest, total] = [f64::NEG_INFINITY, 0.0].map(|value| f32s(&[kv_heads, rows, 1], value));
    let blocks = (end + (key_block - 1)) / key_block;
    let state = ([sums, largest, total], [q, slot, position], cache);
    let ([sums, _, total], ..) = graph.repeat_dynamic(blocks, &state, |index, (online, kept, cache)| {
        let ([sums, largest, total], [q, slot, position]) = (online, kept);
        let graph = index.graph();
        let first = index * key_block;
        // The last block begins earlier where the cache ends; what it repeats is masked.
        let begin = first.min(graph.s32(cache_len - key_block));
        let cache = cache.in_loop(model);
        let [keys, values] = cache.read(slot, begin, key_block);

        let scores = batched_dot(q, keys.activations(model), 2, 2) * (head_dim as f64).powf(-0.5);
        let scores = scale_columns(scores, keys.scale); // [kv_heads, rows, key_block]
        let key = graph.iota(Shape::new(DType::S32, [1, 1, key_block]), 2) + begin;
        let query = graph.iota(Shape::new(DType::S32, [group, n]), 1).reshape(&[1, rows, 1]) + position;
        let visible = key.ge(first).and(key.le(query));
        let scores = visible.select(scores, graph.f32(f64::NEG_INFINITY));

        let column = [kv_heads, rows, 1];
        let new_largest = largest.max(scores.reduce_max(&[2]).reshape(&column));
        let weights = (scores - new_largest).exp();
        let rescale = (largest - new_largest).exp();
        let total = total * rescale + weights.reduce_sum(&[2]).reshape(&column);
        let weights = scale_columns(weights, values.scale).convert(compute);
        let sums = sums * rescale + batched_dot(weights, values.activations(model), 2, 1);
        ([sums, new_largest, total], [q, slot, position], cache)
    });
    (sums / total).convert(compute).reshape(&[heads, n, head_dim])
}

/// `[b, m, n]` in f32 from `[b, m, k]` and `[b, n, k]`, contracting these dimensions.
fn batched_dot<'g>(lhs: Op<'g>, rhs: Op<'g>, lhs_contract: i64, rhs_contract: i64) -> Op<'g> {
    let batch: Vec<i64> = (0..lhs_contract - 1).collect();
    let dims = DotDims {
        lhs_batch: batch.clone(),
        rhs_batch: batch,
        lhs_contract: vec![lhs_contract],
        rhs_contract: vec![rhs_contract],
    };
    lhs.dot(rhs, &dims, DType::F32)
}

/// Multiplies each column of `[.., rows, positions]` by the scale `[.., positions, 1]` of its
/// position.
fn scale_columns<'g>(x: Op<'g>, scale: Option<Op<'g>>) -> Op<'g> {
    let Some(scale) = scale else { return x };
    let mut dims = scale.shape().dims;
    let rank = dims.len();
    dims.swap(rank - 2, rank - 1);
    x * scale.reshape(&dims)
}

/// Writes each active slot's key and value `[slots, kv_heads, head_dim]` at its position; idle
/// slots keep what they have.
fn append_slots<'g>(
    cx: Context<'_, 'g>,
    new: [Block<'g>; 2],
    cache: Cache<'g>,
    positions: Op<'g>,
    active: Op<'g>,
) -> Cache<'g> {
    fn put<'b>(
        cache: Cache<'b>,
        [keys, values]: [Block<'b>; 2],
        slot: Op<'b>,
        position: Op<'b>,
        active: Op<'b>,
    ) -> Cache<'b> {
        // [1, kv_heads, ..] to [kv_heads, 1, ..]
        let in_order = |block: Block<'b>| block.map(|x| x.transpose(&[1, 0, 2]));
        let old = cache.read(slot, position, 1);
        let blocks = [in_order(keys).or(active, old[0]), in_order(values).or(active, old[1])];
        cache.write(slot, position, blocks)
    }
    let graph = positions.graph();
    let slots = positions.dim(0);
    if slots <= MAX_UNROLLED_SLOTS {
        return (0..slots).fold(cache, |cache, slot| {
            let blocks = new.map(|new| new.map(|x| x.slice_in_dim(0, slot, slot + 1)));
            put(cache, blocks, graph.s32(slot), positions.scalar_at(slot), active.scalar_at(slot))
        });
    }
    let model = cx.model;
    let parts = new.map(|new| (new.elements, new.scale));
    let state = (cache, (parts, positions, active));
    let (cache, _) = graph.repeat(slots, &state, |slot, (cache, (parts, positions, active))| {
        let blocks = parts.map(|(elements, scale)| Block { elements, scale }.map(|x| x.row(slot)));
        let scalar = |x: Op<'_>| -> Vec<i64> { x.shape().dims[1..].to_vec() };
        let (position, is_active) =
            (positions.row(slot).reshape(&scalar(positions)), active.row(slot).reshape(&scalar(active)));
        (put(cache, blocks, slot, position, is_active).in_place(model), (parts, positions, active))
    });
    cache
}

/// Attention of one token of each slot, `[slots, heads, head_dim]`, to the first `window` positions
/// of its slot.
fn attend_slots<'g>(cx: Context<'_, 'g>, q: Op<'g>, cache: Cache<'g>, tokens: &Tokens<'g>) -> Op<'g> {
    let graph = q.graph();
    let (model, window) = (cx.model, tokens.window);
    let [slots, heads, head_dim] = [q.dim(0), q.dim(1), q.dim(2)];
    let [keys, values] = cache.read_all_slots(window); // [slots, kv_heads, window, ..]
    let kv_heads = keys.elements.dim(1);
    let group = heads / kv_heads;
    let rows = group.max(model.lowering.min_query_rows);

    let q = q.reshape(&[slots, kv_heads, group, head_dim]);
    let padding = graph.full(&Shape::new(model.compute, [slots, kv_heads, rows - group, head_dim]), 0.0);
    let q = if rows == group { q } else { Op::concatenate(&[q, padding], 2) };
    let scores = batched_dot(q, keys.activations(model), 3, 3) * (head_dim as f64).powf(-0.5);
    let scores = scale_columns(scores, keys.scale); // [slots, kv_heads, rows, window]

    // What lies beyond a token's position in the cache is garbage.
    let key = graph.iota(Shape::new(DType::S32, [1, 1, 1, window]), 3);
    let visible = key.le(tokens.positions.reshape(&[slots, 1, 1, 1]));
    let probabilities = softmax(visible.select(scores, graph.f32(f64::NEG_INFINITY)));
    let probabilities = scale_columns(probabilities, values.scale).convert(model.compute);
    let mixed = batched_dot(probabilities, values.activations(model), 3, 2).convert(model.compute);
    mixed.slice_in_dim(2, 0, group).reshape(&[slots, heads, head_dim])
}

/// Softmax over the last of four dimensions.
fn softmax(x: Op<'_>) -> Op<'_> {
    let column = [x.dim(0), x.dim(1), x.dim(2), 1];
    let exp = (x - x.reduce_max(&[3]).reshape(&column)).exp();
    exp / exp.reduce_sum(&[3]).reshape(&column)
}
