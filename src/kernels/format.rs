//! Element formats: loading the elements of each type as vectors of f32.

use super::simd::Simd;

/// A type that elements are stored in.
pub(super) trait ElementFormat {
    type Element: Copy;
    /// Loads one half of the elements of two vectors. Of bf16 these are the elements of even or odd
    /// number, of all other formats the first or second vector (see `operands::LaneOrder`).
    ///
    /// # Safety
    /// Called inside a function compiled for S's instructions, on a processor that has them; two
    /// vectors' elements lie at `p`.
    unsafe fn load<S: Simd>(p: *const Self::Element, half: usize) -> S::VecF32;
    fn to_f32(element: Self::Element) -> f32;
}

pub(super) struct F32;
pub(super) struct Bf16;
pub(super) struct F16;
pub(super) struct I8;

impl ElementFormat for F32 {
    type Element = f32;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32, half: usize) -> S::VecF32 {
        // SAFETY: the caller's promises: the instruction set, and two vectors' elements at p.
        unsafe { S::load(p.add(half * S::LANES)) }
    }
    fn to_f32(element: f32) -> f32 {
        element
    }
}

impl ElementFormat for Bf16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16, half: usize) -> S::VecF32 {
        // SAFETY: as above.
        unsafe { if half == 0 { S::load_bf16_even(p) } else { S::load_bf16_odd(p) } }
    }
    fn to_f32(element: u16) -> f32 {
        f32::from_bits(u32::from(element) << 16)
    }
}

impl ElementFormat for F16 {
    type Element = u16;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16, half: usize) -> S::VecF32 {
        // SAFETY: as above.
        unsafe { S::load_f16(p.add(half * S::LANES)) }
    }
    fn to_f32(element: u16) -> f32 {
        half::f16::from_bits(element).to_f32()
    }
}

impl ElementFormat for I8 {
    type Element = i8;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const i8, half: usize) -> S::VecF32 {
        // SAFETY: as above.
        unsafe { S::load_i8(p.add(half * S::LANES)) }
    }
    fn to_f32(element: i8) -> f32 {
        f32::from(element)
    }
}
