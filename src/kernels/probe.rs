//! The processor's peak rates, measured: reading memory, and arithmetic. Kernels are judged against
//! them.

use std::{
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
    time::Instant,
};

use super::{
    context::ExecContext,
    isa::{self, Isa, Kernel},
    simd::Simd,
    tiles,
};

/// Bytes that a thread reads in one go.
const CHUNK: usize = 1 << 20;
/// Vector multiplications that a thread does in one go, for each of its sums.
const ROUNDS: usize = 1 << 16;
/// Independent sums, so that no addition waits for the one before: two units with a latency of four
/// or five need as many.
const SUMS: usize = 12;

/// Returns the bytes per second at which all threads together read these parts of memory, each part
/// once.
pub fn read_bandwidth(context: ExecContext<'_>, parts: &[&[u8]]) -> f64 {
    let chunks: Vec<&[u8]> = parts.iter().flat_map(|part| part.chunks(CHUNK)).collect();
    let seen = AtomicU32::new(0);
    let started = Instant::now();
    context.pool.run(chunks.len(), &|chunk| {
        let largest = isa::run(context.isa, Read { bytes: chunks[chunk] });
        seen.fetch_max(largest.to_bits(), Ordering::Relaxed);
    });
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    std::hint::black_box(seen);
    bytes as f64 / started.elapsed().as_secs_f64()
}

struct Read<'a> {
    bytes: &'a [u8],
}

impl Kernel for Read<'_> {
    type Output = f32;
    const FASTEST: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        const STREAMS: usize = 4; // faster than one
        let vectors = self.bytes.len() / (4 * S::LANES * STREAMS);
        // SAFETY: `STREAMS` times `vectors` vectors lie in the bytes; any bits are a number. The
        // instruction set is the caller's promise. A maximum, unlike a sum, is as fast for
        // subnormal numbers.
        unsafe {
            let p = self.bytes.as_ptr().cast::<f32>();
            let mut largest = [S::splat(0.0); STREAMS];
            for i in 0..vectors {
                for (j, largest) in largest.iter_mut().enumerate() {
                    *largest = S::max(S::load(p.add((j * vectors + i) * S::LANES)), *largest);
                }
            }
            let [a, b, c, d] = largest;
            S::sum(S::max(S::max(a, b), S::max(c, d)))
        }
    }
}

/// Returns the floating-point operations per second of all threads together, by the fastest
/// instructions that kernels use for f32, or for bf16 activations and weights.
pub fn peak_flops(context: ExecContext<'_>, is_bf16: bool) -> f64 {
    let chunks = 16 * context.pool.threads();
    let done = AtomicUsize::new(0);
    let started = Instant::now();
    context.pool.run(chunks, &|_| {
        let operations = match context.isa {
            Isa::Amx if is_bf16 => tiles::multiply_at_peak(ROUNDS),
            Isa::Avx512Bf16 if is_bf16 => isa::run(context.isa, MultiplyPairs),
            isa => isa::run(isa, Multiply),
        };
        done.fetch_add(operations, Ordering::Relaxed);
    });
    done.into_inner() as f64 / started.elapsed().as_secs_f64()
}

/// Multiplies vectors of f32, and returns the number of operations.
struct Multiply;

impl Kernel for Multiply {
    type Output = usize;
    const FASTEST: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // SAFETY: the instruction set is the caller's promise.
        unsafe {
            let mut sums = [S::splat(1.0); SUMS];
            let (a, b) = (S::splat(std::hint::black_box(0.999)), S::splat(std::hint::black_box(0.001)));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, a, b);
                }
            }
            std::hint::black_box(sums.into_iter().map(|sum| S::sum(sum)).sum::<f32>());
        }
        ROUNDS * SUMS * S::LANES * 2
    }
}

/// Multiplies vectors of bf16, and returns the number of operations.
struct MultiplyPairs;

impl Kernel for MultiplyPairs {
    type Output = usize;
    const SLOWEST: Isa = Isa::Avx512Bf16;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // SAFETY: the instruction set is the caller's promise; no vector has more than 32 elements
        // of bf16.
        unsafe {
            let mut sums = [S::splat(1.0); SUMS];
            let (a, b) = (std::hint::black_box([0x3f00; 32]), std::hint::black_box([0x3a00; 32]));
            let (a, b) = (S::load_bf16(a.as_ptr()), S::load_bf16(b.as_ptr()));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = S::dot_bf16(a, b, *sum);
                }
            }
            std::hint::black_box(sums.into_iter().map(|sum| S::sum(sum)).sum::<f32>());
        }
        ROUNDS * SUMS * S::LANES * 4
    }
}
