//! Running a model: its weights on devices, and sequences in a KV cache that steps extend.
//!
//! ```text
//! Platform (plugin + client) ─┐
//! Checkpoint (mapped files)  ─┼─► Model (weights, programs) ─► Session (cache: step, decode, copy)
//! ModelSpec                  ─┘
//! ```

mod batch;
mod buckets;
mod loader;
mod model;
mod packing;
mod placement;
mod session;
mod single;
mod slots;

pub use crate::device::{Error, Platform, PlatformRequest, Result};
pub use batch::{
    BatchHead, DecodeRow, Logprobs, RowRef, SamplingInputs, ScoredRow, Segment, StepBatch, StepOutput, Token,
    TokenScore,
};
pub use buckets::{MAX_STEP_TOKENS, cache_len_for, window_for};
pub use loader::OnProgress;
pub use model::{Model, RunOptions, session_modules};
pub use placement::{Placement, StoredModel, select};
pub use session::Session;
pub use single::Scored;
