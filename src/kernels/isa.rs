//! The instruction sets, and running a kernel compiled for one of them.

use std::sync::OnceLock;

use super::simd::{Portable, Simd};
#[cfg(target_arch = "x86_64")]
use super::tiles;

/// An instruction set that kernels are compiled for. They are ordered from slow to fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The target's baseline: SSE2 on x86-64, NEON on AArch64.
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
    /// All instruction sets, from slow to fast.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16, Self::Amx];

    /// Returns the name in reports.
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

    /// Returns whether this processor has it.
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

    /// Returns whether this processor has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// Returns the fastest one that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Self::ALL.iter().rfind(|isa| isa.is_available()).expect("portable is"))
    }
}

/// A computation over vectors of any instruction set. Implementations of `run` are
/// `#[inline(always)]`.
///
/// Each is compiled for every instruction set from `SLOWEST` to `FASTEST`, which bounds what the
/// compiler has to do.
pub(super) trait Kernel {
    type Output;

    /// The slowest instruction set that the kernel is run on.
    const SLOWEST: Isa = Isa::Portable;
    /// The fastest instruction set that the kernel gains from. It runs as compiled for this one on
    /// processors that have a faster one.
    const FASTEST: Isa = Isa::Avx512Bf16;

    /// Does the work.
    ///
    /// # Safety
    /// Called on a processor that has S's instructions, inside a function compiled for them.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Returns whether a kernel is compiled for an instruction set.
const fn is_compiled<K: Kernel>(isa: Isa) -> bool {
    K::SLOWEST as u8 <= isa as u8 && isa as u8 <= K::FASTEST as u8
}

/// Runs the kernel as compiled for `isa`, or for [`Kernel::FASTEST`] if that is slower.
///
/// # Panics
/// If this processor does not have `isa`, or it is slower than [`Kernel::SLOWEST`].
pub(super) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    assert!(isa.is_available(), "this processor has no {}", isa.name());
    // The conditions are constants, so that the compiler does not see the code behind false ones.
    match isa.min(K::FASTEST) {
        Isa::Portable => {
            if const { is_compiled::<K>(Isa::Portable) } {
                // SAFETY: it needs nothing that the whole program does not need.
                return unsafe { kernel.run::<Portable>() };
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            if const { is_compiled::<K>(Isa::Avx2) } {
                // SAFETY: the processor has `isa`, as just checked, which includes this one.
                return unsafe { x86::avx2(kernel) };
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            if const { is_compiled::<K>(Isa::Avx512) } {
                // SAFETY: as above.
                return unsafe { x86::avx512(kernel) };
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => {
            if const { is_compiled::<K>(Isa::Avx512Vnni) } {
                // SAFETY: as above.
                return unsafe { x86::avx512_vnni(kernel) };
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Amx => {
            if const { is_compiled::<K>(Isa::Avx512Bf16) } {
                // SAFETY: as above.
                return unsafe { x86::avx512_bf16(kernel) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        _ => {}
    }
    panic!("this kernel is not compiled for {}", isa.name())
}

/// Returns the number of f32 lanes of a vector.
pub(super) fn lanes(isa: Isa) -> usize {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> usize {
            S::LANES
        }
    }
    run(isa, Lanes)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::simd::{Avx2, Avx512};
    use super::Kernel;

    /// Makes the compiler align the caller's stack frame to whole vectors. It does not do so on its
    /// own account when it spills vectors, and unaligned ones lie in two cache lines each.
    #[inline(always)]
    fn align_frame() {
        #[repr(align(64))]
        #[expect(dead_code, reason = "its alignment alone matters")]
        struct Vector([u8; 64]);
        std::hint::black_box(&std::mem::MaybeUninit::<Vector>::uninit());
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
        align_frame();
        // SAFETY: this function is compiled for them, and its caller checked the processor.
        unsafe { kernel.run::<Avx2>() }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq")]
    pub unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
        align_frame();
        // SAFETY: this function is compiled for them, and its caller checked the processor.
        unsafe { kernel.run::<Avx512<false, false>>() }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")]
    pub unsafe fn avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
        align_frame();
        // SAFETY: as above.
        unsafe { kernel.run::<Avx512<true, false>>() }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx512bf16")]
    pub unsafe fn avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
        align_frame();
        // SAFETY: as above.
        unsafe { kernel.run::<Avx512<true, true>>() }
    }
}
