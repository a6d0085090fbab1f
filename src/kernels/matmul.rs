//! Products of activations with weights as stored: `x wᵀ`, both contiguous along the dimension that is summed over, so that
//! nothing has to be transposed or packed but the few activations.
//!
//! The product is cut into blocks of weight rows, one task of the thread pool each; what becomes of a block (rounding,
//! GELU, a maximum) is up to the caller, which gets it while it is in the cache. Few activation rows: each weight is read
//! once, converted in registers and used for all of them, at the speed of memory. Many rows: a block of weights stays in the
//! level-2 cache while all activations pass by, four rows at a time, at the speed of the multipliers.

use std::{cell::Cell, ops::Range};

use super::{
    Machine,
    isa::{self, Isa, Kernel},
    simd::Simd,
};

/// Activation rows that pass by a block of weights: more need more memory for their f32 copy, and no less time.
const MAX_ROWS: usize = 128;
/// Activation rows of one tile.
const TILE_ROWS: usize = 4;
/// Weight rows of a block are a multiple of all tiles' weight rows.
const BLOCK_UNIT: usize = 12;
/// Elements that are summed over in one go: four rows of activations of this length stay in the level-1 cache.
const DEPTH: usize = 1024;
/// Bytes of a task's weights with few activation rows: enough to pay for taking it, little enough to share evenly.
const STREAM_BYTES: usize = 128 << 10;

/// Elements of a weight, as stored.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    F32(&'a [f32]),
    /// Bits of bf16.
    Bf16(&'a [u16]),
    /// Bits of f16.
    F16(&'a [u16]),
}

impl<'a> Elements<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(e) => e.len(),
            Self::Bf16(e) | Self::F16(e) => e.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(e) => Self::F32(&e[range]),
            Self::Bf16(e) => Self::Bf16(&e[range]),
            Self::F16(e) => Self::F16(&e[range]),
        }
    }
}

/// A weight `[rows, width]`, row-major: `width` is summed over.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    elements: Elements<'a>,
    rows: usize,
    width: usize,
}

impl<'a> Matrix<'a> {
    /// # Panics
    /// If there are not `rows * width` elements.
    pub fn new(elements: Elements<'a>, rows: usize, width: usize) -> Self {
        assert_eq!(elements.len(), rows * width, "a matrix of {rows} rows of {width}");
        Self { elements, rows, width }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn row_bytes(&self) -> usize {
        self.width * if matches!(self.elements, Elements::F32(_)) { 4 } else { 2 }
    }

    /// The rows from `from` to `to`.
    fn block(&self, from: usize, to: usize) -> Self {
        let elements = self.elements.slice(from * self.width..to * self.width);
        Self { elements, rows: to - from, width: self.width }
    }
}

/// Activations `[rows, width]`, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Activations<'a> {
    F32(&'a [f32]),
    /// Bits of bf16.
    Bf16(&'a [u16]),
}

impl Activations<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    fn get(&self, at: usize) -> f32 {
        match self {
            Self::F32(x) => x[at],
            Self::Bf16(x) => f32::from_bits(u32::from(x[at]) << 16),
        }
    }
}

/// A block of products, as its consumer gets it.
pub struct Products<'a> {
    /// The first activation row, and the number of rows.
    pub first_row: usize,
    pub rows: usize,
    /// The first weight row, and the number of columns of each product.
    pub first_column: usize,
    pub columns: usize,
    /// For each weight `[rows, columns]`, row-major.
    pub values: &'a mut [f32],
}

/// Multiplies `x` `[rows, width]` with weights of one shape and type, and gives `consume` each block of the products, on
/// whichever thread has computed it. Sums are f32.
///
/// # Panics
/// If shapes do not fit each other.
pub fn products(
    machine: Machine<'_>,
    x: Activations<'_>,
    weights: &[Matrix<'_>],
    consume: &(dyn Fn(Products<'_>) + Sync),
) {
    let Matrix { rows: columns, width, .. } = weights[0];
    assert!(weights.iter().all(|w| w.rows == columns && w.width == width), "weights of different shapes");
    assert!(width > 0 && x.len().is_multiple_of(width), "{} activations are no rows of {width}", x.len());
    let rows = x.len() / width;
    for first_row in (0..rows).step_by(MAX_ROWS) {
        let rows = MAX_ROWS.min(rows - first_row);
        with_scratch(rows * width, |packed| {
            pack(machine.isa, x, first_row * width, &weights[0], packed);
            let packed: &[f32] = packed;
            let unit = block_rows(rows, columns, weights, machine.pool.threads());
            machine.pool.run(columns.div_ceil(unit), &|task| {
                let (from, to) = (task * unit, columns.min((task + 1) * unit));
                let size = rows * (to - from);
                with_scratch(size * weights.len(), |values| {
                    for (weight, out) in weights.iter().zip(values.chunks_exact_mut(size)) {
                        multiply(machine.isa, packed, &weight.block(from, to), out);
                    }
                    consume(Products { first_row, rows, first_column: from, columns: to - from, values });
                });
            });
        });
    }
}

/// Weight rows of one task.
fn block_rows(rows: usize, columns: usize, weights: &[Matrix<'_>], threads: usize) -> usize {
    let wanted = if rows > TILE_ROWS {
        4 * BLOCK_UNIT / weights.len()
    } else {
        STREAM_BYTES / (weights[0].row_bytes() * weights.len())
    };
    // A small matrix is still shared by all threads.
    let most = columns.div_ceil(4 * threads);
    wanted.min(most).next_multiple_of(BLOCK_UNIT)
}

/// How elements are loaded, two vectors at a time.
pub(super) trait Format {
    type Element: Copy;
    /// Two vectors of elements: bf16 those of even and those of odd number, all others in order (see [`Order`]).
    unsafe fn load_pair<S: Simd>(p: *const Self::Element) -> [S::F32; 2];
    fn to_f32(element: Self::Element) -> f32;
}

pub(super) struct F32;
pub(super) struct Bf16;
pub(super) struct F16;

impl Format for F32 {
    type Element = f32;
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(p: *const f32) -> [S::F32; 2] {
        // SAFETY: the caller's promises: the instruction set, and two vectors' elements at p.
        unsafe { [S::load(p), S::load(p.add(S::LANES))] }
    }
    fn to_f32(element: f32) -> f32 {
        element
    }
}

impl Format for Bf16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(p: *const u16) -> [S::F32; 2] {
        // SAFETY: as above.
        unsafe { S::load_bf16_pair(p) }
    }
    fn to_f32(element: u16) -> f32 {
        f32::from_bits(u32::from(element) << 16)
    }
}

impl Format for F16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(p: *const u16) -> [S::F32; 2] {
        // SAFETY: as above.
        unsafe { [S::load_f16(p), S::load_f16(p.add(S::LANES))] }
    }
    fn to_f32(element: u16) -> f32 {
        half::f16::from_bits(element).to_f32()
    }
}

/// Activations from element `first` on as f32, in the order in which `weight`'s format loads its elements.
pub(super) fn pack(isa: Isa, x: Activations<'_>, first: usize, weight: &Matrix<'_>, packed: &mut [f32]) {
    let order = Order::of(isa, &weight.elements, weight.width);
    for (row, packed) in packed.chunks_exact_mut(weight.width).enumerate() {
        let first = first + row * weight.width;
        packed.iter_mut().enumerate().for_each(|(at, value)| *value = x.get(first + order.element(at)));
    }
}

/// Where the elements of a packed row stand in the row.
#[derive(Clone, Copy)]
pub(super) struct Order {
    lanes: usize,
    /// Elements of even number come before those of odd number, in pairs of vectors, up to this element.
    interleaved: usize,
}

impl Order {
    pub(super) fn of(isa: Isa, elements: &Elements<'_>, width: usize) -> Self {
        struct Lanes;
        impl Kernel for Lanes {
            type Output = usize;
            #[inline(always)]
            unsafe fn run<S: Simd>(self) -> usize {
                S::LANES
            }
        }
        let lanes = isa::run(isa, Lanes);
        let pairs = width - width % (2 * lanes);
        Self { lanes, interleaved: if matches!(elements, Elements::Bf16(_)) { pairs } else { 0 } }
    }

    /// The element that stands at `at`.
    #[inline]
    pub(super) fn element(self, at: usize) -> usize {
        if at >= self.interleaved {
            return at;
        }
        // Lanes are a power of two.
        let (pair, lane) = (at & !(2 * self.lanes - 1), at & (self.lanes - 1));
        pair + 2 * lane + usize::from(at & self.lanes != 0)
    }
}

/// `out` `[rows, columns]` from packed activations and a block of weights.
pub(super) fn multiply(isa: Isa, x: &[f32], weight: &Matrix<'_>, out: &mut [f32]) {
    let Matrix { rows: columns, width, elements } = *weight;
    match elements {
        Elements::F32(weights) => isa::run(isa, Block::<F32> { x, weights, width, columns, out }),
        Elements::Bf16(weights) => isa::run(isa, Block::<Bf16> { x, weights, width, columns, out }),
        Elements::F16(weights) => isa::run(isa, Block::<F16> { x, weights, width, columns, out }),
    }
}

struct Block<'a, F: Format> {
    x: &'a [f32],
    weights: &'a [F::Element],
    width: usize,
    columns: usize,
    out: &'a mut [f32],
}

impl<F: Format> Kernel for Block<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let rows = self.x.len() / self.width;
        let depth = if rows > TILE_ROWS { DEPTH } else { self.width };
        for from in (0..self.width).step_by(depth) {
            let depth = depth.min(self.width - from);
            let mut row = 0;
            while row < rows {
                // SAFETY: the caller's promises; the tiles lie inside the arrays.
                unsafe {
                    match (rows - row, S::LANES) {
                        (1, _) => self.row_of_tiles::<S, 4, 1>(row, from, depth),
                        (2, _) => self.row_of_tiles::<S, 4, 2>(row, from, depth),
                        (3, _) => self.row_of_tiles::<S, 3, 3>(row, from, depth),
                        // As many accumulators as there are registers.
                        (_, 16) => self.row_of_tiles::<S, 6, TILE_ROWS>(row, from, depth),
                        _ => self.row_of_tiles::<S, 3, TILE_ROWS>(row, from, depth),
                    }
                }
                row += TILE_ROWS.min(rows - row);
            }
        }
    }
}

impl<F: Format> Block<'_, F> {
    /// `M` activation rows with all weight rows, `N` at a time.
    #[inline(always)]
    unsafe fn row_of_tiles<S: Simd, const N: usize, const M: usize>(&mut self, row: usize, from: usize, depth: usize) {
        let mut column = 0;
        // SAFETY: the caller's promises; `column + N` stays within the weight rows.
        unsafe {
            while column + N <= self.columns {
                self.tile::<S, N, M>(row, column, from, depth);
                column += N;
            }
            while column < self.columns {
                self.tile::<S, 1, M>(row, column, from, depth);
                column += 1;
            }
        }
    }

    /// Sums over `depth` elements from `from` on, for `M` activation rows and `N` weight rows.
    #[expect(clippy::needless_range_loop, reason = "the loops are unrolled into registers; iterators hide which")]
    #[inline(always)]
    unsafe fn tile<S: Simd, const N: usize, const M: usize>(
        &mut self,
        row: usize,
        column: usize,
        from: usize,
        depth: usize,
    ) {
        debug_assert!((row + M) * self.width <= self.x.len() && (column + N) * self.width <= self.weights.len());
        debug_assert!(from + depth <= self.width);
        let width = self.width;
        // SAFETY: the rows lie in the arrays, as asserted; the instruction set is the caller's promise.
        unsafe {
            let x = self.x.as_ptr().add(row * width + from);
            let w = self.weights.as_ptr().add(column * width + from);
            // Small tiles hide the latency of an addition with a second accumulator.
            let second = usize::from(N * M <= 4);
            let mut sums = [[[S::splat(0.0); 2]; M]; N];
            let mut at = 0;
            while at + 2 * S::LANES <= depth {
                for n in 0..N {
                    let [w0, w1] = F::load_pair::<S>(w.add(n * width + at));
                    for m in 0..M {
                        let x = x.add(m * width + at);
                        sums[n][m][0] = S::fma(w0, S::load(x), sums[n][m][0]);
                        sums[n][m][second] = S::fma(w1, S::load(x.add(S::LANES)), sums[n][m][second]);
                    }
                }
                at += 2 * S::LANES;
            }
            for n in 0..N {
                for m in 0..M {
                    let mut sum = S::sum(S::add(sums[n][m][0], sums[n][m][1]));
                    for i in at..depth {
                        sum += F::to_f32(*w.add(n * width + i)) * *x.add(m * width + i);
                    }
                    let out = &mut self.out[(row + m) * self.columns + column + n];
                    *out = if from == 0 { sum } else { *out + sum };
                }
            }
        }
    }
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: sixteen numbers, without padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// Calls `f` with memory of this thread for `len` numbers, aligned to cache lines; what is in it is left from earlier uses.
pub(super) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    // One buffer for each depth of nesting.
    thread_local!(static FREE: Cell<Vec<Vec<Line>>> = const { Cell::new(Vec::new()) });
    let mut free = FREE.take();
    let mut lines = free.pop().unwrap_or_default();
    FREE.set(free);
    let needed = len.div_ceil(16);
    if lines.len() < needed {
        lines.resize(needed, Line([0.0; 16]));
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut lines)[..len]);
    let mut free = FREE.take();
    free.push(lines);
    FREE.set(free);
    result
}
