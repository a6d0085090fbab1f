//! What products are made of: weights as stored, and activations.

use std::ops::Range;

use super::{
    format::{Bf16, Format},
    integer::GROUP,
};

/// Elements of a weight, as stored.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    F32(&'a [f32]),
    /// Bits of bf16.
    Bf16(&'a [u16]),
    /// Bits of f16.
    F16(&'a [u16]),
    I8(&'a [i8]),
    /// Two elements in a byte, and a scale for each [`GROUP`] of them.
    I4(Groups<'a>),
}

/// Groups of four-bit elements. In a group, byte i holds element i in its lower half and element i + 16 in its upper half, both
/// plus 8.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    /// [`GROUP`] / 2 bytes for each group.
    pub pairs: &'a [u8],
    /// Bits of f16: what each group is to be multiplied by.
    pub scales: &'a [u16],
}

impl<'a> Elements<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(e) => e.len(),
            Self::Bf16(e) | Self::F16(e) => e.len(),
            Self::I8(e) => e.len(),
            Self::I4(e) => e.scales.len() * GROUP,
        }
    }

    /// Bytes of one.
    ///
    /// # Panics
    /// If they are of four bits.
    pub(super) fn element_bytes(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::Bf16(_) | Self::F16(_) => 2,
            Self::I8(_) => 1,
            Self::I4(_) => panic!("two elements in a byte"),
        }
    }

    /// All their bytes.
    fn bytes(&self) -> usize {
        match self {
            Self::F32(e) => size_of_val(*e),
            Self::Bf16(e) | Self::F16(e) => size_of_val(*e),
            Self::I8(e) => size_of_val(*e),
            Self::I4(e) => size_of_val(e.pairs) + size_of_val(e.scales),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(e) => Self::F32(&e[range]),
            Self::Bf16(e) => Self::Bf16(&e[range]),
            Self::F16(e) => Self::F16(&e[range]),
            Self::I8(e) => Self::I8(&e[range]),
            Self::I4(e) => {
                debug_assert!(range.start.is_multiple_of(GROUP) && range.end.is_multiple_of(GROUP), "parts of groups");
                let groups = range.start / GROUP..range.end / GROUP;
                let pairs = &e.pairs[groups.start * GROUP / 2..groups.end * GROUP / 2];
                Self::I4(Groups { pairs, scales: &e.scales[groups] })
            }
        }
    }
}

/// A weight `[rows, width]`, row-major: `width` is summed over.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(super) elements: Elements<'a>,
    /// What each row is to be multiplied by.
    pub(super) scales: Option<&'a [f32]>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl<'a> Matrix<'a> {
    /// # Panics
    /// If there are not `rows * width` elements, or rows are not whole groups of four-bit elements.
    pub fn new(elements: Elements<'a>, rows: usize, width: usize) -> Self {
        assert_eq!(elements.len(), rows * width, "a matrix of {rows} rows of {width}");
        if let Elements::I4(e) = elements {
            assert!(width.is_multiple_of(GROUP) && e.pairs.len() * 2 == rows * width, "groups in rows of {width}");
        }
        Self { elements, scales: None, rows, width }
    }

    /// The same matrix with each row multiplied by its scale.
    ///
    /// # Panics
    /// If there are not as many scales as rows.
    pub fn scaled(self, scales: &'a [f32]) -> Self {
        assert_eq!(scales.len(), self.rows, "scales of {} rows", self.rows);
        Self { scales: Some(scales), ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn elements(&self) -> Elements<'a> {
        self.elements
    }

    pub(super) fn scales(&self) -> Option<&'a [f32]> {
        self.scales
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.elements.bytes() / self.rows.max(1)
    }

    /// The rows from `from` to `to`.
    pub(super) fn block(&self, from: usize, to: usize) -> Self {
        let elements = self.elements.slice(from * self.width..to * self.width);
        Self { elements, scales: self.scales.map(|scales| &scales[from..to]), rows: to - from, width: self.width }
    }
}

/// Activations `[rows, width]`, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Activations<'a> {
    F32(&'a [f32]),
    /// Bits of bf16.
    Bf16(&'a [u16]),
}

impl Activations<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// The [`GROUP`] elements from `start` on.
    #[inline(always)]
    pub(super) fn group(&self, start: usize) -> [f32; GROUP] {
        match self {
            Self::F32(x) => x[start..start + GROUP].try_into().expect("so many"),
            Self::Bf16(x) => {
                let bits: [u16; GROUP] = x[start..start + GROUP].try_into().expect("so many");
                bits.map(Bf16::to_f32)
            }
        }
    }

    pub(super) fn part(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[range]),
            Self::Bf16(x) => Self::Bf16(&x[range]),
        }
    }

    pub(super) fn get(&self, at: usize) -> f32 {
        match self {
            Self::F32(x) => x[at],
            Self::Bf16(x) => Bf16::to_f32(x[at]),
        }
    }
}
