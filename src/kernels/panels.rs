//! Products of many activation rows in f32, at the speed of the multipliers.
//!
//! A block of weights is converted and transposed into panels of two vectors of columns. The
//! product of a panel and a tile of activation rows is a sum of outer products: each activation is
//! broadcast and multiplied with two vectors of weights (Goto and van de Geijn 2008). Lanes are
//! never added to each other, and the sums are stored as vectors.

use std::ops::Range;

use super::{
    context::ExecContext,
    format::{Bf16, ElementFormat, F16, F32, I8},
    isa::{self, Isa, Kernel, lanes},
    operands::{Activations, LaneOrder, WeightData, WeightMatrix},
    scratch::with_scratch,
    simd::Simd,
    upcast::DequantizeBlocks,
};

/// Columns of a panel with the longest vectors; a multiple of those with shorter ones.
pub(super) const COLUMNS: usize = 32;
/// Elements that are summed over in one go: a tile's activations of this length stay in the level-1
/// cache, and a block's panels in the level-2 cache.
const DEPTH: usize = 512;

/// Activation rows `[rows, width]` packed as f32: for each tile of rows, the first element of each
/// row, then the second of each, and so on. Elements have the order in which those of the weight
/// are loaded; rows that fill the last tile are zeros.
#[derive(Clone, Copy)]
pub(super) struct PanelActivations<'a> {
    packed: &'a [f32],
    rows: usize,
    width: usize,
}

impl<'a> PanelActivations<'a> {
    /// Returns the f32 elements of scratch memory that they take.
    pub fn scratch(isa: Isa, rows: usize, width: usize) -> usize {
        tiles(lanes(isa), rows).map(|(_, height)| height * width).sum()
    }

    /// Packs activations, to be multiplied with weights like these.
    pub fn new(
        context: ExecContext<'_>,
        x: Activations<'_>,
        weights: &WeightData<'_>,
        width: usize,
        packed: &'a mut [f32],
    ) -> Self {
        let (rows, order) = (x.len() / width, LaneOrder::of(context.isa, weights, width));
        let lanes = lanes(context.isa);
        let tall = tile_rows(lanes);
        context.pool.run_chunks(packed, tall * width, &|chunk, packed| {
            let mut rest = packed;
            for (first, height) in tiles(lanes, (rows - chunk * tall).min(tall)) {
                let (tile, others) = rest.split_at_mut(height * width);
                rest = others;
                for (at, column) in tile.chunks_exact_mut(height).enumerate() {
                    let element = order.element(at);
                    for (i, to) in column.iter_mut().enumerate() {
                        let row = chunk * tall + first + i;
                        *to = if row < rows { x.get(row * width + element) } else { 0.0 };
                    }
                }
            }
        });
        Self { packed, rows, width }
    }
}

/// Activation rows of a tile: as many as there are registers for their sums.
const fn tile_rows(lanes: usize) -> usize {
    if lanes == 16 { 12 } else { 6 }
}

/// The tiles of so many rows, each with its first row and its height. Those at the end have a third
/// of the height if that is enough.
fn tiles(lanes: usize, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let tall = tile_rows(lanes);
    let mut first = 0;
    std::iter::from_fn(move || {
        let height = if rows - first.min(rows) > 2 * tall / 3 { tall } else { tall / 3 };
        let tile = (first, height);
        first += height;
        (tile.0 < rows).then_some(tile)
    })
}

/// Sets `out` `[rows, columns]` to the products of packed activations with a block of weights.
pub(super) fn multiply(isa: Isa, x: PanelActivations<'_>, weight: &WeightMatrix<'_>, out: &mut [f32]) {
    let depth = weight.width.min(DEPTH);
    with_scratch(weight.rows.next_multiple_of(COLUMNS) * depth, |panels| {
        for from in (0..weight.width).step_by(DEPTH) {
            let part = from..weight.width.min(from + DEPTH);
            let panels = &mut panels[..weight.rows.next_multiple_of(COLUMNS) * part.len()];
            match weight.data {
                WeightData::F32(weights) => pack::<F32>(isa, weights, weight.width, part.clone(), panels),
                WeightData::Bf16(weights) => pack::<Bf16>(isa, weights, weight.width, part.clone(), panels),
                WeightData::F16(weights) => pack::<F16>(isa, weights, weight.width, part.clone(), panels),
                WeightData::I8(weights) => pack::<I8>(isa, weights, weight.width, part.clone(), panels),
                WeightData::I4(blocks) => with_scratch(weight.rows * part.len(), |values| {
                    isa::run(isa, DequantizeBlocks { blocks, width: weight.width, part: part.clone(), values });
                    pack::<F32>(isa, values, part.len(), 0..part.len(), panels);
                }),
            }
            isa::run(isa, PanelProduct { x, panels, part, scales: weight.scales, columns: weight.rows, out });
        }
    });
}

fn pack<F: ElementFormat>(isa: Isa, weights: &[F::Element], width: usize, part: Range<usize>, panels: &mut [f32]) {
    isa::run(isa, PackPanels::<F> { weights, width, part, panels });
}

/// Converts a part of each weight row to f32 and transposes it into panels, `[panel, element,
/// column]`. Columns beyond the last weight row repeat it.
struct PackPanels<'a, F: ElementFormat> {
    weights: &'a [F::Element],
    width: usize,
    part: Range<usize>,
    panels: &'a mut [f32],
}

impl<F: ElementFormat> Kernel for PackPanels<'_, F> {
    type Output = ();
    const FASTEST: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { weights, width, part, panels } = self;
        let (rows, depth, columns) = (weights.len() / width, part.len(), 2 * S::LANES);
        let pairs = depth - depth % (2 * S::LANES);
        // Half a panel, one vector of columns, at a time.
        for first in (0..rows.next_multiple_of(columns)).step_by(S::LANES) {
            let panel =
                &mut panels[first / columns * columns * depth + first % columns..][..depth * columns - S::LANES];
            let start = |column: usize| (first + column).min(rows - 1) * width + part.start;
            for at in (0..pairs).step_by(2 * S::LANES) {
                unrolled!(half < 2, {
                    // SAFETY: two vectors of elements of each row, and a vector of the panel for
                    // each element; the instruction set is the caller's promise.
                    unsafe {
                        let mut square = [S::splat(0.0); 16];
                        unrolled16!(column < 16, {
                            if column < S::LANES {
                                square[column] = F::load::<S>(weights.as_ptr().add(start(column) + at), half);
                            }
                        });
                        let square = S::transpose(square);
                        let to = panel.as_mut_ptr().add((at + half * S::LANES) * columns);
                        unrolled16!(element < 16, {
                            if element < S::LANES {
                                S::store(to.add(element * columns), square[element]);
                            }
                        });
                    }
                });
            }
            for at in pairs..depth {
                for column in 0..S::LANES {
                    panel[at * columns + column] = F::to_f32(weights[start(column) + at]);
                }
            }
        }
    }
}

/// Multiplies packed activations with a block's panels, which have `part` of the width, and adds
/// the products to `out` `[rows, columns]`; the first part sets them.
struct PanelProduct<'a> {
    x: PanelActivations<'a>,
    panels: &'a [f32],
    part: Range<usize>,
    scales: Option<&'a [f32]>,
    columns: usize,
    out: &'a mut [f32],
}

impl Kernel for PanelProduct<'_> {
    type Output = ();
    const FASTEST: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let mut rest = self.x.packed;
        for (first, height) in tiles(S::LANES, self.x.rows) {
            let tile;
            (tile, rest) = rest.split_at(height * self.x.width);
            let tile = &tile[self.part.start * height..self.part.end * height];
            for column in (0..self.columns).step_by(2 * S::LANES) {
                // SAFETY: the caller's promise. The outer condition is a constant, so that only two
                // tiles are compiled.
                unsafe {
                    if const { tile_rows(S::LANES) == 12 } {
                        match height {
                            12 => self.tile::<S, 12>(tile, first, column),
                            _ => self.tile::<S, 4>(tile, first, column),
                        }
                    } else {
                        match height {
                            6 => self.tile::<S, 6>(tile, first, column),
                            _ => self.tile::<S, 2>(tile, first, column),
                        }
                    }
                }
            }
        }
    }
}

impl PanelProduct<'_> {
    /// Multiplies a tile of `M` activation rows, the first of which is `row`, with a panel.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(&mut self, x: &[f32], row: usize, column: usize) {
        let (depth, width) = (self.part.len(), 2 * S::LANES);
        let panel = &self.panels[column * depth..][..width * depth];
        assert_eq!(x.len(), depth * M);
        let mut products = [[0.0; COLUMNS]; M];
        // SAFETY: two vectors of the panel and M activations for each element, two vectors for the
        // products of each row; the instruction set is the caller's promise.
        unsafe {
            let mut sums = [[S::splat(0.0); 2]; M];
            let (mut w, mut x) = (panel.as_ptr(), x.as_ptr());
            for _ in 0..depth {
                let weights = [S::load(w), S::load(w.add(S::LANES))];
                unrolled16!(m < M, {
                    let x = S::splat(*x.add(m));
                    sums[m][0] = S::fma(weights[0], x, sums[m][0]);
                    sums[m][1] = S::fma(weights[1], x, sums[m][1]);
                });
                (w, x) = (w.add(width), x.add(M));
            }
            unrolled16!(m < M, {
                S::store(products[m].as_mut_ptr(), sums[m][0]);
                S::store(products[m].as_mut_ptr().add(S::LANES), sums[m][1]);
            });
        }
        let columns = column..self.columns.min(column + width);
        let scales = self.scales.map(|scales| &scales[columns.clone()]);
        for (products, out) in products.iter_mut().zip(self.out[row * self.columns..].chunks_exact_mut(self.columns)) {
            let (products, out) = (&mut products[..columns.len()], &mut out[columns.clone()]);
            if let Some(scales) = scales {
                products.iter_mut().zip(scales).for_each(|(product, scale)| *product *= scale);
            }
            if self.part.start == 0 {
                out.copy_from_slice(products);
            } else {
                out.iter_mut().zip(products).for_each(|(out, product)| *out += *product);
            }
        }
    }
}
