//! AMX's tile registers: their configuration, and products of two by two tiles of bf16 (Intel SDM,
//! volume 1, chapter 18).

/// Weight rows, and activation rows, of a block of products: two tiles each. Their four products
/// fill the tile registers.
pub(super) const BLOCK: usize = 32;
/// Elements in a tile's row.
pub(super) const STEP: usize = 32;
/// Rows of a tile.
pub(super) const TILE: usize = 16;
/// Elements in one step of a block of activations.
pub(super) const STEP_ELEMENTS: usize = BLOCK * STEP;

pub(super) use tile::{TileConfig, is_available};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tile {
    use std::{arch::asm, arch::x86_64::*, marker::PhantomData, sync::OnceLock};

    use super::{BLOCK, STEP, STEP_ELEMENTS, TILE};

    /// Returns whether the processor has tiles of bf16, and the system lets this process use them.
    pub fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            const AMX_BF16: u32 = 1 << 22;
            const AMX_TILE: u32 = 1 << 24;
            const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
            const XTILEDATA: libc::c_long = 18;
            let edx = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
            // SAFETY: asks for a permission for this process; changes nothing else.
            let granted = || unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0;
            edx & AMX_BF16 != 0 && edx & AMX_TILE != 0 && granted()
        })
    }

    /// This thread's tile registers, configured as 16 rows of 64 bytes each until this is dropped.
    pub struct TileConfig {
        /// Tile registers belong to a thread.
        _thread: PhantomData<*const ()>,
    }

    /// The operand of `LDTILECFG`.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl TileConfig {
        /// Configures this thread's tile registers.
        ///
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

        /// Returns the products of [`BLOCK`] weight rows, `stride` elements apart, with a block of
        /// activations, summed over all its steps.
        ///
        /// # Panics
        /// If there are no steps, or fewer weights.
        pub fn product(&self, weights: &[u16], stride: usize, x: &[u16]) -> TileSums {
            let steps = x.len() / STEP_ELEMENTS;
            assert!(steps > 0 && weights.len() >= (BLOCK - 1) * stride + steps * STEP, "{steps} steps");
            let mut sums = TileSums([0.0; BLOCK * BLOCK]);
            // SAFETY: the tiles are configured. Reads all steps of the activations, and as many of
            // each weight row, which exist, as asserted; writes all sums.
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

    impl Drop for TileConfig {
        fn drop(&mut self) {
            // SAFETY: the processor has AMX; nothing uses the tiles of this thread any more.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }
    }

    /// Sums of products, `[weight row, activation row]`.
    #[repr(C, align(64))]
    pub struct TileSums([f32; BLOCK * BLOCK]);

    impl TileSums {
        /// Writes the sums times the scales to `out` `[rows, columns]`, from `column` on, or adds
        /// them to what is there.
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

    /// Transposes 16 rows of 16 elements, in four rounds that interleave row `i` with row `i + 8`.
    /// An element's row and lane are eight bits, and each round rotates them by one, so that a
    /// lane's highest bit becomes its row's lowest.
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
    /// Other processors have no tiles, and other systems no way to ask for them.
    pub fn is_available() -> bool {
        false
    }

    pub struct TileConfig;

    pub struct TileSums;

    impl TileConfig {
        pub fn new() -> Self {
            unreachable!("tiles are not available")
        }

        pub fn product(&self, _: &[u16], _: usize, _: &[u16]) -> TileSums {
            unreachable!("tiles are not available")
        }
    }

    impl TileSums {
        pub fn add_to(&self, _: &mut [f32], _: usize, _: usize, _: Option<&[f32]>, _: bool) {
            unreachable!("tiles are not available")
        }
    }
}

/// Multiplies at the peak rate of tiles, about `rounds` instructions, and returns the number of
/// floating-point operations.
pub(super) fn multiply_at_peak(rounds: usize) -> usize {
    /// Few enough for all operands to stay in the level-1 cache.
    const STEPS: usize = 8;
    let calls = rounds.div_ceil(4 * STEPS);
    let tiles = TileConfig::new();
    let (weights, x) = (vec![0; BLOCK * STEP * STEPS], vec![0; STEP_ELEMENTS * STEPS]);
    for _ in 0..calls {
        std::hint::black_box(tiles.product(&weights, STEP * STEPS, &x));
    }
    calls * STEPS * BLOCK * BLOCK * STEP * 2
}
