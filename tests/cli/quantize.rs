use serde_json::Value;

use crate::Home;

const QUESTION: [&str; 4] = ["generate", "What is the capital of France?", "--json", "--model"];

#[test]
fn a_quantised_checkpoint_is_a_checkpoint() {
    let home = Home::new();
    let out = home.path("small").to_str().unwrap().to_owned();
    let ran = home.run(&["quantize", "demo", "--weights", "int8", "--out", &out]).ok();
    assert!(ran.stderr.contains("in int8, from 4.6 MiB"), "{}", ran.stderr);
    let config: Value = serde_json::from_slice(&std::fs::read(home.path("small/config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["weights"], "int8");
    home.run(&["inspect", &out]).ok();
    let answer = home.run(&[&QUESTION[..], &[&out]].concat()).json();
    assert!(answer["text"].as_str().unwrap().contains("Paris"), "{answer}");
    assert_eq!(answer["timings"]["weights_copied_bytes"], 0);

    let in_four_bits = home.path("smaller").to_str().unwrap().to_owned();
    let ran = home.run(&["quantize", "demo", "--weights", "int4", "--out", &in_four_bits]).ok();
    assert!(ran.stderr.contains("1.4 MiB of weights in int4, from 4.6 MiB"), "{}", ran.stderr);
    for native in [&[][..], &["--lowering", "native"]] {
        let answer = home.run(&[&QUESTION[..], &[&in_four_bits], native].concat()).json();
        assert!(answer["text"].as_str().unwrap().contains("Paris"), "{answer}");
        assert_eq!(answer["timings"]["weights_copied_bytes"], 0);
    }

    home.run(&["quantize", "demo", "--weights", "int8", "--out", &out]).fails(1, &["holds a model already"]);
    let again = home.path("again").to_str().unwrap().to_owned();
    home.run(&["quantize", &out, "--weights", "int8", "--out", &again]).fails(1, &["stored as s8", "original"]);
}

#[test]
fn weights_are_quantised_at_the_first_load_and_kept() {
    let home = Home::new();
    let run = || home.run(&[&QUESTION[..], &["demo", "--weights", "int8"]].concat()).ok();
    let first = run();
    assert!(first.stderr.contains("the quantised weights are kept in"), "{}", first.stderr);
    assert!(first.stdout.contains("Paris"));
    let second = run();
    assert!(!second.stderr.contains("kept in"), "{}", second.stderr);
    let tokens = |ran: &str| serde_json::from_str::<Value>(ran).unwrap()["tokens"].clone();
    assert_eq!(tokens(&first.stdout), tokens(&second.stdout));
}

#[test]
fn a_changed_model_is_quantised_anew() {
    let home = Home::new();
    let model = home.path("model").to_str().unwrap().to_owned();
    home.run(&["init", &model, "--preset", "tiny"]).ok();
    let is_made = || {
        let ran = home.run(&["generate", "hello", "-n", "1", "--weights", "int8", "--model", &model]).ok();
        ran.stderr.contains("kept in")
    };
    assert!(is_made());
    assert!(!is_made());
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let file = std::fs::File::options().append(true).open(home.path("model").join(name)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(is_made(), "{name}");
    }
    // What the result does not depend on.
    std::os::unix::fs::symlink("/nowhere", home.path("model/link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", home.path("model/link.safetensors")).unwrap();
    std::fs::write(home.path("model/train.log"), "step 1").unwrap();
    assert!(!is_made());
}

#[test]
fn keys_and_values_may_be_in_eight_bits() {
    let home = Home::new();
    for native in [&[][..], &["--lowering", "native"]] {
        let answer = home.run(&[&QUESTION[..], &["demo", "--kv", "int8"], native].concat()).json();
        assert!(answer["text"].as_str().unwrap().contains("Paris"), "{answer}");
    }
}
