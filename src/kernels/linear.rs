//! Epilogues: store, GELU, max, top-k, log-sum-exp.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use super::{
    context::ExecContext,
    isa::{self, Isa, Kernel},
    matmul::products,
    operands::{Activations, WeightMatrix},
    output::{OutputRows, SharedOutput},
    simd::Simd,
};

/// Computes `x wᵀ`: `[rows, in]` by `[out, in]` to `[rows, out]`.
///
/// # Panics
/// If shapes do not fit each other.
pub fn linear(context: ExecContext<'_>, x: Activations<'_>, weight: WeightMatrix<'_>, results: OutputRows<'_>) {
    let results = SharedOutput::new(results, weight.rows());
    products(context, x, &[weight], &|block| {
        for (row, values) in block.values.chunks_exact(block.columns).enumerate() {
            // SAFETY: each block has columns of its own.
            unsafe { results.write(block.first_row + row, block.first_column, values) };
        }
    });
}

/// Computes `gelu_tanh(x gateᵀ) · (x upᵀ)`: `[rows, in]` by two weights `[out, in]` to `[rows,
/// out]`.
///
/// # Panics
/// If shapes do not fit each other, or gate and up have different types.
pub fn gate_up(
    context: ExecContext<'_>,
    x: Activations<'_>,
    gate: WeightMatrix<'_>,
    up: WeightMatrix<'_>,
    results: OutputRows<'_>,
) {
    let results = SharedOutput::new(results, gate.rows());
    products(context, x, &[gate, up], &|block| {
        let (gate, up) = block.values.split_at_mut(block.rows * block.columns);
        isa::run(context.isa, GeluTimes { gate, up });
        for (row, values) in gate.chunks_exact(block.columns).enumerate() {
            // SAFETY: each block has columns of its own.
            unsafe { results.write(block.first_row + row, block.first_column, values) };
        }
    });
}

/// Computes `gate = gelu_tanh(gate) · up`, with `gelu_tanh(x) = x / (1 + exp(-2 sqrt(2/π) (x +
/// 0.044715 x³)))`, which is the tanh form.
struct GeluTimes<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for GeluTimes<'_> {
    type Output = ();
    const FASTEST: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.gate.len() / S::LANES * S::LANES;
        let (gate, gate_rest) = self.gate.split_at_mut(whole);
        let (up, up_rest) = self.up.split_at(whole);
        for (gate, up) in gate.chunks_exact_mut(S::LANES).zip(up.chunks_exact(S::LANES)) {
            // SAFETY: both are a vector long; the instruction set is the caller's promise.
            unsafe { gelu_times::<S>(gate.as_mut_ptr(), up.as_ptr()) };
        }
        // The remaining elements, in a vector of their own.
        let (mut gate, mut up) = ([0.0; 16], [0.0; 16]);
        gate[..gate_rest.len()].copy_from_slice(gate_rest);
        up[..up_rest.len()].copy_from_slice(up_rest);
        // SAFETY: no vector is longer than 16.
        unsafe { gelu_times::<S>(gate.as_mut_ptr(), up.as_ptr()) };
        gate_rest.copy_from_slice(&gate[..gate_rest.len()]);
    }
}

#[inline(always)]
unsafe fn gelu_times<S: Simd>(gate: *mut f32, up: *const f32) {
    const SCALE: f32 = -2.0 * 0.797_884_6; // sqrt(2/π)
    // SAFETY: the caller's promises: the instruction set, a vector at both.
    unsafe {
        let x = S::load(gate);
        let cubic = S::fma(S::mul(S::mul(x, x), S::splat(0.044_715)), x, x);
        let e = S::exp(S::mul(cubic, S::splat(SCALE)));
        let gelu = S::div(x, S::add(e, S::splat(1.0)));
        S::store(gate, S::mul(gelu, S::load(up)));
    }
}

/// Finds each row's largest product and its column: the first one, where several are equal. A NaN
/// is larger than all numbers.
///
/// # Panics
/// If shapes do not fit each other, or `values` and `columns` do not have an element for each row
/// of `x`.
pub fn linear_max(
    context: ExecContext<'_>,
    x: Activations<'_>,
    weight: WeightMatrix<'_>,
    values: &mut [f32],
    columns: &mut [i32],
) {
    assert_eq!(values.len(), columns.len());
    values.fill(f32::NEG_INFINITY);
    columns.fill(i32::MAX);
    let best = Mutex::new((values, columns));
    products(context, x, &[weight], &|block| {
        let rows = block.values.chunks_exact(block.columns);
        let found: Vec<_> = rows.map(|row| Largest::in_row(row, block.first_column)).collect();
        let mut best = best.lock().expect("nothing panics while it is held");
        for (i, found) in found.into_iter().enumerate() {
            let row = block.first_row + i;
            let known = Largest { value: best.0[row], column: best.1[row] };
            let larger = known.or(found);
            (best.0[row], best.1[row]) = (larger.value, larger.column);
        }
    });
}

/// A row's largest product, and its column.
#[derive(Clone, Copy)]
struct Largest {
    value: f32,
    column: i32,
}

impl Largest {
    /// Finds the first one in a part of a row that begins at a column.
    fn in_row(row: &[f32], first_column: usize) -> Self {
        let mut at = 0;
        for (i, &value) in row.iter().enumerate() {
            if is_larger(value, row[at]) {
                at = i;
            }
        }
        Self { value: row[at], column: (first_column + at) as i32 }
    }

    /// Returns the larger of two, or the first where they are equal.
    fn or(self, other: Self) -> Self {
        let is_first = other.column < self.column && !is_larger(self.value, other.value);
        if is_larger(other.value, self.value) || is_first { other } else { self }
    }
}

/// What [`linear_score`] finds: an element for each row.
pub struct RowScores<'a> {
    /// The largest product and its column, as [`linear_max`] finds them.
    pub largest: &'a mut [f32],
    pub columns: &'a mut [i32],
    /// The logarithm of the sum of all products' exponentials.
    pub log_totals: &'a mut [f32],
    /// The product in the row's target column; minus infinity where there is no such column.
    pub chosen: &'a mut [f32],
}

/// Scores each row's target: its product, beside all products of the row. The log-softmax of the
/// target is the difference of `chosen` and `log_totals`.
///
/// # Panics
/// If shapes do not fit each other, or `targets` and `scores` do not have an element for each row
/// of `x`.
pub fn linear_score(
    context: ExecContext<'_>,
    x: Activations<'_>,
    weight: WeightMatrix<'_>,
    targets: &[i32],
    scores: RowScores<'_>,
) {
    let RowScores { largest, columns, log_totals, chosen } = scores;
    let lengths = [largest.len(), columns.len(), log_totals.len(), chosen.len()];
    assert_eq!(lengths, [targets.len(); 4], "results of as many rows as there are targets");
    chosen.fill(f32::NEG_INFINITY);
    /// A block's part of a row.
    struct Part {
        row: usize,
        largest: Largest,
        /// Of exponentials of products minus the largest one.
        sum: f32,
    }
    let found = Mutex::new((Vec::new(), chosen));
    products(context, x, &[weight], &|block| {
        let mut parts = Vec::with_capacity(block.rows);
        for (i, row) in block.values.chunks_exact(block.columns).enumerate() {
            let largest = Largest::in_row(row, block.first_column);
            let sum = isa::run(context.isa, SumExp { values: row, largest: largest.value });
            parts.push(Part { row: block.first_row + i, largest, sum });
        }
        let mut found = found.lock().expect("nothing panics while it is held");
        for (part, row) in parts.iter().zip(block.values.chunks_exact(block.columns)) {
            let column = usize::try_from(targets[part.row]).ok().and_then(|at| at.checked_sub(block.first_column));
            if let Some(&product) = column.and_then(|at| row.get(at)) {
                found.1[part.row] = product;
            }
        }
        found.0.push((block.first_column, parts));
    });
    let (mut blocks, _) = found.into_inner().expect("nothing panics while it is held");
    // In the order of the columns, whichever thread came first: sums are always the same.
    blocks.sort_unstable_by_key(|(first_column, _)| *first_column);
    let parts = || blocks.iter().flat_map(|(_, parts)| parts);
    largest.fill(f32::NEG_INFINITY);
    columns.fill(i32::MAX);
    for Part { row, largest: part, .. } in parts() {
        let larger = Largest { value: largest[*row], column: columns[*row] }.or(*part);
        (largest[*row], columns[*row]) = (larger.value, larger.column);
    }
    let mut totals = vec![0.0; targets.len()];
    for Part { row, largest: part, sum } in parts() {
        totals[*row] += f64::from(*sum) * f64::from(part.value - largest[*row]).exp();
    }
    for ((log_total, total), largest) in log_totals.iter_mut().zip(totals).zip(largest) {
        *log_total = (f64::from(*largest) + total.ln()) as f32;
    }
}

/// Sums the exponentials of values minus the largest one.
struct SumExp<'a> {
    values: &'a [f32],
    largest: f32,
}

impl Kernel for SumExp<'_> {
    type Output = f32;
    const FASTEST: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let (whole, rest) = self.values.split_at(self.values.len() / S::LANES * S::LANES);
        // The remaining values, in a vector of their own whose other lanes add nothing.
        let mut padded = [f32::NEG_INFINITY; 16];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: a vector is at most 16 long; the instruction set is the caller's promise.
        unsafe {
            // A closure would not be compiled for the instruction set.
            let largest = S::splat(self.largest);
            let mut sums = S::exp(S::sub(S::load(padded.as_ptr()), largest));
            for values in whole.chunks_exact(S::LANES) {
                sums = S::add(sums, S::exp(S::sub(S::load(values.as_ptr()), largest)));
            }
            S::sum(sums)
        }
    }
}

/// Finds each row's `k` largest products and their columns, from large to small. Where products are
/// equal, the first columns come first. A NaN is larger than all numbers. `values` and `columns`
/// are `[rows, k]`.
///
/// # Panics
/// If shapes do not fit each other, or `k` is 0 or larger than the number of weight rows.
pub fn linear_top(
    context: ExecContext<'_>,
    x: Activations<'_>,
    weight: WeightMatrix<'_>,
    k: usize,
    values: &mut [f32],
    columns: &mut [i32],
) {
    assert!(values.len() == columns.len() && values.len().is_multiple_of(k), "rows of {k}");
    assert!(0 < k && k <= weight.rows(), "{k} of {} products", weight.rows());
    let rows: Vec<LargestFew> = (0..values.len() / k).map(|_| LargestFew::new(k)).collect();
    products(context, x, &[weight], &|block| {
        for (row, products) in rows[block.first_row..].iter().zip(block.values.chunks_exact(block.columns)) {
            row.add(products, block.first_column);
        }
    });
    let results = values.chunks_exact_mut(k).zip(columns.chunks_exact_mut(k));
    for (row, (values, columns)) in rows.into_iter().zip(results) {
        for (place, (value, column)) in row.finish().enumerate() {
            (values[place], columns[place]) = (value, column);
        }
    }
}

/// The `k` largest products of a row, which several threads collect.
struct LargestFew {
    k: usize,
    /// A rank that `k` products exceed: smaller ones need not be collected.
    threshold: AtomicU64,
    found: Mutex<Vec<u64>>,
}

impl LargestFew {
    fn new(k: usize) -> Self {
        Self { k, threshold: AtomicU64::new(0), found: Mutex::new(Vec::new()) }
    }

    /// Returns a number that is larger for larger products, and for smaller columns where products
    /// are equal.
    fn rank(value: f32, column: usize) -> u64 {
        let bits = value.to_bits();
        let key = match bits {
            _ if value.is_nan() => u32::MAX,
            // Zeros are equal.
            _ if value == 0.0 => 1 << 31,
            _ if bits >> 31 == 1 => !bits,
            _ => bits | 1 << 31,
        };
        u64::from(key) << 32 | u64::from(!(column as u32))
    }

    fn add(&self, products: &[f32], first_column: usize) {
        let threshold = self.threshold.load(Ordering::Relaxed);
        let ranks = products.iter().enumerate().map(|(i, &value)| Self::rank(value, first_column + i));
        let candidates: Vec<u64> = ranks.filter(|&rank| rank > threshold).collect();
        if candidates.is_empty() {
            return;
        }
        let mut found = self.found.lock().expect("nothing panics while it is held");
        found.extend(candidates);
        if found.len() >= 2 * self.k {
            let last = self.k - 1;
            let (_, &mut threshold, _) = found.select_nth_unstable_by(last, |a, b| b.cmp(a));
            found.truncate(self.k);
            self.threshold.store(threshold, Ordering::Relaxed);
        }
    }

    /// Returns the products and their columns, from large to small.
    fn finish(self) -> impl Iterator<Item = (f32, i32)> {
        let mut found = self.found.into_inner().expect("nothing panics while it is held");
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.truncate(self.k);
        found.into_iter().map(|rank| {
            let (key, column) = ((rank >> 32) as u32, !(rank as u32));
            let value = match key {
                u32::MAX => f32::NAN,
                _ if key >> 31 == 1 => f32::from_bits(key & !(1 << 31)),
                _ => f32::from_bits(!key),
            };
            (value, column as i32)
        })
    }
}

fn is_larger(a: f32, b: f32) -> bool {
    a > b || (a.is_nan() && !b.is_nan())
}
