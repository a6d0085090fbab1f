//! A line of `generate --input`.
#![no_main]

use std::sync::LazyLock;

use clap::Parser;
use gemma_pjrt::{
    cli::generate::{Args, Failure, Line},
    tokenizer::{TextFiles, Tokenizer},
};
use gemma_pjrt_fuzz::{VOCAB, expect_shielded_panics, small_tokenizer};
use libfuzzer_sys::fuzz_target;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fuzz_target!(init: expect_shielded_panics(), |data: &[u8]| {
    static ARGS: LazyLock<Args> = LazyLock::new(|| Cli::parse_from(["generate"]).args);
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| small_tokenizer(&TextFiles::default()).unwrap());
    let Ok(text) = std::str::from_utf8(data) else { return };
    let line = Line::parse(text, &ARGS, &TOKENIZER);
    match &line.request {
        Ok((request, _)) => {
            assert!(line.tokens() >= request.prompt.len());
            if request.check(1024, VOCAB as i64).is_ok() {
                assert!(request.prompt.iter().all(|&id| (id as usize) < VOCAB));
            }
        }
        Err(error) => {
            let written = line.envelope.failed(0, &line.id, Failure::Refused, error);
            assert!(!error.is_empty() && !written.to_string().contains('\n'), "{written}");
        }
    }
});
