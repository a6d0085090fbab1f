//! Packages: a wheel, which begins as zip files do; or an index's page, `address NUL page`.
#![no_main]

use std::fs;

use gemma_pjrt::plugins::{files_of_page, unpack_all};
use gemma_pjrt_fuzz::{dir, parts, text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if data.starts_with(b"PK") {
        return unpack(data);
    }
    let [page, body] = parts(data);
    let body = String::from_utf8_lossy(body);
    let page = text(page).unwrap_or("https://host/simple/package/");
    for is_json in [false, true] {
        for (_, url) in files_of_page(page, is_json, &body).into_iter().flatten() {
            assert!(url.contains('/') || url.is_empty(), "{url:?} is relative");
        }
    }
});

/// No file of a wheel leaves the directory that it is unpacked into.
fn unpack(wheel: &[u8]) {
    let around = dir("wheel");
    let (file, to) = (around.join("wheel"), around.join("a/b"));
    fs::create_dir_all(&to).unwrap();
    fs::write(&file, wheel).unwrap();
    match unpack_all(&file, "wheel", &to) {
        Ok(()) => {}
        Err(error) => drop(error.to_string()),
    }
    for (dir, entries) in [(&around, 2), (&around.join("a"), 1)] {
        assert_eq!(fs::read_dir(dir).unwrap().count(), entries, "the wheel wrote into {}", dir.display());
    }
    fs::remove_dir_all(&to).unwrap();
}
