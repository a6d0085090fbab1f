//! What people's checkpoints and configs mean: variations of a golden model, each with the logits
//! that transformers computes (`tests/golden/compat/checkpoints.json`, made by
//! scripts/reference/checkpoint_variations.py, which describes a variation's parts).

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use gemma_pjrt::{
    checkpoint::Checkpoint,
    gemma::{Config, Lowering},
    hlo::{DType, Mesh},
    runtime::{BatchHead, Model, RowRef, RunOptions, Segment, Session, StepBatch, StepOutput},
};
use half::{bf16, f16};
use serde_json::{Value, json};

use crate::{
    common::{KERNELS, NATIVE, golden_dir, platform, several_devices, worst},
    compat::merge,
};

/// Variations that this program reads, and transformers refuses: which variation they are as, and
/// why.
const OTHERWISE: [(&[&str], &str, &str); 7] = [
    (
        &[
            "max_position_embeddings null",
            "rms_norm_eps null",
            "hidden_act null",
            "tie_word_embeddings null",
            "attention_bias null",
            "attention_dropout null",
            "initializer_range null",
            "use_cache null",
            "auto_map null",
            "rope_theta null alone",
            "rope_parameters with a null theta",
            "lm_head absent, tied null",
            "lm_head equal, tied null",
            "lm_head equal in another type, tied null",
        ],
        "as it is",
        "null is as if the field were absent, as in transformers 4; only is_causal's null means something",
    ),
    (&["rope_parameters with a null type"], "rope_parameters with theta", "null is as if the field were absent"),
    (&["lm_head different, tied null"], "lm_head different, tied true", "null is as if the field were absent"),
    (&["attention_dropout \"none\""], "as it is", "dropout is of training"),
    (&["text_config {}"], "as it is", "it says nothing"),
    (&["pad_token_id 256", "pad_token_id 1000"], "as it is", "nothing is padded with a token here"),
    (
        &["torch_dtype \"nonsense\"", "dtype \"nonsense\""],
        "as it is",
        "--dtype chooses the type of computation, whatever the checkpoint says",
    ),
];

/// Variations that this program refuses, and transformers runs; and parts of the reason given.
const REFUSED: [(&[&str], &[&str]); 22] = [
    // Other models, and settings that change the maths of this one.
    (&["model_type \"llama\""], &["model_type is \"llama\""]),
    (&["rms_norm_eps -1e-06"], &["rms_norm_eps is -1e-6, expected a number above 0"]),
    (
        &["max_position_embeddings 0", "max_position_embeddings -1"],
        &["max_position_embeddings is ", "expected an integer from 1"],
    ),
    (&["num_hidden_layers 0"], &["num_hidden_layers is 0"]),
    (&["attention_bias with its tensors"], &["attention_bias is set"]),
    (&["use_bidirectional_attention true"], &["use_bidirectional_attention is true", "causal attention only"]),
    (&["is_causal null", "is_causal false"], &["is_causal is ", "causal attention only"]),
    (&["sliding_window 4"], &["sliding_window is 4", "the whole context"]),
    (&["layers that slide over 4 tokens"], &["layer_types are [\"sliding_attention\""]),
    (
        // transformers 4 computes what hidden_activation says, 5 what hidden_act says.
        &[
            "hidden_act \"silu\"",
            "hidden_act \"relu\"",
            "hidden_act \"gelu_10\"",
            "hidden_activation \"relu\"",
            "hidden_activation relu alone",
            "hidden_activation \"nonsense\"",
            "hidden_activation nonsense alone",
            "hidden_act relu, hidden_activation gelu_pytorch_tanh",
            "hidden_act relu, hidden_activation relu",
            "hidden_act silu, hidden_activation gelu",
        ],
        &["the activation is ", "Gemma's is \"gelu_pytorch_tanh\""],
    ),
    (
        &["rope_parameters with linear", "rope_parameters with dynamic", "rope_parameters with llama3"],
        &["rope_parameters is of the type ", "Gemma 1 and 1.1 have the default one"],
    ),
    (
        &[
            "rope_scaling with linear",
            "rope_scaling with rope_type linear",
            "rope_scaling with dynamic",
            "rope_scaling with yarn",
            "rope_scaling with a factor of 1",
        ],
        &["rope_scaling is of the type ", "Gemma 1 and 1.1 have the default one"],
    ),
    // Tensors that the model does not use: a sign of another model.
    (&["num_hidden_layers 2"], &["not of this model:", "model.layers.2."]),
    (&["an output bias"], &["1 not of this model:", "lm_head.bias"]),
    (&["lm_head with the model's prefix"], &["1 not of this model:", "model.lm_head.weight"]),
    (
        &[
            "one more: model.extra.weight",
            "one more: v_head.summary.weight",
            "one more: score.weight",
            "one more: model.layers.3.input_layernorm.weight",
            "one more: model.layers.0.self_attn.q_norm.weight",
            "one more: model.layers.0.mlp.up_proj.input_scale",
            "one more: model.layers.0.self_attn.q_proj.bias",
            "one more: model.embed_tokens.embed_scale",
            "one more: model.layers.0.self_attn.masked_bias",
            "one more: position_ids",
            "a masked bias of each layer",
        ],
        &["1 not of this model:"],
    ),
    (&["names with model.model."], &["29 missing:", "model.model.embed_tokens.weight"]),
    (&["lm_head instead of the embedding, tied true"], &["1 missing:", "model.embed_tokens.weight"]),
    // Files that contradict each other, or lie elsewhere.
    (
        &["a tensor in both shards, the second stale", "a tensor in both shards, the first stale"],
        &["model.embed_tokens.weight is there twice with different values"],
    ),
    (&["shards in a directory"], &["\"sub/a.safetensors\", which is not a plain file name"]),
    // Types.
    (&["all F64", "norms F64", "embedding F64", "one matrix F64"], &["expected BF16, F16, F32, I8 or U8, found F64"]),
    (&["norms of whole numbers", "a matrix of whole numbers"], &["expected BF16, F16, F32, I8 or U8, found I64"]),
];

/// Parts of the reasons for which variations are refused here as by transformers, or where it makes
/// up missing tensors.
const REASONS: [&str; 6] = [
    "config.json cannot be used:\n",
    "config.json cannot be read: it is not valid JSON",
    "config.json does not hold a JSON object",
    "the checkpoint does not fit the model that its config.json describes:\n",
    "model.safetensors.index.json is damaged: it ",
    " holds no safetensors files",
];

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A tensor as a file stores it.
#[derive(Clone)]
struct Tensor {
    dtype: String,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn row_bytes(&self) -> usize {
        self.bytes.len() / self.dims[0]
    }

    fn element_bytes(&self) -> usize {
        self.bytes.len() / self.dims.iter().product::<usize>()
    }

    /// The first rows, or all of them again and again, rotated by one column more in each round.
    fn with_rows(&self, rows: usize) -> Self {
        let (count, row_bytes) = (self.dims[0], self.row_bytes());
        let row = |row: usize| {
            let mut bytes = self.bytes[row % count * row_bytes..][..row_bytes].to_vec();
            bytes.rotate_right(row / count * self.element_bytes() % row_bytes);
            bytes
        };
        let dims = [&[rows], &self.dims[1..]].concat();
        Self { dtype: self.dtype.clone(), dims, bytes: (0..rows).flat_map(row).collect() }
    }

    fn with_columns(&self, columns: usize) -> Self {
        let kept = columns * self.element_bytes();
        let bytes = self.bytes.chunks_exact(self.row_bytes()).flat_map(|row| &row[..kept]).copied().collect();
        Self { dtype: self.dtype.clone(), dims: vec![self.dims[0], columns], bytes }
    }

    fn reversed(&self) -> Self {
        let bytes = self.bytes.chunks_exact(self.row_bytes()).rev().flatten().copied().collect();
        Self { bytes, ..self.clone() }
    }

    fn cast(&self, dtype: &str) -> Self {
        let values = self.bytes.chunks_exact(self.element_bytes()).map(|bytes| match self.dtype.as_str() {
            "BF16" => f64::from(bf16::from_le_bytes(bytes.try_into().unwrap())),
            "F16" => f64::from(f16::from_le_bytes(bytes.try_into().unwrap())),
            "F32" => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
            other => panic!("cast from {other}"),
        });
        let bytes = values.flat_map(|x| match dtype {
            "BF16" => bf16::from_f64(x).to_le_bytes().to_vec(),
            "F16" => f16::from_f64(x).to_le_bytes().to_vec(),
            "F32" => (x as f32).to_le_bytes().to_vec(),
            "F64" => x.to_le_bytes().to_vec(),
            "I64" => (x as i64).to_le_bytes().to_vec(),
            other => panic!("cast to {other}"),
        });
        Self { dtype: dtype.to_owned(), dims: self.dims.clone(), bytes: bytes.collect() }
    }
}

type Tensors = BTreeMap<String, Tensor>;

/// Reads a safetensors file.
fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: &safetensors::tensor::TensorView<'_>| Tensor {
        dtype: format!("{:?}", view.dtype()),
        dims: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.iter().map(|(name, view)| (name.to_owned(), tensor(&view))).collect()
}

/// Writes a safetensors file, its tensors aligned where their sizes allow it.
fn write(path: &Path, tensors: &Tensors) {
    let mut header = serde_json::Map::new();
    let mut data = vec![];
    for (name, tensor) in tensors {
        let start = data.len();
        data.extend(&tensor.bytes);
        let info = json!({"dtype": tensor.dtype, "shape": tensor.dims, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), info);
    }
    let mut text = serde_json::to_vec(&header).unwrap();
    text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat()).unwrap();
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn size(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Applies a list of operations.
fn change(tensors: &mut Tensors, operations: &Value) {
    for operation in list(operations) {
        let operation = list(operation);
        let (what, name) = (text(&operation[0]), text(&operation[1]));
        let mut each = |made: &dyn Fn(&Tensor) -> Tensor| {
            tensors.iter_mut().filter(|(of, _)| of.contains(name)).for_each(|(_, tensor)| *tensor = made(tensor));
        };
        match what {
            "rows" => each(&|tensor| tensor.with_rows(size(&operation[2]))),
            "columns" => each(&|tensor| tensor.with_columns(size(&operation[2]))),
            "cast" => each(&|tensor| tensor.cast(text(&operation[2]))),
            "reverse" => each(&Tensor::reversed),
            "reshape" => each(&|tensor| {
                let dims = list(&operation[2]).iter().map(size).collect();
                Tensor { dims, ..tensor.clone() }
            }),
            "remove" => tensors.retain(|of, _| !of.contains(name)),
            "copy" => {
                tensors.insert(text(&operation[2]).to_owned(), tensors[name].clone());
            }
            "rename" => {
                let renamed = std::mem::take(tensors).into_iter();
                *tensors = renamed.map(|(of, tensor)| (of.replace(name, text(&operation[2])), tensor)).collect();
            }
            "zeros" => {
                let dims: Vec<usize> = list(&operation[3]).iter().map(size).collect();
                let one = Tensor { dtype: "F32".into(), dims: vec![1], bytes: vec![0; 4] }.cast(text(&operation[2]));
                let bytes = vec![0; dims.iter().product::<usize>() * one.bytes.len()];
                tensors.insert(name.to_owned(), Tensor { dtype: one.dtype, dims, bytes });
            }
            other => panic!("{other}"),
        }
    }
}

/// Makes a variation's files.
fn make(dir: &Path, changes: &Value) {
    let mut tensors = read(&golden_dir("mqa").join(SINGLE));
    change(&mut tensors, &changes["tensors"]);
    let whole = json!([[SINGLE, [""], []]]);
    for file in list(changes.get("files").unwrap_or(&whole)) {
        let holds = |name: &str| list(&file[1]).iter().any(|part| name.contains(text(part)));
        let mut of_file: Tensors =
            tensors.iter().filter(|(n, _)| holds(n)).map(|(n, t)| (n.clone(), t.clone())).collect();
        change(&mut of_file, &file[2]);
        write(&dir.join(text(&file[0])), &of_file);
    }
    let config = match &changes["config"] {
        Value::String(whole) => whole.clone(),
        patch => {
            let text = fs::read_to_string(golden_dir("mqa").join("config.json")).unwrap();
            let mut config: Value = serde_json::from_str(&text).unwrap();
            let fields = config.as_object_mut().unwrap();
            fields.retain(|name, _| !list(&changes["without"]).contains(&json!(name)));
            if !patch.is_null() {
                merge(&mut config, patch);
            }
            config.to_string()
        }
    };
    fs::write(dir.join("config.json"), config).unwrap();
    match &changes["index"] {
        Value::String(whole) => fs::write(dir.join(INDEX), whole).unwrap(),
        Value::Array(pairs) => {
            let mut map = serde_json::Map::new();
            for pair in pairs {
                let names = tensors.keys().map(String::as_str).chain(["+model.extra.weight"]);
                for name in names.filter(|name| name.contains(text(&pair[0]))) {
                    map.insert(name.trim_start_matches('+').to_owned(), pair[1].clone());
                }
            }
            fs::write(dir.join(INDEX), json!({"weight_map": map}).to_string()).unwrap();
        }
        _ => {}
    }
    for (file, text) in changes["texts"].as_object().into_iter().flatten() {
        fs::write(dir.join(file), text.as_str().unwrap()).unwrap();
    }
}

/// A model as one of the variations has it, on devices.
#[derive(Clone, Copy)]
struct Place {
    lowering: Lowering,
    mesh: Mesh,
}

const ONE: Place = Place { lowering: KERNELS, mesh: Mesh::SINGLE };

/// Logits after each token of a text.
type Logits = Arc<Vec<Vec<f32>>>;

/// Runs models, each of them once: many variations are the same model.
struct Runs {
    place: Place,
    done: Mutex<HashMap<u64, Result<Logits, String>>>,
}

impl Runs {
    fn at(place: Place) -> Self {
        Self { place, done: Mutex::default() }
    }

    /// The logits after each of these tokens, in f32.
    fn logits(&self, dir: &Path, tokens: &[u32]) -> Result<Logits, String> {
        let text = fs::read_to_string(dir.join("config.json")).unwrap();
        let (config, _) = Config::parse(&text).map_err(|e| e.to_string())?;
        let checkpoint = Checkpoint::open(dir).map_err(|e| e.to_string())?;
        let mut key = DefaultHasher::new();
        (format!("{config:?}"), tokens).hash(&mut key);
        for (name, tensor) in checkpoint.tensors() {
            (name, format!("{:?}", tensor.dtype), &tensor.dims, tensor.bytes.bytes()).hash(&mut key);
        }
        let key = key.finish();
        if let Some(known) = self.done.lock().unwrap().get(&key) {
            return known.clone();
        }
        let found = self.run(&checkpoint, config, tokens);
        self.done.lock().unwrap().insert(key, found.clone());
        found
    }

    fn run(&self, checkpoint: &Checkpoint, config: Config, tokens: &[u32]) -> Result<Logits, String> {
        let Place { lowering, mesh } = self.place;
        let options = RunOptions { lowering, mesh, compute: DType::F32, kv: DType::F32, bundle: None };
        let model = Model::load(platform(), checkpoint, config, options, Box::new(|_, _| ()));
        let mut session = Session::new(model.map_err(|e| e.to_string())?.into(), 1, 256).unwrap();
        let rows = (0..tokens.len()).map(|token| RowRef { segment: 0, token }).collect();
        let batch = StepBatch { segments: vec![Segment { slot: 0, start: 0, tokens }], head: BatchHead::Logits(rows) };
        match session.step(&batch).unwrap() {
            StepOutput::Logits(logits) => Ok(Arc::new(logits)),
            _ => unreachable!("the head gives logits"),
        }
    }
}

fn greedy(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

struct Golden(Value);

impl Golden {
    fn read() -> Self {
        let text = fs::read_to_string(golden_dir("compat").join("checkpoints.json")).unwrap();
        Self(serde_json::from_str(&text).unwrap())
    }

    fn variations(&self) -> &[Value] {
        list(&self.0["variations"])
    }

    fn named(&self, name: &str) -> &Value {
        self.variations().iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// Compares the logits of a variation's files with those that transformers computed for the
    /// variation `of`.
    ///
    /// # Errors
    /// They differ, or the files are refused.
    fn compare(&self, runs: &Runs, dir: &Path, changes: &Value, of: &Value) -> Result<(), Failure> {
        let expected = &of["expected"];
        let expected = expected["as"].as_str().map_or(expected, |other| &self.named(other)["expected"]);
        let tokens = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap_or_default() };
        let prompt = tokens(changes.get("prompt").unwrap_or(&self.0["prompt"]));
        let answer = tokens(&expected["greedy"]);
        let all = [&prompt[..], answer.split_last().map_or(&[], |(_, before)| before)].concat();
        let found = runs.logits(dir, &all).map_err(Failure::Refused)?;
        let found = &found[prompt.len() - 1..];
        let last: Vec<f32> = serde_json::from_value(expected["logits"].clone())
            .map_err(|_| Failure::Differs("read, where transformers has no logits".into()))?;
        let (_, off) = worst(&found[0], &last);
        if off.is_nan() || off > 1e-4 {
            return Err(Failure::Differs(format!("the logits are off by {off} of the largest")));
        }
        let found: Vec<u32> = found.iter().map(|logits| greedy(logits)).collect();
        if found == answer {
            return Ok(());
        }
        Err(Failure::Differs(format!("continues with {found:?} instead of {answer:?}")))
    }

    /// Makes a variation's files and checks that they mean what they mean to transformers, or that
    /// the reason says why not.
    fn check(&self, runs: &Runs, variation: &Value) -> Result<(), String> {
        let (name, changes, expected) = (text(&variation["name"]), &variation["changes"], &variation["expected"]);
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), changes);
        let of = OTHERWISE.iter().find(|other| other.0.contains(&name)).map_or(variation, |other| self.named(other.1));
        let found = self.compare(runs, dir.path(), changes, of);
        let refused = REFUSED.iter().find(|refused| refused.0.contains(&name)).map(|refused| refused.1);
        let is_refused = refused.is_some() || of["expected"]["error"].is_string() || expected["missing"].is_array();
        match found {
            Ok(()) if is_refused => Err("is not refused".into()),
            Ok(()) => Ok(()),
            Err(Failure::Refused(reason)) if is_refused => {
                let explains = refused.map_or_else(
                    || REASONS.iter().any(|start| reason.contains(start)),
                    |words| words.iter().all(|word| reason.contains(word)),
                );
                if explains { Ok(()) } else { Err(format!("is refused for another reason: {reason}")) }
            }
            Err(Failure::Refused(reason)) => Err(format!("is refused: {reason}")),
            Err(Failure::Differs(how)) => Err(how),
        }
    }
}

/// How a variation is not what it is to transformers.
enum Failure {
    Refused(String),
    Differs(String),
}

#[test]
fn every_checkpoint_has_the_logits_of_transformers_or_is_refused() {
    let golden = Golden::read();
    let variations = golden.variations();
    assert!(variations.len() >= 300, "{}", variations.len());
    for name in OTHERWISE.iter().flat_map(|other| other.0).chain(REFUSED.iter().flat_map(|refused| refused.0)) {
        golden.named(name); // so that none is forgotten here
    }
    let (runs, next, differences) = (Runs::at(ONE), AtomicUsize::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(variation) = variations.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(what) = golden.check(&runs, variation) {
                        differences.lock().unwrap().push(format!("{}: {what}", text(&variation["name"])));
                    }
                }
            });
        }
    });
    let differences = differences.into_inner().unwrap();
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// Some of them by other programs and on two devices.
#[test]
fn other_lowerings_and_meshes_read_checkpoints_alike() {
    let _alone = several_devices();
    let golden = Golden::read();
    let two = Mesh { data: 1, model: 2 };
    let everywhere = [
        "rope_parameters and rope_theta",
        "16 heads of 8",
        "an index that lacks the output layer",
        "matrices F16, norms F32",
        "embedding F32",
    ];
    let mixed = ["one matrix F16", "F32 and F16 shards"];
    let undivided = ["a vocabulary of 257", "seven heads"];
    for (lowering, mesh) in
        [(NATIVE, Mesh::SINGLE), (Lowering::TPU, Mesh::SINGLE), (KERNELS, two), (Lowering::TPU, two)]
    {
        let runs = Runs::at(Place { lowering, mesh });
        let undivided = undivided.into_iter().filter(|_| mesh == Mesh::SINGLE);
        for name in everywhere.into_iter().chain(mixed).chain(undivided) {
            let checked = golden.check(&runs, golden.named(name));
            if mixed.contains(&name) && lowering.stacks_layers {
                let reason = checked.expect_err("layers of several types are refused where they are one array");
                assert!(reason.contains("all layers are one array, which has one type"), "{name}: {reason}");
                continue;
            }
            checked.unwrap_or_else(|what| panic!("{name} on {mesh}, {}: {what}", lowering.name));
        }
    }
}
