//! PJRT through its C API: plugins, clients, devices, buffers, programs. It takes program bytes,
//! not graphs, and uses nothing else of this crate.
//!
//! Reading order: `abi` declares the C API, and `api` is the only place that calls it. Then come
//! the safe types: `client`, `device`, `buffer`, `transfer`, `program`, `executable`, `topology`.
//! Each file adds to `Client` the functions that make its types. A handle keeps its parents alive,
//! is destroyed on drop, and is `Send + Sync`, which PJRT allows for all of them.

mod abi;
mod api;
mod buffer;
mod client;
mod compile_options;
mod device;
mod element_type;
mod error;
mod event;
mod executable;
mod exit;
pub mod ffi;
mod host;
mod program;
mod tensor_type;
mod topology;
mod transfer;
mod xla_flags;

pub use abi::{Layout as AbiLayout, SLOT_NAMES as ABI_SLOT_NAMES, layouts as abi_layouts};
pub use api::{Api, Options, Value};
pub use buffer::Buffer;
pub use client::Client;
pub use compile_options::CompileOptions;
pub use device::{Device, Memory, MemoryStats};
pub use element_type::ElementType;
pub use error::{Code, Error, Result};
pub use event::Event;
pub use executable::{Arg, Executable, Execution};
pub use host::{HostBytes, HostMemory};
pub use program::{CompiledMemoryStats, Program, Signature};
pub use tensor_type::TensorType;
pub use topology::{AotExecutable, Topology};
pub use transfer::{TransferManager, Upload};
