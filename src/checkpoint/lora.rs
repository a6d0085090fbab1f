//! LoRA adapters in PEFT's layout, merged into the matrices of a checkpoint.
//!
//! An adapter has, for a matrix `W [out, in]`, factors `A [r, in]` and `B [out, r]` (Hu et al.
//! 2021): the merged matrix is `W + s B A`, where s is `lora_alpha / r`, or `lora_alpha / sqrt(r)`
//! with `use_rslora` (Kalajdzievski 2023). It is computed in f32 and rounded once, to the type of
//! W.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use half::{bf16, f16};
use serde_json::Value;

use super::{
    CheckpointError, OutputLayer, Tensor,
    open::{ADAPTER_WEIGHTS, Checkpoint, canonical, dtype_of},
    quantize::to_f32,
    write::ALIGNMENT,
};
use crate::{
    gemma::tensors::LM_HEAD_NAME,
    hlo::DType,
    model_file::{LFS_POINTER, is_lfs_pointer, parse_json},
    pjrt::{HostBytes, HostMemory},
};

/// The file that makes a directory an adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Prefix of module names in PEFT's files.
const PREFIX: &str = "base_model.model.";

/// An adapter, read.
pub struct LoraAdapter {
    dir: PathBuf,
    /// By the name of the tensor that each changes.
    updates: BTreeMap<String, LowRank>,
    /// Tensors in the place of the base's: PEFT saves embeddings whole where they were adapted.
    replaced: BTreeMap<String, Tensor>,
}

/// A change of a matrix: `b a`, scaled.
struct LowRank {
    /// `[out, rank]`
    b: Vec<f32>,
    /// `[rank, in]`
    a: Vec<f32>,
    rank: usize,
}

/// Fields of `adapter_config.json` that change the result in ways that merging `B A` does not
/// cover, each with the values that change nothing.
const NOT_SUPPORTED: [(&str, &[&str]); 11] = [
    ("modules_to_save", &["null", "[]"]),
    ("bias", &["null", "\"none\""]),
    ("use_dora", &["null", "false"]),
    ("use_qalora", &["null", "false"]),
    ("alora_invocation_tokens", &["null", "[]"]),
    ("fan_in_fan_out", &["null", "false"]),
    ("lora_bias", &["null", "false"]),
    ("alpha_pattern", &["null", "{}"]),
    ("layer_replication", &["null", "[]"]),
    ("trainable_token_indices", &["null", "[]", "{}"]),
    ("target_parameters", &["null", "[]"]),
];

/// Returns the model that an adapter was trained on, a name on the hub or a path, if it says so.
///
/// # Errors
/// The directory holds no LoRA adapter's config.
pub fn adapter_base(dir: &Path) -> Result<Option<String>, CheckpointError> {
    Ok(adapter_config(dir)?["base_model_name_or_path"].as_str().map(str::to_owned))
}

fn adapter_config(dir: &Path) -> Result<Value, CheckpointError> {
    let failed = |problem: String| CheckpointError::Adapter { dir: dir.to_owned(), problem };
    let text = std::fs::read_to_string(dir.join(ADAPTER_CONFIG)).map_err(|e| e.to_string());
    let json = text.and_then(|text| parse_json(&text));
    let json = json.map_err(|problem| failed(format!("{ADAPTER_CONFIG} cannot be read: {problem}")))?;
    if json["peft_type"] != "LORA" {
        return Err(failed(format!("its peft_type is {}, and only \"LORA\" can be merged", json["peft_type"])));
    }
    Ok(json)
}

impl LoraAdapter {
    /// Reads an adapter's directory.
    ///
    /// # Errors
    /// It is none, is damaged, or does what cannot be merged.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let failed = |problem: String| CheckpointError::Adapter { dir: dir.to_owned(), problem };
        let config = adapter_config(dir)?;
        for (field, harmless) in NOT_SUPPORTED {
            let value = config[field].to_string();
            if !harmless.contains(&value.as_str()) {
                return Err(failed(format!("its {field} is {value}, which cannot be merged")));
            }
        }
        let alpha = config["lora_alpha"].as_f64().filter(|alpha| alpha.is_finite());
        let alpha = alpha.ok_or_else(|| failed(format!("its lora_alpha is {}, no number", config["lora_alpha"])))?;
        let scale = |rank: usize| {
            let rank = rank as f64;
            (alpha / if config["use_rslora"] == true { rank.sqrt() } else { rank }) as f32
        };
        let has_one_rank = ["null", "{}"].contains(&config["rank_pattern"].to_string().as_str());
        let one_rank = config["r"].as_u64().filter(|_| has_one_rank);
        if !dir.join(ADAPTER_WEIGHTS).exists() && dir.join("adapter_model.bin").exists() {
            return Err(failed(format!("it has adapter_model.bin, and no {ADAPTER_WEIGHTS}")));
        }
        let memory = HostMemory::map(&dir.join(ADAPTER_WEIGHTS)).map_err(|e| failed(e.to_string()))?;
        if is_lfs_pointer(memory.bytes()) {
            return Err(failed(format!("{ADAPTER_WEIGHTS}: {LFS_POINTER}")));
        }
        let file = safetensors::SafeTensors::deserialize(memory.bytes())
            .map_err(|e| failed(format!("{ADAPTER_WEIGHTS} is damaged ({e})")))?;
        let factors = Factors { file: &file, failed: &failed };
        let mut updates = BTreeMap::new();
        let mut replaced = BTreeMap::new();
        let mut known = BTreeSet::new();
        for name in file.names() {
            let module = name.strip_prefix(PREFIX).unwrap_or(name);
            let (module, [first, second], is_embedding) = if let Some(module) = module.strip_suffix(".lora_A.weight") {
                (module, [name.to_owned(), name.replace(".lora_A.", ".lora_B.")], false)
            } else if let Some(module) = module.strip_suffix(".lora_embedding_A") {
                (module, [name.to_owned(), name.replace("embedding_A", "embedding_B")], true)
            } else {
                if let Some(module) = whole(module) {
                    replaced.insert(canonical(&format!("{module}.weight")), factors.whole(name, &memory, dir)?);
                    known.insert(name.to_owned());
                }
                continue;
            };
            let update = factors.low_rank(&first, &second, is_embedding, scale)?;
            if one_rank.is_some_and(|rank| rank != update.rank as u64) {
                let (given, found) = (&config["r"], update.rank);
                let problem = format!("its r is {given}, and {first} has rank {found}: they are of different adapters");
                return Err(failed(problem));
            }
            known.extend([first, second]);
            updates.insert(canonical(&format!("{module}.weight")), update);
        }
        if let Some(other) = file.names().into_iter().find(|name| !known.contains(*name)) {
            let first = other.replace(".lora_B.", ".lora_A.");
            let problem = if first == *other { "is no factor of a matrix".into() } else { format!("has no {first}") };
            return Err(failed(format!("{ADAPTER_WEIGHTS} has {other}, which {problem}")));
        }
        if updates.is_empty() {
            return Err(failed(format!("{ADAPTER_WEIGHTS} has no factors")));
        }
        Ok(Self { dir: dir.to_owned(), updates, replaced })
    }

    /// Returns the names of the tensors that it changes.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.updates.keys().map(String::as_str)
    }
}

/// The module of a tensor that is there whole: an adapted one's base, or an embedding beside it.
fn whole(name: &str) -> Option<&str> {
    let is_embedding = |module: &&str| module.ends_with("embed_tokens") || module.ends_with("lm_head");
    name.strip_suffix(".base_layer.weight").or_else(|| name.strip_suffix(".weight").filter(is_embedding))
}

/// Reads factors from an adapter's file.
struct Factors<'f, E> {
    file: &'f safetensors::SafeTensors<'f>,
    failed: &'f E,
}

impl<E: Fn(String) -> CheckpointError> Factors<'_, E> {
    fn low_rank(
        &self,
        first: &str,
        second: &str,
        is_embedding: bool,
        scale: impl Fn(usize) -> f32,
    ) -> Result<LowRank, CheckpointError> {
        let ([rank, width], a) = self.matrix(first)?;
        let ([rows, other], b) = self.matrix(second)?;
        if rank == 0 || rank != other {
            return Err((self.failed)(format!("{first} has rank {rank}, and {second} {other}")));
        }
        // An embedding's factors are those of its transpose.
        let (mut b, a) = if is_embedding { (transposed(&a, rank, width), transposed(&b, rows, rank)) } else { (b, a) };
        let scale = scale(rank);
        b.iter_mut().for_each(|x| *x *= scale);
        Ok(LowRank { b, a, rank })
    }

    fn whole(&self, name: &str, memory: &Arc<HostMemory>, dir: &Path) -> Result<Tensor, CheckpointError> {
        let tensor = self.file.tensor(name).map_err(|e| (self.failed)(e.to_string()))?;
        let start = tensor.data().as_ptr() as usize - memory.bytes().as_ptr() as usize;
        Ok(Tensor {
            dtype: dtype_of(tensor.dtype()),
            dims: tensor.shape().iter().map(|&dim| dim as i64).collect(),
            bytes: HostBytes::new(memory.clone(), start..start + tensor.data().len()),
            file: Arc::new(dir.join(ADAPTER_WEIGHTS)),
        })
    }

    fn matrix(&self, name: &str) -> Result<([usize; 2], Vec<f32>), CheckpointError> {
        let tensor = self.file.tensor(name).map_err(|_| (self.failed)(format!("{ADAPTER_WEIGHTS} lacks {name}")))?;
        match (tensor.shape(), dtype_of(tensor.dtype())) {
            (&[rows, width], Ok(dtype)) if dtype.is_float() => Ok(([rows, width], to_f32(tensor.data(), dtype))),
            (shape, _) => Err((self.failed)(format!("{name} is {:?} {shape:?}, no matrix of floats", tensor.dtype()))),
        }
    }
}

/// `[rows, width]` as `[width, rows]`.
fn transposed(x: &[f32], rows: usize, width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| (0..rows).map(move |row| x[row * width + column])).collect()
}

impl Checkpoint {
    /// Merges an adapter. The matrices that it changes are copied into memory.
    ///
    /// # Errors
    /// It is for another model: a matrix is missing, has another shape, or is no float.
    pub fn merge(&mut self, adapter: &LoraAdapter) -> Result<(), CheckpointError> {
        let failed = |problem: String| CheckpointError::Adapter { dir: adapter.dir.clone(), problem };
        // Decided by the base's tensors: an output layer that is the embedding changes with it.
        if self.output_layer() == OutputLayer::Embedding {
            self.tensors.remove(LM_HEAD_NAME);
        }
        for (name, new) in &adapter.replaced {
            let old = self.tensors.get(name).ok_or_else(|| failed(format!("it has {name}, which the model lacks")))?;
            let dtype = old.dtype.clone();
            if old.dims != new.dims {
                return Err(failed(format!("its {name} is {:?}, and {:?} in the model", new.dims, old.dims)));
            }
            self.tensors.insert(name.clone(), converted(new, dtype).map_err(failed)?);
        }
        for (name, update) in &adapter.updates {
            let tensor = self.tensors.get_mut(name).ok_or_else(|| {
                let tied = if name.starts_with("lm_head.") { ": its output layer is the embedding" } else { "" };
                failed(format!("it changes {name}, which the model lacks{tied}"))
            })?;
            let dims = [update.b.len() / update.rank, update.a.len() / update.rank].map(|dim| dim as i64);
            if tensor.dims != dims {
                return Err(failed(format!("it changes {name} {dims:?}, which is {:?} in the model", tensor.dims)));
            }
            tensor.bytes = match tensor.dtype {
                Ok(dtype) if dtype.is_float() => merged(tensor, dtype, update),
                _ => return Err(failed(format!("{name} is quantised already; merge into the original model"))),
            };
        }
        Ok(())
    }
}

/// A tensor in the type that the model has for it.
fn converted(tensor: &Tensor, dtype: Result<DType, String>) -> Result<Tensor, String> {
    if tensor.dtype == dtype {
        return Ok(tensor.clone());
    }
    let types = (&tensor.dtype, &dtype);
    let (Ok(from), Ok(to)) = types else { return Err(format!("a tensor of type {types:?} cannot be converted")) };
    if !from.is_float() || !to.is_float() {
        return Err(format!("a tensor of type {from} is {to} in the model"));
    }
    let mut bytes = vec![0; tensor.dims.iter().product::<i64>() as usize * to.bits() / 8];
    round_to(to_f32(tensor.bytes.bytes(), *from).into_iter(), *to, &mut bytes);
    Ok(Tensor { dtype, bytes: bytes.into(), ..tensor.clone() })
}

/// A matrix with an update, on all cores.
fn merged(tensor: &Tensor, dtype: DType, update: &LowRank) -> HostBytes {
    let [rows, width] = [0, 1].map(|i| tensor.dims[i] as usize);
    let row_bytes = width * dtype.bits() / 8;
    // As aligned as the tensors of files that this program writes.
    let size = rows * row_bytes;
    let mut memory = vec![0_u8; size + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let part_rows = rows.div_ceil(threads).max(1);
    let merge_part = |first_row: usize, old: &[u8], new: &mut [u8]| {
        let mut delta = vec![0.0_f32; width];
        for (row, (old, new)) in old.chunks_exact(row_bytes).zip(new.chunks_exact_mut(row_bytes)).enumerate() {
            delta.fill(0.0);
            for (b, a) in update.b[(first_row + row) * update.rank..].iter().zip(update.a.chunks_exact(width)) {
                delta.iter_mut().zip(a).for_each(|(delta, a)| *delta += b * a);
            }
            let sum = to_f32(old, dtype).into_iter().zip(&delta).map(|(w, delta)| w + delta);
            round_to(sum, dtype, new);
        }
    };
    if size > 0 {
        thread::scope(|scope| {
            let old = tensor.bytes.bytes().chunks(part_rows * row_bytes);
            let new = memory[start..start + size].chunks_mut(part_rows * row_bytes);
            for (i, (old, new)) in old.zip(new).enumerate() {
                scope.spawn(move || merge_part(i * part_rows, old, new));
            }
        });
    }
    HostBytes::from(memory).slice(start..start + size)
}

/// Writes numbers as a file has them.
fn round_to(numbers: impl Iterator<Item = f32>, dtype: DType, out: &mut [u8]) {
    match dtype {
        DType::BF16 => numbers.zip(out.as_chunks_mut().0).for_each(|(x, out)| *out = bf16::from_f32(x).to_le_bytes()),
        DType::F16 => numbers.zip(out.as_chunks_mut().0).for_each(|(x, out)| *out = f16::from_f32(x).to_le_bytes()),
        _ => numbers.zip(out.as_chunks_mut().0).for_each(|(x, out)| *out = x.to_le_bytes()),
    }
}
