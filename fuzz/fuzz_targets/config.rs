//! Configs: `config.json NUL generation_config.json NUL tokenizer_config.json NUL
//! adapter_config.json`.
#![no_main]

use gemma_pjrt::{
    checkpoint::{ADAPTER_CONFIG, adapter_base},
    gemma::{Config, tensors::num_parameters},
    hlo::Mesh,
    tokenizer::TextFiles,
};
use gemma_pjrt_fuzz::{dir, expect_shielded_panics, parts, put, small_tokenizer, text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: expect_shielded_panics(), |data: &[u8]| {
    let [config, generation_config, tokenizer_config, adapter_config] = parts(data);
    if let Some(text) = text(config) {
        match Config::parse(text) {
            Ok((config, _)) => use_config(config),
            Err(error) => assert!(!error.0.is_empty()),
        }
    }
    if generation_config.is_empty() && tokenizer_config.is_empty() && adapter_config.is_empty() {
        return;
    }
    let owned = |part| text(part).map(str::to_owned);
    let files = TextFiles {
        config: owned(config),
        generation_config: owned(generation_config),
        tokenizer_config: owned(tokenizer_config),
        ..TextFiles::default()
    };
    match small_tokenizer(&files) {
        Ok(tokenizer) => {
            assert!(tokenizer.chat_stop_ids().len() >= tokenizer.stop_ids().ids.len());
            let _ = tokenizer.takes_system_messages();
        }
        Err(error) => drop(error.to_string()),
    }
    if !adapter_config.is_empty() {
        let dir = dir("adapter");
        put(&dir.join(ADAPTER_CONFIG), adapter_config);
        let _ = adapter_base(&dir);
    }
});

/// A config that is accepted can be written, counted and split.
fn use_config(config: Config) {
    let again = Config::parse(&config.to_json().to_string()).map(|(config, _)| config);
    assert_eq!(again, Ok(config.clone()));
    assert!(num_parameters(&config) > 0);
    for model in [1, 2, 3, 8, 4096] {
        let mesh = Mesh { data: 1, model };
        match config.check_mesh(mesh) {
            Ok(()) => assert!(config.kv_heads_per_device(mesh) > 0),
            Err(error) => assert!(!error.0.is_empty()),
        }
    }
}
