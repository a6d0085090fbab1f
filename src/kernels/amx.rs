//! Products of bf16 in AMX tiles: one instruction multiplies 16 rows by 16 rows, 32 elements each
//! (Intel SDM, volume 1, chapter 18).
//!
//! The instruction takes the rows of one operand as they lie in memory, and those of the other
//! packed: pairs of elements of 16 rows side by side. Weights are the first operand, so that they
//! are read where they lie in the checkpoint. The few activations are packed.

use std::ops::Range;

use super::{
    isa::Isa,
    operands::{WeightData, WeightMatrix},
    pool::Pool,
    scratch::with_scratch,
    tiles::{BLOCK, STEP, STEP_ELEMENTS, TILE, TileConfig},
    upcast::upcast_to_bf16,
};

/// Elements that are summed over in one go: 128 rows of activations of this length stay in the
/// level-2 cache.
const DEPTH: usize = 4096;

/// Activation rows packed for tiles: blocks of [`BLOCK`] rows, each `[step, tile, pair, row of the
/// tile, element of the pair]`, padded with zeros.
#[derive(Clone, Copy)]
pub struct TiledActivations<'a> {
    rows: usize,
    width: usize,
    elements: &'a [u16],
}

impl<'a> TiledActivations<'a> {
    /// Returns the number of packed elements of `rows` rows.
    pub fn elements(rows: usize, width: usize) -> usize {
        rows.next_multiple_of(BLOCK) * width.next_multiple_of(STEP)
    }

    /// Packs rows of bf16 activations, `[rows, width]`.
    pub fn new(pool: &Pool, x: &[u16], width: usize, packed: &'a mut [u16]) -> Self {
        pool.run_chunks(packed, Self::elements(BLOCK, width), &|block, packed| {
            let from = x.len().min(block * BLOCK * width);
            let to = x.len().min(from + BLOCK * width);
            if to - from < BLOCK * width || !width.is_multiple_of(STEP) {
                packed.fill(0);
            }
            for (row, x) in x[from..to].chunks_exact(width).enumerate() {
                let (tile, row) = (row / TILE, row % TILE);
                for (pair, x) in x.chunks(2).enumerate() {
                    let (step, pair) = (pair / TILE, pair % TILE);
                    let at = (((step * 2 + tile) * TILE + pair) * TILE + row) * 2;
                    packed[at..at + x.len()].copy_from_slice(x);
                }
            }
        });
        Self { rows: x.len() / width, width, elements: packed }
    }

    /// Returns a part of block number `block`. The part begins with a whole step of the width.
    fn part(&self, block: usize, part: Range<usize>) -> &'a [u16] {
        let steps = part.start / STEP..part.end.div_ceil(STEP);
        let first = block * Self::elements(BLOCK, self.width);
        &self.elements[first + steps.start * STEP_ELEMENTS..first + steps.end * STEP_ELEMENTS]
    }
}

/// Sets `out` `[rows, columns]` to the products of activations with a block of weight rows.
///
/// # Panics
/// If `isa` is not [`Isa::Amx`], shapes do not fit each other, or weights are f32 or f16, which
/// would lose bits in bf16.
pub fn multiply(isa: Isa, x: TiledActivations<'_>, weight: &WeightMatrix<'_>, out: &mut [f32]) {
    assert_eq!(isa, Isa::Amx, "tiles are made for it alone");
    let (columns, width) = (weight.rows(), x.width);
    assert_eq!(out.len(), x.rows * columns, "{} rows by {columns} columns", x.rows);
    let tiles = TileConfig::new();
    let scratch = BLOCK * width.min(DEPTH).next_multiple_of(STEP);
    with_scratch(scratch.div_ceil(2), |scratch| {
        let scratch: &mut [u16] = bytemuck::cast_slice_mut(scratch);
        for start in (0..width).step_by(DEPTH) {
            let part = start..width.min(start + DEPTH);
            for column in (0..columns).step_by(BLOCK) {
                let weight = weight.block(column, columns.min(column + BLOCK));
                let whole = weight.rows() == BLOCK && part.len().is_multiple_of(STEP);
                let (weights, stride) = match weight.data {
                    WeightData::Bf16(weights) if whole => (&weights[part.start..], width),
                    elements => {
                        let stride = part.len().next_multiple_of(STEP);
                        let scratch = &mut scratch[..BLOCK * stride];
                        if !whole {
                            scratch.fill(0);
                        }
                        upcast_to_bf16(isa, elements, width, part.clone(), stride, scratch);
                        (&*scratch, stride)
                    }
                };
                for (block, row) in (0..x.rows).step_by(BLOCK).enumerate() {
                    let sums = tiles.product(weights, stride, x.part(block, part.clone()));
                    let rows = BLOCK.min(x.rows - row);
                    let out = &mut out[row * columns..(row + rows) * columns];
                    sums.add_to(out, columns, column, weight.scales, start == 0);
                }
            }
        }
    });
}
