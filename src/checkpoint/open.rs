//! Opens checkpoints: finds their files and tensors, and checks that these are the ones that a
//! model needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use safetensors::SafeTensorError;

use super::{CheckpointError, Tensor, foreign::format_of_others};
use crate::{
    gemma::tensors::{EMBED_TOKENS_NAME, LM_HEAD_NAME, SCALE_SUFFIX},
    hlo::DType,
    model_file::{LFS_POINTER, is_file_name, is_lfs_pointer, parse_json, quantized_by_others},
    pjrt::{HostBytes, HostMemory},
};

/// An opened checkpoint. Tensor names have the `model.` prefix, whether the files have it or not.
pub struct Checkpoint {
    pub(super) tensors: BTreeMap<String, Tensor>,
    output_layer: OnceLock<OutputLayer>,
}

/// The output layer that a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputLayer {
    /// There is no `lm_head.weight`.
    Absent,
    /// `lm_head.weight` is the embedding a second time.
    Embedding,
    /// `lm_head.weight` differs from the embedding.
    Separate,
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// The factors of a LoRA adapter.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

impl Checkpoint {
    /// Maps all files of the checkpoint in `dir` and checks their headers. No weights are read.
    /// `model.safetensors` wins over an index and its shards, as in transformers.
    ///
    /// # Errors
    /// There is no checkpoint in `dir`, or a file is damaged or cannot be read.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            return Err(CheckpointError::NoDirectory(dir.to_owned()));
        }
        let mut this = Self::new();
        if dir.join(SINGLE).exists() {
            this.open_file(dir.join(SINGLE))?;
            // Some exporters write an index of one file.
            if dir.join(INDEX).exists() && fs::read_to_string(dir.join(INDEX)).is_ok_and(|text| names_shards(&text)) {
                tracing::info!(
                    "{} holds {SINGLE}, which is used, and {INDEX}, which is ignored with its shards, as in transformers",
                    dir.display()
                );
            }
        } else if dir.join(INDEX).exists() {
            this.open_index(dir)?;
        } else {
            return Err(CheckpointError::NoWeights { dir: dir.to_owned(), hint: other_formats(dir) });
        }
        Ok(this)
    }

    fn new() -> Self {
        Self { tensors: BTreeMap::new(), output_layer: OnceLock::new() }
    }

    /// Opens a checkpoint of one safetensors file in memory. Errors call it `name`.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn from_memory(name: &str, memory: Arc<HostMemory>) -> Result<Self, CheckpointError> {
        let mut this = Self::new();
        this.add(PathBuf::from(name), memory)?;
        Ok(this)
    }

    /// Returns all tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Returns the files that hold the tensors.
    pub fn files(&self) -> BTreeSet<&Path> {
        self.tensors.values().map(|tensor| tensor.file.as_path()).collect()
    }

    /// Returns which output layer the checkpoint holds. The first call reads `lm_head.weight` and
    /// the embedding, if both are there.
    pub fn output_layer(&self) -> OutputLayer {
        *self.output_layer.get_or_init(|| {
            if !self.tensors.contains_key(LM_HEAD_NAME) {
                return OutputLayer::Absent;
            }
            let is_same = |suffix: &str| {
                let tensor = |name: &str| self.tensors.get(&format!("{name}{suffix}"));
                match (tensor(LM_HEAD_NAME), tensor(EMBED_TOKENS_NAME)) {
                    (Some(head), Some(embedding)) => head.is_same(embedding),
                    (head, embedding) => head.is_none() && embedding.is_none(),
                }
            };
            if is_same("") && is_same(SCALE_SUFFIX) { OutputLayer::Embedding } else { OutputLayer::Separate }
        })
    }

    /// Opens the files that the index names. All their tensors count, whichever file the index
    /// gives for them, and those that it lacks, too, as in transformers.
    fn open_index(&mut self, dir: &Path) -> Result<(), CheckpointError> {
        let path = dir.join(INDEX);
        let damaged = |problem: String| CheckpointError::Damaged { path: path.clone(), problem };
        let text = fs::read_to_string(&path)
            .map_err(|e| CheckpointError::Unreadable { path: path.clone(), problem: e.to_string() })?;
        let json = parse_json(&text).map_err(|problem| CheckpointError::Unreadable { path: path.clone(), problem })?;
        let map = json.get("weight_map").and_then(|m| m.as_object());
        let map = map.ok_or_else(|| damaged("it has no weight_map".into()))?;
        let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().ok_or_else(|| damaged(format!("the file of {tensor} is not a string")))?;
            if !is_file_name(file) {
                return Err(damaged(format!("{tensor} is in {file:?}, which is not a plain file name")));
            }
            files.entry(file).or_default().push(tensor);
        }
        for (file, names) in files {
            if !dir.join(file).exists() {
                let (count, first) = (names.len(), names[0]);
                let problem = format!("it names {file} (for {first} and {} more), which does not exist", count - 1);
                return Err(damaged(problem));
            }
            self.open_file(dir.join(file))?;
        }
        Ok(())
    }

    fn open_file(&mut self, path: PathBuf) -> Result<(), CheckpointError> {
        let memory = HostMemory::map(&path)
            .map_err(|e| CheckpointError::Unreadable { path: path.clone(), problem: e.to_string() })?;
        self.add(path, memory)
    }

    /// Adds the tensors of one file.
    fn add(&mut self, path: PathBuf, memory: Arc<HostMemory>) -> Result<(), CheckpointError> {
        if is_lfs_pointer(memory.bytes()) {
            return Err(CheckpointError::Unreadable { path, problem: LFS_POINTER.into() });
        }
        let path = Arc::new(path);
        let damaged = |problem: String| CheckpointError::Damaged { path: path.as_ref().clone(), problem };
        let (header_len, metadata) = safetensors::SafeTensors::read_metadata(memory.bytes())
            .map_err(|e| damaged(explain(&e, memory.bytes())))?;
        let data_start = header_len + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            if name.ends_with("rotary_emb.inv_freq") {
                continue; // inv_freq: a buffer of old exports, which RoPE computes
            }
            let dims: Result<Vec<i64>, _> = info.shape.iter().map(|&d| i64::try_from(d)).collect();
            let dims = dims.map_err(|_| damaged(format!("{name} has an absurd shape {:?}", info.shape)))?;
            let (start, end) = info.data_offsets;
            let tensor = Tensor {
                dtype: dtype_of(info.dtype),
                dims,
                bytes: HostBytes::new(memory.clone(), data_start + start..data_start + end),
                file: path.clone(),
            };
            let is_same = |first: &Tensor| first.is_same(&tensor);
            if self.tensors.get(&canonical(&name)).is_some_and(|first| !is_same(first)) {
                return Err(damaged(format!(
                    "{name} is there twice with different values (with and without the model. prefix, or in two files)"
                )));
            }
            self.tensors.entry(canonical(&name)).or_insert(tensor);
        }
        Ok(())
    }

    /// Checks that no other program quantised the weights.
    ///
    /// # Errors
    /// Names or types of tensors are those of another program's format.
    pub fn refuse_formats_of_others(&self) -> Result<(), CheckpointError> {
        let Some((format, tensor)) = format_of_others(&self.tensors) else { return Ok(()) };
        let explanation = quantized_by_others(format);
        Err(CheckpointError::QuantizedByOthers { tensor: tensor.to_owned(), explanation })
    }

    /// Returns the tensors that a model needs, in the given order. `optional` ones may be there and
    /// are ignored.
    ///
    /// # Errors
    /// Tensors are missing, unused, of another shape, or of a type that cannot be used. One error
    /// lists them all.
    pub fn select(&self, needed: &[(&str, &[i64])], optional: &[&str]) -> Result<Vec<&Tensor>, CheckpointError> {
        let mut missing = Vec::new();
        let mut wrong = Vec::new();
        let mut found = Vec::new();
        for &(name, dims) in needed {
            let Some(tensor) = self.tensors.get(name) else {
                missing.push(format!("{name} {dims:?}"));
                continue;
            };
            if tensor.dims != dims {
                wrong.push(format!("{name}: expected {dims:?}, found {:?}", tensor.dims));
            }
            if let Err(other) = &tensor.dtype {
                wrong.push(format!("{name}: expected BF16, F16, F32, I8 or U8, found {other}"));
            }
            found.push(tensor);
        }
        let unused: Vec<String> = self
            .tensors
            .iter()
            .filter(|(name, _)| !needed.iter().any(|(n, _)| n == name) && !optional.contains(&name.as_str()))
            .map(|(name, tensor)| format!("{name} {:?}", tensor.dims))
            .collect();
        if missing.is_empty() && wrong.is_empty() && unused.is_empty() {
            return Ok(found);
        }
        let mut report = String::new();
        for (title, list) in [("missing", missing), ("of another shape or type", wrong), ("not of this model", unused)]
        {
            const SHOWN: usize = 20;
            if !list.is_empty() {
                let _ = writeln!(report, "  {} {title}:", list.len());
                list.iter().take(SHOWN).for_each(|line| {
                    let _ = writeln!(report, "    {line}");
                });
                if list.len() > SHOWN {
                    let _ = writeln!(report, "    ... and {} more", list.len() - SHOWN);
                }
            }
        }
        report.push_str("Check that config.json and the safetensors files are of the same model and complete.");
        Err(CheckpointError::Mismatch(report))
    }
}

/// Returns whether an index names other files than [`SINGLE`].
fn names_shards(index: &str) -> bool {
    let Ok(json) = parse_json(index) else { return true };
    let map = json["weight_map"].as_object();
    map.is_none_or(|map| map.values().any(|file| file != SINGLE))
}

/// Adds the `model.` prefix, which exports of base models lack.
pub(super) fn canonical(name: &str) -> String {
    if name.starts_with("model.") || name.starts_with("lm_head.") { name.to_owned() } else { format!("model.{name}") }
}

pub(super) fn dtype_of(dtype: safetensors::Dtype) -> Result<DType, String> {
    match dtype {
        safetensors::Dtype::BF16 => Ok(DType::BF16),
        safetensors::Dtype::F16 => Ok(DType::F16),
        safetensors::Dtype::F32 => Ok(DType::F32),
        safetensors::Dtype::I8 => Ok(DType::S8),
        safetensors::Dtype::U8 => Ok(DType::U8),
        other => Err(format!("{other:?}")),
    }
}

/// Explains what is wrong with a file.
fn explain(error: &SafeTensorError, bytes: &[u8]) -> String {
    let size = bytes.len();
    match error {
        SafeTensorError::HeaderTooSmall => format!("it has {size} bytes, too few for a safetensors header"),
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            let claimed = bytes.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
            format!("its header claims {claimed} bytes, the file has {size}; it is truncated or not a safetensors file")
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("its {size} bytes are not what its header describes; it is truncated or has bytes too many")
        }
        SafeTensorError::InvalidOffset(name) => {
            format!("the data of {name} overlaps another tensor or leaves the file")
        }
        SafeTensorError::TensorInvalidInfo => "a tensor's size does not match its shape and type".into(),
        SafeTensorError::ValidationOverflow => "a tensor's size overflows".into(),
        other => format!("its header cannot be read ({other})"),
    }
}

/// Returns a hint for a directory without safetensors files, from the files that it has.
fn other_formats(dir: &Path) -> String {
    let names: Vec<String> = fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let with = |ending: &str| names.iter().find(|name| name.ends_with(ending));
    let shards = names.iter().filter(|name| name.ends_with(".safetensors")).count();
    if names.is_empty() {
        "; it is empty".into()
    } else if let Ok(target) = dir.join(SINGLE).read_link() {
        format!(": {SINGLE} is a link to {}, which is missing; download it again", target.display())
    } else if with(ADAPTER_WEIGHTS).is_some() {
        "; it is a LoRA adapter: give its base with --model, and it with --lora".into()
    } else if let Some(name) = with(".gguf").or(with(".bin")).or(with(".h5")).or(with(".msgpack")) {
        format!(", only {name}; download the safetensors version of the model")
    } else if let Some(name) = with(".safetensors").filter(|_| shards > 1) {
        format!(" named {SINGLE}, and no {INDEX} for {shards} others such as {name}; download the index, too")
    } else if let Some(name) = with(".safetensors") {
        format!(" named {SINGLE} and no {INDEX}, only {name}; rename it or add the index")
    } else {
        format!("; expected {SINGLE} or {INDEX}")
    }
}
