//! Tests against things that are not in the repository: scripts/fetch-test-data.sh fetches them,
//! ci/run runs both. `cargo test` alone leaves this binary out (test = false in Cargo.toml).

mod abi_drift;
mod real_tokenizer;
mod tpu_ahead_of_time;

use std::path::{Path, PathBuf};

/// A file of the test data.
fn data(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-data").join(name);
    assert!(path.exists(), "{} is missing: run scripts/fetch-test-data.sh", path.display());
    path
}
