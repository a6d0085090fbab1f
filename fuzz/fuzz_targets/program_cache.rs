//! Compiled programs on disk: `manifest of a bundle NUL entry`.
#![no_main]

use gemma_pjrt::compile::{Bundle, entry_payload};
use gemma_pjrt_fuzz::{dir, parts, put};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [manifest, entry] = parts(data);
    if !manifest.is_empty() {
        let dir = dir("bundle");
        put(&dir.join("manifest.json"), manifest);
        match Bundle::read(&dir) {
            Ok(bundle) => drop(format!("{:?} {}", bundle.manifest, bundle.size())),
            Err(error) => drop(error.to_string()),
        }
    }
    let key: [u8; 32] = entry.get(8..40).and_then(|key| key.try_into().ok()).unwrap_or_default();
    match entry_payload(entry, &key) {
        Ok(payload) => {
            assert_eq!(payload, &entry[72..]);
            // Any byte that changes is noticed.
            let mut damaged = entry.to_vec();
            let at = payload.iter().fold(0, |sum: usize, &byte| sum.wrapping_mul(31) + usize::from(byte)) % entry.len();
            damaged[at] ^= 1;
            assert!(entry_payload(&damaged, &key).is_err());
        }
        Err(error) => assert!(!error.is_empty()),
    }
});
