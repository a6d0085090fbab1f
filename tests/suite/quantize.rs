//! Weights in eight bits: what they are rounded to, and models that run on them.

use std::sync::Arc;

use gemma_pjrt::{
    checkpoint::{Checkpoint, quantize_rows, write_quantized},
    hlo::{DType, Mesh},
    runtime::{Model, ModelOptions, Session},
};
use half::bf16;

use crate::common::{Golden, assert_close, golden_config, golden_dir, platform, several_devices};

/// The checkpoint of a golden model, quantised. The directory lives as long as it is used.
fn quantised(model: &str) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(&golden_dir(model)).unwrap();
    write_quantized(&source, &dir.path().join("model.safetensors"), |_| ()).unwrap();
    let written = Checkpoint::open(dir.path()).unwrap();
    (dir, written)
}

fn logits(checkpoint: &Checkpoint, model: &str, mesh: Mesh, kernels: bool) -> Vec<f32> {
    let options = ModelOptions { mesh, compute: DType::F32, kernels };
    let loaded = Model::load(platform(), checkpoint, golden_config(model), options, |_| ()).unwrap();
    let mut session = Session::new(Arc::new(loaded), 1, 256).unwrap();
    session.score(&Golden::read(model).ids("prompt")[..48], true).unwrap().logits.unwrap()
}

#[test]
fn each_row_is_rounded_to_127_steps_of_its_largest_number() {
    for model in ["mha", "mqa", "gqa"] {
        let source = Checkpoint::open(&golden_dir(model)).unwrap();
        let (_dir, written) = quantised(model);
        for (name, tensor) in source.tensors() {
            if tensor.dims.len() != 2 {
                assert_eq!(written.tensors()[name].bytes.bytes(), tensor.bytes.bytes(), "{name}");
                continue;
            }
            let (elements, scales) = quantize_rows(tensor).unwrap();
            assert_eq!(bytemuck::cast_slice::<i8, u8>(&elements), written.tensors()[name].bytes.bytes(), "{name}");
            let stored = &written.tensors()[&format!("{name}_scale")];
            assert_eq!(
                (bytemuck::cast_slice::<f32, u8>(&scales), stored.dtype.as_ref()),
                (stored.bytes.bytes(), Ok(&DType::F32))
            );
            if tensor.dtype == Ok(DType::BF16) {
                let width = tensor.dims[1] as usize;
                let values: Vec<f32> =
                    tensor.bytes.bytes().as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
                for ((row, q), scale) in values.chunks_exact(width).zip(elements.chunks_exact(width)).zip(&scales) {
                    let largest = row.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                    assert!((largest - scale * 127.0).abs() <= largest * 1e-6);
                    assert!(row.iter().zip(q).all(|(x, &q)| (x - f32::from(q) * scale).abs() <= scale * 0.5001));
                }
            }
        }
    }
}

/// With kernels and without, on one device and on several: the same model.
#[test]
fn a_quantised_model_is_the_same_model_everywhere() {
    let _alone = several_devices();
    for model in ["mha", "mqa", "gqa"] {
        let (_dir, checkpoint) = quantised(model);
        let expected = logits(&checkpoint, model, Mesh::SINGLE, false);
        for (devices, kernels) in [(1, true), (2, false), (4, true)] {
            let mesh = Mesh { data: 1, model: devices };
            assert_close(&logits(&checkpoint, model, mesh, kernels), &expected, 1e-4);
        }
        // And close to the one that it was made of, whose logits are transformers'.
        let original = Golden::read(model).f32s("logits");
        let scale = original.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let mut errors: Vec<f32> = expected.iter().zip(&original).map(|(a, b)| (a - b).abs() / scale).collect();
        errors.sort_by(f32::total_cmp);
        let at_99_percent = errors[errors.len() * 99 / 100];
        println!("{model}: 99% of the logits are within {at_99_percent:.4} of the largest");
        assert!(at_99_percent < 0.06, "{model}: {at_99_percent}");
    }
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let (dir, once) = quantised("mqa");
    let error = write_quantized(&once, &dir.path().join("twice.safetensors"), |_| ()).unwrap_err().to_string();
    assert!(error.contains("is stored as s8") && error.contains("original"), "{error}");
    assert!(!dir.path().join("twice.safetensors").exists());

    // A norm in eight bits, a scale that is missing.
    let list = |norm: DType, with_scale: bool| {
        let mut list = Vec::new();
        for (name, tensor) in once.tensors() {
            if !with_scale && name.ends_with("0.mlp.up_proj.weight_scale") {
                continue;
            }
            let dtype = if name == "model.norm.weight" { norm } else { *tensor.dtype.as_ref().unwrap() };
            list.push((name.clone(), dtype, tensor.dims.clone()));
        }
        list
    };
    for (list, words) in [(list(DType::S8, true), "only matrices are quantised"), (list(DType::BF16, false), "missing")]
    {
        let broken = tempfile::tempdir().unwrap();
        gemma_pjrt::checkpoint::write_safetensors(&broken.path().join("model.safetensors"), &list, |i, out| {
            let (name, dtype, dims) = &list[i];
            let bytes = dims.iter().product::<i64>() as usize * dtype.bits() / 8;
            out.write_all(&once.tensors()[name].bytes.bytes()[..bytes])
        })
        .unwrap();
        let checkpoint = Checkpoint::open(broken.path()).unwrap();
        let options = ModelOptions { mesh: Mesh::SINGLE, compute: DType::F32, kernels: true };
        let error =
            Model::load(platform(), &checkpoint, golden_config("mqa"), options, |_| ()).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}
