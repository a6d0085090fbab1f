//! The plugins that can be installed: name, version and sha256 of each wheel, and the plugin's path
//! inside.

use super::Kind;

/// A plugin's wheel that this program was tested with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedPlugin {
    pub kind: Kind,
    /// Name of the package on the index.
    pub package: &'static str,
    pub version: &'static str,
    /// File name of the wheel.
    pub wheel: &'static str,
    pub sha256: &'static str,
    /// Path of the plugin inside the wheel.
    pub member: &'static str,
    pub note: &'static str,
    /// Wheels that are unpacked beside it: the libraries and tools that it loads.
    pub libraries: &'static [LibraryWheel],
}

/// A wheel of libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibraryWheel {
    pub package: &'static str,
    pub wheel: &'static str,
    pub sha256: &'static str,
}

/// The libraries that the CUDA 13 plugin loads, and ptxas, with which it compiles.
const CUDA_13: &[LibraryWheel] = &[
    LibraryWheel {
        package: "nvidia-cublas",
        wheel: "nvidia_cublas-13.10.0.20-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl",
        sha256: "dcc6d63884c53d07e267ce7e6feac17b2538cebaafec5db865736c3e28e4dc84",
    },
    LibraryWheel {
        package: "nvidia-cuda-crt",
        wheel: "nvidia_cuda_crt-13.5.37-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "e898b7f73d3035fa89915a3f7bf3b54a73e90249746111aed295822c4729bb29",
    },
    LibraryWheel {
        package: "nvidia-cuda-cupti",
        wheel: "nvidia_cuda_cupti-13.5.25-py3-none-manylinux_2_25_x86_64.whl",
        sha256: "9dcca41c12a734192b14e7128ae116bc9ce1b9da686e2ebf48ae7a4415f76650",
    },
    LibraryWheel {
        package: "nvidia-cuda-nvcc",
        wheel: "nvidia_cuda_nvcc-13.5.37-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "f5c4f7ead5d964fb4af42bbf1e6d3ec3c1e6e9d83b53749f691d387e7fcaa3a7",
    },
    LibraryWheel {
        package: "nvidia-cuda-nvrtc",
        wheel: "nvidia_cuda_nvrtc-13.5.37-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        sha256: "86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc",
    },
    LibraryWheel {
        package: "nvidia-cuda-runtime",
        wheel: "nvidia_cuda_runtime-13.5.37-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d",
    },
    LibraryWheel {
        package: "nvidia-cudnn-cu13",
        wheel: "nvidia_cudnn_cu13-9.28.1.4-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "a54f205b1db1f2895d99f398754db1369816f0569dd459731f925635cf7b65ec",
    },
    LibraryWheel {
        package: "nvidia-cufft",
        wheel: "nvidia_cufft-12.5.0.14-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "b8be26837a5abad2b5b74f3e92dd29f622a42934b355be0961a48712cbba23ad",
    },
    LibraryWheel {
        package: "nvidia-cusolver",
        wheel: "nvidia_cusolver-12.4.1.2-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "b3b8e02fd2f2df869369af075dc3a179d43f6f7b85e94632a7dce556697be044",
    },
    LibraryWheel {
        package: "nvidia-cusparse",
        wheel: "nvidia_cusparse-12.9.4.2-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "072667e58c851a318738f5527a12eb225cbf058803f2ea451c722d8cf8edddec",
    },
    LibraryWheel {
        package: "nvidia-nccl-cu13",
        wheel: "nvidia_nccl_cu13-2.32.3-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "1459723080ac889d73a26edfa3e04383a7928ab31ac8f0ec43b3ea9548b04ff3",
    },
    LibraryWheel {
        package: "nvidia-nvjitlink",
        wheel: "nvidia_nvjitlink-13.5.37-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        sha256: "280d7cb9649704145f074b8dbde500de04ce02d0872e066e20a83c17bcaa93eb",
    },
    LibraryWheel {
        package: "nvidia-nvshmem-cu13",
        wheel: "nvidia_nvshmem_cu13-3.8.0-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "81a4d1f666543e6d34df6d2ff940c7da1435e34e186aab6f3c2b48861b64ef38",
    },
    LibraryWheel {
        package: "nvidia-nvvm",
        wheel: "nvidia_nvvm-13.5.37-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        sha256: "c41bfa362e407405163f103c2229f0765f8cc2ed7d148b754dc77f228bf7e070",
    },
];

/// The same for CUDA 12.
const CUDA_12: &[LibraryWheel] = &[
    LibraryWheel {
        package: "nvidia-cublas-cu12",
        wheel: "nvidia_cublas_cu12-12.9.3.13-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "d7d51055f161b317c7105ddaae90e71eda059026074ffef93cf7cde2886bfe72",
    },
    LibraryWheel {
        package: "nvidia-cuda-cupti-cu12",
        wheel: "nvidia_cuda_cupti_cu12-12.9.79-py3-none-manylinux_2_25_x86_64.whl",
        sha256: "096bcf334f13e1984ba36685ad4c1d6347db214de03dbb6eebb237b41d9d934f",
    },
    LibraryWheel {
        package: "nvidia-cuda-nvcc-cu12",
        wheel: "nvidia_cuda_nvcc_cu12-12.9.86-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        sha256: "5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0",
    },
    LibraryWheel {
        package: "nvidia-cuda-nvrtc-cu12",
        wheel: "nvidia_cuda_nvrtc_cu12-12.9.86-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        sha256: "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4",
    },
    LibraryWheel {
        package: "nvidia-cuda-runtime-cu12",
        wheel: "nvidia_cuda_runtime_cu12-12.9.79-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3",
    },
    LibraryWheel {
        package: "nvidia-cudnn-cu12",
        wheel: "nvidia_cudnn_cu12-9.28.0.42-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "9ff58b7f36dacd0a93e89f8f2957b52466889217963701daa15e577317cfa375",
    },
    LibraryWheel {
        package: "nvidia-cufft-cu12",
        wheel: "nvidia_cufft_cu12-11.4.1.4-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "c67884f2a7d276b4b80eb56a79322a95df592ae5e765cf1243693365ccab4e28",
    },
    LibraryWheel {
        package: "nvidia-cusolver-cu12",
        wheel: "nvidia_cusolver_cu12-11.7.5.82-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "15da72d1340d29b5b3cf3fd100e3cd53421dde36002eda6ed93811af63c40d88",
    },
    LibraryWheel {
        package: "nvidia-cusparse-cu12",
        wheel: "nvidia_cusparse_cu12-12.5.10.65-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "73060ce019ac064a057267c585bf1fd5a353734151f87472ff02b2c5c9984e78",
    },
    LibraryWheel {
        package: "nvidia-nccl-cu12",
        wheel: "nvidia_nccl_cu12-2.32.3-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "bb94b2348e4861d5e8aa00b36c3d12d9bdf9c6369b82cbb723de0b582280a21c",
    },
    LibraryWheel {
        package: "nvidia-nvjitlink-cu12",
        wheel: "nvidia_nvjitlink_cu12-12.9.86-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        sha256: "e3f1171dbdc83c5932a45f0f4c99180a70de9bd2718c1ab77d14104f6d7147f9",
    },
    LibraryWheel {
        package: "nvidia-nvshmem-cu12",
        wheel: "nvidia_nvshmem_cu12-3.8.0-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "b2e5760d6158aefe7bb74348d5128bb1b46a7dd1fd4b7b1e6fe55b4b07888f70",
    },
];

/// All pinned wheels; the first one of a kind is its default.
pub const PINNED: &[PinnedPlugin] = &[
    PinnedPlugin {
        kind: Kind::Cpu,
        package: "fastatomstruct-xla-cpu",
        version: "2026.6.23",
        wheel: "fastatomstruct_xla_cpu-2026.6.23-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "88b1c430b341b4bea40a37420311c9c75db6e22b46d2ff95b6986577bee6afe9",
        member: "fastatomstruct_xla_cpu/libpjrt_cpu.so",
        note: "unmodified zml build, API 0.106, needs glibc only",
        libraries: &[],
    },
    PinnedPlugin {
        kind: Kind::Cpu,
        package: "lammps-jax-pjrt-cpu",
        version: "0.11.2",
        wheel: "lammps_jax_pjrt_cpu-0.11.2-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1",
        member: "lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so",
        note: "XLA of jaxlib 0.11.2, API 0.115, needs libstdc++",
        libraries: &[],
    },
    PinnedPlugin {
        kind: Kind::Tpu,
        package: "libtpu",
        version: "0.0.52",
        wheel: "libtpu-0.0.52-cp312-cp312-manylinux_2_31_x86_64.whl",
        sha256: "f76ab1f4d697c346371c50058796f6baa93317b89be8cf8a1012715a2655120d",
        member: "libtpu/libtpu.so",
        note: "Google's, API 0.117; the Python tag of the wheel does not matter",
        libraries: &[],
    },
    PinnedPlugin {
        kind: Kind::Cuda,
        package: "jax-cuda13-pjrt",
        version: "0.12.0.1",
        wheel: "jax_cuda13_pjrt-0.12.0.1-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "5899bb6177eda86ea532afb9a26794f2bdd04966f6a01f9028266b16c2b6cf90",
        member: "jax_plugins/xla_cuda13/xla_cuda_plugin.so",
        note: "with the CUDA 13 libraries; needs an NVIDIA driver for them",
        libraries: CUDA_13,
    },
    PinnedPlugin {
        kind: Kind::Cuda,
        package: "jax-cuda12-pjrt",
        version: "0.12.0.1",
        wheel: "jax_cuda12_pjrt-0.12.0.1-py3-none-manylinux_2_27_x86_64.whl",
        sha256: "5ec28e06198d094031c37590b4ea753ae8cde4879ab4b60baf40f0dffb673286",
        member: "jax_plugins/xla_cuda12/xla_cuda_plugin.so",
        note: "API 0.116, with the CUDA 12 libraries; needs an NVIDIA driver for them",
        libraries: CUDA_12,
    },
];

/// Returns the pinned plugin of this kind: the default one, or the one in this package.
pub fn pinned_for(kind: Kind, package: Option<&str>) -> Option<&'static PinnedPlugin> {
    PINNED.iter().find(|p| p.kind == kind && package.is_none_or(|name| p.package == name))
}
