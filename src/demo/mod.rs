//! The demo model: a tiny Gemma that scripts/demo-model trains, in Hugging Face layout, embedded in
//! the program. It is taught capitals and other small facts, arithmetic, comparing, sorting,
//! counting, spelling, reading short passages, and to remember what it was told.

use std::sync::Arc;

use crate::{
    checkpoint::Checkpoint,
    pjrt::HostMemory,
    tokenizer::{ChatTemplate, Tokenizer},
};

/// `config.json`.
pub const CONFIG: &str = include_str!("config.json");
/// `tokenizer.json`.
pub const TOKENIZER: &[u8] = include_bytes!("tokenizer.json");
/// `tokenizer_config.json`.
pub const TOKENIZER_CONFIG: &str = include_str!("tokenizer_config.json");
static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("model.safetensors"));

/// Bytes on a 64-byte boundary, so that the CPU plugin uses the weights where they lie in the
/// program.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

/// All its files.
pub const FILES: [&[u8]; 4] = [CONFIG.as_bytes(), TOKENIZER, TOKENIZER_CONFIG.as_bytes(), &WEIGHTS.0];

/// The weights, bf16.
pub fn checkpoint() -> Checkpoint {
    Checkpoint::from_memory("model.safetensors", Arc::new(HostMemory::Static(&WEIGHTS.0)))
        .expect("the embedded checkpoint is whole")
}

/// The tokenizer: 1024 entries, Gemma's special tokens at Gemma's ids.
pub fn tokenizer() -> Tokenizer {
    let template = ChatTemplate::of_config(TOKENIZER_CONFIG).expect("the embedded chat template compiles");
    Tokenizer::new(TOKENIZER, template).expect("the embedded tokenizer is whole")
}
