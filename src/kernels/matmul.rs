//! Products of activations with weights as stored: `x wᵀ`. Both are contiguous along the dimension
//! that is summed over, so only the few activations are packed, and nothing is transposed.
//!
//! The product is cut into blocks of weight rows, one task of the thread pool each. An epilogue
//! gets each block while it is in the cache. With few activation rows, each weight is read once,
//! converted in registers and used for all of them, at the speed of memory. With many rows, a block
//! of weights stays in the level-2 cache while all activations are multiplied with it, a tile of
//! rows at a time, at the speed of the multipliers.

use std::ops::Range;

use super::{
    amx,
    context::ExecContext,
    format::{Bf16, ElementFormat, F16, F32, I8},
    integer,
    isa::{self, Isa, Kernel, lanes},
    operands::{Activations, LaneOrder, WeightData, WeightMatrix},
    panels::{self, PanelActivations},
    scratch::with_scratch,
    simd::Simd,
    tiles::BLOCK,
    upcast::{DequantizeBlocks, upcast_to_bf16},
};

/// Activation rows that are multiplied with a block of weights in one go: more rows need more
/// memory for their f32 copy, and are not faster.
const MAX_ROWS: usize = 256;
/// The most activation rows that form a single tile, with several weight rows each.
const FEW_ROWS: usize = 4;
/// Weight rows of a block are a multiple of this, which is a multiple of all tiles' weight rows.
const BLOCK_UNIT: usize = 12;
/// Weight rows to prefetch ahead where slices of rows are read: the hardware prefetcher does not
/// predict them.
const AHEAD: usize = 2;
/// Elements to prefetch ahead in a row where each is used for eight activation rows, which takes so
/// long that the hardware prefetcher does not look far enough ahead.
const AHEAD_IN_ROW: usize = 2048;
/// Bytes of a task's weights with few activation rows: enough to pay for the task's overhead,
/// little enough to balance the threads.
const STREAM_BYTES: usize = 256 << 10;

/// The most activation rows for which weights are converted as they are used. With more it pays to
/// convert a block first, and to transpose it.
const STREAM_ROWS: usize = 32;

/// Returns the activation rows in a tile. A weight that is converted or fetched from memory as it
/// is used is used for eight rows. Otherwise weights of three or more rows are loaded at a time,
/// which takes fewer loads.
fn tile_rows<P: DotProduct>(rows: usize) -> usize {
    if rows > FEW_ROWS && rows <= P::EIGHTS { 8 } else { 4 }
}

/// A block of products, as an epilogue gets it.
pub struct ProductBlock<'a> {
    /// The first activation row, and the number of rows.
    pub first_row: usize,
    pub rows: usize,
    /// The first weight row, and the number of columns of each product.
    pub first_column: usize,
    pub columns: usize,
    /// Products with each weight, `[rows, columns]`, row-major.
    pub values: &'a mut [f32],
}

/// Multiplies `x` `[rows, width]` with weights of one shape and type, and calls `consume` with each
/// block of the products, on the thread that has computed it. Sums are f32.
///
/// # Panics
/// If there is no weight, or shapes do not fit each other.
pub fn products(
    context: ExecContext<'_>,
    x: Activations<'_>,
    weights: &[WeightMatrix<'_>],
    consume: &(dyn Fn(ProductBlock<'_>) + Sync),
) {
    let WeightMatrix { rows: columns, width, .. } = weights[0];
    let alike = |w: &WeightMatrix<'_>| {
        let types = std::mem::discriminant(&w.data) == std::mem::discriminant(&weights[0].data);
        w.rows == columns && w.width == width && types
    };
    assert!(weights.iter().all(alike), "weights of different shapes or types");
    assert!(width > 0 && x.len().is_multiple_of(width), "{} activations are no rows of {width}", x.len());
    let rows = x.len() / width;
    let path = MatmulPath::of(context.isa, &x, &weights[0].data, rows);
    for first_row in (0..rows).step_by(MAX_ROWS) {
        let rows = MAX_ROWS.min(rows - first_row);
        with_scratch(path.scratch(context.isa, rows, width), |scratch| {
            let part = x.slice(first_row * width..(first_row + rows) * width);
            let packed = path.pack(context, part, &weights[0].data, width, scratch);
            let unit = block_rows(path, rows, columns, weights, context.pool.threads());
            context.pool.run(columns.div_ceil(unit), &|task| {
                let (from, to) = (task * unit, columns.min((task + 1) * unit));
                let size = rows * (to - from);
                with_scratch(size * weights.len(), |values| {
                    for (weight, out) in weights.iter().zip(values.chunks_exact_mut(size)) {
                        packed.multiply(context.isa, &weight.block(from, to), out);
                    }
                    consume(ProductBlock { first_row, rows, first_column: from, columns: to - from, values });
                });
            });
        });
    }
}

/// A way to multiply activations with weights.
#[derive(Clone, Copy, PartialEq)]
enum MatmulPath {
    /// In f32: weights are converted as they are used.
    F32,
    /// In f32: weights are converted first.
    Panels,
    /// Both in bf16, by instructions that sum in f32.
    Bf16,
    /// Both in bf16, in tiles.
    Tiles,
    Integers,
}

impl MatmulPath {
    fn of(isa: Isa, x: &Activations<'_>, weights: &WeightData<'_>, rows: usize) -> Self {
        if rows <= integer::most_rows(isa, weights) {
            return Self::Integers;
        }
        let becomes_bf16 = matches!(weights, WeightData::Bf16(_) | WeightData::I8(_) | WeightData::I4(_));
        match isa {
            Isa::Amx | Isa::Avx512Bf16 if becomes_bf16 && matches!(x, Activations::Bf16(_)) => {
                if isa == Isa::Amx && rows > FEW_ROWS { Self::Tiles } else { Self::Bf16 }
            }
            _ if rows > STREAM_ROWS => Self::Panels,
            _ => Self::F32,
        }
    }

    /// Returns the f32 elements of scratch memory that packed activations take.
    fn scratch(self, isa: Isa, rows: usize, width: usize) -> usize {
        match self {
            Self::F32 => rows * width,
            Self::Panels => PanelActivations::scratch(isa, rows, width),
            Self::Bf16 => (rows * width).div_ceil(2),
            Self::Tiles => amx::TiledActivations::elements(rows, width) / 2,
            Self::Integers => integer::QuantActivations::scratch(rows, width),
        }
    }

    /// Packs activations `[rows, width]`, to be multiplied with weights like these.
    fn pack<'a>(
        self,
        context: ExecContext<'_>,
        x: Activations<'_>,
        weights: &WeightData<'_>,
        width: usize,
        scratch: &'a mut [f32],
    ) -> PackedActivations<'a> {
        let rows = x.len() / width;
        match (self, x) {
            (Self::Integers, _) => PackedActivations::Integers(integer::QuantActivations::new(
                context.isa,
                x,
                0,
                rows,
                width,
                weights,
                scratch,
            )),
            (Self::Bf16, Activations::Bf16(x)) => {
                let packed: &mut [u16] = &mut bytemuck::cast_slice_mut(scratch)[..rows * width];
                let (tile_rows, pair) = (tile_rows::<Bf16Pairs>(rows), 2 * lanes(context.isa));
                context.pool.run_chunks(packed, tile_rows * width, &|tile, packed| {
                    pack_tile(packed, width, pair, |row, at| x[(tile * tile_rows + row) * width + at]);
                });
                PackedActivations::Bf16(packed)
            }
            (Self::Tiles, Activations::Bf16(x)) => PackedActivations::Tiles(amx::TiledActivations::new(
                context.pool,
                x,
                width,
                bytemuck::cast_slice_mut(scratch),
            )),
            (Self::Panels, _) => PackedActivations::Panels(PanelActivations::new(context, x, weights, width, scratch)),
            _ => {
                let (tile_rows, order) = (tile_rows::<F32>(rows), LaneOrder::of(context.isa, weights, width));
                context.pool.run_chunks(scratch, tile_rows * width, &|tile, packed| {
                    pack_tile(packed, width, 2 * order.lanes, |row, at| {
                        x.get((tile * tile_rows + row) * width + order.element(at))
                    });
                });
                PackedActivations::F32(scratch)
            }
        }
    }
}

/// Activations packed for one of the ways to multiply them.
#[derive(Clone, Copy)]
enum PackedActivations<'a> {
    F32(&'a [f32]),
    Panels(PanelActivations<'a>),
    Bf16(&'a [u16]),
    Tiles(amx::TiledActivations<'a>),
    Integers(integer::QuantActivations<'a>),
}

impl PackedActivations<'_> {
    /// Sets `out` `[rows, columns]` to the products with a block of weights.
    fn multiply(self, isa: Isa, weight: &WeightMatrix<'_>, out: &mut [f32]) {
        match (self, weight.data) {
            (Self::F32(x), _) => multiply(isa, x, weight, out),
            (Self::Panels(x), _) => panels::multiply(isa, x, weight, out),
            (Self::Bf16(x), WeightData::Bf16(weights)) => {
                multiply_part::<Bf16Pairs>(isa, x, weights, 0..weight.width, weight, out);
            }
            (Self::Bf16(x), weights) => multiply_upcast::<Bf16Pairs>(x, weight, out, isa, |part, values| {
                upcast_to_bf16(isa, weights, weight.width, part.clone(), part.len(), values);
            }),
            (Self::Tiles(x), _) => amx::multiply(isa, x, weight, out),
            (Self::Integers(x), WeightData::I8(weights)) => integer::multiply(isa, x, weights, weight.scales, out),
            (Self::Integers(x), WeightData::I4(weights)) => integer::multiply(isa, x, weights, weight.scales, out),
            (Self::Integers(_), weights) => unreachable!("{weights:?} are no integers"),
        }
    }
}

/// Returns the weight rows of one task.
fn block_rows(path: MatmulPath, rows: usize, columns: usize, weights: &[WeightMatrix<'_>], threads: usize) -> usize {
    let unit = match path {
        MatmulPath::Tiles => BLOCK,
        MatmulPath::Panels => panels::COLUMNS,
        _ => BLOCK_UNIT,
    };
    let streamed = if path == MatmulPath::Bf16 { Bf16Pairs::STREAMED } else { FEW_ROWS };
    let wanted = if rows > streamed && path != MatmulPath::Integers {
        4 * BLOCK_UNIT / weights.len()
    } else {
        STREAM_BYTES / (weights[0].row_bytes() * weights.len())
    };
    // A small matrix is still shared by all threads.
    let most = columns.div_ceil(4 * threads);
    wanted.min(most).next_multiple_of(unit)
}

/// Packs rows of activations as f32, to be multiplied with rows of `weights` that are `width` long.
///
/// Tiles of [`tile_rows`] rows follow each other, packed as by [`pack_tile`]; the last one may have
/// fewer rows. In a pair of vectors, elements have the order in which those of the weight are
/// loaded.
pub(super) fn pack(
    isa: Isa,
    x: Activations<'_>,
    row_starts: impl Fn(usize) -> usize,
    weights: &WeightData<'_>,
    width: usize,
    packed: &mut [f32],
) {
    let (order, tile_rows) = (LaneOrder::of(isa, weights, width), tile_rows::<F32>(packed.len() / width));
    for (tile, packed) in packed.chunks_mut(tile_rows * width).enumerate() {
        let start = |row: usize| row_starts(tile * tile_rows + row);
        pack_tile(packed, width, 2 * order.lanes, |row, at| x.get(start(row) + order.element(at)));
    }
}

/// Packs a tile of rows: the first pair of vectors of each row, then the second pair of each, and
/// so on, so that the tile is read from its beginning to its end. `element` returns the element of
/// a row that is stored at some place of it.
fn pack_tile<T>(packed: &mut [T], width: usize, pair: usize, element: impl Fn(usize, usize) -> T) {
    let rows = packed.len() / width;
    let pairs = width - width % pair;
    for row in 0..rows {
        for at in (0..pairs).step_by(pair) {
            let to = &mut packed[at * rows + row * pair..][..pair];
            to.iter_mut().enumerate().for_each(|(i, to)| *to = element(row, at + i));
        }
        let to = &mut packed[pairs * rows + row * (width - pairs)..][..width - pairs];
        to.iter_mut().enumerate().for_each(|(i, to)| *to = element(row, pairs + i));
    }
}

/// Sets `out` `[rows, columns]` to the products of packed activations with a block of weights.
pub(super) fn multiply(isa: Isa, x: &[f32], weight: &WeightMatrix<'_>, out: &mut [f32]) {
    match weight.data {
        WeightData::F32(weights) => multiply_part::<F32>(isa, x, weights, 0..weight.width, weight, out),
        WeightData::Bf16(weights) => multiply_part::<Bf16>(isa, x, weights, 0..weight.width, weight, out),
        WeightData::F16(weights) => multiply_part::<F16>(isa, x, weights, 0..weight.width, weight, out),
        WeightData::I8(weights) => multiply_part::<I8>(isa, x, weights, 0..weight.width, weight, out),
        WeightData::I4(blocks) => multiply_upcast::<F32>(x, weight, out, isa, |part, values| {
            isa::run(isa, DequantizeBlocks { blocks, width: weight.width, part, values });
        }),
    }
}

/// Multiplies as [`multiply`] does. `upcast` converts a part of each weight row, in the order of
/// the activations' elements.
fn multiply_upcast<P: DotProduct<Weight: bytemuck::Pod>>(
    x: &[P::Activation],
    weight: &WeightMatrix<'_>,
    out: &mut [f32],
    isa: Isa,
    upcast: impl Fn(Range<usize>, &mut [P::Weight]),
) {
    let width = weight.width;
    let bytes = weight.rows * width.min(P::DEPTH) * size_of::<P::Weight>();
    with_scratch(bytes.div_ceil(size_of::<f32>()), |values| {
        let values = bytemuck::cast_slice_mut(values);
        for from in (0..width).step_by(P::DEPTH) {
            let part = from..width.min(from + P::DEPTH);
            let values = &mut values[..weight.rows * part.len()];
            upcast(part.clone(), values);
            multiply_part::<P>(isa, x, values, part, weight, out);
        }
    });
}

/// Adds products to `out`. `weights` has only `part` of each row of the matrix `of`. The first part
/// sets `out`.
fn multiply_part<P: DotProduct>(
    isa: Isa,
    x: &[P::Activation],
    weights: &[P::Weight],
    part: Range<usize>,
    of: &WeightMatrix<'_>,
    out: &mut [f32],
) {
    let rows = x.len() / of.width;
    let depth = if rows > P::STREAMED { P::DEPTH } else { part.len() };
    let vectors = if part.len() > depth { rows * of.rows } else { 0 };
    with_scratch(vectors * lanes(isa), |partial| {
        isa::run(
            isa,
            BlockKernel::<P> {
                x,
                weights,
                part,
                depth,
                scales: of.scales,
                width: of.width,
                columns: of.rows,
                partial,
                out,
            },
        );
    });
}

/// The types that are multiplied, and how.
trait DotProduct {
    type Weight: Copy;
    type Activation: Copy;
    /// The instruction sets that this is compiled for, see [`Kernel`].
    const SLOWEST: Isa;
    const FASTEST: Isa;
    /// The most activation rows for which tiles have eight rows.
    const EIGHTS: usize = STREAM_ROWS;
    /// The most activation rows for which rows of weights are read from end to end, which is
    /// fastest for memory.
    const STREAMED: usize = FEW_ROWS;
    /// Elements that are summed over in one go with more rows: a tile's activations of this length
    /// stay in the level-1 cache.
    const DEPTH: usize = 512;
    /// Adds the products of `2 * LANES` elements, for `N` weight rows and `M` activation rows.
    /// `weights` returns the address of a weight row's elements; those of the activation rows
    /// follow each other.
    ///
    /// # Safety
    /// Called inside a function compiled for S's instructions, on a processor that has them; so
    /// many elements exist.
    unsafe fn add<S: Simd, const N: usize, const M: usize>(
        weights: impl Fn(usize) -> *const Self::Weight,
        activations: *const Self::Activation,
        sums: &mut [[[S::VecF32; 2]; M]; N],
    );
    fn product(weight: Self::Weight, activation: Self::Activation) -> f32;
}

/// Weights of any format are converted to f32, which activations are.
impl<F: ElementFormat> DotProduct for F {
    type Weight = F::Element;
    type Activation = f32;
    const SLOWEST: Isa = Isa::Portable;
    const FASTEST: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn add<S: Simd, const N: usize, const M: usize>(
        weights: impl Fn(usize) -> *const F::Element,
        activations: *const f32,
        sums: &mut [[[S::VecF32; 2]; M]; N],
    ) {
        // Small tiles have a second accumulator, to hide the latency of an addition.
        let second = usize::from(N * M <= 4);
        // SAFETY: the caller's promise.
        unsafe {
            unrolled!(half < 2, {
                let mut loaded = [S::splat(0.0); N];
                unrolled!(n < N, {
                    loaded[n] = F::load::<S>(weights(n), half);
                });
                unrolled!(m < M, {
                    let x = S::load(activations.add((2 * m + half) * S::LANES));
                    unrolled!(n < N, {
                        let sum = &mut sums[n][m][half * second];
                        *sum = S::fma(loaded[n], x, *sum);
                    });
                });
            });
        }
    }

    fn product(weight: F::Element, activation: f32) -> f32 {
        F::to_f32(weight) * activation
    }
}

/// Weights and activations are both bf16.
struct Bf16Pairs;

impl DotProduct for Bf16Pairs {
    type Weight = u16;
    type Activation = u16;
    // Without instructions for bf16, `MatmulPath` chooses f32.
    const SLOWEST: Isa = Isa::Avx512Bf16;
    const FASTEST: Isa = Isa::Avx512Bf16;
    const EIGHTS: usize = 8;
    const STREAMED: usize = 8;
    const DEPTH: usize = 2048;

    #[inline(always)]
    unsafe fn add<S: Simd, const N: usize, const M: usize>(
        weights: impl Fn(usize) -> *const u16,
        activations: *const u16,
        sums: &mut [[[S::VecF32; 2]; M]; N],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut loaded = [S::load_bf16(weights(0)); N];
            unrolled!(n < N, {
                loaded[n] = S::load_bf16(weights(n));
            });
            unrolled!(m < M, {
                let x = S::load_bf16(activations.add(2 * m * S::LANES));
                unrolled!(n < N, {
                    sums[n][m][0] = S::dot_bf16(loaded[n], x, sums[n][m][0]);
                });
            });
        }
    }

    fn product(weight: u16, activation: u16) -> f32 {
        Bf16::to_f32(weight) * Bf16::to_f32(activation)
    }
}

struct BlockKernel<'a, P: DotProduct> {
    x: &'a [P::Activation],
    /// Elements `part` of each row.
    weights: &'a [P::Weight],
    part: Range<usize>,
    /// Elements of the part that are summed over before the next tile of activations is loaded.
    depth: usize,
    scales: Option<&'a [f32]>,
    width: usize,
    columns: usize,
    /// Sums so far where the part is longer than `depth`: a vector for each product, `[tile,
    /// column, row of the tile]`.
    partial: &'a mut [f32],
    out: &'a mut [f32],
}

impl<P: DotProduct> Kernel for BlockKernel<'_, P> {
    type Output = ();
    const SLOWEST: Isa = P::SLOWEST;
    const FASTEST: Isa = P::FASTEST;

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let rows = self.x.len() / self.width;
        let Range { start, end } = self.part;
        for from in (start..end).step_by(self.depth) {
            for row in (0..rows).step_by(tile_rows::<P>(rows)) {
                // SAFETY: the caller's promise; the rows exist.
                unsafe { self.tile_of_rows::<S>(row, rows, from..end.min(from + self.depth)) };
            }
        }
    }
}

impl<P: DotProduct> BlockKernel<'_, P> {
    /// Multiplies up to [`tile_rows`] activation rows with all weight rows, over a part of the
    /// width.
    #[inline(always)]
    unsafe fn tile_of_rows<S: Simd>(&mut self, row: usize, rows: usize, depth: Range<usize>) {
        // SAFETY: the caller's promise; the rows exist.
        unsafe {
            // As many accumulators as there are registers, or as it takes to hide the latency of an
            // addition. The conditions are constants, so that only one of two tiles is compiled.
            match tile_rows::<P>(rows).min(rows - row) {
                1 => self.row_of_tiles::<S, 4, 1>(row, depth),
                2 => self.row_of_tiles::<S, 4, 2>(row, depth),
                3 => self.row_of_tiles::<S, 3, 3>(row, depth),
                4 => {
                    if const { S::LANES == 16 } {
                        self.row_of_tiles::<S, 6, 4>(row, depth);
                    } else {
                        self.row_of_tiles::<S, 3, 4>(row, depth);
                    }
                }
                5 => self.row_of_tiles::<S, 2, 5>(row, depth),
                6 => self.row_of_tiles::<S, 2, 6>(row, depth),
                7 => self.row_of_tiles::<S, 1, 7>(row, depth),
                _ => {
                    if const { S::LANES == 16 } {
                        self.row_of_tiles::<S, 3, 8>(row, depth);
                    } else {
                        self.row_of_tiles::<S, 1, 8>(row, depth);
                    }
                }
            }
        }
    }

    /// Multiplies `M` activation rows with all weight rows. It reads `N` weight rows at a time that
    /// are far from each other, so that memory is read in `N` long streams: the hardware prefetcher
    /// predicts them, and several are faster than one.
    #[inline(always)]
    unsafe fn row_of_tiles<S: Simd, const N: usize, const M: usize>(&mut self, row: usize, depth: Range<usize>) {
        let step = self.columns / N;
        // SAFETY: the caller's promise; the weight rows exist.
        unsafe {
            for column in 0..step {
                self.tile::<S, N, M>(row, column, step, depth.clone());
            }
            for column in N * step..self.columns {
                self.tile::<S, 1, M>(row, column, 0, depth.clone());
            }
        }
    }

    /// Sums over a part of the width, for `M` activation rows and `N` weight rows: `column`,
    /// `column + step`, ...
    #[inline(always)]
    unsafe fn tile<S: Simd, const N: usize, const M: usize>(
        &mut self,
        row: usize,
        column: usize,
        step: usize,
        depth: Range<usize>,
    ) {
        let (width, stride, columns) = (self.width, self.part.len(), self.columns);
        let is_sliced = stride > self.depth;
        debug_assert!((row + M) * width <= self.x.len());
        debug_assert!((column + (N - 1) * step + 1) * stride <= self.weights.len());
        debug_assert!(self.part.start <= depth.start && depth.end <= self.part.end && self.part.end <= width);
        debug_assert!((row + M) * columns <= self.out.len());
        debug_assert!(!is_sliced || (row + M) * columns * S::LANES <= self.partial.len());
        // SAFETY: the rows lie in the arrays, as asserted; the instruction set is the caller's
        // promise.
        unsafe {
            let x = self.x.as_ptr().add(row * width);
            let w = self.weights.as_ptr().add(column * stride);
            let w = |n: usize, at: usize| w.add(n * step * stride + at - self.part.start);
            let partial = self.partial.as_mut_ptr();
            let partial = |n: usize, m: usize| partial.add((row * columns + (column + n * step) * M + m) * S::LANES);
            let pair = 2 * S::LANES;
            let pairs = width - width % pair;
            let mut sums = [[[S::splat(0.0); 2]; M]; N];
            if is_sliced && depth.start > self.part.start {
                unrolled!(n < N, {
                    unrolled!(m < M, {
                        sums[n][m][0] = S::load(partial(n, m));
                    });
                });
            }
            let fetches = M > FEW_ROWS && row == 0;
            let mut at = depth.start;
            while at + pair <= depth.end {
                if fetches {
                    unrolled!(n < N, {
                        if is_sliced {
                            S::prefetch(w(n, at).wrapping_add(AHEAD * stride).cast());
                        } else {
                            S::prefetch_far(w(n, at).wrapping_add(AHEAD_IN_ROW).cast());
                        }
                    });
                }
                P::add::<S, N, M>(|n| w(n, at), x.add(at * M), &mut sums);
                at += pair;
            }
            if depth.end < self.part.end {
                unrolled!(n < N, {
                    unrolled!(m < M, {
                        S::store(partial(n, m), S::add(sums[n][m][0], sums[n][m][1]));
                    });
                });
                return;
            }
            let mut totals = [[0.0; M]; N];
            unrolled!(n < N, {
                unrolled!(m < M, {
                    let of = |m: usize| S::add(sums[n][m][0], sums[n][m][1]);
                    if m % 4 == 0 && m + 4 <= M {
                        let four = S::sum_four([of(m), of(m + 1), of(m + 2), of(m + 3)]);
                        totals[n][m..m + 4].copy_from_slice(&four);
                    } else if m >= M / 4 * 4 {
                        totals[n][m] = S::sum(of(m));
                    }
                });
            });
            for (n, totals) in totals.iter().enumerate() {
                let column = column + n * step;
                for (m, &total) in totals.iter().enumerate() {
                    let rest = depth.end - at;
                    let weights = std::slice::from_raw_parts(w(n, at), rest);
                    let x = std::slice::from_raw_parts(x.add(pairs * M + m * (width - pairs) + at - pairs), rest);
                    let mut sum = total + short_product::<P>(weights, x);
                    if let Some(scales) = self.scales {
                        sum *= scales.get_unchecked(column);
                    }
                    let out = self.out.get_unchecked_mut((row + m) * columns + column);
                    *out = if self.part.start == 0 { sum } else { *out + sum };
                }
            }
        }
    }
}

/// The dot product of what is left of two rows, in sums that the compiler makes a vector of.
#[inline(always)]
fn short_product<P: DotProduct>(weights: &[P::Weight], activations: &[P::Activation]) -> f32 {
    let (eights, rest) = weights.as_chunks::<8>();
    let (of_eights, of_rest) = activations.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (w, x) in eights.iter().zip(of_eights) {
        for i in 0..8 {
            sums[i] += P::product(w[i], x[i]);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().zip(of_rest).map(|(&w, &x)| P::product(w, x)).sum::<f32>()
}
