//! The plugins that we install: name, version and sha256 of each wheel, and which file in it is the plugin.

use super::Kind;

/// A wheel that was tried with this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    pub kind: Kind,
    /// Name of the package on the index.
    pub package: &'static str,
    pub version: &'static str,
    /// File name of the wheel.
    pub wheel: &'static str,
    pub sha256: &'static str,
    /// The plugin inside.
    pub member: &'static str,
    pub note: &'static str,
}

/// All pinned wheels; the first one of a kind is its default.
pub const PINNED: &[Pinned] = &[
    Pinned {
        kind: Kind::Cpu,
        package: "fastatomstruct-xla-cpu",
        version: "2026.6.23",
        wheel: "fastatomstruct_xla_cpu-2026.6.23-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "88b1c430b341b4bea40a37420311c9c75db6e22b46d2ff95b6986577bee6afe9",
        member: "fastatomstruct_xla_cpu/libpjrt_cpu.so",
        note: "unmodified zml build, API 0.106, needs glibc only",
    },
    Pinned {
        kind: Kind::Cpu,
        package: "lammps-jax-pjrt-cpu",
        version: "0.11.2",
        wheel: "lammps_jax_pjrt_cpu-0.11.2-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1",
        member: "lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so",
        note: "XLA of jaxlib 0.11.2, API 0.115, needs libstdc++",
    },
    Pinned {
        kind: Kind::Tpu,
        package: "libtpu",
        version: "0.0.52",
        wheel: "libtpu-0.0.52-cp312-cp312-manylinux_2_31_x86_64.whl",
        sha256: "f76ab1f4d697c346371c50058796f6baa93317b89be8cf8a1012715a2655120d",
        member: "libtpu/libtpu.so",
        note: "Google's, API 0.117; the Python tag of the wheel does not matter",
    },
    Pinned {
        kind: Kind::Cuda,
        package: "jax-cuda13-pjrt",
        version: "0.12.0.1",
        wheel: "jax_cuda13_pjrt-0.12.0.1-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "5899bb6177eda86ea532afb9a26794f2bdd04966f6a01f9028266b16c2b6cf90",
        member: "jax_plugins/xla_cuda13/xla_cuda_plugin.so",
        note: "needs the CUDA 13 libraries and driver",
    },
    Pinned {
        kind: Kind::Cuda,
        package: "jax-cuda12-pjrt",
        version: "0.12.0.1",
        wheel: "jax_cuda12_pjrt-0.12.0.1-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "5ec28e06198d094031c37590b4ea753ae8cde4879ab4b60baf40f0dffb673286",
        member: "jax_plugins/xla_cuda12/xla_cuda_plugin.so",
        note: "API 0.116; needs the CUDA 12 libraries and driver",
    },
];

/// The pinned wheel of this kind: the default one, or the one of this package.
pub fn pinned_for(kind: Kind, package: Option<&str>) -> Option<&'static Pinned> {
    PINNED.iter().find(|p| p.kind == kind && package.is_none_or(|name| p.package == name))
}
