//! Products of few activation rows with eight-bit weights, in integers.
//!
//! Converting each weight to f32 takes longer than reading it from memory. So the activations are rounded to eight bits as
//! well, in groups of [`GROUP`] elements with a scale of their own (as llama.cpp's Q8_0 does), and the products of a group are
//! summed exactly, in 32 bits. With more rows, the conversion is paid once for all of them and f32 is as fast.

use super::{
    isa::{self, Isa, Kernel},
    matmul::Activations,
    simd::Simd,
};

/// Elements of an activation row that share a scale.
pub const GROUP: usize = 32;

/// Activation rows in eight bits. What is left of a row after its last whole group stays f32.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    rows: usize,
    width: usize,
    /// `[group, row, GROUP]`
    elements: &'a [i8],
    /// `[group, row]`
    scales: &'a [f32],
    /// `[row, width % GROUP]`
    rests: &'a [f32],
}

impl<'a> Rows<'a> {
    /// Numbers of scratch memory that `rows` rows take.
    pub fn scratch(rows: usize, width: usize) -> usize {
        let groups = width / GROUP;
        rows * (groups * GROUP / size_of::<f32>() + groups + width % GROUP)
    }

    /// Rounds `rows` rows of activations, from element `first` on.
    pub fn new(x: Activations<'_>, first: usize, rows: usize, width: usize, scratch: &'a mut [f32]) -> Self {
        let groups = width / GROUP;
        let (elements, scratch) = scratch.split_at_mut(rows * groups * GROUP / size_of::<f32>());
        let (scales, rests) = scratch.split_at_mut(rows * groups);
        let elements: &mut [i8] = bytemuck::cast_slice_mut(elements);
        for row in 0..rows {
            let start = first + row * width;
            for group in 0..groups {
                let values: [f32; GROUP] = std::array::from_fn(|i| x.get(start + group * GROUP + i));
                let at = group * rows + row;
                scales[at] = quantize_group(&values, &mut elements[at * GROUP..][..GROUP]);
            }
            let rest = &mut rests[row * (width % GROUP)..][..width % GROUP];
            rest.iter_mut().enumerate().for_each(|(i, to)| *to = x.get(start + groups * GROUP + i));
        }
        Self { rows, width, elements, scales, rests }
    }
}

/// Rounds a group to 127 steps of its largest magnitude; returns the step. If there is a NaN or an infinity the step becomes
/// one, and every product of the group NaN.
pub fn quantize_group(values: &[f32], out: &mut [i8]) -> f32 {
    let largest = values.iter().fold(0.0_f32, |m, x| if x.is_nan() || x.abs() > m { x.abs() } else { m });
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (out, x) in out.iter_mut().zip(values) {
        // Rounded by the addition, to even: a call of a function would take longer than the rest.
        const ROUND: f32 = 1.5 * (1 << 23) as f32;
        *out = (x * inverse + ROUND - ROUND) as i8;
    }
    scale
}

/// `out` `[rows, columns]`: the rows with `columns` weight rows, each multiplied by its scale if there are scales.
pub(super) fn multiply(isa: Isa, x: Rows<'_>, weights: &[i8], scales: Option<&[f32]>, out: &mut [f32]) {
    let columns = weights.len() / x.width;
    isa::run(isa, Block { x, weights, scales, columns, out });
}

struct Block<'a> {
    x: Rows<'a>,
    weights: &'a [i8],
    scales: Option<&'a [f32]>,
    columns: usize,
    out: &'a mut [f32],
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.x.rows {
                1 => self.columns::<S, 4, 1>(),
                2 => self.columns::<S, 2, 2>(),
                3 => self.columns::<S, 2, 3>(),
                4 => self.columns::<S, 2, 4>(),
                rows => unreachable!("{rows} rows are multiplied in f32"),
            }
        }
    }
}

impl Block<'_> {
    /// All weight rows, `N` at a time, with all `M` activation rows.
    #[inline(always)]
    unsafe fn columns<S: Simd, const N: usize, const M: usize>(&mut self) {
        let mut column = 0;
        // SAFETY: the caller's promise; the weight rows exist.
        unsafe {
            while column + N <= self.columns {
                self.tile::<S, N, M>(column);
                column += N;
            }
            while column < self.columns {
                self.tile::<S, 1, M>(column);
                column += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const N: usize, const M: usize>(&mut self, column: usize) {
        let Rows { width, elements, scales, rests, .. } = self.x;
        let groups = width / GROUP;
        debug_assert!(elements.len() >= groups * M * GROUP && scales.len() >= groups * M);
        debug_assert!((column + N) * width <= self.weights.len());
        // SAFETY: what is read lies in the arrays, as asserted; the instruction set is the caller's promise.
        unsafe {
            let w = self.weights.as_ptr().add(column * width);
            let (x, s) = (elements.as_ptr(), scales.as_ptr());
            let mut sums = [[S::splat(0.0); M]; N];
            for group in 0..groups {
                // The next tile's rows follow this one's; the processor does not foresee so many short streams.
                unrolled!(n < N, {
                    S::prefetch(w.wrapping_add((N + n) * width + group * GROUP).cast());
                });
                unrolled!(n < N, {
                    let weights = S::load_32(w.add(n * width + group * GROUP));
                    unrolled!(m < M, {
                        let at = group * M + m;
                        let products = S::dot_32(weights, x.add(at * GROUP));
                        sums[n][m] = S::fma(products, S::splat(*s.add(at)), sums[n][m]);
                    });
                });
            }
            unrolled!(n < N, {
                unrolled!(m < M, {
                    let mut sum = S::sum(sums[n][m]);
                    for i in 0..width % GROUP {
                        let weight = f32::from(*w.add(n * width + groups * GROUP + i));
                        sum += weight * rests.get_unchecked(m * (width % GROUP) + i);
                    }
                    if let Some(scales) = self.scales {
                        sum *= scales.get_unchecked(column + n);
                    }
                    self.out[m * self.columns + column + n] = sum;
                });
            });
        }
    }
}
