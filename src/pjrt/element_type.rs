//! Element types of PJRT buffers, with the C API's numbers.

/// `PJRT_Buffer_Type` of the types that this crate uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum ElementType {
    Pred = 1,
    S8 = 2,
    S16 = 3,
    S32 = 4,
    S64 = 5,
    U8 = 6,
    U16 = 7,
    U32 = 8,
    U64 = 9,
    F16 = 10,
    F32 = 11,
    F64 = 12,
    BF16 = 13,
    S4 = 21,
    U4 = 22,
}

impl ElementType {
    /// Returns the size of an element in host memory, in bits. 4-bit types take a whole byte there.
    pub fn host_bits(self) -> usize {
        match self {
            Self::Pred | Self::S8 | Self::U8 | Self::S4 | Self::U4 => 8,
            Self::S16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::S32 | Self::U32 | Self::F32 => 32,
            Self::S64 | Self::U64 | Self::F64 => 64,
        }
    }
}
