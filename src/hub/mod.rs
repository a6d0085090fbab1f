//! Models by name, such as `google/gemma-1.1-2b-it`: found in Hugging Face's cache on this machine,
//! or downloaded into it. The layout is that of the `huggingface_hub` package, so that both share
//! their downloads:
//!
//! ```text
//! models--google--gemma-1.1-2b-it/
//!   refs/main                       the commit that the branch pointed to
//!   snapshots/<commit>/config.json  a link to ../../blobs/<etag>
//!   blobs/<etag>                    contents; <etag>.incomplete while they arrive
//! ```

mod cache;
mod client;
mod environment;
mod error;
mod fetch;
mod repo;
mod snapshot;

pub use cache::{HubCache, shards};
pub use client::{Hub, commit_and_files, has_token, hash_of_etag};
pub use error::{HubError, Result};
pub use repo::Repo;
