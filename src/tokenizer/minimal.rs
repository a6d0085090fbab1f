//! The smallest tokenizer with Gemma's special tokens at Gemma's ids, for checkpoints with random
//! weights.

use serde_json::{Value, json};

/// Returns a `tokenizer.json` whose only text tokens are the 256 bytes, at Gemma's ids 217 to 472.
/// `vocab_size` must be at least 473; other ids are `<unusedN>`.
pub fn minimal_tokenizer_json(vocab_size: usize) -> Value {
    const FIRST_BYTE: usize = 217;
    let special = |id: usize| match id {
        0 => Some("<pad>"),
        1 => Some("<eos>"),
        2 => Some("<bos>"),
        3 => Some("<unk>"),
        106 => Some("<start_of_turn>"),
        107 => Some("<end_of_turn>"),
        _ => None,
    };
    let name = |id: usize| match special(id) {
        Some(name) => name.to_owned(),
        None if (FIRST_BYTE..FIRST_BYTE + 256).contains(&id) => format!("<0x{:02X}>", id - FIRST_BYTE),
        None => format!("<unused{id}>"),
    };
    let vocab: serde_json::Map<String, Value> = (0..vocab_size).map(|id| (name(id), json!(id))).collect();
    let added: Vec<Value> = (0..vocab_size)
        .filter_map(|id| special(id).map(|content| (id, content)))
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    })
}
