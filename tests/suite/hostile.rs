//! Inputs that fuzzing found, or that its findings led to, which are seeds of `fuzz/`, too: each is
//! an error that says what is wrong.

use std::{fs, path::Path};

use gemma_pjrt::eval::Dataset;

/// Reads a seed of the target `dataset`: `ending NUL contents`.
fn rows(seed: &str) -> Result<usize, String> {
    let seed = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/dataset").join(seed)).unwrap();
    let end = seed.iter().position(|&byte| byte == 0).unwrap();
    let name = format!("test.{}", str::from_utf8(&seed[..end]).unwrap());
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("set")).unwrap();
    fs::write(root.path().join("set").join(&name), &seed[end + 1..]).unwrap();
    Dataset::open(root.path(), "set", None).unwrap().file(&name).map(|rows| rows.len()).map_err(|e| e.to_string())
}

#[test]
fn damaged_parquet_files_are_errors() {
    for (seed, named) in [
        ("parquet_negative_start", "column start and length should not be negative"),
        ("parquet_endless_list", ""),
        ("parquet_page_size", "a page of 14 bytes claims to have 2147483647 of them uncompressed"),
        ("parquet_dictionary_size", "a dictionary of 4 bytes claims to have 2147483647 values"),
        ("parquet_children", "a group of its schema has 2147483647 columns, of 2 elements"),
        ("parquet_endless_rows", "has 4611686018427387904 rows, and no columns"),
        ("parquet_endless_nulls", "has 4611686018427387904 rows, and its column x 3 values"),
        ("parquet_many_values", "claim to hold 2147483647 values"),
        ("parquet_many_elements", "claim to hold 2147483647 values"),
        ("parquet_scale", "has 1000000 digits after the point"),
        ("parquet_delta_length", "a page of 1 values claims to have the lengths of 1099511627776"),
        ("parquet_delta_text", "a page of 1 values claims to have the lengths of 1099511627776"),
        ("parquet_bool_lists", "a list of type 1"),
        ("parquet_texts", "are too long"),
        ("parquet_wrong_type", "a value has the wrong type, 8"),
        ("parquet_hidden_lists", "a value has the wrong type, 8"),
    ] {
        let error = rows(seed).unwrap_err();
        assert!(error.contains(named) && error.contains("download it again"), "{seed}: {error}");
    }
}

#[test]
fn parquet_files_of_other_programs_are_read() {
    for seed in ["parquet_1", "parquet_2", "parquet_3", "parquet_delta"] {
        assert!(rows(seed).unwrap() > 0, "{seed}");
    }
}
