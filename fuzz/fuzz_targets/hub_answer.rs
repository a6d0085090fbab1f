//! Answers of the hub: `name of a model NUL etag NUL body`.
#![no_main]

use std::path::Path;

use gemma_pjrt::hub::{Repo, commit_and_files, hash_of_etag, shards};
use gemma_pjrt_fuzz::parts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [name, etag, body] = parts(data).map(String::from_utf8_lossy);
    if let Some(repo) = Repo::parse(&name) {
        let leaves = |part: &str| part.is_empty() || part.starts_with('.');
        assert!(!repo.name.split('/').chain(repo.revision.split('/')).any(leaves), "{repo}");
        assert_eq!(Repo::parse(&repo.to_string()), Some(repo));
    }
    if let Some(hash) = hash_of_etag(&etag) {
        assert!(hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hash:?}");
    }
    if let Ok((commit, _)) = commit_and_files(&body) {
        assert_eq!(commit.len(), 40);
    }
    for shard in shards(&body).into_iter().flatten() {
        assert_eq!(Path::new(&shard).file_name(), Some(shard.as_ref()), "it leaves its directory");
    }
});
