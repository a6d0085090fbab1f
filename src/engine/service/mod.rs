//! The engine behind a handle: a thread that runs it, and callers from anywhere.
//!
//! ```text
//! callers ─ submit ─► fair queue ─► engine's queue ─► slots
//!    ▲                (by key)      (one batch)         │
//!    └──────────── updates, one channel a request ◄─────┘
//! ```
//!
//! Dropping a request's [`Updates`] cancels it, in whatever phase it is. A step that fails, or
//! panics, ends the requests that were under way; the thread makes a new engine and goes on.

mod fair;
mod handle;
mod state;
mod worker;

pub use handle::{Service, Submission, Updates};
pub use state::{
    Backlog, Failure, Happened, LoadProgress, Phase, QueueLimits, ServiceError, ServiceStats, Update, Work,
};
pub use worker::MakeEngine;
