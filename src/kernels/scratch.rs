//! Scratch memory for kernels.

use std::cell::Cell;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([f32; 16]);

// SAFETY: sixteen numbers, without padding.
unsafe impl bytemuck::Zeroable for CacheLine {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for CacheLine {}

/// Calls `f` with `len` elements of this thread's scratch memory, aligned to cache lines. They have
/// arbitrary values.
pub(super) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    // One buffer for each depth of nesting.
    thread_local!(static FREE: Cell<Vec<Vec<CacheLine>>> = const { Cell::new(Vec::new()) });
    let mut free = FREE.take();
    let mut lines = free.pop().unwrap_or_default();
    FREE.set(free);
    let needed = len.div_ceil(16);
    if lines.len() < needed {
        lines.resize(needed, CacheLine([0.0; 16]));
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut lines)[..len]);
    let mut free = FREE.take();
    free.push(lines);
    FREE.set(free);
    result
}
