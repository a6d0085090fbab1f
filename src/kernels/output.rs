//! The arrays that kernels write their results to.

use std::{marker::PhantomData, ops::Range};

use half::bf16;

/// A row-major array of results. bf16 results are rounded to nearest, ties to even.
pub enum OutputRows<'a> {
    F32(&'a mut [f32]),
    /// Bits of bf16.
    Bf16(&'a mut [u16]),
}

impl<'a> OutputRows<'a> {
    /// Returns the number of elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(out) => out.len(),
            Self::Bf16(out) => out.len(),
        }
    }

    /// Sets the elements in a range to zero.
    ///
    /// # Panics
    /// If the range is not inside the array.
    pub(super) fn zero(&mut self, range: Range<usize>) {
        match self {
            Self::F32(out) => out[range].fill(0.0),
            Self::Bf16(out) => out[range].fill(0),
        }
    }

    /// Returns the first `len` elements, and sets all others to zero.
    ///
    /// # Panics
    /// If there are fewer elements.
    pub(super) fn zero_beyond(self, len: usize) -> Self {
        match self {
            Self::F32(out) => Self::F32(zero_beyond(out, len)),
            Self::Bf16(out) => Self::Bf16(zero_beyond(out, len)),
        }
    }
}

/// Returns the first `len` elements, and sets all others to zero.
///
/// # Panics
/// If there are fewer elements.
pub(super) fn zero_beyond<T: bytemuck::Zeroable + Copy>(out: &mut [T], len: usize) -> &mut [T] {
    let (real, padding) = out.split_at_mut(len);
    padding.fill(T::zeroed());
    real
}

/// [`OutputRows`] that several threads write to, each its own columns or rows.
pub(super) struct SharedOutput<'a> {
    first: OutputPointer,
    len: usize,
    width: usize,
    _lifetime: PhantomData<&'a mut [f32]>,
}

enum OutputPointer {
    F32(*mut f32),
    Bf16(*mut u16),
}

// SAFETY: a pointer to plain numbers, which `write` writes in disjoint ranges.
unsafe impl Sync for SharedOutput<'_> {}

impl<'a> SharedOutput<'a> {
    /// Shares results in rows of `width` elements.
    pub(super) fn new(out: OutputRows<'a>, width: usize) -> Self {
        let (first, len) = match out {
            OutputRows::F32(out) => (OutputPointer::F32(out.as_mut_ptr()), out.len()),
            OutputRows::Bf16(out) => (OutputPointer::Bf16(out.as_mut_ptr()), out.len()),
        };
        Self { first, len, width, _lifetime: PhantomData }
    }

    /// Writes a part of a row, beginning at `column`.
    ///
    /// # Panics
    /// If the part is not inside the array.
    ///
    /// # Safety
    /// No two calls may write the same columns of a row.
    pub(super) unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        let at = row * self.width + column;
        assert!(column + values.len() <= self.width && at + values.len() <= self.len, "row {row}, column {column}");
        for (i, &value) in values.iter().enumerate() {
            // SAFETY: inside the array, as asserted; nobody else writes here.
            unsafe {
                match self.first {
                    OutputPointer::F32(p) => *p.add(at + i) = value,
                    OutputPointer::Bf16(p) => *p.add(at + i) = bf16::from_f32(value).to_bits(),
                }
            }
        }
    }
}
