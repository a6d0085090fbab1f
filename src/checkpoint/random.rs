//! Writes checkpoints with random weights, for tests and benchmarks, in the layout of real ones.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use half::bf16;

use super::{CheckpointError, write_safetensors};
use crate::{hlo::DType, whole_file::write_whole};

/// The largest shard, in bytes; Hugging Face's exporter splits at this size.
const SHARD_BYTES: i64 = 5_000_000_000;

/// Writes tensors of these names and shapes to `dir` as bf16, in shards with an index if they are
/// large. Values are drawn from a normal distribution of standard deviation 0.02, and depend on the
/// seed and the tensor's name alone.
///
/// # Errors
/// A file cannot be written.
pub fn write_random(
    dir: &Path,
    tensors: &[(String, Vec<i64>)],
    seed: u64,
    progress: impl Fn(u64),
) -> Result<(), CheckpointError> {
    fs::create_dir_all(dir).map_err(|cause| CheckpointError::Write { path: dir.to_owned(), cause })?;
    let mut shards: Vec<Vec<(String, DType, Vec<i64>)>> = vec![vec![]];
    let mut bytes = 0;
    for (name, dims) in tensors {
        let size = dims.iter().product::<i64>() * 2;
        if bytes > 0 && bytes + size > SHARD_BYTES {
            shards.push(vec![]);
            bytes = 0;
        }
        bytes += size;
        shards.last_mut().expect("never empty").push((name.clone(), DType::BF16, dims.clone()));
    }
    let count = shards.len();
    let mut weight_map = serde_json::Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        write_safetensors(&dir.join(&file), shard, |i, out| {
            let (name, _, dims) = &shard[i];
            let elements = dims.iter().product::<i64>() as u64;
            write_normal(out, seed ^ fnv1a(name), elements)?;
            progress(elements * 2);
            Ok(())
        })?;
        weight_map.extend(shard.iter().map(|(name, ..)| (name.clone(), file.clone().into())));
    }
    if count > 1 {
        let total: i64 = tensors.iter().map(|(_, dims)| dims.iter().product::<i64>() * 2).sum();
        let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let path = dir.join("model.safetensors.index.json");
        let text = serde_json::to_string_pretty(&index).expect("JSON of strings and numbers");
        write_whole(&path, |out| out.write_all(text.as_bytes()))
            .map_err(|cause| CheckpointError::Write { path, cause })?;
    }
    Ok(())
}

/// Writes approximately normal numbers: sums of the four 16-bit parts of a splitmix64 word
/// (Irwin-Hall), which is fast.
fn write_normal(out: &mut dyn Write, seed: u64, elements: u64) -> io::Result<()> {
    const CHUNK: usize = 1 << 16;
    let mut state = seed;
    let mut buffer = Vec::with_capacity(CHUNK * 2);
    let mut remaining = elements;
    while remaining > 0 {
        let n = remaining.min(CHUNK as u64);
        buffer.clear();
        for _ in 0..n {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            let sum = (z & 0xFFFF) + ((z >> 16) & 0xFFFF) + ((z >> 32) & 0xFFFF) + (z >> 48);
            // The sum of four uniforms on 0..65535 has mean 131070 and standard deviation 65536 /
            // sqrt(3).
            let normal = (sum as f32 - 131_070.0) * (3.0_f32.sqrt() / 65_536.0);
            buffer.extend_from_slice(&bf16::from_f32(normal * 0.02).to_le_bytes());
        }
        out.write_all(&buffer)?;
        remaining -= n;
    }
    Ok(())
}

/// Hashes a name by FNV-1a, so that each tensor has its own stream of numbers.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}
