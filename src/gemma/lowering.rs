//! What the programs of a platform may use. The layers are the same everywhere; the few primitives
//! that differ (products, attention, the cache) ask here, and nothing else does.

/// Capabilities of the compiler and the devices that programs are emitted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lowering {
    /// Name in program names.
    pub name: &'static str,
    /// Devices use the host's memory, so that weights are read where they lie in the mapped files.
    pub shares_host_memory: bool,
    /// Products and attention are calls of [`crate::kernels`]; else they are XLA's own operations.
    pub kernels: bool,
    /// Layers are iterations of one loop over stacked weights and caches, instead of being emitted
    /// one by one. A program compiles in seconds, not minutes, and XLA:TPU needs no temporary
    /// memory between layers.
    pub stacks_layers: bool,
    /// Decoding has a program of its own, in which row i is slot i and attention is one product
    /// over all slots. Where it is missing, a step of decoding is a step like any other.
    pub batches_decode: bool,
    /// Decode steps in one dispatch. On CPU a dispatch costs little beside a step, and in a loop
    /// XLA:CPU would convert the whole embedding table to f32 before it looks up a row.
    pub decode_steps: i64,
    /// Query rows of a head in batched attention, at least. With fewer than 8, XLA:TPU makes a loop
    /// on the vector unit of the product.
    pub min_query_rows: i64,
    /// Four-bit weights are bytes of two elements: XLA:CPU has no packed four-bit arrays.
    pub packs_nibbles: bool,
    /// A bf16 cache holds the bits as u16. XLA:CPU has no bf16 dynamic-update-slice: it converts
    /// the whole cache to f32 and back for each token written.
    pub caches_bf16_as_u16: bool,
    /// Optimization barriers keep XLA:CPU from converting all layers' weights at the start and from
    /// copying updated caches. Elsewhere layout constraints keep caches in the order in which they
    /// are updated in place.
    pub needs_barriers: bool,
}

impl Lowering {
    /// The host's processor, with kernels.
    pub const CPU: Self = Self {
        name: "cpu",
        shares_host_memory: true,
        kernels: true,
        stacks_layers: false,
        batches_decode: false,
        decode_steps: 1,
        min_query_rows: 1,
        packs_nibbles: true,
        caches_bf16_as_u16: true,
        needs_barriers: true,
    };
    /// The host's processor, with XLA's own operations.
    pub const CPU_NATIVE: Self = Self { name: "cpu-native", kernels: false, ..Self::CPU };
    /// Cloud TPU.
    pub const TPU: Self = Self {
        name: "tpu",
        shares_host_memory: false,
        kernels: false,
        stacks_layers: true,
        batches_decode: true,
        decode_steps: 8,
        min_query_rows: 8,
        packs_nibbles: false,
        caches_bf16_as_u16: false,
        needs_barriers: false,
    };
    /// NVIDIA GPUs.
    pub const CUDA: Self = Self { name: "cuda", min_query_rows: 1, ..Self::TPU };
}
