//! Everything that can be wrong: a clear error, the right exit code, never a panic or an abort.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use gemma_pjrt::{
    checkpoint::{Checkpoint, write_safetensors},
    hlo::DType,
};
use serde_json::{Value, json};

use crate::{Home, Ran};

fn edit_config(model: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = Path::new(model).join("config.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(json.as_object_mut().unwrap());
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn wrong_command_lines_exit_with_2() {
    let home = Home::new();
    home.run(&["generate", "x", "--mesh", "4"]).fails(2, &["DATAxMODEL"]);
    home.run(&["generate", "x", "--mesh", "0x1"]).fails(2, &["DATAxMODEL"]);
    home.run(&["generate", "x", "--max-tokens", "0"]).fails(2, &["0 is not in"]);
    home.run(&["generate", "x", "--dtype", "fp8"]).fails(2, &["bf16, f32"]);
    home.run(&["generate", "--prompt-tokens", "2,x"]).fails(2, &["no token id"]);
    home.run(&["generate", "x", "--prompt-tokens", "2"]).fails(2, &["cannot be used with"]);
    home.run(&["generate", "x", "--platform", "gpu"]).fails(2, &["cuda"]);
    home.run(&["plugins", "install", "gpu"]).fails(2, &["cpu, tpu or cuda"]);
    home.run(&["frobnicate"]).fails(2, &["unrecognized subcommand"]);
    home.run(&[]).fails(2, &["Usage"]);
}

#[test]
fn models_that_are_not_there_or_not_complete() {
    let home = Home::new();
    home.run(&["generate", "x", "--model", "/no/such/dir"]).fails(1, &["no model directory /no/such/dir"]);
    let empty = home.path("empty");
    fs::create_dir(&empty).unwrap();
    home.run(&["generate", "x", "--model", empty.to_str().unwrap()]).fails(1, &["config.json", "model's repository"]);
    let model = home.tiny_model();
    let tokenizer = Path::new(&model).join("tokenizer.json");
    fs::write(&tokenizer, "{ not json").unwrap();
    home.run(&["generate", "x", "--model", &model]).fails(1, &["tokenizer.json", "download it again"]);
    fs::remove_file(&tokenizer).unwrap();
    home.run(&["generate", "x", "--model", &model]).fails(1, &["copy tokenizer.json"]);
    let weights = Path::new(&model).join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    for command in ["generate", "score"] {
        home.run(&[command, "x", "--model", &model]).fails(1, &["model.safetensors", "truncated"]);
    }
    home.run(&["inspect", &model]).fails(1, &["truncated"]);
    fs::remove_file(&weights).unwrap();
    home.run(&["generate", "x", "--model", &model]).fails(1, &["no safetensors"]);
    home.run(&["init", &model]).fails(1, &["holds a model already"]);
}

#[test]
fn configs_that_cannot_be() {
    let home = Home::new();
    let model = home.tiny_model();
    edit_config(&model, |c| {
        c.insert("use_bidirectional_attention".into(), json!(true));
        c.insert("num_hidden_layers".into(), json!(-1));
        c.insert("vocab_size".into(), json!(1e300));
    });
    let error =
        ["causal attention only", "num_hidden_layers is -1", "vocab_size is 1e+300", "config.json cannot be used"];
    home.run(&["generate", "x", "--model", &model]).fails(1, &error);
    fs::write(Path::new(&model).join("config.json"), "[1, 2]").unwrap();
    home.run(&["generate", "x", "--model", &model]).fails(1, &["JSON object"]);
    fs::write(Path::new(&model).join("config.json"), "{").unwrap();
    home.run(&["inspect", &model]).fails(1, &["not valid JSON"]);
}

/// Adds tensors of zeros to a model's weights.
fn add_tensors(model: &str, more: &[(&str, DType, &[i64])]) {
    let source = Checkpoint::open(Path::new(model)).unwrap();
    let mut list = Vec::new();
    let mut data = Vec::new();
    for (name, tensor) in source.tensors() {
        list.push((name.clone(), *tensor.dtype.as_ref().unwrap(), tensor.dims.clone()));
        data.push(tensor.bytes.bytes().to_vec());
    }
    for &(name, dtype, dims) in more {
        list.push((name.to_owned(), dtype, dims.to_vec()));
        data.push(vec![0; dims.iter().product::<i64>() as usize * dtype.bits() / 8]);
    }
    write_safetensors(&Path::new(model).join("model.safetensors"), &list, |i, out| out.write_all(&data[i])).unwrap();
}

/// All commands report them alike, and leave nothing behind.
#[test]
fn tensors_that_are_not_of_the_model() {
    let home = Home::new();
    let model = home.tiny_model();
    let odd: [(&str, DType, &[i64]); 3] = [
        ("model.layers.0.mlp.up_proj.input_scale", DType::F32, &[]),
        ("model.odd", DType::BF16, &[2, 3, 4]),
        ("model.empty", DType::BF16, &[0, 4]),
    ];
    add_tensors(&model, &odd);
    let words = ["3 not of this model", "up_proj.input_scale []", "model.odd [2, 3, 4]", "model.empty [0, 4]"];
    let out = home.path("out");
    home.run(&["generate", "x", "--model", &model]).fails(1, &words);
    for weights in ["int8", "int4"] {
        home.run(&["generate", "x", "--weights", weights, "--model", &model]).fails(1, &words);
        home.run(&["quantize", &model, "--weights", weights, "--out", out.to_str().unwrap()]).fails(1, &words);
        assert!(!out.exists());
    }
    assert!(fs::read_dir(home.path(".cache/gemma-pjrt/quantized")).is_err(), "nothing half-written");
}

#[test]
fn weights_that_others_quantised() {
    let home = Home::new();
    let model = home.tiny_model();
    add_tensors(&model, &[("model.layers.0.mlp.up_proj.weight.absmax", DType::U8, &[8])]);
    let words = ["bitsandbytes", "original bf16 checkpoint", "--weights int8"];
    home.run(&["generate", "x", "--model", &model]).fails(1, &words);
    let out = home.path("out");
    home.run(&["quantize", &model, "--weights", "int8", "--out", out.to_str().unwrap()]).fails(1, &words);
    edit_config(&model, |c| drop(c.insert("quantization_config".into(), json!({"quant_method": "awq"}))));
    home.run(&["inspect", &model]).fails(1, &["AWQ", "original bf16 checkpoint"]);
}

#[test]
fn git_lfs_pointers() {
    let home = Home::new();
    let model = home.tiny_model();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let path = Path::new(&model).join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4945242264\n").unwrap();
        let words = [name, "Git LFS pointer", "git lfs pull"];
        home.run(&["generate", "x", "--model", &model]).fails(1, &words);
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn what_is_used_and_what_is_not_is_said_once() {
    let home = Home::new();
    let model = home.tiny_model();
    let generate = || home.run(&["generate", "x", "-n", "2", "--json", "--model", &model]);
    let with_mark = || {
        let path = Path::new(&model).join("config.json");
        fs::write(&path, format!("\u{feff}{}", fs::read_to_string(&path).unwrap())).unwrap();
    };
    let before = generate().json()["tokens"].clone();
    with_mark();
    let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}).to_string();
    fs::write(Path::new(&model).join("model.safetensors.index.json"), index).unwrap();
    let ran = generate().ok();
    assert_eq!(ran.stderr.matches("model.safetensors.index.json, which is ignored").count(), 1, "{}", ran.stderr);
    assert_eq!(ran.json()["tokens"], before);

    // Zeros: all logits are equal.
    add_tensors(&model, &[("lm_head.weight", DType::BF16, &[512, 64])]);
    for weights in [&[][..], &["--weights", "int8"], &["--weights", "int8"]] {
        let ran = home.run(&[&["generate", "x", "-n", "2", "--json", "--model", &model], weights].concat()).ok();
        assert_eq!(ran.stderr.matches("lm_head.weight differs").count(), 1, "{}", ran.stderr);
        assert_eq!(ran.json()["tokens"][0], 0);
    }
}

#[test]
fn a_config_of_another_size_lists_what_does_not_fit() {
    let home = Home::new();
    let model = home.tiny_model();
    edit_config(&model, |c| {
        c.insert("num_hidden_layers".into(), json!(3));
        c.insert("intermediate_size".into(), json!(512));
    });
    let words =
        ["9 missing", "model.layers.2.self_attn.q_proj.weight [128, 64]", "expected [512, 64], found [256, 64]"];
    home.run(&["generate", "x", "--model", &model]).fails(1, &words);
    home.run(&["inspect", &model]).fails(1, &words);
}

#[test]
fn prompts_that_do_not_fit_or_are_no_text() {
    let home = Home::new();
    let model = home.tiny_model();
    let long = "x".repeat(2000);
    home.run(&["generate", &long, "--model", &model]).fails(1, &["too long for a context of 1024"]);
    home.run(&["generate", "hello", "--context", "10", "--model", &model]).fails(1, &["context of 10", "--context"]);
    home.run(&["generate", "x", "--context", "4096", "--model", &model]).fails(1, &["trained for"]);
    home.run(&["score", &long, "--model", &model]).fails(1, &["too long"]);
    home.run(&["score", "", "--model", &model]).fails(1, &["no token to score"]);
    home.run(&["generate", "--prompt-tokens", "2,512", "--model", &model]).fails(1, &["512", "vocabulary"]);
    home.run_with_input(&["generate", "--model", &model], b"caf\xe9").fails(1, &["not UTF-8", "iconv"]);
    home.run(&["generate", "--prompt-file", "/no/such/file", "--model", &model]).fails(1, &["/no/such/file"]);
    home.run(&["generate", "x", "--top-p", "0", "--model", &model]).fails(1, &["top-p"]);
    home.run(&["generate", "x", "--temperature", "-1", "--model", &model]).fails(2, &[]);
    home.run(&["generate", "x", "--temperature=-1", "--model", &model]).fails(1, &["temperature"]);
}

#[test]
fn meshes_that_do_not_divide_the_model() {
    let home = Home::new();
    let model = home.tiny_model();
    let words = ["8 attention heads", "do not divide over 3 devices", "--mesh 1x1, 1x2, 1x4, 1x8"];
    home.run(&["generate", "x", "--mesh", "1x3", "--model", &model]).fails(1, &words);
    home.run(&["hlo", "--mesh", "1x5"]).fails(1, &["do not divide over 5"]);
    home.run(&["hlo", "--config", "gemma-3"]).fails(1, &["neither a preset"]);
    home.run(&["hlo", "--mesh", "1x8", "--weights", "int4", "--config", "tiny"]).fails(1, &["whole groups of 32"]);
}

#[test]
fn plugins_that_cannot_be_loaded() {
    let home = Home::new();
    let model = home.tiny_model();
    let text = home.path("plugin.so");
    fs::write(&text, "no library").unwrap();
    let args = |path: &str| home.run(&["generate", "x", "--model", &model, "--plugin", path]);
    args("/no/such/plugin.so").fails(1, &["/no/such/plugin.so", "--plugin"]);
    args(text.to_str().unwrap()).fails(1, &["not a shared library"]);
    args("/lib/x86_64-linux-gnu/libm.so.6").fails(1, &["not a PJRT plugin"]);
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18] = 183;
    fs::write(&text, elf).unwrap();
    args(text.to_str().unwrap()).fails(1, &["built for aarch64", "x86-64"]);
    let mut command = home.command(&["devices"]);
    let ran = crate::Ran::of(command.env("PJRT_PLUGIN", "/no/such/plugin.so").output().unwrap());
    ran.fails(1, &["/no/such/plugin.so", "PJRT_PLUGIN"]);
    home.run(&["devices", "--platform", "tpu"]).fails(1, &["no TPU chip", "--platform cpu"]);
    home.run(&["devices", "--platform", "cuda"]).fails(1, &["no NVIDIA driver", "--platform cpu"]);
}

/// XLA itself would end the process.
#[test]
fn xla_flags_of_another_program() {
    let home = Home::new();
    let with = |command: &str, flags: &str| Ran::of(home.command(&[command]).env("XLA_FLAGS", flags).output().unwrap());
    let words = ["XLA_FLAGS has flags that it does not know: --xla_nonsense. ", "unset XLA_FLAGS"];
    with("devices", "--xla_nonsense=1").fails(1, &words);
    with("devices", "--xla_force_host_platform_device_count=8 --xla_nonsense --xla_backend_optimization_level=1")
        .fails(1, &words);
    let file = home.path("flags");
    fs::write(&file, "--xla_nonsense=1\n").unwrap();
    with("devices", file.to_str().unwrap()).fails(1, &words);
    for flags in [
        "",
        "--xla_force_host_platform_device_count=8",
        "--xla_dump_to=none --xla_cpu_multi_thread_eigen=false --xla_gpu_autotune_level=0",
        "--xla_cpu_enable_fast_math=true --xla_backend_optimization_level=1 --xla_dump_hlo_as_text",
    ] {
        with("devices", flags).ok();
    }
    let doctor = with("doctor", "--xla_nonsense=1").fails(1, &[]);
    assert!(doctor.stdout.contains(words[0]), "{}", doctor.stdout);
}

/// More than this machine has: refused before the kernel kills the process.
#[test]
fn a_cache_that_does_not_fit_into_memory() {
    let home = Home::new();
    let model = home.tiny_model();
    edit_config(&model, |c| {
        c.insert("max_position_embeddings".into(), json!(1 << 24));
    });
    // 4 GiB on each of 64 devices.
    let args = ["generate", "x", "-n", "16000000", "--dtype", "f32", "--mesh", "8x8", "--model", &model];
    home.run(&args).fails(1, &["not enough device memory", "KV cache", "GiB are available", "--context"]);
}

/// A cache that cannot be used costs a warning, never the run.
#[test]
fn damaged_foreign_and_unwritable_caches() {
    let home = Home::new();
    let model = home.tiny_model();
    let args = ["generate", "Hello", "-n", "3", "--json", "--model", &model];
    let expected = home.run(&args).json()["tokens"].clone();
    let programs = home.path(".cache/gemma-pjrt/programs");
    let entries = || -> Vec<_> { fs::read_dir(&programs).unwrap().map(|e| e.unwrap().path()).collect() };
    assert!(!entries().is_empty());

    let spoil = |change: &dyn Fn(&mut Vec<u8>)| {
        for path in entries() {
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
        }
        let ran = home.run(&args);
        assert!(ran.stderr.contains("warning: ignoring the cached program"), "{}", ran.stderr);
        assert_eq!(ran.json()["tokens"], expected);
        assert_eq!(home.run(&args).json()["timings"]["programs_compiled"], 0, "written anew");
    };
    spoil(&|bytes| bytes.truncate(bytes.len() / 2));
    spoil(&|bytes| *bytes.last_mut().unwrap() ^= 1);
    spoil(&|bytes| bytes[10] ^= 1); // the key of another program
    spoil(&|bytes| *bytes = b"something else".to_vec());
    spoil(&|bytes| bytes.clear());

    // A file where the directory should be: nothing can be kept.
    fs::remove_dir_all(&programs).unwrap();
    fs::write(&programs, "").unwrap();
    let ran = home.run(&args);
    assert!(ran.stderr.contains("could not be kept"), "{}", ran.stderr);
    assert_eq!(ran.json()["tokens"], expected);
    // A path that leads nowhere. (ci/full-disk fills a real disk.)
    let mut command = home.command(&args);
    let ran = crate::Ran::of(command.env("XDG_CACHE_HOME", "/dev/full").output().unwrap());
    assert!(ran.stderr.contains("warning"), "{}", ran.stderr);
    assert_eq!(ran.json()["tokens"], expected);
    // No place at all.
    let mut command = home.command(&args);
    assert_eq!(crate::Ran::of(command.env_remove("HOME").output().unwrap()).json()["tokens"], expected);
}

#[test]
fn results_that_cannot_be_written() {
    let home = Home::new();
    let model = home.tiny_model();
    home.run(&["score", "hello", "--logits", "/no/such/dir/x", "--model", &model])
        .fails(1, &["cannot write /no/such/dir/x"]);
    home.run(&["hlo", "--config", "tiny", "-o", "/no/such/dir/x"]).fails(1, &["cannot write /no/such/dir/x"]);
    let locked = home.path("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
    let file = home.path("file");
    fs::write(&file, "").unwrap();
    home.run(&["init", file.join("model").to_str().unwrap()]).fails(1, &["cannot write"]);
}

/// A reader that has enough (`| head`) is no error.
#[test]
fn a_closed_pipe_is_no_error() {
    let home = Home::new();
    let mut command = home.command(&["hlo", "--config", "gemma-1.1-7b"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    crate::Ran::of(child.wait_with_output().unwrap()).ok();
}
