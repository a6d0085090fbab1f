//! Weights in eight and four bits: what they are rounded to, and models that run on them.

use std::sync::Arc;

use gemma_pjrt::{
    checkpoint::{Checkpoint, Quantization, Tensor, quantize, write_quantized},
    gemma::Lowering,
    hlo::{DType, Mesh},
    runtime::{Model, RunOptions, Session},
};
use half::{bf16, f16};

use crate::common::{Golden, KERNELS, NATIVE, assert_close, golden_config, golden_dir, platform, several_devices};

/// The checkpoint of a golden model, quantised. The directory lives as long as it is used.
fn quantised(model: &str, how: Quantization) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(&golden_dir(model)).unwrap();
    write_quantized(&source, how, &dir.path().join("model.safetensors"), |_| ()).unwrap();
    let written = Checkpoint::open(dir.path()).unwrap();
    (dir, written)
}

fn logits(checkpoint: &Checkpoint, model: &str, mesh: Mesh, kv: DType, lowering: Lowering) -> Vec<f32> {
    let options = RunOptions { lowering, mesh, compute: DType::F32, kv, bundle: None };
    let loaded = Model::load(platform(), checkpoint, golden_config(model), options, Box::new(|_, _| ())).unwrap();
    let mut session = Session::new(Arc::new(loaded), 1, 256).unwrap();
    session.score(&Golden::read(model).ids("prompt")[..48], true).unwrap().logits.unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let bytes = tensor.bytes.bytes();
    match tensor.dtype.as_ref().unwrap() {
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn norms_stay_and_matrices_are_what_quantize_makes_of_them() {
    for (model, how) in
        ["mha", "mqa", "gqa"].into_iter().flat_map(|m| [(m, Quantization::Int8), (m, Quantization::Int4)])
    {
        let source = Checkpoint::open(&golden_dir(model)).unwrap();
        let (_dir, written) = quantised(model, how);
        let mut in_four_bits = 0;
        for (name, tensor) in source.tensors() {
            let found = &written.tensors()[name];
            let Some(how) = how.of(name, &tensor.dims) else {
                assert_eq!((&found.dims, found.bytes.bytes()), (&tensor.dims, tensor.bytes.bytes()), "{name}");
                continue;
            };
            let expected = quantize(tensor, how).unwrap();
            let scale = &written.tensors()[&format!("{name}_scale")];
            assert_eq!(
                (found.bytes.bytes(), scale.bytes.bytes()),
                (&expected.elements[..], &expected.scales[..]),
                "{name}"
            );
            let types = if how == Quantization::Int4 { (DType::U8, DType::F16) } else { (DType::S8, DType::F32) };
            assert_eq!((found.dtype.as_ref(), scale.dtype.as_ref()), (Ok(&types.0), Ok(&types.1)), "{name}");
            in_four_bits += usize::from(how == Quantization::Int4);
        }
        assert_eq!(in_four_bits > 0, how == Quantization::Int4, "{model}");
    }
}

#[test]
fn each_row_is_rounded_to_127_steps_of_its_largest_number() {
    for tensor in Checkpoint::open(&golden_dir("mqa")).unwrap().tensors().values().filter(|t| t.dims.len() == 2) {
        let quantized = quantize(tensor, Quantization::Int8).unwrap();
        let width = tensor.dims[1] as usize;
        let scales = quantized.scales.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        for ((row, q), scale) in values(tensor).chunks(width).zip(quantized.elements.chunks(width)).zip(scales) {
            let largest = row.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            assert!((largest - scale * 127.0).abs() <= largest * 1e-6);
            assert!(row.iter().zip(q).all(|(x, &q)| (x - f32::from(q as i8) * scale).abs() <= scale * 0.5001));
        }
    }
}

/// Better on the whole than steps of an eighth of the largest number; of single numbers, some are
/// worse.
#[test]
fn each_group_is_rounded_to_sixteen_steps() {
    for tensor in Checkpoint::open(&golden_dir("mqa")).unwrap().tensors().values().filter(|t| t.dims.len() == 2) {
        let quantized = quantize(tensor, Quantization::Int4).unwrap();
        let scales = quantized.scales.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32());
        let (mut squares, mut plain_squares) = (0.0, 0.0);
        for ((group, pairs), scale) in values(tensor).chunks(32).zip(quantized.elements.chunks(16)).zip(scales) {
            let largest = group.iter().fold(0.0_f32, |m, &x| if x.abs() > m.abs() { x } else { m });
            let plain = largest / -8.0;
            for (i, x) in group.iter().enumerate() {
                let half = if i < 16 { pairs[i] & 15 } else { pairs[i - 16] >> 4 };
                let error = x - (f32::from(half) - 8.0) * scale;
                assert!(error.abs() <= plain.abs() * 1.7, "{x} of at most {largest} became {}", x - error);
                let plain_step = if plain == 0.0 { 0.0 } else { (x / plain).round().clamp(-8.0, 7.0) };
                squares += error * error;
                plain_squares += (x - plain * plain_step) * (x - plain * plain_step);
            }
        }
        assert!(squares < plain_squares * 0.97, "{squares} instead of {plain_squares}");
    }
}

const TPU: Lowering = Lowering::TPU;

/// With kernels and without, as on a TPU, on one device and on several: the same model.
#[test]
fn a_quantised_model_is_the_same_model_everywhere() {
    let _alone = several_devices();
    for (model, how, close) in [
        ("mha", Quantization::Int8, 0.06),
        ("mqa", Quantization::Int8, 0.06),
        ("gqa", Quantization::Int8, 0.06),
        ("mqa", Quantization::Int4, 0.5),
        ("gqa", Quantization::Int4, 0.5),
    ] {
        let (_dir, checkpoint) = quantised(model, how);
        let expected = logits(&checkpoint, model, Mesh::SINGLE, DType::F32, NATIVE);
        for (devices, lowering) in [(1, KERNELS), (2, NATIVE), (2, KERNELS), (4, KERNELS), (1, TPU), (2, TPU), (4, TPU)]
        {
            let mesh = Mesh { data: 1, model: devices };
            if how == Quantization::Int4 && devices == 4 {
                continue; // rows of these models are too short to be split so often
            }
            assert_close(&logits(&checkpoint, model, mesh, DType::F32, lowering), &expected, 1e-4);
        }
        // And close to the one that it was made of.
        let error = error_at_99_percent(&expected, model);
        println!("{model} {how:?}: 99% of the logits are within {error:.4} of the largest");
        assert!(error < close, "{model}: {error}");
    }
}

/// Of all differences to the logits of transformers, the one that 99% are below, as a share of the
/// largest logit.
fn error_at_99_percent(logits: &[f32], model: &str) -> f32 {
    let original = Golden::read(model).f32s("logits");
    let scale = original.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let mut errors: Vec<f32> = logits.iter().zip(&original).map(|(a, b)| (a - b).abs() / scale).collect();
    errors.sort_by(f32::total_cmp);
    errors[errors.len() * 99 / 100]
}

/// Keys and values in eight bits: the same with kernels and without, on one device and on several,
/// and little worse.
#[test]
fn a_cache_in_eight_bits_is_the_same_everywhere() {
    let _alone = several_devices();
    for model in ["mha", "mqa", "gqa"] {
        let checkpoint = Checkpoint::open(&golden_dir(model)).unwrap();
        let expected = logits(&checkpoint, model, Mesh::SINGLE, DType::S8, NATIVE);
        for (devices, lowering) in [(1, KERNELS), (2, NATIVE), (4, KERNELS), (1, TPU), (4, TPU)] {
            let found = logits(&checkpoint, model, Mesh { data: 1, model: devices }, DType::S8, lowering);
            // A step is a 127th: where two devices round to different ones, logits differ by more
            // than sums do.
            assert_close(&found, &expected, 2e-2);
        }
        let error = error_at_99_percent(&expected, model);
        println!("{model}: 99% of the logits are within {error:.4} of the largest");
        assert!(error > 0.0 && error < 0.03, "{model}: {error}");
    }
}

/// A device's part of a row must be whole groups.
#[test]
fn groups_are_not_split() {
    let (_dir, checkpoint) = quantised("mqa", Quantization::Int4);
    let options = RunOptions {
        lowering: KERNELS,
        mesh: Mesh { data: 1, model: 8 },
        compute: DType::F32,
        kv: DType::F32,
        bundle: None,
    };
    let error = Model::load(platform(), &checkpoint, golden_config("mqa"), options, Box::new(|_, _| ()))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("whole groups of 32") && error.contains("--weights int8"), "{error}");
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let (dir, once) = quantised("mqa", Quantization::Int8);
    let error = write_quantized(&once, Quantization::Int8, &dir.path().join("twice.safetensors"), |_| ())
        .unwrap_err()
        .to_string();
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
        let options =
            RunOptions { lowering: KERNELS, mesh: Mesh::SINGLE, compute: DType::F32, kv: DType::F32, bundle: None };
        let error = Model::load(platform(), &checkpoint, golden_config("mqa"), options, Box::new(|_, _| ()))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
}
