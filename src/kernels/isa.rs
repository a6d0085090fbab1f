//! Which instructions the processor has, and running a kernel compiled for them.

use std::sync::OnceLock;

use super::simd::{Portable, Simd};
#[cfg(target_arch = "x86_64")]
use super::tiles;

/// An instruction set that kernels are compiled for, from slow to fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler was told: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// AVX2, FMA and F16C: x86-64 processors since 2013.
    Avx2,
    /// AVX512 F and DQ: Intel's servers since 2017.
    Avx512,
    /// Also BW, VL and VNNI: Cascade Lake.
    Avx512Vnni,
    /// Also AVX512-BF16: Cooper Lake, Zen 4.
    Avx512Bf16,
    /// Also AMX tiles of bf16: Sapphire Rapids.
    Amx,
}

impl Isa {
    /// All of them, from slow to fast.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16, Self::Amx];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether this processor has it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            Self::Avx512 => {
                Self::Avx2.is_available() && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")
            }
            Self::Avx512Vnni => {
                Self::Avx512.is_available()
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx512Bf16 => Self::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16"),
            Self::Amx => Self::Avx512Bf16.is_available() && tiles::is_available(),
        }
    }

    /// Whether this processor has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// The fastest one that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Self::ALL.iter().rfind(|isa| isa.is_available()).expect("portable is"))
    }
}

/// A computation over vectors of any instruction set. Its `run` is to be `#[inline(always)]`.
pub(super) trait Kernel {
    type Output;

    /// Does the work.
    ///
    /// # Safety
    /// Called on a processor that has S's instructions, inside a function compiled for them.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs the kernel as compiled for `isa`.
///
/// # Panics
/// If this processor does not have it.
pub(super) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    assert!(isa.is_available(), "this processor has no {}", isa.name());
    match isa {
        // SAFETY: it needs nothing that the whole program does not need.
        Isa::Portable => unsafe { kernel.run::<Portable>() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has it, as just checked.
        Isa::Avx2 => unsafe { x86::avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has it, as just checked.
        Isa::Avx512 => unsafe { x86::avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has it, as just checked.
        Isa::Avx512Vnni => unsafe { x86::avx512_vnni(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has it, as just checked.
        Isa::Avx512Bf16 | Isa::Amx => unsafe { x86::avx512_bf16(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("not available, as just checked"),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Kernel;
    use super::super::simd::{Avx2, Avx512};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: this function is compiled for them, and its caller checked the processor.
        unsafe { kernel.run::<Avx2>() }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq")]
    pub unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: this function is compiled for them, and its caller checked the processor.
        unsafe { kernel.run::<Avx512<false, false>>() }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
    pub unsafe fn avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: as above.
        unsafe { kernel.run::<Avx512<true, false>>() }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx512bf16")]
    pub unsafe fn avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: as above.
        unsafe { kernel.run::<Avx512<true, true>>() }
    }
}
