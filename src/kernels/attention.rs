//! Causal attention over the KV cache, with the softmax computed online (Milakov and Gimelshein 2018; FlashAttention, Dao et
//! al. 2022): scores never leave a core's cache, and a token's work goes with its own position, not with the cache's length.
//!
//! All query heads of a key/value head, for several tokens of a prompt, are the rows of one task, so that a key is read once
//! for all of them. A decode step has too few rows to share among threads: there the positions are split as well, and the
//! parts merged.

use std::ops::Range;

use super::{
    Machine,
    format::{Bf16, F16, F32, Format, I8},
    isa::{self, Isa, Kernel},
    linear::{Columns, Results},
    matmul::{Order, multiply, pack},
    operands::{Activations, Elements, Matrix},
    scratch::with_scratch,
    simd::Simd,
};

/// Rows of a task, if there are as many.
const ROWS: usize = 32;
/// Positions that are scored in one go.
const KEYS: usize = 64;
/// Positions of a part, at least: less is not worth a task.
const MIN_PART: usize = 256;

/// Sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub batch: usize,
    /// Tokens of each row of the batch.
    pub seq: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub slots: usize,
    /// Positions that the cache has for each slot.
    pub cache_len: usize,
}

/// What a row of the batch attends to.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub slot: usize,
    /// Tokens that it has, at most `seq`.
    pub len: usize,
}

/// What is attended to: `[slots, kv_heads, cache_len, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct KvCache<'a> {
    pub keys: Elements<'a>,
    pub values: Elements<'a>,
    /// What each position's keys and values are to be multiplied by, `[slots, kv_heads, cache_len]` each.
    pub scales: Option<[&'a [f32]; 2]>,
}

/// `softmax(q kᵀ / sqrt(head_dim)) v` over each token's own position and all before it.
///
/// `queries` and `results` are `[batch, seq, heads, head_dim]`, `positions` `[batch, seq]`, `rows` `[batch]`. Results of tokens that
/// a row does not have stay as they are. The softmax and all sums are f32.
///
/// # Panics
/// If arrays do not have these shapes, the cache has elements of four bits, or a position or slot is not in the cache.
pub fn attention(
    machine: Machine<'_>,
    shape: Shape,
    queries: Activations<'_>,
    cache: KvCache<'_>,
    positions: &[i32],
    rows: &[Row],
    results: Results<'_>,
) {
    let Shape { batch, seq, heads, kv_heads, head_dim, slots, cache_len } = shape;
    assert!(heads.is_multiple_of(kv_heads), "{shape:?}");
    assert_eq!((positions.len(), rows.len()), (batch * seq, batch));
    assert!(rows.iter().all(|row| row.slot < slots && row.len <= seq), "{shape:?}: {rows:?}");
    let cached = slots * kv_heads * cache_len * head_dim;
    assert!(!matches!((cache.keys, cache.values), (Elements::I4(_), _) | (_, Elements::I4(_))), "a cache in four bits");
    assert!(cache.keys.len() == cached && cache.values.len() == cached, "{shape:?}: a cache of {cached} elements");
    let scales = slots * kv_heads * cache_len;
    assert!(cache.scales.iter().flatten().all(|s| s.len() == scales), "{shape:?}: a cache with {scales} scales");
    assert!(
        positions.iter().all(|&p| 0 <= p && (p as usize) < cache_len),
        "a position is not in the cache of {cache_len}"
    );
    let group = heads / kv_heads;
    let results = Columns::new(results, heads * head_dim);

    let tokens = (ROWS / group).clamp(1, seq);
    let blocks = seq.div_ceil(tokens);
    let tasks = batch * kv_heads * blocks;
    let busy = rows.iter().map(|row| row.len.div_ceil(tokens)).sum::<usize>() * kv_heads;
    if busy == 0 {
        return;
    }
    let longest = rows.iter().zip(positions.chunks_exact(seq)).flat_map(|(row, p)| &p[..row.len]).max();
    let longest = longest.map_or(0, |&p| p as usize + 1);
    let parts = (2 * machine.pool.threads()).div_ceil(busy).min(longest.div_ceil(MIN_PART)).max(1);

    let task = |number: usize| {
        let (row, rest) = (number / (kv_heads * blocks), number % (kv_heads * blocks));
        let (kv_head, first) = (rest / blocks, rest % blocks * tokens);
        Task {
            shape,
            queries,
            cache,
            positions,
            group,
            slot: rows[row].slot,
            row,
            kv_head,
            tokens: first..rows[row].len.clamp(first, first + tokens),
        }
    };
    let size = tokens * group * (head_dim + 2);
    with_scratch(tasks * parts * size, |states| {
        let states = States { first: states.as_mut_ptr(), size };
        machine.pool.run(tasks * parts, &|chunk| {
            let task = task(chunk / parts);
            // SAFETY: each chunk has a state of its own.
            let state = unsafe { states.get(chunk) };
            task.part(machine.isa, chunk % parts, parts, state);
            if parts == 1 {
                task.finish(machine.isa, state, &results);
            }
        });
        if parts > 1 {
            for number in 0..tasks {
                // SAFETY: the threads are done with the states.
                let state = |part: usize| unsafe { states.get(number * parts + part) };
                let (task, first) = (task(number), state(0));
                (1..parts).for_each(|part| merge(task.rows(), head_dim, first, state(part)));
                task.finish(machine.isa, first, &results);
            }
        }
    });
}

/// The states of all tasks' parts.
struct States {
    first: *mut f32,
    size: usize,
}

// SAFETY: a pointer to numbers, of which each thread gets disjoint ranges.
unsafe impl Sync for States {}

impl States {
    /// # Safety
    /// State `number` exists, and is not in use.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts of one array, by the contract")]
    unsafe fn get(&self, number: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(number * self.size), self.size) }
    }
}

/// Some tokens of a row of the batch, with the query heads of one key/value head: `tokens * group` rows.
///
/// Its state is, for each row, the weighted sum of values `[head_dim]` in the order in which values are loaded, the largest
/// score, and the sum of weights.
struct Task<'a> {
    shape: Shape,
    queries: Activations<'a>,
    cache: KvCache<'a>,
    positions: &'a [i32],
    group: usize,
    slot: usize,
    row: usize,
    kv_head: usize,
    tokens: Range<usize>,
}

impl Task<'_> {
    fn rows(&self) -> usize {
        self.tokens.len() * self.group
    }

    /// The position of each row's token.
    fn position(&self, row: usize) -> usize {
        self.positions[self.row * self.shape.seq + self.tokens.start + row / self.group] as usize
    }

    /// Attends to one of `parts` parts of the positions.
    fn part(&self, isa: Isa, part: usize, parts: usize, state: &mut [f32]) {
        let Shape { seq, heads, kv_heads, head_dim, cache_len, .. } = self.shape;
        let rows = self.rows();
        if rows == 0 {
            return;
        }
        let (sums, rest) = state.split_at_mut(rows * head_dim);
        let (largest, rest) = rest.split_at_mut(rows);
        let weights = &mut rest[..rows];
        sums.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        weights.fill(0.0);

        let end = (0..rows).map(|row| self.position(row)).max().unwrap_or_default() + 1;
        let length = end.div_ceil(parts).next_multiple_of(KEYS);
        let range = (part * length).min(end)..((part + 1) * length).min(end);
        let first = (self.slot * kv_heads + self.kv_head) * cache_len;
        let block = |at: usize, n: usize| (first + at) * head_dim..(first + at + n) * head_dim;
        with_scratch(rows * (head_dim + KEYS + 1), |scratch| {
            let (queries, scratch) = scratch.split_at_mut(rows * head_dim);
            let (scores, rescale) = scratch.split_at_mut(rows * KEYS);
            let start = |row: usize| {
                let (token, head) =
                    (self.tokens.start + row / self.group, self.kv_head * self.group + row % self.group);
                ((self.row * seq + token) * heads + head) * head_dim
            };
            pack(isa, self.queries, start, &self.cache.keys, head_dim, queries);
            let scale = (head_dim as f64).powf(-0.5) as f32;
            queries.iter_mut().for_each(|q| *q *= scale);

            for at in range.clone().step_by(KEYS) {
                let n = KEYS.min(range.end - at);
                let keys = self.cache.keys.slice(block(at, n));
                let scores = &mut scores[..rows * n];
                let keys = Matrix::new(keys, n, head_dim);
                let scales = self.cache.scales.map(|scales| scales.map(|scales| &scales[first + at..first + at + n]));
                multiply(isa, queries, &scales.map_or(keys, |[of_keys, _]| keys.scaled(of_keys)), scores);
                for (row, scores) in scores.chunks_exact_mut(n).enumerate() {
                    let visible = (self.position(row) + 1).saturating_sub(at).min(n);
                    let softmax = Softmax { scores, visible, largest: &mut largest[row], weights: &mut weights[row] };
                    rescale[row] = isa::run(isa, softmax);
                }
                if let Some([_, of_values]) = scales {
                    scores.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(of_values).for_each(|(p, s)| *p *= s));
                }
                let values = self.cache.values.slice(block(at, n));
                accumulate(isa, values, head_dim, scores, rescale, sums);
            }
        });
    }

    /// Divides by the sums of weights, and writes the results.
    fn finish(&self, isa: Isa, state: &[f32], results: &Columns<'_>) {
        let Shape { seq, head_dim, .. } = self.shape;
        let rows = self.rows();
        let weights = &state[rows * (head_dim + 1)..];
        let order = Order::of(isa, &self.cache.values, head_dim);
        with_scratch(head_dim, |out| {
            for (row, sums) in state[..rows * head_dim].chunks_exact(head_dim).enumerate() {
                sums.iter().enumerate().for_each(|(at, &sum)| out[order.element(at)] = sum / weights[row]);
                let token = self.row * seq + self.tokens.start + row / self.group;
                let head = self.kv_head * self.group + row % self.group;
                // SAFETY: no other task has this token and head.
                unsafe { results.write(token, head * head_dim, out) };
            }
        });
    }
}

/// Adds another part's state to the first one's.
fn merge(rows: usize, head_dim: usize, state: &mut [f32], other: &[f32]) {
    for row in 0..rows {
        let (at_largest, at_weights) = (rows * head_dim + row, rows * (head_dim + 1) + row);
        let (a, b) = (state[at_largest], other[at_largest]);
        // Rows that see nothing of a part have no weight in it.
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

/// Turns a row's scores into weights, relative to the largest score so far; returns what earlier weights are to be multiplied by.
struct Softmax<'a> {
    scores: &'a mut [f32],
    /// Scores from here on are of later tokens.
    visible: usize,
    largest: &'a mut f32,
    weights: &'a mut f32,
}

impl Kernel for Softmax<'_> {
    type Output = f32;

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

/// `sums = rescale · sums + weights values`: `[rows, head_dim]` from weights `[rows, n]` and values `[n, head_dim]`.
fn accumulate(isa: Isa, values: Elements<'_>, head_dim: usize, weights: &[f32], rescale: &[f32], sums: &mut [f32]) {
    match values {
        Elements::F32(values) => isa::run(isa, Accumulate::<F32> { values, head_dim, weights, rescale, sums }),
        Elements::Bf16(values) => isa::run(isa, Accumulate::<Bf16> { values, head_dim, weights, rescale, sums }),
        Elements::F16(values) => isa::run(isa, Accumulate::<F16> { values, head_dim, weights, rescale, sums }),
        Elements::I8(values) => isa::run(isa, Accumulate::<I8> { values, head_dim, weights, rescale, sums }),
        Elements::I4(_) => unreachable!("caches have no elements of four bits"),
    }
}

struct Accumulate<'a, F: Format> {
    values: &'a [F::Element],
    head_dim: usize,
    weights: &'a [f32],
    rescale: &'a [f32],
    sums: &'a mut [f32],
}

impl<F: Format> Kernel for Accumulate<'_, F> {
    type Output = ();

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

impl<F: Format> Accumulate<'_, F> {
    #[expect(clippy::needless_range_loop, reason = "the loops are unrolled into registers; iterators hide which")]
    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize>(&mut self, row: usize) {
        let (head_dim, n) = (self.head_dim, self.values.len() / self.head_dim);
        let weights = &self.weights[row * n..(row + M) * n];
        let sums = &mut self.sums[row * head_dim..(row + M) * head_dim];
        let rescale = &self.rescale[row..row + M];
        let mut at = 0;
        while at + 2 * S::LANES <= head_dim {
            // SAFETY: `at` and two vectors fit each row of values and sums; the instruction set is the caller's promise.
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
        for m in 0..M {
            for at in at..head_dim {
                let sum = &mut sums[m * head_dim + at];
                let added: f32 = (0..n).map(|i| weights[m * n + i] * F::to_f32(self.values[i * head_dim + at])).sum();
                *sum = *sum * rescale[m] + added;
            }
        }
    }
}
