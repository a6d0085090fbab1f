//! Element types.

use std::fmt;

/// An element type of XLA. The discriminants are XLA's `PrimitiveType` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
pub enum DType {
    Pred = 1,
    S8 = 2,
    S32 = 4,
    S64 = 5,
    U8 = 6,
    U16 = 7,
    U32 = 8,
    U64 = 9,
    F16 = 10,
    F32 = 11,
    F64 = 12,
    BF16 = 16,
    S4 = 21,
}

impl DType {
    pub const ALL: [Self; 13] = [
        Self::Pred,
        Self::S4,
        Self::S8,
        Self::S32,
        Self::S64,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
    ];

    /// Name in HLO text: `f32`, `bf16`, `pred`...
    pub fn name(self) -> &'static str {
        match self {
            Self::Pred => "pred",
            Self::S4 => "s4",
            Self::S8 => "s8",
            Self::S32 => "s32",
            Self::S64 => "s64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// Bits of one element (`pred` takes a byte).
    pub fn bits(self) -> usize {
        match self {
            Self::S4 => 4,
            Self::Pred | Self::S8 | Self::U8 => 8,
            Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::S32 | Self::U32 | Self::F32 => 32,
            Self::S64 | Self::U64 | Self::F64 => 64,
        }
    }

    /// F16, BF16, F32 or F64.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    /// Signed or unsigned; not `pred`.
    pub fn is_integer(self) -> bool {
        !self.is_float() && self != Self::Pred
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
