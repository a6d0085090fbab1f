//! Programs as plugins compile them: from memory, from the disk cache, from a bundle, or compiled
//! now; for devices that are here or for a machine elsewhere. The only room that sees graphs and
//! plugins together.

mod bundle;
mod disk_cache;
mod entries;
mod programs;
mod signature;
mod target;

pub use bundle::{Bundle, Manifest};
pub use disk_cache::{DiskCache, Origin};
pub use entries::entry_payload;
pub use programs::{CompileReport, Programs};
pub use signature::{element_type, lowering, signature, tensor_type};
pub use target::{CompileTarget, Compiled, TargetRequest, slice_chips};
