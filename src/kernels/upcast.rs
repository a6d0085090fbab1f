//! Weights converted to f32 or bf16 for many activation rows: once, a part of each row at a time,
//! so that all activations find them in the cache.

use std::ops::Range;

use super::{
    isa::{self, Isa, Kernel},
    operands::{QuantBlocks, WeightData},
    scratch::with_scratch,
    simd::Simd,
};
use crate::kernel_abi::GROUP;

/// Dequantises a part of each row of four-bit elements to f32.
pub(super) struct DequantizeBlocks<'a> {
    pub blocks: QuantBlocks<'a>,
    pub width: usize,
    pub part: Range<usize>,
    pub values: &'a mut [f32],
}

impl Kernel for DequantizeBlocks<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { blocks: QuantBlocks { nibbles, scales }, width, part, values } = self;
        for (row, values) in values.chunks_exact_mut(part.len()).enumerate() {
            let first = (row * width + part.start) / GROUP;
            for (i, values) in values.chunks_exact_mut(GROUP).enumerate() {
                let nibbles = &nibbles[(first + i) * GROUP / 2..][..GROUP / 2];
                let mut quantised = [0; GROUP];
                let (low, high) = quantised.split_at_mut(GROUP / 2);
                for ((low, high), byte) in low.iter_mut().zip(high).zip(nibbles) {
                    (*low, *high) = ((byte & 15) as i8, (byte >> 4) as i8);
                }
                // SAFETY: a scale, 32 values; the instruction set is the caller's promise.
                unsafe {
                    let scale = half::f16::from_bits(scales[first + i]).to_f32();
                    let (scale, eights) = (S::splat(scale), S::splat(-8.0 * scale));
                    for at in (0..GROUP).step_by(S::LANES) {
                        let value = S::fma(S::load_i8(quantised.as_ptr().add(at)), scale, eights);
                        S::store(values.as_mut_ptr().add(at), value);
                    }
                }
            }
        }
    }
}

/// Converts a part of each row of `width` elements to bf16, and writes the rows to `values`,
/// `stride` elements apart. Eight-bit elements are exact. Four-bit ones are rounded to nearest
/// after the multiplication with their scale.
///
/// # Panics
/// If elements are f32 or f16, which would lose bits.
pub(super) fn upcast_to_bf16(
    isa: Isa,
    elements: WeightData<'_>,
    width: usize,
    part: Range<usize>,
    stride: usize,
    values: &mut [u16],
) {
    let rows = elements.len() / width;
    match elements {
        WeightData::Bf16(weights) => {
            for (row, values) in weights.chunks_exact(width).zip(values.chunks_exact_mut(stride)) {
                values[..part.len()].copy_from_slice(&row[part.clone()]);
            }
        }
        WeightData::I8(weights) => isa::run(isa, UpcastBytes { weights, width, part, stride, values }),
        WeightData::I4(blocks) => with_scratch(part.len(), |wide| {
            for (row, values) in values.chunks_exact_mut(stride).take(rows).enumerate() {
                let first = row * width / GROUP;
                let of_row = QuantBlocks {
                    nibbles: &blocks.nibbles[first * GROUP / 2..][..width / 2],
                    scales: &blocks.scales[first..][..width / GROUP],
                };
                isa::run(isa, DequantizeBlocks { blocks: of_row, width, part: part.clone(), values: wide });
                values.iter_mut().zip(wide.iter()).for_each(|(to, &x)| *to = half::bf16::from_f32(x).to_bits());
            }
        }),
        WeightData::F32(_) | WeightData::F16(_) => unreachable!("{elements:?} would lose bits in bf16"),
    }
}

/// Converts a part of each row of eight-bit elements to bf16.
struct UpcastBytes<'a> {
    weights: &'a [i8],
    width: usize,
    part: Range<usize>,
    stride: usize,
    values: &'a mut [u16],
}

impl Kernel for UpcastBytes<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (row, values) in self.weights.chunks_exact(self.width).zip(self.values.chunks_exact_mut(self.stride)) {
            for (to, &x) in values.iter_mut().zip(&row[self.part.clone()]) {
                // A bf16 is the upper half of an f32, and has more bits than these elements need.
                *to = (f32::from(x).to_bits() >> 16) as u16;
            }
        }
    }
}
