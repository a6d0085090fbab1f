//! The demo model: a tiny Gemma that scripts/demo-model trains, in Hugging Face layout, embedded in
//! the program. It is taught capitals and other small facts, arithmetic, comparing, sorting,
//! counting, spelling, reading short passages, and to remember what it was told.

use std::sync::Arc;

use crate::{
    checkpoint::Checkpoint,
    pjrt::HostMemory,
    tokenizer::{TextFiles, Tokenizer},
};

/// `config.json`.
pub const CONFIG: &str = include_str!("config.json");
/// `tokenizer.json`.
pub const TOKENIZER: &[u8] = include_bytes!("tokenizer.json");
/// `tokenizer_config.json`.
pub const TOKENIZER_CONFIG: &str = include_str!("tokenizer_config.json");
static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("model.safetensors"));

/// Bytes at a multiple of 64, so that the CPU plugin uses the weights without a copy.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

/// The contents of all files of the model.
pub const FILES: [&[u8]; 4] = [CONFIG.as_bytes(), TOKENIZER, TOKENIZER_CONFIG.as_bytes(), &WEIGHTS.0];

/// Returns the checkpoint; its weights are bf16.
pub fn checkpoint() -> Checkpoint {
    Checkpoint::from_memory("model.safetensors", Arc::new(HostMemory::Static(&WEIGHTS.0)))
        .expect("the embedded checkpoint is complete")
}

/// Returns the tokenizer: 1024 entries, with Gemma's special tokens at Gemma's ids.
pub fn tokenizer() -> Tokenizer {
    let files = TextFiles {
        tokenizer_config: Some(TOKENIZER_CONFIG.into()),
        config: Some(CONFIG.into()),
        ..TextFiles::default()
    };
    Tokenizer::new(TOKENIZER, &files).expect("the embedded tokenizer is complete")
}
