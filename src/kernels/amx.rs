//! Products of bf16 in AMX tiles: 16 rows of 16 sums, 32 products each, in one instruction (Intel SDM, volume 1, chapter 18).
//!
//! An instruction takes the rows of one operand as they lie in memory, and of the other one pairs of elements of 16 rows side
//! by side. Weights are the first operand, so that they are read where the checkpoint has them; the few activations are packed.

use std::ops::Range;

use super::{
    Pool,
    isa::Isa,
    operands::{Elements, Matrix},
    scratch::with_scratch,
    widen::widen_to_bf16,
};

/// Weight rows, and activation rows, of a block of products: two tiles each, the four products of which fill the registers.
pub const BLOCK: usize = 32;
/// Elements of a tile's row.
const STEP: usize = 32;
/// Rows of a tile.
const TILE: usize = 16;
/// Elements that are summed over in one go: 128 rows of activations of this length stay in the level-2 cache.
const DEPTH: usize = 4096;
/// Elements of a step of a block of activations.
const STEP_ELEMENTS: usize = BLOCK * STEP;

/// Activation rows as tiles take them: blocks of [`BLOCK`] rows, each `[step, tile, pair, row of the tile, element of the
/// pair]`, filled up with zeros.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    rows: usize,
    width: usize,
    elements: &'a [u16],
}

impl<'a> Rows<'a> {
    /// Number of elements that `rows` rows take.
    pub fn elements(rows: usize, width: usize) -> usize {
        rows.next_multiple_of(BLOCK) * width.next_multiple_of(STEP)
    }

    /// Packs rows of bf16 activations.
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

    /// A part of the width of block number `block`, which begins with a whole step.
    fn part(&self, block: usize, part: Range<usize>) -> &'a [u16] {
        let steps = part.start / STEP..part.end.div_ceil(STEP);
        let first = block * Self::elements(BLOCK, self.width);
        &self.elements[first + steps.start * STEP_ELEMENTS..first + steps.end * STEP_ELEMENTS]
    }
}

/// `out` `[rows, columns]`: the rows with a block of weights.
///
/// # Panics
/// If weights are of a type that does not become bf16.
pub fn multiply(isa: Isa, x: Rows<'_>, weight: &Matrix<'_>, out: &mut [f32]) {
    assert_eq!(isa, Isa::Amx, "tiles are made for it alone");
    let (columns, width) = (weight.rows(), x.width);
    assert_eq!(out.len(), x.rows * columns, "{} rows by {columns} columns", x.rows);
    let tiles = tile::Configured::new();
    let scratch = BLOCK * width.min(DEPTH).next_multiple_of(STEP);
    with_scratch(scratch.div_ceil(2), |scratch| {
        let scratch: &mut [u16] = bytemuck::cast_slice_mut(scratch);
        for start in (0..width).step_by(DEPTH) {
            let part = start..width.min(start + DEPTH);
            for column in (0..columns).step_by(BLOCK) {
                let weight = weight.block(column, columns.min(column + BLOCK));
                let whole = weight.rows() == BLOCK && part.len().is_multiple_of(STEP);
                let (weights, stride) = match weight.elements() {
                    Elements::Bf16(weights) if whole => (&weights[part.start..], width),
                    elements => {
                        let stride = part.len().next_multiple_of(STEP);
                        let scratch = &mut scratch[..BLOCK * stride];
                        if !whole {
                            scratch.fill(0);
                        }
                        widen_to_bf16(isa, elements, width, part.clone(), stride, scratch);
                        (&*scratch, stride)
                    }
                };
                for (block, row) in (0..x.rows).step_by(BLOCK).enumerate() {
                    let sums = tiles.product(weights, stride, x.part(block, part.clone()));
                    let rows = BLOCK.min(x.rows - row);
                    let out = &mut out[row * columns..(row + rows) * columns];
                    sums.add_to(out, columns, column, weight.scales(), start == 0);
                }
            }
        }
    });
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tile {
    use std::{arch::asm, arch::x86_64::*, marker::PhantomData, sync::OnceLock};

    use super::{BLOCK, STEP, STEP_ELEMENTS, TILE};

    /// Whether the processor has tiles of bf16, and the system lets this process use them.
    pub fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            const AMX_BF16: u32 = 1 << 22;
            const AMX_TILE: u32 = 1 << 24;
            const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
            const XTILEDATA: libc::c_long = 18;
            let edx = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
            // SAFETY: asks for a permission of this process; changes nothing else.
            let granted = || unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0;
            edx & AMX_BF16 != 0 && edx & AMX_TILE != 0 && granted()
        })
    }

    /// This thread's tile registers, all of 16 rows of 64 bytes, while this lives.
    pub struct Configured {
        /// Registers belong to a thread.
        _thread: PhantomData<*const ()>,
    }

    /// `LDTILECFG`'s operand.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl Configured {
        /// # Panics
        /// If tiles are not available.
        pub fn new() -> Self {
            assert!(is_available(), "this processor has no AMX");
            let mut configuration =
                Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
            configuration.row_bytes[..8].fill(64);
            configuration.rows[..8].fill(TILE as u8);
            // SAFETY: the processor has AMX; the operand is 64 bytes of the form that it documents.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, preserves_flags)) };
            Self { _thread: PhantomData }
        }

        /// Products of [`BLOCK`] weight rows, `stride` elements apart, with a block of activations, over all its steps.
        pub fn product(&self, weights: &[u16], stride: usize, x: &[u16]) -> Sums {
            let steps = x.len() / STEP_ELEMENTS;
            assert!(steps > 0 && weights.len() >= (BLOCK - 1) * stride + steps * STEP, "{steps} steps");
            let mut sums = Sums([0.0; BLOCK * BLOCK]);
            // SAFETY: the tiles are configured. Reads `steps` steps of the activations, which has so many, and as many of each
            // weight row, as asserted; writes all sums.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{upper} + {stride}]",
                    "tileloadd tmm6, [{x} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{x} + {line} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{lower} + {stride}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {upper}, 64",
                    "add {lower}, 64",
                    "add {x}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "shl {line}, 1",
                    "tilestored [{sums} + {line}], tmm0",
                    "tilestored [{sums} + {line} + 64], tmm1",
                    "tilestored [{sums} + {line} + 2048], tmm2",
                    "tilestored [{sums} + {line} + 2112], tmm3",
                    upper = inout(reg) weights.as_ptr() => _,
                    lower = inout(reg) weights.as_ptr().add(TILE * stride) => _,
                    stride = in(reg) 2 * stride,
                    x = inout(reg) x.as_ptr() => _,
                    line = inout(reg) 64_usize => _,
                    steps = inout(reg) steps => _,
                    sums = in(reg) &raw mut sums.0,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
            sums
        }
    }

    impl Drop for Configured {
        fn drop(&mut self) {
            // SAFETY: the processor has AMX; nothing uses the tiles of this thread any more.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }
    }

    /// `[weight row, activation row]`
    #[repr(C, align(64))]
    pub struct Sums([f32; BLOCK * BLOCK]);

    impl Sums {
        /// Writes them into `out` `[rows, columns]` from `column` on, times the scales; or adds them to what is there.
        pub fn add_to(&self, out: &mut [f32], columns: usize, column: usize, scales: Option<&[f32]>, is_first: bool) {
            assert!(is_available());
            // SAFETY: a processor with AMX has AVX512F.
            unsafe { self.add_to_with_avx512(out, columns, column, scales, is_first) };
        }

        #[target_feature(enable = "avx512f")]
        fn add_to_with_avx512(
            &self,
            out: &mut [f32],
            columns: usize,
            column: usize,
            scales: Option<&[f32]>,
            is_first: bool,
        ) {
            let valid = BLOCK.min(columns - column);
            for first in (0..valid).step_by(TILE) {
                let count = TILE.min(valid - first);
                let mask = ((1_u32 << count) - 1) as __mmask16;
                let scale = match scales {
                    // SAFETY: as many scales as the mask has.
                    Some(scales) => unsafe { _mm512_maskz_loadu_ps(mask, scales[first..first + count].as_ptr()) },
                    None => _mm512_set1_ps(1.0),
                };
                for (half, rows) in out.chunks_mut(TILE * columns).enumerate() {
                    let sums = &self.0[first * BLOCK + half * TILE..];
                    // SAFETY: sixteen sums of each of sixteen weight rows.
                    let sums = std::array::from_fn(|n| unsafe { _mm512_loadu_ps(sums[n * BLOCK..][..TILE].as_ptr()) });
                    for (row, sums) in rows.chunks_exact_mut(columns).zip(transpose(sums)) {
                        let to = row[column + first..][..count].as_mut_ptr();
                        // SAFETY: as many elements as the mask has.
                        unsafe {
                            let known = if is_first { _mm512_setzero_ps() } else { _mm512_maskz_loadu_ps(mask, to) };
                            _mm512_mask_storeu_ps(to, mask, _mm512_fmadd_ps(sums, scale, known));
                        }
                    }
                }
            }
        }
    }

    /// Transposes 16 rows. The eight bits of an element's row and lane turn by one in each round: rows `i` and `i + 8` become
    /// two by taking turns, so that a lane's highest bit becomes its row's lowest.
    #[target_feature(enable = "avx512f")]
    fn transpose(mut rows: [__m512; TILE]) -> [__m512; TILE] {
        let lower = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let upper = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        for _ in 0..4 {
            rows = std::array::from_fn(|i| {
                let lanes = if i % 2 == 0 { lower } else { upper };
                _mm512_permutex2var_ps(rows[i / 2], lanes, rows[i / 2 + TILE / 2])
            });
        }
        rows
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod tile {
    /// Other processors and systems have no tiles, or no way to ask for them.
    pub fn is_available() -> bool {
        false
    }

    pub struct Configured;

    pub struct Sums;

    impl Configured {
        pub fn new() -> Self {
            unreachable!("tiles are not available")
        }

        pub fn product(&self, _: &[u16], _: usize, _: &[u16]) -> Sums {
            unreachable!("tiles are not available")
        }
    }

    impl Sums {
        pub fn add_to(&self, _: &mut [f32], _: usize, _: usize, _: Option<&[f32]>, _: bool) {
            unreachable!("tiles are not available")
        }
    }
}

pub use tile::is_available;

/// Multiplies as fast as tiles can, `rounds` instructions; returns the number of products and additions.
pub fn multiply_at_peak(rounds: usize) -> usize {
    /// So many that all operands stay in the level-1 cache.
    const STEPS: usize = 8;
    let calls = rounds.div_ceil(4 * STEPS);
    let tiles = tile::Configured::new();
    let (weights, x) = (vec![0; BLOCK * STEP * STEPS], vec![0; STEP_ELEMENTS * STEPS]);
    for _ in 0..calls {
        std::hint::black_box(tiles.product(&weights, STEP * STEPS, &x));
    }
    calls * STEPS * BLOCK * BLOCK * STEP * 2
}
