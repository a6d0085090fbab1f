//! What each command does when all is well.

use std::{fs, process::Stdio, time::Duration};

use serde_json::Value;

use crate::Home;

fn tokens(json: &Value) -> Vec<u64> {
    json["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect()
}

#[test]
fn generate_streams_text_and_tells_statistics() {
    let home = Home::new();
    let model = home.tiny_model();
    let ran = home.run(&["generate", "Hello", "-n", "8", "--model", &model, "--temperature", "1"]).ok();
    assert!(!ran.stdout.is_empty());
    for word in ["prompt 21 tokens", "new 8 tokens", "(length)", "first token after", "load", "compile", "peak memory"]
    {
        assert!(ran.stderr.contains(word), "{word} is not in {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("absl::InitializeLog"), "plugin logs are hidden: {}", ran.stderr);
    let verbose = home.run(&["generate", "Hello", "-n", "1", "--model", &model, "--verbose"]).ok();
    assert!(verbose.stderr.contains("cpu_device_count"), "and shown on request: {}", verbose.stderr);
}

#[test]
fn generate_json_has_all_fields_and_seeds_decide() {
    let home = Home::new();
    let model = home.tiny_model();
    let draw = |extra: &[&str]| {
        let base = ["generate", "Hello", "-n", "12", "--json", "--dtype", "f32", "--model", &model];
        home.run(&[&base[..], extra].concat()).json()
    };
    let greedy = draw(&[]);
    assert_eq!(greedy["prompt_tokens"].as_array().unwrap()[..2], [2, 106]);
    assert_eq!(tokens(&greedy).len(), 12);
    assert_eq!(greedy["finish_reason"], "length");
    assert!(greedy["text"].is_string());
    for name in ["prefill_tokens_per_second", "decode_tokens_per_second", "first_token_seconds", "peak_rss_bytes"] {
        assert!(greedy["timings"][name].as_f64().unwrap() > 0.0, "{name}");
    }
    let sampled = draw(&["--temperature", "1.5", "--top-k", "200", "--top-p", "0.99", "--seed", "3"]);
    assert_eq!(
        tokens(&sampled),
        tokens(&draw(&["--temperature", "1.5", "--top-k", "200", "--top-p", "0.99", "--seed", "3"]))
    );
    assert_ne!(
        tokens(&sampled),
        tokens(&draw(&["--temperature", "1.5", "--top-k", "200", "--top-p", "0.99", "--seed", "4"]))
    );
    assert_eq!(tokens(&draw(&["--temperature", "1", "--top-k", "1"])), tokens(&greedy));
    for mesh in ["1x2", "1x8", "2x4"] {
        assert_eq!(tokens(&draw(&["--mesh", mesh])), tokens(&greedy), "mesh {mesh}");
    }
}

#[test]
fn prompts_come_from_argument_file_stdin_or_ids() {
    let home = Home::new();
    let model = home.tiny_model();
    let text = "Größe 漢字";
    let file = home.path("prompt.txt");
    fs::write(&file, text).unwrap();
    let base = ["generate", "--json", "-n", "1", "--raw", "--model", &model];
    let by_argument = home.run(&[&base[..], &[text]].concat()).json();
    let by_file = home.run(&[&base[..], &["--prompt-file", file.to_str().unwrap()]].concat()).json();
    let by_stdin: Value = serde_json::from_str(&home.run_with_input(&base, text.as_bytes()).ok().stdout).unwrap();
    assert_eq!(by_argument["prompt_tokens"], by_file["prompt_tokens"]);
    assert_eq!(by_argument["prompt_tokens"], by_stdin["prompt_tokens"]);
    assert_eq!(by_argument["prompt_tokens"][0], 2);
    let by_ids = home.run(&[&base[..], &["--prompt-tokens", "2,300,301"]].concat()).json();
    assert_eq!(by_ids["prompt_tokens"], serde_json::json!([2, 300, 301]));
}

#[test]
fn stop_strings_end_the_text_before_them() {
    let home = Home::new();
    let model = home.tiny_model();
    let base = ["generate", "Hello", "--json", "-n", "40", "--temperature", "2", "--seed", "9", "--model", &model];
    let free = home.run(&base).json();
    let text = free["text"].as_str().unwrap();
    let stop: String = text.chars().skip(text.chars().count() / 2).take(2).collect();
    let expected = &text[..text.find(&stop).unwrap()];
    let stopped = home.run(&[&base[..], &["--stop", "never in it", "--stop", &stop]].concat()).json();
    assert_eq!(stopped["text"], expected);
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(tokens(&stopped).len() < 40);
}

#[test]
fn score_agrees_with_itself_and_writes_logits() {
    let home = Home::new();
    let model = home.tiny_model();
    let logits = home.path("logits.safetensors");
    let base = ["score", "Hello world", "--dtype", "f32", "--model", &model];
    let json = home.run(&[&base[..], &["--json", "--logits", logits.to_str().unwrap()]].concat()).json();
    let logprobs: Vec<f64> = json["logprobs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
    let total = json["total"].as_f64().unwrap();
    assert_eq!(logprobs.len(), 11);
    assert!((logprobs.iter().sum::<f64>() - total).abs() < 1e-6);
    assert!((json["perplexity"].as_f64().unwrap() - (-total / 11.0).exp()).abs() < 1e-6);

    let bytes = fs::read(&logits).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("logits").unwrap();
    assert_eq!((tensor.shape(), tensor.dtype()), (&[12, 512][..], safetensors::Dtype::F32));
    let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(tensor.data());
    let row = &values[..512];
    let target = json["tokens"][1].as_u64().unwrap() as usize;
    let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
    assert!((f64::from(row[target]) - sum.ln() - logprobs[0]).abs() < 1e-5);

    let table = home.run(&base).ok().stdout;
    assert_eq!(table.lines().count(), 12);
    assert!(table.contains("perplexity"));
}

#[test]
fn a_second_run_compiles_nothing() {
    let home = Home::new();
    let model = home.tiny_model();
    let args = ["generate", "Hello", "--json", "-n", "4", "--model", &model];
    let first = home.run(&args).json();
    assert!(first["timings"]["programs_compiled"].as_u64().unwrap() > 0);
    let second = home.run(&args).json();
    assert_eq!(second["timings"]["programs_compiled"], 0);
    assert_eq!(second["timings"]["programs_cached"], first["timings"]["programs_compiled"]);
    assert_eq!(tokens(&first), tokens(&second));
}

/// Ctrl-C in the middle of an answer: the text so far, statistics, exit code 130.
#[test]
fn an_interrupt_ends_the_text_cleanly() {
    let home = Home::new();
    let dir = home.path("slow");
    // Large enough that 900 tokens take many seconds.
    let mut config: Value = serde_json::from_str(include_str!("../golden/mqa/config.json")).unwrap();
    config["vocab_size"] = 16384.into();
    config["hidden_size"] = 256.into();
    config["intermediate_size"] = 2048.into();
    config["num_hidden_layers"] = 8.into();
    let file = home.path("config.json");
    fs::write(&file, config.to_string()).unwrap();
    let dir = dir.to_str().unwrap();
    home.run(&["init", dir, "--config", file.to_str().unwrap()]).ok();
    let args = ["generate", "Hello", "-n", "900", "--temperature", "1", "--model", dir];
    home.run(&["generate", "Hello", "-n", "900", "--stop", "\n", "--model", dir]).ok(); // compiles what is needed
    let mut child = home.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The first text shows that the answer has begun.
    let mut out = child.stdout.take().unwrap();
    let mut first = [0u8; 1];
    std::io::Read::read_exact(&mut out, &mut first).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut out, &mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("(interrupted)"), "{stderr}");
    assert_eq!(text.last(), Some(&b'\n'));
}

#[test]
fn hlo_prints_every_program() {
    let home = Home::new();
    for (program, extra) in [
        ("step", &["--tokens", "64"][..]),
        ("decode", &["--head", "sample", "--mesh", "2x4", "--lowering", "tpu", "--window", "700"]),
        ("step", &["--head", "logits", "--mesh", "1x4", "--dtype", "f32"]),
        ("step", &["--head", "hidden", "--lowering", "native"]),
        ("copy", &["--kv", "int8"]),
    ] {
        let args = [&["hlo", "--config", "gemma-1.1-7b", "--program", program], extra].concat();
        let text = home.run(&args).ok().stdout;
        assert!(text.starts_with(&format!("HloModule {program}")) && text.contains("ENTRY"), "{text:.200}");
    }
    home.run(&["hlo", "--program", "decode"]).fails(1, &["decoding is a step like any other", "--lowering tpu"]);
    home.run(&["hlo", "--program", "decode", "--lowering", "tpu", "--head", "score"]).fails(1, &["--head greedy"]);
    let out = home.path("step.pb");
    home.run(&["hlo", "--config", "tiny", "--format", "proto", "-o", out.to_str().unwrap()]).ok();
    let module: gemma_pjrt::hlo::proto::Module = prost::Message::decode(&fs::read(out).unwrap()[..]).unwrap();
    assert!(module.computations.len() > 1);
    let optimized = home.run(&["hlo", "--config", "tiny", "--optimized"]).ok();
    assert!(optimized.stdout.contains("fusion"), "{:.300}", optimized.stdout);
    assert!(optimized.stderr.contains("temporaries"), "{}", optimized.stderr);
}

#[test]
fn devices_and_inspect_tell_what_is_there() {
    let home = Home::new();
    let text = home.run(&["devices", "--cpu-devices", "3"]).ok();
    assert!(text.stdout.contains("PJRT API") && text.stdout.matches("\ndevice ").count() == 3, "{}", text.stdout);
    assert!(text.stderr.contains("platform cpu (PJRT 0."), "{}", text.stderr);
    // Where no plugin is named, it is said why better platforms were not taken.
    let libraries = home.path("libraries");
    fs::create_dir(&libraries).unwrap();
    std::os::unix::fs::symlink(crate::plugin(), libraries.join("libpjrt_cpu.so")).unwrap();
    let mut command = home.command(&["devices"]);
    let found = crate::Ran::of(command.env_remove("PJRT_PLUGIN").env("LD_LIBRARY_PATH", &libraries).output().unwrap());
    for word in ["from LD_LIBRARY_PATH", "not tpu: no TPU chip", "not cuda: no NVIDIA driver"] {
        assert!(found.stderr.contains(word), "{word} is not in {}", found.stderr);
    }
    let json = home.run(&["devices", "--json"]).json();
    assert_eq!(json["platform"], "cpu");
    assert_eq!(json["devices"].as_array().unwrap().len(), 1);

    let model = home.tiny_model();
    let text = home.run(&["inspect", &model, "--tensors"]).ok().stdout;
    for word in ["parameters", "168256", "bf16", "zero copy", "512 entries", "model.layers.1.mlp.up_proj.weight"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    assert_eq!(home.run(&["inspect", &model, "--json"]).json()["parameters"], 168_256);
}

#[test]
fn without_a_model_the_demo_model_answers_and_says_what_it_is() {
    let home = Home::new();
    let ran = home.run(&["generate", "What is the capital of France?"]).ok();
    assert_eq!(ran.stdout, "The capital of France is Paris.\n");
    assert_eq!(ran.stderr.matches("tiny demo model").count(), 1);
    assert!(ran.stderr.contains("--model google/gemma-1.1-2b-it"), "{}", ran.stderr);
    // It is used where it lies in the program.
    let json = home.run(&["generate", "What is the capital of France?", "--json", "--model", "demo"]).json();
    assert_eq!(json["timings"]["weights_copied_bytes"], 0);
    assert!(json["timings"]["weights_mapped_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(home.run(&["inspect", "demo"]).ok().stdout.contains("context     512 tokens"));
}

#[test]
fn the_doctor_finds_what_will_not_work() {
    let home = Home::new();
    let states = |json: &Value| -> Vec<(String, String)> {
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let checks = json["checks"].as_array().unwrap();
        for line in checks {
            assert_eq!(line["state"] == "ok", line["remedy"].is_null(), "{line}");
        }
        checks.iter().map(|line| (text(line, "what"), text(line, "state"))).collect()
    };
    let well = states(&home.run(&["doctor", "--json"]).json());
    let of = |lines: &[(String, String)], what: &str| {
        lines.iter().find(|(name, _)| name == what).map(|(_, state)| state.clone()).unwrap_or_default()
    };
    assert_eq!(
        (of(&well, "CPU devices"), of(&well, "cache"), of(&well, "TPU")),
        ("ok".into(), "ok".into(), "ok".into())
    );
    // A plugin that aborts, or is none, does not take the doctor along.
    let broken = home.path("plugin.so");
    fs::write(&broken, "no library").unwrap();
    let ran = crate::Ran::of(home.command(&["doctor", "--json"]).env("PJRT_PLUGIN", &broken).output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let lines = states(&serde_json::from_str(&ran.stdout).unwrap());
    assert_eq!((of(&lines, "CPU devices"), of(&lines, "environment")), ("fail".into(), "ok".into()));
    let unwritable = home.path("file");
    fs::write(&unwritable, "").unwrap();
    let ran = crate::Ran::of(home.command(&["doctor"]).env("XDG_CACHE_HOME", &unwritable).output().unwrap());
    assert!(ran.code == 1 && ran.stdout.contains("set XDG_CACHE_HOME"), "{}", ran.stdout);
}
