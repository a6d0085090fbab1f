//! Checkpoints: sharded and single, with and without prefix, and everything that can be wrong with
//! them.

use std::{fs, path::Path};

use gemma_pjrt::{
    checkpoint::{Checkpoint, OutputLayer, Quantization, write_quantized, write_random, write_safetensors},
    gemma::{Config, Lowering, tensors::tensors},
    hlo::{DType, Mesh},
    runtime::{Model, RunOptions, Session},
};
use serde_json::{Value, json};

use crate::common::{
    Golden, KERNELS, NATIVE, assert_close, golden_config, golden_dir, golden_tensors, platform, several_devices,
    write_tensors,
};

fn specs(config: &Config) -> Vec<(String, Vec<i64>)> {
    tensors(config).into_iter().map(|t| (t.name, t.dims)).collect()
}

/// A safetensors file from a header and a number of data bytes.
fn write_raw(path: &Path, header: &Value, data: usize) {
    let text = header.to_string().into_bytes();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.resize(bytes.len() + data, 0);
    fs::write(path, bytes).unwrap();
}

#[track_caller]
fn open_error(dir: &Path) -> String {
    Checkpoint::open(dir).err().expect("refused").to_string()
}

/// The golden model's weights, written again in other forms, give the same logits.
#[test]
fn shards_prefixes_and_types_make_no_difference() {
    let golden = Golden::read("mqa");
    let config = golden_config("mqa");
    let source = Checkpoint::open(&golden_dir("mqa")).unwrap();
    let prompt = &golden.ids("prompt")[..40];
    let expected = &golden.f32s("logits")[..40 * config.vocab_size as usize];
    let names: Vec<String> = specs(&config).into_iter().map(|(name, _)| name).collect();

    for (stored, prefix, shards) in [(DType::F32, true, 1), (DType::BF16, false, 3), (DType::F16, true, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let mut map = serde_json::Map::new();
        for shard in 0..shards {
            let file = format!("model-{shard:05}-of-{shards:05}.safetensors");
            let file = if shards == 1 { "model.safetensors".to_owned() } else { file };
            let part: Vec<&String> = names.iter().skip(shard).step_by(shards).collect();
            let list: Vec<_> = part
                .iter()
                .map(|name| {
                    let written = if prefix { (*name).clone() } else { name.trim_start_matches("model.").to_owned() };
                    map.insert(written.clone(), file.clone().into());
                    (written, stored, source.tensors()[*name].dims.clone())
                })
                .collect();
            write_safetensors(&dir.path().join(&file), &list, |i, out| {
                let bytes = source.tensors()[part[i]].bytes.bytes();
                for pair in bytes.chunks_exact(2) {
                    let value = half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
                    match stored {
                        DType::F32 => out.write_all(&value.to_le_bytes())?,
                        DType::F16 => out.write_all(&half::f16::from_f32(value).to_le_bytes())?,
                        _ => out.write_all(pair)?,
                    }
                }
                Ok(())
            })
            .unwrap();
        }
        if shards > 1 {
            fs::write(dir.path().join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
        }
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let options =
            RunOptions { lowering: KERNELS, mesh: Mesh::SINGLE, compute: DType::F32, kv: DType::F32, bundle: None };
        let model = Model::load(platform(), &checkpoint, config.clone(), options, Box::new(|_, _| ())).unwrap();
        assert_eq!(model.placement().unwrap().copied, 0, "aligned tensors are used in place");
        let mut session = Session::new(model.into(), 1, 256).unwrap();
        let logits = session.score(prompt, true).unwrap().logits.unwrap();
        // f16 has more digits than bf16 but not its range: these weights fit.
        assert_close(&logits, expected, if stored == DType::F16 { 1e-3 } else { 1e-4 });
    }
}

/// Hugging Face's own files start their data at any multiple of 8: kernels find matrices there,
/// XLA's operations need copies.
#[test]
fn unaligned_tensors_are_used_where_they_lie() {
    let _alone = several_devices();
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(golden_dir("mqa").join("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let golden = Golden::read("mqa");
    for off in [8, 40, 56] {
        let padding = (0..64).find(|p| (8 + header_len + p) % 64 == off).unwrap();
        let mut moved = ((header_len + padding) as u64).to_le_bytes().to_vec();
        moved.extend_from_slice(&bytes[8..8 + header_len]);
        moved.resize(moved.len() + padding, b' ');
        moved.extend_from_slice(&bytes[8 + header_len..]);
        fs::write(dir.path().join("model.safetensors"), moved).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        for (model, lowering) in [(1, KERNELS), (2, KERNELS), (1, NATIVE)] {
            let mesh = Mesh { data: 1, model };
            let options = RunOptions { lowering, mesh, compute: DType::F32, kv: DType::F32, bundle: None };
            let model =
                Model::load(platform(), &checkpoint, golden_config("mqa"), options, Box::new(|_, _| ())).unwrap();
            let placed = model.placement().unwrap();
            assert_eq!(
                (placed.unaligned > 0, placed.borrowed > 0),
                (lowering == NATIVE, lowering == KERNELS),
                "{off} {mesh} {placed:?}"
            );
            if mesh == Mesh::SINGLE && lowering == KERNELS {
                assert!(placed.copied < placed.borrowed / 20, "only norms are copied: {placed:?}");
            }
            let mut session = Session::new(model.into(), 1, 256).unwrap();
            let scored = session.score(&golden.ids("prompt")[..20], true).unwrap();
            assert_close(&scored.logits.unwrap(), &golden.f32s("logits")[..20 * 256], 1e-4);
        }
    }
}

#[test]
fn damaged_files_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let tensor = |shape: Value, offsets: [u64; 2]| json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});

    fs::write(&file, b"abc").unwrap();
    assert!(open_error(dir.path()).contains("too few for a safetensors header"));
    fs::write(&file, [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap();
    assert!(open_error(dir.path()).contains("its header claims 18446744073709551615 bytes, the file has 10"));
    fs::write(&file, [&2_u64.to_le_bytes()[..], b"][1234"].concat()).unwrap();
    assert!(open_error(dir.path()).contains("cannot be read"));
    write_raw(&file, &json!({"a": tensor(json!([4]), [0, 16]), "b": tensor(json!([4]), [8, 24])}), 24);
    assert!(open_error(dir.path()).contains("overlaps another tensor or leaves the file"));
    write_raw(&file, &json!({"a": tensor(json!([4]), [0, 16])}), 10);
    assert!(open_error(dir.path()).contains("truncated"));
    write_raw(&file, &json!({"a": tensor(json!([4]), [16, 0])}), 16);
    open_error(dir.path());
    write_raw(&file, &json!({"a": tensor(json!([u64::MAX, u64::MAX]), [0, 16])}), 16);
    open_error(dir.path());
    write_raw(&file, &json!({"a": tensor(json!(["NaN"]), [0, 16])}), 16);
    open_error(dir.path());
    write_raw(&file, &json!({"a": tensor(json!([5]), [0, 16])}), 16);
    assert!(open_error(dir.path()).contains("does not match its shape"));

    // A real file, cut anywhere.
    let whole = fs::read(golden_dir("gqa").join("model.safetensors")).unwrap();
    for keep in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..keep]).unwrap();
        let error = open_error(dir.path());
        assert!(error.contains("model.safetensors") && error.contains("Download it again"), "{error}");
    }
}

#[test]
fn missing_files_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    assert!(open_error(&dir.path().join("none")).contains("no model directory"));
    assert!(open_error(dir.path()).contains("it is empty"));
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    assert!(open_error(dir.path()).contains("only pytorch_model.bin; download the safetensors version"));
    fs::write(dir.path().join("weights.safetensors"), "").unwrap();
    fs::remove_file(dir.path().join("pytorch_model.bin")).unwrap();
    assert!(open_error(dir.path()).contains("only weights.safetensors"));

    let index = dir.path().join("model.safetensors.index.json");
    for (text, words) in [
        ("{", "not valid JSON"),
        ("{}", "no weight_map"),
        (r#"{"weight_map": {"a": 1}}"#, "not a string"),
        (r#"{"weight_map": {"a": "../../etc/passwd"}}"#, "not a plain file name"),
        (
            r#"{"weight_map": {"a": "gone.safetensors", "b": "gone.safetensors"}}"#,
            "gone.safetensors (for a and 1 more)",
        ),
    ] {
        fs::write(&index, text).unwrap();
        let error = open_error(dir.path());
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn one_file_wins_over_an_index_as_in_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = golden_tensors("mqa");
    write_tensors(&dir.path().join("model.safetensors"), &tensors);
    let index = dir.path().join("model.safetensors.index.json");
    for map in [json!({"model.norm.weight": "model-00001-of-00002.safetensors"}), json!({})] {
        fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
        assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors().len(), tensors.len());
    }
    // A link to nothing is no file.
    fs::rename(dir.path().join("model.safetensors"), dir.path().join("all.safetensors")).unwrap();
    std::os::unix::fs::symlink("/nowhere", dir.path().join("model.safetensors")).unwrap();
    fs::write(&index, "\u{feff}{\"weight_map\": {\"model.norm.weight\": \"all.safetensors\"}}").unwrap();
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert_eq!((opened.tensors().len(), opened.files().len()), (tensors.len(), 1));
}

#[test]
fn git_lfs_pointers_are_explained() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4945242264\n";
    for name in ["model.safetensors", "model.safetensors.index.json"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), pointer).unwrap();
        let error = open_error(dir.path());
        assert!(error.contains(name) && error.contains("Git LFS pointer") && error.contains("git lfs pull"), "{error}");
    }
}

#[test]
fn weights_quantised_by_others_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let tensor = |dtype: &str, size: u64, start: u64| json!({"dtype": dtype, "shape": [size], "data_offsets": [start, start + size]});
    let model = |header: &Value| {
        write_raw(&file, header, 16);
        load_error(&Checkpoint::open(dir.path()).unwrap(), Config::preset("tiny").unwrap())
    };
    let prefix = "model.layers.0.mlp.up_proj";
    for (second, dtype, format) in
        [("weight.absmax", "U8", "bitsandbytes"), ("qweight", "U8", "AWQ or GPTQ"), ("other", "F8_E4M3", "FP8")]
    {
        let error = model(
            &json!({format!("{prefix}.weight"): tensor("U8", 8, 0), format!("{prefix}.{second}"): tensor(dtype, 8, 8)}),
        );
        assert!(error.contains(format) && error.contains("original bf16") && !error.contains('\n'), "{error}");
    }
}

fn load(checkpoint: &Checkpoint, config: Config, lowering: Lowering, mesh: Mesh) -> Result<Model, String> {
    let options = RunOptions { lowering, mesh, compute: DType::F32, kv: DType::F32, bundle: None };
    Model::load(platform(), checkpoint, config, options, Box::new(|_, _| ())).map_err(|e| e.to_string())
}

fn load_error(checkpoint: &Checkpoint, config: Config) -> String {
    load(checkpoint, config, KERNELS, Mesh::SINGLE).err().expect("refused")
}

/// An output layer beside the embedding: with its rows in reverse, logits are in reverse, whatever
/// the config says; one that is the embedding is the embedding.
#[test]
fn an_output_layer_that_differs_from_the_embedding_is_used() {
    let _alone = several_devices();
    let golden = Golden::read("mqa");
    let prompt = &golden.ids("prompt")[..20];
    let tied = &golden.f32s("logits")[..20 * 256];
    let reversed: Vec<f32> = tied.chunks_exact(256).flat_map(|row| row.iter().rev().copied()).collect();
    let mut tensors = golden_tensors("mqa");
    let (_, dtype, dims, embedding) =
        tensors.iter().find(|tensor| tensor.0 == "model.embed_tokens.weight").unwrap().clone();
    let row_bytes = dims[1] as usize * dtype.bits() / 8;
    let rows: Vec<u8> = embedding.chunks_exact(row_bytes).rev().flatten().copied().collect();
    tensors.push(("lm_head.weight".into(), dtype, dims, rows));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");

    for (output, bytes, expected) in
        [(OutputLayer::Separate, None, &reversed[..]), (OutputLayer::Embedding, Some(embedding), tied)]
    {
        if let Some(bytes) = bytes {
            tensors.last_mut().unwrap().3 = bytes;
        }
        write_tensors(&file, &tensors);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.output_layer(), output);
        for tie_word_embeddings in [true, false] {
            for (lowering, model) in [(KERNELS, 1), (KERNELS, 2), (NATIVE, 1), (Lowering::TPU, 1), (Lowering::TPU, 2)] {
                let config = Config { tie_word_embeddings, ..golden_config("mqa") };
                let model = load(&checkpoint, config, lowering, Mesh { data: 1, model }).unwrap();
                assert_eq!(model.config().tie_word_embeddings, output == OutputLayer::Embedding);
                let mut session = Session::new(model.into(), 1, 256).unwrap();
                assert_close(&session.score(prompt, true).unwrap().logits.unwrap(), expected, 1e-4);
            }
        }
        let small = tempfile::tempdir().unwrap();
        for how in [Quantization::Int8, Quantization::Int4] {
            write_quantized(&checkpoint, how, &small.path().join("model.safetensors"), |_| ()).unwrap();
            let quantised = Checkpoint::open(small.path()).unwrap();
            assert_eq!(quantised.output_layer() == OutputLayer::Separate, output == OutputLayer::Separate);
            load(&quantised, golden_config("mqa"), KERNELS, Mesh::SINGLE).unwrap();
        }
    }

    // A config that speaks of an output layer that is not there.
    tensors.pop();
    write_tensors(&file, &tensors);
    let config = Config { tie_word_embeddings: false, ..golden_config("mqa") };
    let error = load_error(&Checkpoint::open(dir.path()).unwrap(), config);
    assert!(error.contains("1 missing:\n    lm_head.weight [256, 64]"), "{error}");
}

/// Whatever shapes tensors have, writing them quantised fails or succeeds, and never panics.
#[test]
fn tensors_of_odd_shapes_are_written_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let float = |name: &str, dims: &[i64]| {
        let bytes = dims.iter().product::<i64>() as usize * 4;
        (name.to_owned(), DType::F32, dims.to_vec(), vec![0; bytes])
    };
    let odd = vec![float("a.scale", &[]), float("b", &[2, 3, 4]), float("c", &[0, 4]), float("d", &[4, 0])];
    write_tensors(&file, &odd);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for how in [Quantization::Int8, Quantization::Int4] {
        let small = tempfile::tempdir().unwrap();
        write_quantized(&checkpoint, how, &small.path().join("model.safetensors"), |_| ()).unwrap();
        let written = Checkpoint::open(small.path()).unwrap();
        assert!(written.tensors().iter().all(|(name, tensor)| tensor.dims == checkpoint.tensors()[name].dims));
    }
    let error = load_error(&checkpoint, Config::preset("tiny").unwrap());
    assert!(error.contains("4 not of this model") && error.contains("model.a.scale []"), "{error}");
}

/// One error tells all: what is missing, what has another shape or type, what is not of this model.
#[test]
fn a_checkpoint_of_another_model_is_one_error_that_lists_all() {
    let config = Config::preset("tiny").unwrap();
    let mut list: Vec<(String, DType, Vec<i64>)> =
        specs(&config).into_iter().map(|(name, dims)| (name, DType::BF16, dims)).collect();
    let at = |list: &[(String, DType, Vec<i64>)], name: &str| list.iter().position(|t| t.0 == name).unwrap();
    let missing = at(&list, "model.layers.1.mlp.up_proj.weight");
    list.remove(missing);
    let shape = at(&list, "model.layers.0.self_attn.q_proj.weight");
    list[shape].2 = vec![64, 128];
    let dtype = at(&list, "model.norm.weight");
    list[dtype].1 = DType::U16;
    list.push(("model.layers.2.input_layernorm.weight".into(), DType::BF16, vec![64]));
    list.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), DType::F32, vec![8])); // harmless
    list.push(("lm_head.weight".into(), DType::BF16, vec![512, 64])); // equal to the embedding: harmless
    let dir = tempfile::tempdir().unwrap();
    let zeros = |n: usize| vec![0u8; n];
    let sizes: Vec<usize> = list.iter().map(|t| t.2.iter().product::<i64>() as usize * t.1.bits() / 8).collect();
    write_safetensors(&dir.path().join("model.safetensors"), &list, |i, out| out.write_all(&zeros(sizes[i]))).unwrap();

    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let options =
        RunOptions { lowering: KERNELS, mesh: Mesh::SINGLE, compute: DType::F32, kv: DType::F32, bundle: None };
    let error = Model::load(platform(), &checkpoint, config, options, Box::new(|_, _| ())).err().unwrap().to_string();
    for words in [
        "1 missing:\n    model.layers.1.mlp.up_proj.weight [256, 64]",
        "model.layers.0.self_attn.q_proj.weight: expected [128, 64], found [64, 128]",
        "model.norm.weight: expected BF16, F16, F32, I8 or U8, found U16",
        "1 not of this model:\n    model.layers.2.input_layernorm.weight [64]",
    ] {
        assert!(error.contains(words), "{words} is not in:\n{error}");
    }
    assert!(!error.contains("inv_freq") && !error.contains("lm_head"), "{error}");
}

#[test]
fn random_checkpoints_depend_on_the_seed_alone() {
    let config = Config::preset("tiny").unwrap();
    let write = |seed| {
        let dir = tempfile::tempdir().unwrap();
        write_random(dir.path(), &specs(&config), seed, |_| ()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let tensor = &checkpoint.tensors()["model.layers.0.mlp.up_proj.weight"];
        let values: Vec<f32> =
            tensor.bytes.bytes().chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        values
    };
    let values = write(1);
    assert_eq!(values, write(1));
    assert_ne!(values, write(2));
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
    assert!(mean.abs() < 1e-3 && (deviation - 0.02).abs() < 1e-3, "mean {mean}, deviation {deviation}");
}
