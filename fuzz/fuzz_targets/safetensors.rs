//! Checkpoints and adapters: the header of a safetensors file, an index, an adapter's config. The
//! input is `index NUL adapter_config NUL header NUL data`; without a header, the file is the data.
#![no_main]

use std::{fs, sync::Arc};

use gemma_pjrt::{
    checkpoint::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint, LoraAdapter, adapter_base},
    pjrt::HostMemory,
};
use gemma_pjrt_fuzz::{dir, parts, put};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [index, adapter_config, header, weights] = parts(data);
    let file = match header.len() {
        0 => weights.to_vec(),
        len => [&(len as u64).to_le_bytes(), header, weights].concat(),
    };
    let whole = Checkpoint::from_memory("model.safetensors", Arc::new(HostMemory::Owned(file.clone())));
    let mut whole = whole.inspect_err(|e| drop(e.to_string())).ok();
    whole.iter().for_each(|checkpoint| check(checkpoint, file.len()));
    if !index.is_empty() {
        let dir = dir("sharded");
        put(&dir.join("model.safetensors.index.json"), index);
        fs::write(dir.join("a.safetensors"), &file).unwrap();
        match Checkpoint::open(&dir) {
            Ok(checkpoint) => check(&checkpoint, file.len()),
            Err(error) => drop(error.to_string()),
        }
    }
    if !adapter_config.is_empty() {
        let dir = dir("adapter");
        put(&dir.join(ADAPTER_CONFIG), adapter_config);
        fs::write(dir.join(ADAPTER_WEIGHTS), &file).unwrap();
        let _ = adapter_base(&dir);
        if let Ok(adapter) = LoraAdapter::open(&dir).map_err(|error| error.to_string())
            && let Some(checkpoint) = &mut whole
            && checkpoint.merge(&adapter).is_ok()
        {
            check(checkpoint, usize::MAX);
        }
    }
});

/// All tensors are as long as their shapes say, and lie in the file.
fn check(checkpoint: &Checkpoint, file_len: usize) {
    for (name, tensor) in checkpoint.tensors() {
        let bytes = tensor.bytes.bytes().len();
        assert!(bytes <= file_len, "{name} has {bytes} bytes");
        if let Ok(dtype) = &tensor.dtype {
            let elements: i128 = tensor.dims.iter().map(|&dim| i128::from(dim)).product();
            assert_eq!(elements * dtype.bits() as i128, 8 * bytes as i128, "{name}");
        }
    }
    let _ = checkpoint.output_layer();
    let _ = checkpoint.refuse_formats_of_others();
    let needed = [("model.embed_tokens.weight", &[4, 2][..]), ("model.norm.weight", &[2])];
    match checkpoint.select(&needed, &["lm_head.weight"]) {
        Ok(tensors) => assert_eq!(tensors.len(), 2),
        Err(error) => drop(error.to_string()),
    }
}
