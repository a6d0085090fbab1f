//! Inputs that fuzzing found, which are seeds of `fuzz/`, too: each is an error that says what is
//! wrong.

use std::{fs, path::Path};

use gemma_pjrt::eval::Dataset;

/// Reads a seed of the target `dataset`: `ending NUL contents`.
fn dataset_error(seed: &str) -> String {
    let seed = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/dataset").join(seed)).unwrap();
    let end = seed.iter().position(|&byte| byte == 0).unwrap();
    let name = format!("test.{}", str::from_utf8(&seed[..end]).unwrap());
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("set")).unwrap();
    fs::write(root.path().join("set").join(&name), &seed[end + 1..]).unwrap();
    Dataset::open(root.path(), "set", None).unwrap().file(&name).unwrap_err().to_string()
}

#[test]
fn damaged_parquet_files_are_errors() {
    for (seed, named) in
        [("parquet_negative_start", "column start and length should not be negative"), ("parquet_endless_list", "")]
    {
        let error = dataset_error(seed);
        assert!(error.contains(named) && error.contains("download it again"), "{seed}: {error}");
    }
}
