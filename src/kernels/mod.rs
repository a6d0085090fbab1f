//! CPU kernels, which compiled programs call through XLA's typed FFI.
//!
//! A decode step reads every weight once, so its time is that of reading memory, if nothing else gets in the way. XLA:CPU's
//! own products get in the way: they convert bf16 weights in memory, or read them slowly. These kernels read weights where
//! they lie in the mapped checkpoint, convert them in registers, and share the work among all threads.
//!
//! Bottom up:
//!
//! | module | what lives there |
//! |---|---|
//! | `simd` | vectors of f32, for each instruction set |
//! | `isa` | which instruction sets there are, and running a kernel compiled for one |
//! | `pool`, `scratch` | the threads, and memory for each |
//! | [`operands`], `format` | weights as stored and activations; how elements of each type are loaded |
//! | [`matmul`] | products of activations with weights as stored |
//! | [`integer`] | the same in integers, for few activations and weights of few bits |
//! | `widen` | weights converted once, for many activations |
//! | `amx` | the same in tiles of bf16, for processors that have them |
//! | [`linear`] | what becomes of products: stored, GELU, the largest |
//! | [`attention`] | causal attention over the KV cache |
//! | [`probe`] | what this machine can do at best |
//! | `rows` | which rows of a batch count, among padding |
//! | `handlers` | the FFI handlers: check shapes and types, call the kernel |

/// Repeats a block for every index below a constant of at most 6. A loop would do the same in more steps of the compiler: too
/// late for it to keep an array that is indexed in it in registers.
macro_rules! unrolled {
    ($i:ident < $end:tt, $body:block) => {
        unrolled!(@ $i, $end, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident, $end:tt, $body:block, $($at:literal)*) => {
        $(if $at < $end {
            const { assert!($end <= 8) };
            let $i = $at;
            $body
        })*
    };
}

mod amx;
pub mod attention;
mod format;
mod handlers;
pub mod integer;
mod isa;
pub mod linear;
pub mod matmul;
pub mod operands;
mod pool;
pub mod probe;
mod rows;
mod scratch;
mod simd;
mod widen;

use std::sync::OnceLock;

pub use handlers::register;
pub use isa::Isa;
pub use pool::Pool;

/// What a kernel runs on.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    pub pool: &'a Pool,
    pub isa: Isa,
}

impl Machine<'static> {
    /// All threads, with the best instructions that there are.
    pub fn whole() -> Self {
        Self { pool: pool(), isa: Isa::best() }
    }
}

static THREADS: OnceLock<usize> = OnceLock::new();
static POOL: OnceLock<Pool> = OnceLock::new();

/// Whether this processor runs the kernels faster than XLA's own code: not where they would only be portable Rust.
pub fn are_fast() -> bool {
    Isa::best() > Isa::Portable
}

/// Sets the number of threads of all kernels. Has an effect before the first kernel runs, and returns whether it has.
pub fn set_threads(threads: usize) -> bool {
    POOL.get().is_none() && THREADS.set(threads.max(1)).is_ok()
}

/// The threads of all kernels: as many as were set, or as the processor has.
fn pool() -> &'static Pool {
    POOL.get_or_init(|| {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Pool::new(*THREADS.get_or_init(cores))
    })
}
