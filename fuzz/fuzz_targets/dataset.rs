//! Files of datasets: `ending NUL contents`.
#![no_main]

use std::fs;

use gemma_pjrt::eval::{Dataset, digest};
use gemma_pjrt_fuzz::{dir, expect_shielded_panics, parts};
use libfuzzer_sys::fuzz_target;

const ENDINGS: [&str; 9] = ["parquet", "jsonl", "json", "csv", "tsv", "txt", "jsonl.gz", "csv.gz", "json.gz"];

fuzz_target!(init: expect_shielded_panics(), |data: &[u8]| {
    let [ending, contents] = parts(data);
    let Some(ending) = ENDINGS.iter().find(|known| known.as_bytes() == ending) else { return };
    let root = dir("data");
    let name = format!("test.{ending}");
    fs::create_dir_all(root.join("set")).unwrap();
    fs::write(root.join("set").join(&name), contents).unwrap();
    let dataset = Dataset::open(&root, "set", None).expect("it was just written");
    match dataset.file(&name) {
        Ok(rows) => drop(digest(&rows)),
        Err(error) => drop(error.to_string()),
    }
});
