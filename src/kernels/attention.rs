//! Causal attention over the KV cache, for one ragged step.
//!
//! The softmax is computed online (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022):
//! scores never leave a core's cache, and a token's work grows with its own position, not with the
//! cache's length.
//!
//! A task is a block of a segment's tokens, with all query heads that share a key/value head, so
//! that a key is read once for all of them. Where there are too few blocks for all threads, as in a
//! decode step, the positions that a block sees are split as well, and the parts are merged.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    context::ExecContext,
    format::{Bf16, ElementFormat, F16, F32, I8},
    isa::{self, Isa, Kernel},
    kv_cache::KvCache,
    matmul::{multiply, pack},
    operands::{Activations, LaneOrder, WeightData, WeightMatrix},
    output::{OutputRows, SharedOutput},
    scratch::with_scratch,
    segments::{AttentionShape, Segment, Segments},
    simd::Simd,
};

/// Query vectors in a block of tokens, if the segment has as many.
const BLOCK_QUERIES: usize = 32;
/// Positions that are scored in one go.
const KEYS: usize = 64;
/// The fewest positions in a part: fewer are not worth a task.
const MIN_PART: usize = 256;
/// Fewer query vectors take about as long as so many, because keys are loaded and converted anyway.
const MIN_COST: usize = 4;

/// Writes `softmax(q kᵀ / sqrt(head_dim)) v` for each token of each segment, over its slot's
/// positions up to its own.
///
/// Queries and `out` are `[rows, heads, head_dim]`. Rows of `out` that are in no segment become
/// zeros. The softmax and all sums are f32.
///
/// # Panics
/// If an array does not have the segments' shape, `heads` is no multiple of `kv_heads`, or the
/// cache has four-bit elements.
pub fn attention(
    context: ExecContext<'_>,
    queries: Activations<'_>,
    cache: KvCache<'_>,
    segments: &Segments,
    mut out: OutputRows<'_>,
) {
    let shape = segments.shape();
    let AttentionShape { rows, heads, kv_heads, head_dim, .. } = shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{shape:?}");
    assert_eq!(queries.len(), rows * heads * head_dim, "queries of {shape:?}");
    assert_eq!(out.len(), rows * heads * head_dim, "results of {shape:?}");
    cache.assert_shape(shape);
    let row_size = heads * head_dim;
    for padding in segments.padding() {
        out.zero(padding.start * row_size..padding.end * row_size);
    }
    if row_size == 0 {
        return;
    }
    let out = SharedOutput::new(out, row_size);

    let mut blocks = token_blocks(shape, segments);
    let (parts, states_len) = split_positions(&mut blocks, head_dim, context.pool.threads());
    let problem = Problem { isa: context.isa, shape, queries, cache };
    with_scratch(states_len, |states| {
        let states = PartStates { first: states.as_mut_ptr(), len: states.len() };
        context.pool.run(parts.len(), &|chunk| {
            let (block, part) = (&blocks[parts[chunk].block], parts[chunk].part);
            let size = block.state_size(head_dim);
            if block.parts == 1 {
                with_scratch(size, |state| {
                    problem.attend(block, 0, state);
                    // SAFETY: no other block has these tokens and heads, and this block has one
                    // part.
                    unsafe { problem.write(block, state, &out) };
                });
                return;
            }
            // SAFETY: each part has a state of its own, and runs once.
            problem.attend(block, part, unsafe { states.get(block.first_state + part * size, size) });
            // The last part to finish merges all of them, in their order. The counter makes what
            // the other threads wrote visible to it.
            if block.unfinished.fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
            // SAFETY: all parts of the block are done with their states.
            let merged = unsafe { states.get(block.first_state, size) };
            for part in 1..block.parts {
                // SAFETY: as above; another state than the first.
                let other = unsafe { states.get(block.first_state + part * size, size) };
                merge(block.queries(), head_dim, merged, other);
            }
            // SAFETY: no other block has these tokens and heads, and this one is finished once.
            unsafe { problem.write(block, merged, &out) };
        });
    });
}

/// Cuts all segments into blocks of tokens, for each key/value head.
fn token_blocks(shape: AttentionShape, segments: &Segments) -> Vec<TokenBlock> {
    let group = shape.heads / shape.kv_heads;
    let tokens = (BLOCK_QUERIES / group.max(1)).max(1);
    let count: usize = segments.as_slice().iter().map(|segment| segment.len.div_ceil(tokens)).sum();
    let mut blocks = Vec::with_capacity(count * shape.kv_heads);
    for &segment in segments.as_slice() {
        for kv_head in 0..shape.kv_heads {
            // The last tokens see most positions. The longest tasks come first, so that no thread
            // is left with one at the end.
            for first in (0..segment.len).step_by(tokens).rev() {
                let tokens = first..segment.len.min(first + tokens);
                let unfinished = AtomicUsize::new(1);
                blocks.push(TokenBlock { segment, kv_head, group, tokens, parts: 1, first_state: 0, unfinished });
            }
        }
    }
    blocks
}

/// Splits the positions of the blocks that take longer than an even share of all work. Returns all
/// blocks' parts, and the size of the split blocks' states.
fn split_positions(blocks: &mut [TokenBlock], head_dim: usize, threads: usize) -> (Vec<BlockPart>, usize) {
    let total: usize = blocks.iter().map(TokenBlock::cost).sum();
    let share = total.div_ceil(2 * threads).max(1);
    let (mut parts, mut states_len) = (Vec::with_capacity(blocks.len() + 2 * threads), 0);
    for (number, block) in blocks.iter_mut().enumerate() {
        block.parts = block.cost().div_ceil(share).min(block.positions().div_ceil(MIN_PART)).max(1);
        *block.unfinished.get_mut() = block.parts;
        if block.parts > 1 {
            block.first_state = states_len;
            states_len += block.parts * block.state_size(head_dim);
        }
        parts.extend((0..block.parts).map(|part| BlockPart { block: number, part }));
    }
    (parts, states_len)
}

/// One task: part number `part` of block number `block`.
struct BlockPart {
    block: usize,
    part: usize,
}

/// Some tokens of a segment, with the query heads of one key/value head.
///
/// A block's queries are ordered by token, then by head. The state of one of its parts has, for
/// each query, the weighted sum of values `[head_dim]` in the order in which values are loaded;
/// then each query's largest score; then each query's sum of weights.
struct TokenBlock {
    segment: Segment,
    kv_head: usize,
    /// Query heads that share the key/value head.
    group: usize,
    /// Tokens of the segment.
    tokens: Range<usize>,
    /// Number of parts that the positions are split into.
    parts: usize,
    /// Where the first part's state begins, if there are several.
    first_state: usize,
    /// Parts that are not finished.
    unfinished: AtomicUsize,
}

impl TokenBlock {
    fn queries(&self) -> usize {
        self.tokens.len() * self.group
    }

    /// Returns the number of positions that the last token sees.
    fn positions(&self) -> usize {
        self.segment.start + self.tokens.end
    }

    /// Returns the work, in query vectors times positions.
    fn cost(&self) -> usize {
        self.queries().max(MIN_COST) * self.positions()
    }

    fn state_size(&self, head_dim: usize) -> usize {
        self.queries() * (head_dim + 2)
    }

    /// Returns the position of a query's token.
    fn position(&self, query: usize) -> usize {
        self.segment.start + self.tokens.start + query / self.group
    }

    /// Returns a query's row on the token axis, and its head.
    fn row_and_head(&self, query: usize) -> (usize, usize) {
        let row = self.segment.row + self.tokens.start + query / self.group;
        (row, self.kv_head * self.group + query % self.group)
    }
}

/// The states of all split blocks' parts.
struct PartStates {
    first: *mut f32,
    len: usize,
}

// SAFETY: a pointer to numbers, of which each thread gets disjoint ranges.
unsafe impl Sync for PartStates {}

impl PartStates {
    /// Returns `size` numbers from `start` on.
    ///
    /// # Panics
    /// If they are not inside the array.
    ///
    /// # Safety
    /// They are not in use.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts of one array, by the contract")]
    unsafe fn get(&self, start: usize, size: usize) -> &mut [f32] {
        assert!(start + size <= self.len, "{size} numbers at {start} of {}", self.len);
        // SAFETY: inside the array, as asserted; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), size) }
    }
}

/// The operands, which all tasks of a call read.
struct Problem<'a> {
    isa: Isa,
    shape: AttentionShape,
    queries: Activations<'a>,
    cache: KvCache<'a>,
}

impl Problem<'_> {
    /// Attends to one part of a block's positions.
    fn attend(&self, block: &TokenBlock, part: usize, state: &mut [f32]) {
        let AttentionShape { heads, kv_heads, head_dim, cache_len, .. } = self.shape;
        let (isa, rows) = (self.isa, block.queries());
        let (sums, rest) = state.split_at_mut(rows * head_dim);
        let (largest, weights) = rest.split_at_mut(rows);
        sums.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        weights.fill(0.0);

        let end = block.positions();
        let length = end.div_ceil(block.parts).next_multiple_of(KEYS);
        let range = (part * length).min(end)..((part + 1) * length).min(end);
        let first = (block.segment.slot * kv_heads + block.kv_head) * cache_len;
        let cached = |at: usize, n: usize| (first + at) * head_dim..(first + at + n) * head_dim;
        with_scratch(rows * (head_dim + KEYS + 1), |scratch| {
            let (queries, scratch) = scratch.split_at_mut(rows * head_dim);
            let (scores, rescale) = scratch.split_at_mut(rows * KEYS);
            let query_start = |query: usize| {
                let (row, head) = block.row_and_head(query);
                (row * heads + head) * head_dim
            };
            pack(isa, self.queries, query_start, &self.cache.keys, head_dim, queries);
            let scale = (head_dim as f64).powf(-0.5) as f32;
            queries.iter_mut().for_each(|q| *q *= scale);

            for at in range.clone().step_by(KEYS) {
                let n = KEYS.min(range.end - at);
                let keys = self.cache.keys.slice(cached(at, n));
                let scores = &mut scores[..rows * n];
                let keys = WeightMatrix::new(keys, n, head_dim);
                let scales = self.cache.scales.map(|scales| scales.map(|scales| &scales[first + at..first + at + n]));
                multiply(isa, queries, &scales.map_or(keys, |[of_keys, _]| keys.scaled(of_keys)), scores);
                for (query, scores) in scores.chunks_exact_mut(n).enumerate() {
                    let visible = (block.position(query) + 1).saturating_sub(at).min(n);
                    let (largest, weights) = (&mut largest[query], &mut weights[query]);
                    rescale[query] = isa::run(isa, Softmax { scores, visible, largest, weights });
                }
                if let Some([_, of_values]) = scales {
                    scores.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(of_values).for_each(|(p, s)| *p *= s));
                }
                let values = self.cache.values.slice(cached(at, n));
                accumulate(isa, values, head_dim, scores, rescale, sums);
            }
        });
    }

    /// Divides the sums by the sums of weights, and writes the results.
    ///
    /// # Safety
    /// Nothing else writes the results of the block's tokens and heads.
    unsafe fn write(&self, block: &TokenBlock, state: &[f32], out: &SharedOutput<'_>) {
        let head_dim = self.shape.head_dim;
        let rows = block.queries();
        let weights = &state[rows * (head_dim + 1)..];
        let order = LaneOrder::of(self.isa, &self.cache.values, head_dim);
        with_scratch(head_dim, |values| {
            for (query, sums) in state[..rows * head_dim].chunks_exact(head_dim).enumerate() {
                sums.iter().enumerate().for_each(|(at, &sum)| values[order.element(at)] = sum / weights[query]);
                let (row, head) = block.row_and_head(query);
                // SAFETY: the caller's promise.
                unsafe { out.write(row, head * head_dim, values) };
            }
        });
    }
}

/// Merges another part's state into the first one's.
fn merge(rows: usize, head_dim: usize, state: &mut [f32], other: &[f32]) {
    for row in 0..rows {
        let (at_largest, at_weights) = (rows * head_dim + row, rows * (head_dim + 1) + row);
        let (a, b) = (state[at_largest], other[at_largest]);
        // Queries that see no position of a part have no weight in it.
        let largest = if a > b || b == f32::NEG_INFINITY { a } else { b };
        let share = |x: f32| if x == f32::NEG_INFINITY { 0.0 } else { (x - largest).exp() };
        let (keep, take) = (share(a), share(b));
        state[at_largest] = largest;
        state[at_weights] = state[at_weights] * keep + other[at_weights] * take;
        for at in row * head_dim..(row + 1) * head_dim {
            state[at] = state[at] * keep + other[at] * take;
        }
    }
}

/// Turns a query's scores into weights, relative to the largest score so far. Returns the factor of
/// the earlier weights.
struct Softmax<'a> {
    scores: &'a mut [f32],
    /// Number of scores of positions that the query sees. The weights of all others become 0.
    visible: usize,
    largest: &'a mut f32,
    weights: &'a mut f32,
}

impl Kernel for Softmax<'_> {
    type Output = f32;
    const FASTEST: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let (seen, hidden) = self.scores.split_at_mut(self.visible);
        hidden.fill(0.0);
        if seen.is_empty() {
            return 1.0;
        }
        let largest = seen.iter().fold(*self.largest, |m, &s| if s > m || s.is_nan() { s } else { m });
        let rescale = if *self.largest == f32::NEG_INFINITY { 0.0 } else { (*self.largest - largest).exp() };
        *self.largest = largest;
        let mut total = 0.0;
        let mut whole = seen.chunks_exact_mut(S::LANES);
        for chunk in &mut whole {
            // SAFETY: a vector long; the instruction set is the caller's promise.
            unsafe {
                let p = S::exp(S::sub(S::load(chunk.as_ptr()), S::splat(largest)));
                S::store(chunk.as_mut_ptr(), p);
                total += S::sum(p);
            }
        }
        for score in whole.into_remainder() {
            *score = (*score - largest).exp();
            total += *score;
        }
        *self.weights = *self.weights * rescale + total;
        rescale
    }
}

/// Sets `sums` `[rows, head_dim]` to `rescale · sums + weights values`, with weights `[rows, n]`
/// and values `[n, head_dim]`.
fn accumulate(isa: Isa, values: WeightData<'_>, head_dim: usize, weights: &[f32], rescale: &[f32], sums: &mut [f32]) {
    match values {
        WeightData::F32(values) => isa::run(isa, Accumulate::<F32> { values, head_dim, weights, rescale, sums }),
        WeightData::Bf16(values) => isa::run(isa, Accumulate::<Bf16> { values, head_dim, weights, rescale, sums }),
        WeightData::F16(values) => isa::run(isa, Accumulate::<F16> { values, head_dim, weights, rescale, sums }),
        WeightData::I8(values) => isa::run(isa, Accumulate::<I8> { values, head_dim, weights, rescale, sums }),
        WeightData::I4(_) => unreachable!("caches have no four-bit elements"),
    }
}

struct Accumulate<'a, F: ElementFormat> {
    values: &'a [F::Element],
    head_dim: usize,
    weights: &'a [f32],
    rescale: &'a [f32],
    sums: &'a mut [f32],
}

impl<F: ElementFormat> Kernel for Accumulate<'_, F> {
    type Output = ();
    const FASTEST: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let rows = self.sums.len() / self.head_dim;
        let mut row = 0;
        while row < rows {
            // SAFETY: the caller's promise; the rows exist.
            unsafe {
                if row + 4 <= rows {
                    self.rows::<S, 4>(row);
                    row += 4;
                } else {
                    self.rows::<S, 1>(row);
                    row += 1;
                }
            }
        }
    }
}

impl<F: ElementFormat> Accumulate<'_, F> {
    #[expect(clippy::needless_range_loop, reason = "the loops are unrolled into registers; iterators hide which")]
    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize>(&mut self, row: usize) {
        let (head_dim, n) = (self.head_dim, self.values.len() / self.head_dim);
        let weights = &self.weights[row * n..(row + M) * n];
        let sums = &mut self.sums[row * head_dim..(row + M) * head_dim];
        let rescale = &self.rescale[row..row + M];
        let mut at = 0;
        while at + 2 * S::LANES <= head_dim {
            // SAFETY: `at` and two vectors fit each row of values and sums; the instruction set is
            // the caller's promise.
            unsafe {
                let mut acc = [[S::splat(0.0); 2]; M];
                for m in 0..M {
                    let sum = sums.as_ptr().add(m * head_dim + at);
                    acc[m] = [S::load(sum), S::load(sum.add(S::LANES))].map(|x| S::mul(x, S::splat(rescale[m])));
                }
                for i in 0..n {
                    let value = self.values.as_ptr().add(i * head_dim + at);
                    let (v0, v1) = (F::load::<S>(value, 0), F::load::<S>(value, 1));
                    for m in 0..M {
                        let weight = S::splat(*weights.get_unchecked(m * n + i));
                        acc[m] = [S::fma(weight, v0, acc[m][0]), S::fma(weight, v1, acc[m][1])];
                    }
                }
                for m in 0..M {
                    let sum = sums.as_mut_ptr().add(m * head_dim + at);
                    S::store(sum, acc[m][0]);
                    S::store(sum.add(S::LANES), acc[m][1]);
                }
            }
            at += 2 * S::LANES;
        }
        // The columns that are left, position by position, in a loop that the compiler vectorises.
        for (sums, rescale) in sums.chunks_exact_mut(head_dim).zip(rescale) {
            sums[at..].iter_mut().for_each(|sum| *sum *= rescale);
        }
        for (i, values) in self.values.chunks_exact(head_dim).enumerate() {
            for (m, sums) in sums.chunks_exact_mut(head_dim).enumerate() {
                let weight = weights[m * n + i];
                sums[at..].iter_mut().zip(&values[at..]).for_each(|(sum, &v)| *sum += weight * F::to_f32(v));
            }
        }
    }
}
