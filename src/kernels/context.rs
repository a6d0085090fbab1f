//! The threads and the instruction set that a kernel runs on.

use std::sync::OnceLock;

use super::{isa::Isa, pool::Pool};

/// The threads and the instruction set that a kernel runs on.
#[derive(Clone, Copy)]
pub struct ExecContext<'a> {
    pub pool: &'a Pool,
    pub isa: Isa,
}

impl ExecContext<'static> {
    /// Returns all threads of the process's pool, with the fastest instruction set of the
    /// processor.
    pub fn whole() -> Self {
        Self { pool: pool(), isa: Isa::best() }
    }
}

static THREADS: OnceLock<usize> = OnceLock::new();
static POOL: OnceLock<Pool> = OnceLock::new();

/// Returns whether the kernels are faster than XLA's own code on this processor. They are not where
/// they are compiled as portable Rust only.
pub fn are_fast() -> bool {
    Isa::best() > Isa::Portable
}

/// Sets the number of threads that all kernels share, and returns whether it took effect: it does
/// only once, before the first kernel runs.
pub fn set_threads(threads: usize) -> bool {
    POOL.get().is_none() && THREADS.set(threads.max(1)).is_ok()
}

/// Returns the pool that all kernels share. It has as many threads as were set, or as the processor
/// has.
fn pool() -> &'static Pool {
    POOL.get_or_init(|| {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Pool::new(*THREADS.get_or_init(cores))
    })
}
