//! Vectors of f32, one type for each instruction set, so that a kernel is written once.
//!
//! All functions are inlined into a function compiled for the instruction set (see `isa`). Called
//! from elsewhere on a processor without it they would be undefined behaviour, which is why they
//! are unsafe.

/// A vector of f32 lanes, and loading it from the types that weights have.
///
/// # Safety
/// Every function must be called on a processor that has the instruction set, inside a function
/// compiled for it; pointers must be valid for a vector's number of elements. They need no
/// alignment.
pub trait Simd: Copy + 'static {
    type VecF32: Copy;
    /// Number of lanes, at most 16.
    const LANES: usize;

    unsafe fn splat(x: f32) -> Self::VecF32;
    unsafe fn load(p: *const f32) -> Self::VecF32;
    unsafe fn store(p: *mut f32, x: Self::VecF32);
    unsafe fn add(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32;
    unsafe fn sub(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32;
    unsafe fn mul(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32;
    unsafe fn div(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32;
    /// `a * b + c`
    unsafe fn fma(a: Self::VecF32, b: Self::VecF32, c: Self::VecF32) -> Self::VecF32;
    /// The lane-wise minimum and maximum; `b` where one of the two is NaN.
    unsafe fn min(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32;
    unsafe fn max(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(x: Self::VecF32) -> Self::VecF32;
    /// 2 to the power of an integer between -126 and 127, given as f32.
    unsafe fn exp2_of_integer(n: Self::VecF32) -> Self::VecF32;
    /// Sum of all lanes.
    unsafe fn sum(x: Self::VecF32) -> f32;
    /// Sums of all lanes of each of four vectors, in fewer instructions than four calls of
    /// [`Self::sum`].
    unsafe fn sum_four(x: [Self::VecF32; 4]) -> [f32; 4];
    /// Prefetches the cache line at p, into all caches. `prefetch_far` leaves out the nearest
    /// cache, where the line would evict data that is used before it.
    unsafe fn prefetch(p: *const u8);
    unsafe fn prefetch_far(p: *const u8);
    /// Loads, of `2 * LANES` bf16 elements, those of even number or of odd number. Each takes one
    /// instruction after the vector's load; elements in order would take a shuffle.
    unsafe fn load_bf16_even(p: *const u16) -> Self::VecF32;
    unsafe fn load_bf16_odd(p: *const u16) -> Self::VecF32;
    /// `2 * LANES` bf16 elements.
    type VecBf16: Copy;
    unsafe fn load_bf16(p: *const u16) -> Self::VecBf16;
    /// Adds the products of two such vectors to `sums`, two products in each lane.
    unsafe fn dot_bf16(a: Self::VecBf16, b: Self::VecBf16, sums: Self::VecF32) -> Self::VecF32;
    unsafe fn load_f16(p: *const u16) -> Self::VecF32;
    unsafe fn load_i8(p: *const i8) -> Self::VecF32;
    /// 32 elements of a weight.
    type VecI8: Copy;
    unsafe fn load_i8x32(p: *const i8) -> Self::VecI8;
    /// Products with 32 elements at x, none of which is -128: each lane has the exact sum of some
    /// of them.
    unsafe fn dot_i8x32(weights: Self::VecI8, x: *const i8) -> Self::VecF32;
    /// Unpacks two blocks of 32 four-bit elements from 32 bytes: all lower nibbles, which are the
    /// first 16 elements of each block, and all upper nibbles, which are their last 16.
    unsafe fn load_nibbles(p: *const u8) -> [Self::VecI8; 2];
    /// Products of the two blocks with 64 elements at x, in the same order, as exact sums. Those of
    /// the first block have the first half of the lanes in use, those of the second block the other
    /// half.
    unsafe fn dot_nibbles(weights: [Self::VecI8; 2], x: *const i8) -> Self::VecF32;
    /// Broadcasts elements `2 * pair` and `2 * pair + 1` of a vector to the lanes in which
    /// [`Self::dot_nibbles`] has the first and the second block.
    unsafe fn broadcast_pair(x: Self::VecF32, pair: usize) -> Self::VecF32;

    /// The lanes of `a` and `b` in turns: those of their first halves, and those of their second
    /// halves.
    unsafe fn interleave(a: Self::VecF32, b: Self::VecF32) -> [Self::VecF32; 2];

    /// Transposes the first `LANES` vectors, a square. The others are left as they are.
    #[inline(always)]
    unsafe fn transpose(mut x: [Self::VecF32; 16]) -> [Self::VecF32; 16] {
        // An element's place in the square is a number of which the upper half of the bits are its
        // vector and the lower half its lane. Interleaving vectors that are half a square apart
        // rotates that number by a bit; as many rounds as a lane has bits exchange the halves.
        let half = Self::LANES / 2;
        unrolled!(round < 4, {
            if 1 << round < Self::LANES {
                let y = x;
                unrolled!(i < 8, {
                    if i < half {
                        // SAFETY: the caller's promise is that of every function here.
                        [x[2 * i], x[2 * i + 1]] = unsafe { Self::interleave(y[i], y[i + half]) };
                    }
                });
            }
        });
        x
    }

    /// Computes e to the power of x, and NaN for NaN, with the polynomial of Cephes' `expf`. It is
    /// within 2 ulp where the result is a normal f32; below it is 0, above the largest number.
    #[inline(always)]
    unsafe fn exp(x: Self::VecF32) -> Self::VecF32 {
        // SAFETY: the caller's promise is that of every function here.
        unsafe {
            let x = Self::max(Self::splat(-87.336_54), Self::min(Self::splat(88.722_83), x));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // ln 2 in two parts, so that n * ln 2 is exact to the last bit that matters.
            let r = Self::fma(n, Self::splat(-0.693_359_4), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = Self::fma(p, r, Self::splat(c));
            }
            let p = Self::add(Self::fma(Self::mul(p, r), r, r), Self::splat(1.0));
            // n may be 128: in two steps.
            let one = Self::splat(1.0);
            let n = Self::sub(n, one);
            Self::mul(Self::mul(p, Self::exp2_of_integer(n)), Self::splat(2.0))
        }
    }
}

/// Plain Rust, for every processor.
#[derive(Clone, Copy)]
pub struct Portable;

const WIDTH: usize = 8;

fn each(f: impl Fn(usize) -> f32) -> [f32; WIDTH] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type VecF32 = [f32; WIDTH];
    const LANES: usize = WIDTH;

    unsafe fn splat(x: f32) -> Self::VecF32 {
        [x; WIDTH]
    }
    unsafe fn load(p: *const f32) -> Self::VecF32 {
        // SAFETY: valid for a vector, the caller says.
        unsafe { p.cast::<[f32; WIDTH]>().read_unaligned() }
    }
    unsafe fn store(p: *mut f32, x: Self::VecF32) {
        // SAFETY: valid for a vector, the caller says.
        unsafe { p.cast::<[f32; WIDTH]>().write_unaligned(x) }
    }
    unsafe fn add(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32 {
        each(|i| a[i] + b[i])
    }
    unsafe fn sub(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32 {
        each(|i| a[i] - b[i])
    }
    unsafe fn mul(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32 {
        each(|i| a[i] * b[i])
    }
    unsafe fn div(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32 {
        each(|i| a[i] / b[i])
    }
    unsafe fn fma(a: Self::VecF32, b: Self::VecF32, c: Self::VecF32) -> Self::VecF32 {
        // Not `mul_add`, which is a function call where the processor has no such instruction.
        each(|i| a[i] * b[i] + c[i])
    }
    unsafe fn min(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32 {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    unsafe fn max(a: Self::VecF32, b: Self::VecF32) -> Self::VecF32 {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    unsafe fn round(x: Self::VecF32) -> Self::VecF32 {
        each(|i| x[i].round_ties_even())
    }
    unsafe fn exp2_of_integer(n: Self::VecF32) -> Self::VecF32 {
        each(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    unsafe fn sum(x: Self::VecF32) -> f32 {
        x.iter().sum()
    }
    unsafe fn sum_four(x: [Self::VecF32; 4]) -> [f32; 4] {
        x.map(|x| x.iter().sum())
    }
    unsafe fn prefetch(_: *const u8) {}
    unsafe fn prefetch_far(_: *const u8) {}
    unsafe fn load_bf16_even(p: *const u16) -> Self::VecF32 {
        // SAFETY: valid for two vectors of elements, the caller says.
        let all = unsafe { p.cast::<[u16; 2 * WIDTH]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(all[2 * i]) << 16))
    }
    unsafe fn load_bf16_odd(p: *const u16) -> Self::VecF32 {
        // SAFETY: as above.
        let all = unsafe { p.cast::<[u16; 2 * WIDTH]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(all[2 * i + 1]) << 16))
    }
    type VecBf16 = [u16; 2 * WIDTH];
    unsafe fn load_bf16(p: *const u16) -> Self::VecBf16 {
        // SAFETY: as above.
        unsafe { p.cast::<Self::VecBf16>().read_unaligned() }
    }
    unsafe fn dot_bf16(a: Self::VecBf16, b: Self::VecBf16, sums: Self::VecF32) -> Self::VecF32 {
        let value = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        each(|i| value(a[2 * i]) * value(b[2 * i]) + value(a[2 * i + 1]) * value(b[2 * i + 1]) + sums[i])
    }
    unsafe fn load_f16(p: *const u16) -> Self::VecF32 {
        // SAFETY: valid for a vector of elements, the caller says.
        let all = unsafe { p.cast::<[u16; WIDTH]>().read_unaligned() };
        each(|i| half::f16::from_bits(all[i]).to_f32())
    }
    unsafe fn load_i8(p: *const i8) -> Self::VecF32 {
        // SAFETY: as above.
        let all = unsafe { p.cast::<[i8; WIDTH]>().read_unaligned() };
        each(|i| f32::from(all[i]))
    }
    type VecI8 = [i8; 32];
    unsafe fn load_i8x32(p: *const i8) -> Self::VecI8 {
        // SAFETY: valid for 32 elements, the caller says.
        unsafe { p.cast::<[i8; 32]>().read_unaligned() }
    }
    unsafe fn dot_i8x32(weights: Self::VecI8, x: *const i8) -> Self::VecF32 {
        // SAFETY: as above.
        let x = unsafe { Self::load_i8x32(x) };
        each(|lane| (4 * lane..4 * lane + 4).map(|i| i32::from(weights[i]) * i32::from(x[i])).sum::<i32>() as f32)
    }
    unsafe fn load_nibbles(p: *const u8) -> [Self::VecI8; 2] {
        // SAFETY: valid for 32 bytes, the caller says.
        let pairs = unsafe { p.cast::<[u8; 32]>().read_unaligned() };
        [pairs.map(|pair| (pair & 15) as i8), pairs.map(|pair| (pair >> 4) as i8)]
    }
    unsafe fn dot_nibbles(weights: [Self::VecI8; 2], x: *const i8) -> Self::VecF32 {
        // SAFETY: the caller's promise.
        unsafe { Self::add(Self::dot_i8x32(weights[0], x), Self::dot_i8x32(weights[1], x.add(32))) }
    }
    unsafe fn broadcast_pair(x: Self::VecF32, pair: usize) -> Self::VecF32 {
        each(|lane| x[2 * pair + lane / 4])
    }
    unsafe fn interleave(a: Self::VecF32, b: Self::VecF32) -> [Self::VecF32; 2] {
        [0, WIDTH / 2].map(|first| each(|i| if i % 2 == 0 { a[first + i / 2] } else { b[first + i / 2] }))
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// AVX2 with FMA and F16C.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    /// AVX512 F and DQ; with `VNNI` also BW, VL and VNNI, with `BF16` all these and BF16.
    #[derive(Clone, Copy)]
    pub struct Avx512<const VNNI: bool, const BF16: bool>;

    /// Writes the functions that are one expression of intrinsics.
    macro_rules! intrinsics {
        ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
            #[inline(always)]
            unsafe fn $name($($arg: $ty),*) -> $out {
                // SAFETY: the processor has the instructions and the pointers are valid, by the
                // trait's contract.
                unsafe { $body }
            }
        )*};
    }

    /// Adds the two halves of a vector of four sums each.
    #[inline(always)]
    unsafe fn halves_of_four(x: __m256) -> [f32; 4] {
        // SAFETY: the processor has AVX2, by the trait's contract; both types are 16 bytes.
        unsafe { std::mem::transmute(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x))) }
    }

    /// Returns sums of four products each, of 32. The instruction multiplies unsigned by signed
    /// numbers and adds two products in 16 bits. So the weights' magnitudes are multiplied with x,
    /// which takes the weights' signs; two products are at most 2 · 128 · 127.
    #[inline(always)]
    unsafe fn dot_i8(weights: __m256i, x: *const i8) -> __m256i {
        // SAFETY: the processor has AVX2 and 32 elements lie at x, by the trait's contract.
        unsafe {
            let x = _mm256_sign_epi8(_mm256_loadu_si256(x.cast()), weights);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), x);
            _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
        }
    }

    #[inline(always)]
    unsafe fn unpack_nibbles(p: *const u8) -> [__m256i; 2] {
        // SAFETY: the processor has AVX2 and 32 bytes lie at p, by the trait's contract.
        unsafe {
            let (pairs, half) = (_mm256_loadu_si256(p.cast()), _mm256_set1_epi8(15));
            [_mm256_and_si256(pairs, half), _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), half)]
        }
    }

    /// Weights are below 16, so that four products fit in 16 bits.
    #[inline(always)]
    unsafe fn dot_u4(weights: [__m256i; 2], x: *const i8) -> __m256i {
        // SAFETY: as above, with 64 elements at x.
        unsafe {
            let first = _mm256_maddubs_epi16(weights[0], _mm256_loadu_si256(x.cast()));
            let second = _mm256_maddubs_epi16(weights[1], _mm256_loadu_si256(x.add(32).cast()));
            _mm256_madd_epi16(_mm256_add_epi16(first, second), _mm256_set1_epi16(1))
        }
    }

    /// As [`dot_i8`], with one instruction that adds four products.
    #[inline(always)]
    unsafe fn dot_i8_vnni(weights: __m256i, x: *const i8) -> __m256i {
        // SAFETY: the processor has VNNI and 32 elements lie at x, by the trait's contract.
        unsafe {
            let x = _mm256_sign_epi8(_mm256_loadu_si256(x.cast()), weights);
            _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_abs_epi8(weights), x)
        }
    }

    /// As [`dot_u4`].
    #[inline(always)]
    unsafe fn dot_u4_vnni(weights: [__m256i; 2], x: *const i8) -> __m256i {
        // SAFETY: as above, with 64 elements at x.
        unsafe {
            let first = _mm256_dpbusd_epi32(_mm256_setzero_si256(), weights[0], _mm256_loadu_si256(x.cast()));
            _mm256_dpbusd_epi32(first, weights[1], _mm256_loadu_si256(x.add(32).cast()))
        }
    }

    impl Simd for Avx2 {
        type VecF32 = __m256;
        type VecBf16 = __m256i;
        type VecI8 = __m256i;
        const LANES: usize = 8;

        intrinsics! {
            splat(x: f32) -> __m256 = _mm256_set1_ps(x);
            load(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
            add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
            sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
            mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
            fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
            max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
            round(x: __m256) -> __m256 = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            exp2_of_integer(n: __m256) -> __m256 =
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127))));
            prefetch(p: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(p.cast());
            prefetch_far(p: *const u8) -> () = _mm_prefetch::<_MM_HINT_T1>(p.cast());
            // A bf16 is the upper half of an f32.
            load_bf16_even(p: *const u16) -> __m256 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(p.cast())));
            load_bf16_odd(p: *const u16) -> __m256 =
                _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(p.cast()), _mm256_set1_epi32(0xffff_0000_u32 as i32)));
            load_bf16(p: *const u16) -> __m256i = _mm256_loadu_si256(p.cast());
            dot_bf16(a: __m256i, b: __m256i, sums: __m256) -> __m256 = {
                let odd = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                let even = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
                let odd = |x| _mm256_castsi256_ps(_mm256_and_si256(x, odd));
                _mm256_fmadd_ps(even(a), even(b), _mm256_fmadd_ps(odd(a), odd(b), sums))
            };
            load_f16(p: *const u16) -> __m256 = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            load_i8(p: *const i8) -> __m256 = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())));
            load_i8x32(p: *const i8) -> __m256i = _mm256_loadu_si256(p.cast());
            dot_i8x32(weights: __m256i, x: *const i8) -> __m256 = _mm256_cvtepi32_ps(dot_i8(weights, x));
            load_nibbles(p: *const u8) -> [__m256i; 2] = unpack_nibbles(p);
            dot_nibbles(weights: [__m256i; 2], x: *const i8) -> __m256 = _mm256_cvtepi32_ps(dot_u4(weights, x));
            broadcast_pair(x: __m256, pair: usize) -> __m256 = {
                let (a, b) = (2 * pair as i32, 2 * pair as i32 + 1);
                _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(a, a, a, a, b, b, b, b))
            };
            interleave(a: __m256, b: __m256) -> [__m256; 2] = {
                let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
            };
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, x: __m256) {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(p, x) }
        }

        #[inline(always)]
        unsafe fn sum(x: __m256) -> f32 {
            // SAFETY: as above.
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        unsafe fn sum_four([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
            // SAFETY: as above.
            unsafe { halves_of_four(_mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d))) }
        }
    }

    impl<const VNNI: bool, const BF16: bool> Simd for Avx512<VNNI, BF16> {
        type VecF32 = __m512;
        type VecBf16 = __m512i;
        type VecI8 = __m256i;
        const LANES: usize = 16;

        intrinsics! {
            splat(x: f32) -> __m512 = _mm512_set1_ps(x);
            load(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
            add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
            sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
            mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
            fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
            max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
            round(x: __m512) -> __m512 = _mm512_roundscale_ps::<0>(x);
            exp2_of_integer(n: __m512) -> __m512 =
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127))));
            prefetch(p: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(p.cast());
            prefetch_far(p: *const u8) -> () = _mm_prefetch::<_MM_HINT_T1>(p.cast());
            // A bf16 is the upper half of an f32.
            load_bf16_even(p: *const u16) -> __m512 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(p.cast())));
            load_bf16_odd(p: *const u16) -> __m512 =
                _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p.cast()), _mm512_set1_epi32(0xffff_0000_u32 as i32)));
            load_bf16(p: *const u16) -> __m512i = _mm512_loadu_si512(p.cast());
            dot_bf16(a: __m512i, b: __m512i, sums: __m512) -> __m512 = if BF16 {
                use std::mem::transmute;
                _mm512_dpbf16_ps(sums, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b))
            } else {
                let odd = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                let even = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
                let odd = |x| _mm512_castsi512_ps(_mm512_and_si512(x, odd));
                _mm512_fmadd_ps(even(a), even(b), _mm512_fmadd_ps(odd(a), odd(b), sums))
            };
            load_f16(p: *const u16) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
            load_i8(p: *const i8) -> __m512 = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())));
            load_i8x32(p: *const i8) -> __m256i = _mm256_loadu_si256(p.cast());
            // Half of the lanes stay empty.
            dot_i8x32(weights: __m256i, x: *const i8) -> __m512 =
                _mm512_zextps256_ps512(_mm256_cvtepi32_ps(if VNNI { dot_i8_vnni(weights, x) } else { dot_i8(weights, x) }));
            load_nibbles(p: *const u8) -> [__m256i; 2] = unpack_nibbles(p);
            dot_nibbles(weights: [__m256i; 2], x: *const i8) -> __m512 =
                _mm512_zextps256_ps512(_mm256_cvtepi32_ps(if VNNI { dot_u4_vnni(weights, x) } else { dot_u4(weights, x) }));
            broadcast_pair(x: __m512, pair: usize) -> __m512 = {
                let (a, b) = (2 * pair as i32, 2 * pair as i32 + 1);
                let lanes = _mm256_setr_epi32(a, a, a, a, b, b, b, b);
                _mm512_permutexvar_ps(_mm512_zextsi256_si512(lanes), x)
            };
            interleave(a: __m512, b: __m512) -> [__m512; 2] = {
                let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
                [_mm512_permutex2var_ps(a, first, b), _mm512_permutex2var_ps(a, second, b)]
            };
            sum(x: __m512) -> f32 = _mm512_reduce_add_ps(x);
            sum_four(x: [__m512; 4]) -> [f32; 4] = {
                let [a, b, c, d] = x;
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); // a b a b in each quarter
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                let low = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
                let sums = _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd)); // a b c d in each quarter
                halves_of_four(_mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums)))
            };
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, x: __m512) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(p, x) }
        }
    }
}
