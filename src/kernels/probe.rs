//! What this machine can do at best, measured: reading memory, and multiplying. Kernels are judged against it.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use super::{
    Machine,
    isa::{self, Kernel},
    simd::Simd,
};

/// Bytes that a thread reads in one go.
const CHUNK: usize = 1 << 20;
/// Multiplications of vectors that a thread does in one go, for each of its sums.
const ROUNDS: usize = 1 << 16;
/// Independent sums, so that no addition waits for the one before: what two units with a latency of four or five need.
const SUMS: usize = 12;

/// Bytes per second at which all threads together read these parts of memory, each part once.
pub fn read_bandwidth(machine: Machine<'_>, parts: &[&[u8]]) -> f64 {
    let chunks: Vec<&[u8]> = parts.iter().flat_map(|part| part.chunks(CHUNK)).collect();
    let seen = AtomicU32::new(0);
    let started = Instant::now();
    machine.pool.run(chunks.len(), &|chunk| {
        let largest = isa::run(machine.isa, Read { bytes: chunks[chunk] });
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

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        const STREAMS: usize = 4; // faster than one
        let vectors = self.bytes.len() / (4 * S::LANES * STREAMS);
        // SAFETY: `STREAMS` times `vectors` vectors lie in the bytes; any bits are a number. The instruction set is the caller's
        // promise. A maximum, unlike a sum, is as fast for subnormal numbers.
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

/// Floating-point operations per second of all threads together, in f32.
pub fn peak_flops(machine: Machine<'_>) -> f64 {
    let threads = machine.pool.threads();
    let chunks = 16 * threads;
    let lanes = isa::run(machine.isa, Multiply { rounds: 1 }).1;
    let started = Instant::now();
    machine.pool.run(chunks, &|_| {
        std::hint::black_box(isa::run(machine.isa, Multiply { rounds: ROUNDS }));
    });
    (chunks * ROUNDS * SUMS * lanes * 2) as f64 / started.elapsed().as_secs_f64()
}

struct Multiply {
    rounds: usize,
}

impl Kernel for Multiply {
    /// The sum, so that it is computed, and the number of lanes.
    type Output = (f32, usize);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, usize) {
        // SAFETY: the instruction set is the caller's promise.
        unsafe {
            let mut sums = [S::splat(1.0); SUMS];
            let (a, b) = (S::splat(std::hint::black_box(0.999)), S::splat(std::hint::black_box(0.001)));
            for _ in 0..self.rounds {
                for sum in &mut sums {
                    *sum = S::fma(*sum, a, b);
                }
            }
            (sums.into_iter().map(|sum| S::sum(sum)).sum(), S::LANES)
        }
    }
}
