//! Products of few activation rows with eight-bit or four-bit weights, in integers.
//!
//! Converting each weight to f32 takes longer than reading it from memory. So activations are
//! quantised to eight bits as well, in groups of [`GROUP`] elements with a scale each (as in
//! llama.cpp's Q8_0), and the products in a group are summed exactly, in 32 bits. With many rows, a
//! conversion is paid once for all of them, and f32 is nearly as fast.

use super::{
    isa::{self, Isa, Kernel},
    operands::{Activations, QuantBlocks, WeightData},
    simd::Simd,
};
use crate::kernel_abi::GROUP;

/// Activation rows that are packed together.
const TILE_ROWS: usize = 4;

/// Returns the most activation rows that are multiplied in integers.
///
/// With more rows the gain is small (a tenth with AVX2), and quantising activations adds a fifth to
/// the error of eight-bit weights. Where bf16 has instructions of its own, eight-bit weights are
/// faster as bf16 from nine rows on.
pub fn most_rows(isa: Isa, weights: &WeightData<'_>) -> usize {
    match weights {
        WeightData::I8(_) if isa == Isa::Avx512Bf16 => 8,
        WeightData::I8(_) | WeightData::I4(_) => 16,
        _ => 0,
    }
}

/// Activation rows quantised to eight bits. The elements after a row's last whole group stay f32.
#[derive(Clone, Copy)]
pub(super) struct QuantActivations<'a> {
    rows: usize,
    width: usize,
    /// Quantised values, in tiles of [`TILE_ROWS`] rows: `[group, row, GROUP]`. For four-bit
    /// weights they are `[pair of groups, row, 2 * GROUP]`: the first halves of both groups come
    /// before their second halves, as in [`Simd::load_nibbles`].
    quantised: &'a [i8],
    /// Scales, `[row, group]`.
    scales: &'a [f32],
    /// -8 times the sum of each group's quantised values, `[row, group]`: corrects for four-bit
    /// weights being stored plus 8.
    corrections: &'a [f32],
    /// Elements after the last whole group, `[row, width % GROUP]`.
    remainders: &'a [f32],
}

/// A multiple of all vectors' lanes. Rows are padded with groups of zeros to a multiple of so many.
const LANES: usize = 16;

impl<'a> QuantActivations<'a> {
    /// Returns the f32 elements of scratch memory that `rows` rows take.
    pub fn scratch(rows: usize, width: usize) -> usize {
        let groups = (width / GROUP).next_multiple_of(LANES);
        rows * (groups * GROUP / size_of::<f32>() + 2 * groups + width % GROUP)
    }

    /// Quantises `rows` rows of activations, from element `first` on, to be multiplied with weights
    /// like these.
    pub fn new(
        isa: Isa,
        x: Activations<'_>,
        first: usize,
        rows: usize,
        width: usize,
        weights: &WeightData<'_>,
        scratch: &'a mut [f32],
    ) -> Self {
        let stride = (width / GROUP).next_multiple_of(LANES);
        let (quantised, scratch) = scratch.split_at_mut(rows * stride * GROUP / size_of::<f32>());
        let (scales, scratch) = scratch.split_at_mut(rows * stride);
        let (corrections, remainders) = scratch.split_at_mut(rows * stride);
        let quantised: &mut [i8] = bytemuck::cast_slice_mut(quantised);
        let paired = matches!(weights, WeightData::I4(_));
        isa::run(isa, QuantizeRows { x, first, rows, width, paired, quantised, scales, corrections });
        let whole = width - width % GROUP;
        for (i, to) in remainders[..rows * (width - whole)].iter_mut().enumerate() {
            let (row, at) = (i / (width - whole), i % (width - whole));
            *to = x.get(first + row * width + whole + at);
        }
        Self { rows, width, quantised, scales, corrections, remainders }
    }

    /// Returns the tile of rows from `first` on.
    fn tile(self, first: usize) -> Self {
        let Self { rows, width, quantised, scales, corrections, remainders } = self;
        let stride = self.stride();
        Self {
            rows: TILE_ROWS.min(rows - first),
            width,
            quantised: &quantised[first * stride * GROUP..],
            scales: &scales[first * stride..],
            corrections: &corrections[first * stride..],
            remainders: &remainders[first * (width % GROUP)..],
        }
    }

    fn stride(&self) -> usize {
        (self.width / GROUP).next_multiple_of(LANES)
    }
}

/// Fills [`QuantActivations`].
struct QuantizeRows<'a> {
    x: Activations<'a>,
    first: usize,
    rows: usize,
    width: usize,
    paired: bool,
    quantised: &'a mut [i8],
    scales: &'a mut [f32],
    corrections: &'a mut [f32],
}

impl Kernel for QuantizeRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, first, rows, width, paired, quantised, scales, corrections } = self;
        let stride = (width / GROUP).next_multiple_of(LANES);
        for row in 0..rows {
            let (tile, of_tile) = (row - row % TILE_ROWS, row % TILE_ROWS);
            let tile_rows = TILE_ROWS.min(rows - tile);
            for group in 0..stride {
                let mut group_values = [0; GROUP];
                let mut scale = 0.0;
                if group < width / GROUP {
                    scale = quantize_group(&x.group(first + row * width + group * GROUP), &mut group_values);
                }
                scales[row * stride + group] = scale;
                corrections[row * stride + group] =
                    -8.0 * group_values.iter().map(|&x| i32::from(x)).sum::<i32>() as f32;
                let tile = &mut quantised[tile * stride * GROUP..];
                if paired {
                    let pair = &mut tile[(group / 2 * tile_rows + of_tile) * 2 * GROUP..][..2 * GROUP];
                    let at = group % 2 * GROUP / 2;
                    pair[at..][..GROUP / 2].copy_from_slice(&group_values[..GROUP / 2]);
                    pair[GROUP + at..][..GROUP / 2].copy_from_slice(&group_values[GROUP / 2..]);
                } else {
                    tile[(group * tile_rows + of_tile) * GROUP..][..GROUP].copy_from_slice(&group_values);
                }
            }
        }
    }
}

/// Quantises a group to 127 steps of its largest magnitude, and returns the scale. If the group has
/// a NaN or an infinity the scale is one too, and every product of the group becomes NaN.
#[inline(always)]
pub fn quantize_group(values: &[f32; GROUP], out: &mut [i8; GROUP]) -> f32 {
    // Without their signs, the bits of numbers are ordered as the numbers are, and NaN is the
    // largest.
    let largest = values.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(largest) / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (out, x) in out.iter_mut().zip(values) {
        // The addition rounds, to even. The last bits of the sum are the integer's.
        const ROUND: f32 = 1.5 * (1 << 23) as f32;
        *out = (x * inverse + ROUND).to_bits() as i8;
    }
    scale
}

/// Sets `out` `[rows, columns]` to the products with `columns` weight rows, each multiplied by its
/// scale, if there are scales.
pub(super) fn multiply<W: IntegerWeights>(
    isa: Isa,
    x: QuantActivations<'_>,
    weights: W,
    scales: Option<&[f32]>,
    out: &mut [f32],
) {
    let columns = out.len() / x.rows;
    for (tile, out) in out.chunks_mut(TILE_ROWS * columns).enumerate() {
        isa::run(isa, IntegerBlock { x: x.tile(tile * TILE_ROWS), weights, scales, columns, out });
    }
}

/// Eight-bit or four-bit weights, in rows as long as those of the activations.
pub(super) trait IntegerWeights: Copy {
    /// Returns the products of `M` activation rows with `N` weight rows: `column`, `column + step`,
    /// ...
    ///
    /// # Safety
    /// Called inside a function compiled for S's instructions, on a processor that has them; the
    /// rows exist.
    unsafe fn products<S: Simd, const N: usize, const M: usize>(
        self,
        x: QuantActivations<'_>,
        column: usize,
        step: usize,
    ) -> [[f32; M]; N];
}

struct IntegerBlock<'a, W> {
    x: QuantActivations<'a>,
    weights: W,
    scales: Option<&'a [f32]>,
    columns: usize,
    out: &'a mut [f32],
}

impl<W: IntegerWeights> Kernel for IntegerBlock<'_, W> {
    type Output = ();
    const FASTEST: Isa = Isa::Avx512Vnni;

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.x.rows {
                1 => self.tiles::<S, 4, 1>(),
                2 => self.tiles::<S, 2, 2>(),
                3 => self.tiles::<S, 2, 3>(),
                4 => self.tiles::<S, 2, 4>(),
                rows => unreachable!("{rows} rows are no tile"),
            }
        }
    }
}

impl<W: IntegerWeights> IntegerBlock<'_, W> {
    /// Multiplies all weight rows with all `M` activation rows. It reads `N` weight rows at a time
    /// that are far from each other, so that memory is read in `N` long streams: the hardware
    /// prefetcher predicts them, and several are faster than one.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const N: usize, const M: usize>(&mut self) {
        let step = self.columns / N;
        // SAFETY: the caller's promise; the weight rows exist.
        unsafe {
            for column in 0..step {
                let products = self.weights.products::<S, N, M>(self.x, column, step);
                self.store(column, step, products);
            }
            for column in N * step..self.columns {
                let products = self.weights.products::<S, 1, M>(self.x, column, 0);
                self.store(column, 0, products);
            }
        }
    }

    #[inline(always)]
    fn store<const N: usize, const M: usize>(&mut self, column: usize, step: usize, products: [[f32; M]; N]) {
        for (n, products) in products.into_iter().enumerate() {
            let column = column + n * step;
            let scale = self.scales.map_or(1.0, |scales| scales[column]);
            for (m, product) in products.into_iter().enumerate() {
                self.out[m * self.columns + column] = product * scale;
            }
        }
    }
}

impl IntegerWeights for &[i8] {
    #[inline(always)]
    unsafe fn products<S: Simd, const N: usize, const M: usize>(
        self,
        x: QuantActivations<'_>,
        column: usize,
        step: usize,
    ) -> [[f32; M]; N] {
        let QuantActivations { width, quantised, scales, remainders, .. } = x;
        let (groups, stride) = (width / GROUP, x.stride());
        debug_assert!(quantised.len() >= groups * M * GROUP && scales.len() >= stride * M);
        debug_assert!((column + (N - 1) * step + 1) * width <= self.len());
        let mut products = [[0.0; M]; N];
        // SAFETY: what is read lies in the arrays, as asserted; the instruction set is the caller's
        // promise.
        unsafe {
            let w = self.as_ptr().add(column * width);
            let (x, s) = (quantised.as_ptr(), scales.as_ptr());
            let mut sums = [[S::splat(0.0); M]; N];
            for group in 0..groups {
                unrolled!(n < N, {
                    let weights = S::load_i8x32(w.add(n * step * width + group * GROUP));
                    unrolled!(m < M, {
                        let products = S::dot_i8x32(weights, x.add((group * M + m) * GROUP));
                        sums[n][m] = S::fma(products, S::splat(*s.add(m * stride + group)), sums[n][m]);
                    });
                });
            }
            unrolled!(n < N, {
                unrolled!(m < M, {
                    let mut sum = S::sum(sums[n][m]);
                    for i in 0..width % GROUP {
                        let weight = f32::from(*w.add(n * step * width + groups * GROUP + i));
                        sum += weight * remainders.get_unchecked(m * (width % GROUP) + i);
                    }
                    products[n][m] = sum;
                });
            });
        }
        products
    }
}

impl IntegerWeights for QuantBlocks<'_> {
    #[inline(always)]
    unsafe fn products<S: Simd, const N: usize, const M: usize>(
        self,
        x: QuantActivations<'_>,
        column: usize,
        step: usize,
    ) -> [[f32; M]; N] {
        let groups = x.width / GROUP;
        debug_assert!((column + (N - 1) * step + 1) * groups <= self.scales.len());
        debug_assert!(self.scales.len() * GROUP / 2 <= self.nibbles.len());
        let mut products = [[0.0; M]; N];
        // SAFETY: what is read lies in the arrays, as asserted; the instruction set is the caller's
        // promise.
        unsafe {
            let mut sums = [[S::splat(0.0); M]; N];
            let row = |n: usize, first: usize| {
                let at = (column + n * step) * groups + first;
                (self.nibbles.as_ptr().add(at * GROUP / 2), self.scales.as_ptr().add(at))
            };
            let whole = groups - groups % S::LANES;
            for first in (0..whole).step_by(S::LANES) {
                vector_of_blocks::<S, N, M>(x, first, std::array::from_fn(|n| row(n, first)), &mut sums);
            }
            if whole < groups {
                // The last blocks, copied to arrays that are as long as a vector.
                let mut last = [([0; LANES * GROUP / 2], [0; LANES]); N];
                for (n, (nibbles, scales)) in last.iter_mut().enumerate() {
                    let (from_nibbles, from_scales) = row(n, whole);
                    std::ptr::copy_nonoverlapping(from_nibbles, nibbles.as_mut_ptr(), (groups - whole) * GROUP / 2);
                    std::ptr::copy_nonoverlapping(from_scales, scales.as_mut_ptr(), groups - whole);
                }
                let rows = std::array::from_fn(|n| (last[n].0.as_ptr(), last[n].1.as_ptr()));
                vector_of_blocks::<S, N, M>(x, whole, rows, &mut sums);
            }
            unrolled!(n < N, {
                unrolled!(m < M, {
                    products[n][m] = S::sum(sums[n][m]);
                });
            });
        }
        products
    }
}

/// Adds the products of as many blocks as a vector has lanes, from block `first` of each row on.
/// Their scales are multiplied in one vector, and so is the correction for weights being stored
/// plus 8.
///
/// # Safety
/// As for [`IntegerWeights::products`]; each of `rows` points to the nibbles and scales of so many
/// blocks.
#[inline(always)]
unsafe fn vector_of_blocks<S: Simd, const N: usize, const M: usize>(
    x: QuantActivations<'_>,
    first: usize,
    rows: [(*const u8, *const u16); N],
    sums: &mut [[S::VecF32; M]; N],
) {
    let stride = x.stride();
    debug_assert!(first + S::LANES <= stride && x.quantised.len() >= stride * M * GROUP);
    debug_assert!(x.scales.len() >= stride * M && x.corrections.len() >= stride * M);
    // SAFETY: rows of x are padded to a vector of groups; the caller promises it for the weights.
    unsafe {
        let mut factors = [[S::splat(0.0); M]; N];
        unrolled!(n < N, {
            let scales = S::load_f16(rows[n].1);
            unrolled!(m < M, {
                let at = m * stride + first;
                let factor = S::mul(scales, S::load(x.scales.as_ptr().add(at)));
                sums[n][m] = S::fma(factor, S::load(x.corrections.as_ptr().add(at)), sums[n][m]);
                factors[n][m] = factor;
            });
        });
        let x = x.quantised.as_ptr().add(first * M * GROUP);
        for pair in 0..S::LANES / 2 {
            unrolled!(n < N, {
                let weights = S::load_nibbles(rows[n].0.add(pair * GROUP));
                unrolled!(m < M, {
                    let products = S::dot_nibbles(weights, x.add((pair * M + m) * 2 * GROUP));
                    sums[n][m] = S::fma(products, S::broadcast_pair(factors[n][m], pair), sums[n][m]);
                });
            });
        }
    }
}
