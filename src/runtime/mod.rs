//! Running the model: the platform, placed weights, compiled programs, sequences in a cache. The only room that sees graphs
//! and plugins together.
//!
//! ```text
//! Platform (plugin + client)  ─┐
//! Checkpoint (mapped files)   ─┼─►  Model (weights on devices, programs)  ─►  Session (caches: prefill, decode, score)
//! Config, Mesh, dtype         ─┘
//! ```

mod bridge;
mod buckets;
mod bundle;
mod error;
mod host_memory;
mod inputs;
mod loading;
mod machine;
mod model;
mod plan;
mod platform;
mod program_cache;
mod programs;
mod session;
mod weights;

pub use bridge::{element_type, signature, target};
pub use buckets::{Chunk, cache_len_for, chunks, window_for};
pub use bundle::{Bundle, Manifest};
pub use error::{Error, Result};
pub use inputs::{Choice, Decode};
pub use loading::OnProgress;
pub use machine::{Compiled, Machine, MachineRequest};
pub use model::{Model, ModelOptions};
pub use plan::{Alternative, Plan, Rates, Setup, Step, StepTime, alternatives, search, slice_chips};
pub use platform::{Platform, PlatformRequest};
pub use program_cache::{Origin, ProgramCache};
pub use programs::CompileReport;
pub use session::{Extend, Logprobs, Scored, Session, Token};
pub use weights::{Placement, select};
