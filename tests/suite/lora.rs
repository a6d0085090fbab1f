//! LoRA adapters: merged as PEFT's `merge_and_unload` merges them
//! (scripts/reference/lora_goldens.py).

use std::{fs, path::Path};

use gemma_pjrt::{
    checkpoint::{Checkpoint, LoraAdapter, OutputLayer, Quantization, write_quantized},
    gemma::Lowering,
    hlo::{DType, Mesh},
    runtime::Session,
};
use half::{bf16, f16};
use serde_json::{Value, json};

use crate::common::{
    Golden, KERNELS, NATIVE, assert_close, golden_config, golden_dir, golden_tensors, load_f32, numbers,
    several_devices, write_tensors,
};

const ADAPTERS: [(&str, &str); 3] = [("attention", "mha"), ("rslora", "mqa"), ("embedding", "gqa")];

fn adapter(name: &str) -> LoraAdapter {
    LoraAdapter::open(&golden_dir("lora").join(name)).unwrap()
}

fn merged(name: &str, base: &str) -> Checkpoint {
    let mut checkpoint = Checkpoint::open(&golden_dir(base)).unwrap();
    checkpoint.merge(&adapter(name)).unwrap();
    checkpoint
}

/// Merged matrices are those of PEFT in f32, rounded once to the type of the checkpoint.
#[test]
fn matrices_are_those_of_peft() {
    for (name, base) in ADAPTERS {
        let (golden, checkpoint) = (Golden::read(&format!("lora/{name}")), merged(name, base));
        let adapter = adapter(name);
        assert!(adapter.targets().count() >= 4);
        for tensor in adapter.targets() {
            let expected = golden.f32s(&format!("merged.{tensor}"));
            let found = &checkpoint.tensors()[tensor];
            let bytes = found.bytes.bytes();
            match *found.dtype.as_ref().unwrap() {
                DType::F32 => assert_close(&numbers(bytes), &expected, 1e-6),
                DType::BF16 => {
                    let found: Vec<f32> = numbers(bytes).into_iter().map(|x| bf16::from_bits(x).to_f32()).collect();
                    let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0 + 1e-7);
                    assert!(near, "{name}: {tensor}");
                }
                DType::F16 => {
                    let found: Vec<f32> = numbers(bytes).into_iter().map(|x| f16::from_bits(x).to_f32()).collect();
                    let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= b.abs() / 2048.0 + 1e-7);
                    assert!(near, "{name}: {tensor}");
                }
                other => panic!("{other}"),
            }
        }
    }
}

/// An output layer that is the embedding a second time changes with the embedding, or is refused.
#[test]
fn a_tied_output_layer_stays_tied() {
    let mut tensors = golden_tensors("mqa");
    let embedding = tensors.iter().find(|tensor| tensor.0 == "model.embed_tokens.weight").unwrap().clone();
    tensors.push(("lm_head.weight".into(), embedding.1, embedding.2, embedding.3));
    let dir = tempfile::tempdir().unwrap();
    write_tensors(&dir.path().join("model.safetensors"), &tensors);
    let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
    checkpoint.merge(&adapter("rslora")).unwrap();
    assert_eq!(checkpoint.output_layer(), OutputLayer::Embedding);
    assert!(!checkpoint.tensors().contains_key("lm_head.weight"));
}

#[test]
fn logits_are_those_of_the_merged_model_on_any_mesh() {
    let _alone = several_devices();
    for (name, base) in ADAPTERS {
        // Rounding to the type of the checkpoint is the only difference from PEFT in f32.
        let tolerance = match base {
            "mha" => 1e-4,
            "gqa" => 2e-3,
            _ => 2e-2,
        };
        let (golden, prompt) = (Golden::read(&format!("lora/{name}")), Golden::read(base).ids("prompt"));
        for (lowering, devices) in [(KERNELS, 1), (KERNELS, 2), (NATIVE, 4), (Lowering::TPU, 2)] {
            let mesh = Mesh { data: 1, model: devices };
            let model = load_f32(&merged(name, base), golden_config(base), lowering, mesh);
            let scored = Session::new(model, 1, 64).unwrap().score(&prompt[..32], true).unwrap();
            assert_close(&scored.logits.unwrap(), &golden.f32s("logits"), tolerance);
        }
    }
}

#[test]
fn matrices_are_quantised_after_the_merge() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_quantized(&merged("attention", "mha"), Quantization::Int8, &path, |_| ()).unwrap();
    let quantised = Checkpoint::open(dir.path()).unwrap();
    let golden = Golden::read("lora/attention");
    for tensor in adapter("attention").targets() {
        let expected = golden.f32s(&format!("merged.{tensor}"));
        let rows: Vec<f32> = numbers(quantised.tensors()[&format!("{tensor}_scale")].bytes.bytes());
        let elements: Vec<i8> = numbers(quantised.tensors()[tensor].bytes.bytes());
        let width = elements.len() / rows.len();
        for ((elements, expected), scale) in elements.chunks(width).zip(expected.chunks(width)).zip(rows) {
            let near = |(&q, x): (&i8, &f32)| (f32::from(q) * scale - x).abs() <= 0.51 * scale;
            assert!(elements.iter().zip(expected).all(near), "{tensor}");
        }
    }
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let source = golden_dir("lora/attention");
    let config: Value = serde_json::from_str(&fs::read_to_string(source.join("adapter_config.json")).unwrap()).unwrap();
    let open = |change: &dyn Fn(&mut Value), weights: Option<&[u8]>| -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config.clone();
        change(&mut config);
        fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        match weights {
            Some(bytes) => fs::write(dir.path().join("adapter_model.safetensors"), bytes).unwrap(),
            None => {
                fs::copy(source.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors"))
                    .unwrap();
            }
        }
        LoraAdapter::open(dir.path()).err().map_or_else(String::new, |e| e.to_string())
    };
    for (field, value) in [
        ("modules_to_save", json!(["embed_tokens"])),
        ("bias", json!("all")),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("alora_invocation_tokens", json!([1])),
        ("fan_in_fan_out", json!(true)),
        ("alpha_pattern", json!({"q_proj": 3})),
        ("peft_type", json!("IA3")),
        ("peft_type", json!("IA3")),
        ("lora_alpha", json!("x")),
        ("r", json!(99)),
    ] {
        let error = open(&|config| config[field] = value.clone(), None);
        assert!(error.contains(&format!("its {field} is")), "{field}: {error}");
    }
    assert_eq!(open(&|_| (), None), "");
    assert!(open(&|_| (), Some(b"nonsense")).contains("damaged"));
    assert!(open(&|_| (), Some(b"version https://git-lfs.github.com/spec/v1")).contains("git lfs pull"));

    // For another model.
    let mut other = Checkpoint::open(&golden_dir("mqa")).unwrap();
    let error = other.merge(&adapter("attention")).unwrap_err().to_string();
    assert!(error.contains("in the model") && error.contains(&*source.to_string_lossy()), "{error}");
    let error = LoraAdapter::open(Path::new("/nowhere")).err().unwrap().to_string();
    assert!(error.contains("adapter_config.json cannot be read"), "{error}");
}
