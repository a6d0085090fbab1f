//! Tokenizers: `tokenizer.json NUL tokenizer_config.json NUL text`.
#![no_main]

use std::sync::Arc;

use gemma_pjrt::tokenizer::{TextFiles, Tokenizer};
use gemma_pjrt_fuzz::{expect_shielded_panics, parts, text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: expect_shielded_panics(), |data: &[u8]| {
    let [json, config, words] = parts(data);
    let files = TextFiles { tokenizer_config: text(config).map(str::to_owned), ..TextFiles::default() };
    let tokenizer = match Tokenizer::new(json, &files) {
        Ok(tokenizer) => Arc::new(tokenizer),
        Err(error) => return drop(error.to_string()),
    };
    let words = text(words).unwrap_or("a b<bos> abé");
    let Ok(ids) = tokenizer.encode(words) else { return };
    let bos = tokenizer.special().bos;
    assert!(ids[0] == bos && ids.get(1) != Some(&bos), "{ids:?}");
    let _ = tokenizer.decode(&ids);
    let mut stream = tokenizer.stream();
    for &id in ids.iter().chain(&[0, u32::MAX]).take(64) {
        let _ = stream.push(id);
    }
    let _ = stream.finish();
});
