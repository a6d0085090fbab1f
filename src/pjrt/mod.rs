//! PJRT through its C API: plugins, clients, devices, buffers, programs. Takes program bytes, not graphs, and knows
//! nothing else of this crate.
//!
//! Reading order: `abi` is the C side as it is, `api` the one place where it is called; above them are the safe
//! types. A handle keeps its parents alive, is destroyed on drop, and is `Send + Sync`, which PJRT allows for all of them.

mod abi;
mod api;
mod buffer;
mod client;
mod compile_options;
mod element_type;
mod error;
mod event;
mod executable;
pub mod ffi;
mod host;
mod topology;

pub use abi::{Layout as AbiLayout, SLOT_NAMES as ABI_SLOT_NAMES, layouts as abi_layouts};
pub use api::{Api, Options, Value};
pub use buffer::Buffer;
pub use client::{Client, Device, Memory, MemoryStats, TransferManager, Upload};
pub use compile_options::CompileOptions;
pub use element_type::ElementType;
pub use error::{Code, Error, Result};
pub use event::Event;
pub use executable::{Arg, CompiledMemoryStats, Executable, Execution, Program, Signature, TensorType};
pub use host::{HostBytes, HostMemory};
pub use topology::{AotExecutable, Topology};
