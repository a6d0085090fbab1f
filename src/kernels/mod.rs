//! CPU kernels, which compiled programs call through XLA's typed FFI.
//!
//! A decode step reads every weight once, so it can be as fast as memory is, if nothing else gets
//! in the way. XLA:CPU's own products get in the way: they convert bf16 weights in memory, or read
//! them slowly. These kernels read weights where they lie in the mapped checkpoint, convert them in
//! registers, and share the work among all threads.
//!
//! Bottom up, each importing only those above it:
//!
//! | module | what lives there |
//! |---|---|
//! | `unrolled` | a macro for loops over registers |
//! | `pool`, `scratch` | the threads, and memory for each |
//! | `simd` | vectors of f32, for each instruction set |
//! | `tiles` | AMX's tile registers |
//! | `isa` | the instruction sets, and running a kernel compiled for one |
//! | `context` | the threads and the instruction set that a kernel runs on |
//! | [`probe`] | the processor's peak memory bandwidth and arithmetic, measured |
//! | `format` | loading elements of each type |
//! | [`operands`], [`output`] | weights as stored, activations, results |
//! | [`integer`] | products in integers, for few activations and quantised weights |
//! | `upcast` | weights converted to f32 or bf16 once, for many activations |
//! | `amx` | products in tiles of bf16 |
//! | `panels` | products in f32, for many activations |
//! | [`matmul`] | products of activations with weights, in the fastest of these ways |
//! | [`linear`] | epilogues: store, GELU, max, top-k |
//! | [`segments`] | which tokens of a step belong to which slot |
//! | [`kv_cache`] | the KV cache, and appending to it |
//! | [`attention`] | causal attention over the KV cache |
//! | `handlers` | the FFI handlers: check types and shapes, call the kernel |

#[macro_use]
mod unrolled;

mod amx;
pub mod attention;
mod context;
mod format;
mod handlers;
pub mod integer;
mod isa;
pub mod kv_cache;
pub mod linear;
pub mod matmul;
pub mod operands;
pub mod output;
mod panels;
mod pool;
pub mod probe;
mod scratch;
pub mod segments;
mod simd;
mod tiles;
mod upcast;

pub use context::{ExecContext, are_fast, set_threads};
pub use handlers::register;
pub use isa::Isa;
pub use pool::Pool;
