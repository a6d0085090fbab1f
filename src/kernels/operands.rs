//! The operands of products: weights as stored, and activations.

use std::ops::Range;

use super::{
    format::{Bf16, ElementFormat},
    isa::{Isa, lanes},
};
use crate::kernel_abi::GROUP;

/// Elements of a weight or of a KV cache, as stored.
#[derive(Clone, Copy, Debug)]
pub enum WeightData<'a> {
    F32(&'a [f32]),
    /// Bits of bf16.
    Bf16(&'a [u16]),
    /// Bits of f16.
    F16(&'a [u16]),
    I8(&'a [i8]),
    /// Four-bit elements, with a scale for each [`GROUP`] of them.
    I4(QuantBlocks<'a>),
}

/// Quantisation blocks of [`GROUP`] four-bit elements. In a block, byte i holds element i in its
/// lower nibble and element i + 16 in its upper nibble, both plus 8.
#[derive(Clone, Copy, Debug)]
pub struct QuantBlocks<'a> {
    /// [`GROUP`] / 2 bytes for each block.
    pub nibbles: &'a [u8],
    /// Bits of f16: the factor of each block.
    pub scales: &'a [u16],
}

impl<'a> WeightData<'a> {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(e) => e.len(),
            Self::Bf16(e) | Self::F16(e) => e.len(),
            Self::I8(e) => e.len(),
            Self::I4(e) => e.scales.len() * GROUP,
        }
    }

    /// Returns the bytes of one element.
    ///
    /// # Panics
    /// If elements have four bits.
    pub(super) fn element_bytes(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::Bf16(_) | Self::F16(_) => 2,
            Self::I8(_) => 1,
            Self::I4(_) => panic!("two elements in a byte"),
        }
    }

    /// Returns the bytes of all elements, and of their blocks' scales.
    fn bytes(&self) -> usize {
        match self {
            Self::F32(e) => size_of_val(*e),
            Self::Bf16(e) | Self::F16(e) => size_of_val(*e),
            Self::I8(e) => size_of_val(*e),
            Self::I4(e) => size_of_val(e.nibbles) + size_of_val(e.scales),
        }
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the elements in a range. Of four-bit elements, it consists of whole blocks.
    ///
    /// # Panics
    /// If the range is not inside the array.
    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(e) => Self::F32(&e[range]),
            Self::Bf16(e) => Self::Bf16(&e[range]),
            Self::F16(e) => Self::F16(&e[range]),
            Self::I8(e) => Self::I8(&e[range]),
            Self::I4(e) => {
                debug_assert!(
                    range.start.is_multiple_of(GROUP) && range.end.is_multiple_of(GROUP),
                    "{range:?} is no range of blocks"
                );
                let blocks = range.start / GROUP..range.end / GROUP;
                let nibbles = &e.nibbles[blocks.start * GROUP / 2..blocks.end * GROUP / 2];
                Self::I4(QuantBlocks { nibbles, scales: &e.scales[blocks] })
            }
        }
    }
}

/// A weight `[rows, width]`, row-major. Products sum over `width`.
#[derive(Clone, Copy, Debug)]
pub struct WeightMatrix<'a> {
    pub(super) data: WeightData<'a>,
    /// The factor of each row.
    pub(super) scales: Option<&'a [f32]>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl<'a> WeightMatrix<'a> {
    /// Returns a matrix of `rows` rows of `width` elements.
    ///
    /// # Panics
    /// If there are not `rows * width` elements, or rows of four-bit elements are not whole blocks.
    pub fn new(data: WeightData<'a>, rows: usize, width: usize) -> Self {
        assert_eq!(data.len(), rows * width, "a matrix of {rows} rows of {width}");
        if let WeightData::I4(e) = data {
            assert!(width.is_multiple_of(GROUP) && e.nibbles.len() * 2 == rows * width, "blocks in rows of {width}");
        }
        Self { data, scales: None, rows, width }
    }

    /// Returns the same matrix with each row multiplied by its scale.
    ///
    /// # Panics
    /// If there are not as many scales as rows.
    pub fn scaled(self, scales: &'a [f32]) -> Self {
        assert_eq!(scales.len(), self.rows, "scales of {} rows", self.rows);
        Self { scales: Some(scales), ..self }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the bytes of one row, which are 0 if there is none.
    pub(super) fn row_bytes(&self) -> usize {
        self.data.bytes() / self.rows.max(1)
    }

    /// Returns the rows from `from` to `to`.
    pub(super) fn block(&self, from: usize, to: usize) -> Self {
        let data = self.data.slice(from * self.width..to * self.width);
        Self { data, scales: self.scales.map(|scales| &scales[from..to]), rows: to - from, width: self.width }
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
    /// Returns the number of elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// Returns the [`GROUP`] elements from `start` on.
    ///
    /// # Panics
    /// If they are not inside the array.
    #[inline(always)]
    pub(super) fn group(&self, start: usize) -> [f32; GROUP] {
        match self {
            Self::F32(x) => x[start..start + GROUP].try_into().expect("a slice of GROUP elements"),
            Self::Bf16(x) => {
                let bits: [u16; GROUP] = x[start..start + GROUP].try_into().expect("a slice of GROUP elements");
                bits.map(Bf16::to_f32)
            }
        }
    }

    /// Returns the elements in a range.
    ///
    /// # Panics
    /// If the range is not inside the array.
    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[range]),
            Self::Bf16(x) => Self::Bf16(&x[range]),
        }
    }

    /// Returns one element.
    ///
    /// # Panics
    /// If it is not inside the array.
    pub(super) fn get(&self, at: usize) -> f32 {
        match self {
            Self::F32(x) => x[at],
            Self::Bf16(x) => Bf16::to_f32(x[at]),
        }
    }
}

/// The order of the elements in a packed row.
#[derive(Clone, Copy)]
pub(super) struct LaneOrder {
    pub(super) lanes: usize,
    /// Up to this element, in each pair of vectors the elements of even number come before those of
    /// odd number.
    interleaved: usize,
}

impl LaneOrder {
    pub(super) fn of(isa: Isa, elements: &WeightData<'_>, width: usize) -> Self {
        let lanes = lanes(isa);
        let pairs = width - width % (2 * lanes);
        Self { lanes, interleaved: if matches!(elements, WeightData::Bf16(_)) { pairs } else { 0 } }
    }

    /// Returns which element is stored at `at`.
    #[inline]
    pub(super) fn element(self, at: usize) -> usize {
        if at >= self.interleaved {
            return at;
        }
        // Lanes are a power of two.
        let (pair, lane) = (at & !(2 * self.lanes - 1), at & (self.lanes - 1));
        pair + 2 * lane + usize::from(at & self.lanes != 0)
    }
}
