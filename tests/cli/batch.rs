//! `generate --input`: many prompts, answered in order, whatever interrupts it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use gemma_pjrt::pjrt::ABI_SLOT_NAMES;
use serde_json::{Value, json};

use crate::{Home, Ran, plugin};

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn write(home: &Home, lines: &[Value]) -> (String, String) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(home.path("in.jsonl"), text).unwrap();
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    (path("in.jsonl"), path("out.jsonl"))
}

#[test]
fn answers_come_in_order_and_errors_do_not_stop_the_rest() {
    let home = Home::new();
    let ask = |country: &str| format!("What is the capital of {country}?");
    let (input, output) = write(
        &home,
        &[
            json!({"id": {"my": 1}, "prompt": ask("France")}),
            json!({"prompt": "x", "temperature": -1}),
            json!({"messages": [{"role": "user", "content": ask("Italy")}], "n": 2, "logprobs": 2}),
            json!({"prompt": "a", "tokens": [2]}),
            json!({"promt": "a"}),
            json!({"tokens": [2, 1_000_000]}),
            json!({"prompt": ask("Spain"), "stop": ["Madrid"], "echo": true, "logprobs": 1}),
        ],
    );
    home.run(&["generate", "--input", &input, "--output", &output]).fails(1, &["7 lines", "4 lines could not be run"]);
    let found = lines(&home.path("out.jsonl"));
    let text = |i: usize, choice: usize| found[i]["choices"][choice]["text"].as_str().unwrap_or_default().to_owned();
    assert_eq!(found.iter().map(|line| line["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!((text(0, 0), &found[0]["id"]), ("The capital of France is Paris.".into(), &json!({"my": 1})));
    assert_eq!(
        (text(2, 0), text(2, 1)),
        ("The capital of Italy is Rome.".into(), "The capital of Italy is Rome.".into())
    );
    assert_eq!(found[2]["choices"][0]["logprobs"][0]["top"].as_array().unwrap().len(), 2);
    assert_eq!(text(6, 0), "The capital of Spain is ");
    let prompt = found[6]["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(found[6]["prompt_logprobs"].as_array().unwrap().len() as u64, prompt - 1);
    for (i, word) in [(1, "temperature"), (3, "give one of"), (4, "promt"), (5, "1000000")] {
        assert!(found[i]["error"].as_str().unwrap().contains(word), "{}", found[i]);
    }
    assert!(!home.path("out.jsonl.partial").exists());
    // What is there is not overwritten.
    home.run(&["generate", "--input", &input, "--output", &output]).fails(1, &["is there already", "--output"]);
}

#[test]
fn lines_as_other_programs_write_them_are_understood() {
    let home = Home::new();
    let ask = |country: &str| format!("What is the capital of {country}?");
    let chat = json!([{"role": "user", "content": ask("Spain")}]);
    let input = [
        json!({"id": "a", "prompt": ask("France"), "messages": null, "stop": null, "seed": -1, "top_k": -1, "stream": true}),
        json!({"id": "b", "model": "gemma", "messages": chat, "stop": "Madrid", "max_completion_tokens": 40, "user": "me"}),
        json!({"id": "c", "messages": chat, "logprobs": true, "top_logprobs": 2}),
        json!({"id": "d", "messages": chat, "tools": [{"type": "function"}]}),
        json!({"id": "e", "prompt": "x", "max_token": 1}),
    ];
    // A byte order mark, Windows' line ends, an empty line, and one that is cut off.
    let text: String = input.iter().map(|line| format!("{line}\r\n")).collect();
    fs::write(home.path("in.jsonl"), format!("\u{feff}{text}\r\n{{\"id\": \"f\", \"prom\r\n")).unwrap();
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let (input, output) = (path("in.jsonl"), path("out.jsonl"));
    home.run(&["generate", "--input", &input, "--output", &output]).fails(1, &["6 lines", "3 lines could not be run"]);
    let found = lines(&home.path("out.jsonl"));
    let ids: Vec<_> = found.iter().map(|line| line["id"].clone()).collect();
    assert_eq!(json!(ids), json!(["a", "b", "c", "d", "e", null]));
    assert_eq!(found[0]["choices"][0]["text"], "The capital of France is Paris.");
    assert_eq!(found[1]["choices"][0]["text"], "The capital of Spain is ");
    assert_eq!(found[2]["choices"][0]["logprobs"][0]["top"].as_array().unwrap().len(), 2);
    for (i, words) in [(3, "describe them in a message"), (4, "did you mean \"max_tokens\"?"), (5, "no valid request")]
    {
        assert!(found[i]["error"].as_str().unwrap().contains(words), "{}", found[i]);
    }

    fs::write(home.path("in.jsonl"), b"{\"prompt\": \"a\"}\n{\"prompt\": \"\xe4\"}\n").unwrap();
    let args = ["generate", "--input", &input, "--output", &path("other.jsonl")];
    home.run(&args).fails(1, &["not UTF-8 from line 2 on", "save it as UTF-8"]);
}

/// A batch of OpenAI's: answers in its format, the same in each run.
#[test]
fn openai_batches_are_answered_in_their_format() {
    let home = Home::new();
    let chat = "/v1/chat/completions";
    let line = |id: &str, url: &str, body: Value| json!({"custom_id": id, "method": "POST", "url": url, "body": body});
    let question = json!([{"role": "user", "content": "What is the capital of France?"}]);
    let (input, output) = write(
        &home,
        &[
            line("one", chat, json!({"model": "gemma", "messages": question})),
            line(
                "two",
                chat,
                json!({"messages": question, "n": 2, "logprobs": true, "top_logprobs": 1, "max_tokens": 3}),
            ),
            line(
                "three",
                "/v1/completions",
                json!({"prompt": "What is", "echo": true, "logprobs": 1, "max_tokens": 2}),
            ),
            line("four", "/v1/completions", json!({"prompt": "What is", "max_tokens": 2})),
            line("five", "/v1/embeddings", json!({"input": "x"})),
            line("six", chat, json!({"messages": question, "temperature": -1})),
            line("one", chat, json!({"messages": question})),
        ],
    );
    let args = ["generate", "--input", &input, "--output", &output];
    home.run(&args).fails(1, &["7 lines", "3 lines could not be run"]);
    let text = fs::read_to_string(&output).unwrap();
    let found = lines(&home.path("out.jsonl"));
    let body = |i: usize| &found[i]["response"]["body"];
    let ids: Vec<_> = found.iter().map(|line| line["custom_id"].clone()).collect();
    assert_eq!(json!(ids), json!(["one", "two", "three", "four", "five", "six", "one"]));
    let usage = body(0)["usage"].clone();
    let total = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], total);
    let choice = json!({
        "index": 0,
        "message": {"role": "assistant", "content": "The capital of France is Paris.", "refusal": null},
        "logprobs": null,
        "finish_reason": "stop",
        "stop_reason": 107, // <end_of_turn>
    });
    let answer = json!({
        "id": "chatcmpl-one", "object": "chat.completion", "created": 0, "model": "gemma", "choices": [choice], "usage": usage,
    });
    let response = json!({"status_code": 200, "request_id": "req_0", "body": answer});
    let first = json!({"id": "batch_req_0", "custom_id": "one", "response": response, "error": null});
    assert_eq!(found[0], first);

    let choices = body(1)["choices"].as_array().unwrap();
    assert_eq!((choices.len(), &choices[1]["finish_reason"], &body(1)["model"]), (2, &json!("length"), &json!("demo")));
    let content = choices[0]["logprobs"]["content"].as_array().unwrap();
    let told: String = content.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!((content.len(), choices[0]["message"]["content"].as_str()), (3, Some(told.as_str())));
    assert_eq!(content[0]["top_logprobs"][0]["token"], content[0]["token"]);
    assert!(content[0]["logprob"].as_f64().unwrap() <= 0.0 && content[0]["bytes"].is_array());

    let (echoed, alone) = (&body(2)["choices"][0], &body(3)["choices"][0]);
    assert_eq!((&body(3)["object"], &body(3)["id"]), (&json!("text_completion"), &json!("cmpl-four")));
    assert_eq!(echoed["text"], format!("What is{}", alone["text"].as_str().unwrap()));
    let logprobs = &echoed["logprobs"];
    let count = body(2)["usage"]["total_tokens"].as_u64().unwrap();
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().unwrap().len() as u64, count, "{list}");
    }
    assert_eq!((&logprobs["tokens"][0], &logprobs["text_offset"][1]), (&json!("<bos>"), &json!(0)));
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["token_logprobs"][1].is_number());

    for (i, words) in [(4, "/v1/completions"), (5, "temperature"), (6, "give each line its own")] {
        let response = &found[i]["response"];
        assert_eq!((&response["status_code"], &found[i]["error"]), (&json!(400), &Value::Null));
        let error = &response["body"]["error"];
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }

    // Resumed after the first lines.
    let partial = Path::new(&output).with_extension("jsonl.partial");
    fs::remove_file(&output).unwrap();
    let mut child = home.command(&[&args[..], &["--slots", "1"]].concat()).spawn().unwrap();
    let started = Instant::now();
    while fs::read_to_string(&partial).map_or(0, |text| text.lines().count()) < 2 && child.try_wait().unwrap().is_none()
    {
        assert!(started.elapsed() < Duration::from_secs(120), "nothing is written");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    if partial.exists() {
        home.run(&args).fails(1, &["of 7 lines were finished before"]);
    }
    assert_eq!(fs::read_to_string(&output).unwrap(), text);
}

#[test]
fn a_run_that_is_killed_goes_on_where_it_was() {
    let home = Home::new();
    let prompts: Vec<Value> = (0..60)
        .map(|i| json!({"prompt": format!("What is {i} + {}?", i * 7 % 50), "temperature": 1.0, "seed": i}))
        .collect();
    let (input, output) = write(&home, &prompts);
    let whole = home.path("whole.jsonl");
    fn args<'a>(input: &'a str, output: &'a str) -> [&'a str; 7] {
        ["generate", "--input", input, "--output", output, "--slots", "2"]
    }
    home.run(&args(&input, whole.to_str().unwrap())).ok();

    let partial = home.path("out.jsonl.partial");
    let mut child = home.command(&args(&input, &output)).spawn().unwrap();
    let started = Instant::now();
    while fs::read_to_string(&partial).map_or(0, |text| text.lines().count()) < 10 {
        assert!(started.elapsed() < Duration::from_secs(120), "nothing is written");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = fs::read_to_string(&partial).unwrap();
    assert!(kept.lines().count() >= 10 && !home.path("out.jsonl").exists());
    // As if it had been killed while it wrote a line.
    fs::write(&partial, format!("{kept}{{\"index\": 59, \"cho")).unwrap();
    // Not with other settings, or for another input.
    let other = [&args(&input, &output)[..], &["--max-tokens", "3"]].concat();
    home.run(&other).fails(1, &["other settings", "--output"]);
    let ran = home.run(&args(&input, &output)).ok();
    assert!(ran.stderr.contains("of 60 lines were finished before"), "{}", ran.stderr);
    assert_eq!(lines(&home.path("out.jsonl")).len(), 60);
    let answers = |path| lines(path).into_iter().map(|line| line["choices"].clone()).collect::<Vec<_>>();
    assert_eq!(answers(&home.path("out.jsonl")), answers(&whole));
}

#[test]
fn an_output_has_one_run() {
    let home = Home::new();
    let model = home.tiny_model();
    let (input, output) = write(&home, &[json!({"prompt": "a"}), json!({"prompt": "b"})]);
    let args = ["generate", "--input", &input, "--output", &output, "--model", &model, "-n", "4", "--context", "512"];
    home.run(&args).ok();
    let whole = lines(&home.path("out.jsonl"));
    // As if the run had been killed after its first line.
    fs::remove_file(&output).unwrap();
    let partial = home.path("out.jsonl.partial");
    let mut killed = home.command(&args);
    let full_output = home.path("out.jsonl.tmp");
    fs::create_dir(&full_output).unwrap(); // the output cannot be written, so the journal stays
    Ran::of(killed.output().unwrap()).fails(1, &["cannot write", "all answers are in"]);
    fs::remove_dir(&full_output).unwrap();
    let text = fs::read_to_string(&partial).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");

    let other = [&args[..9], &["--context", "256"]].concat();
    home.run(&other).fails(1, &["other context (512, now 256)", "Run it as before", "--output"]);
    let weights = std::path::Path::new(&model).join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&weights, changed).unwrap();
    home.run(&args).fails(1, &["of a run with other model files. Run it as before"]);
    // The same contents, as after another download.
    fs::write(&weights, bytes).unwrap();
    {
        let writer = fs::File::options().append(true).open(&partial).unwrap();
        writer.lock().unwrap();
        home.run(&args).fails(1, &["another process is writing", "out.jsonl.partial", "--output"]);
    }
    let ran = home.run(&args).ok();
    assert!(ran.stderr.contains("2 of 2 lines were finished before"), "{}", ran.stderr);
    assert_eq!(lines(&home.path("out.jsonl")), whole);
}

/// Compiles the plugin of which one execution fails.
fn faulty_plugin(home: &Home) -> PathBuf {
    let library = home.path("faulty.so");
    let execute = ABI_SLOT_NAMES.iter().position(|&name| name == "LoadedExecutable_Execute").unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/faulty_plugin.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(format!("-DEXECUTE={execute}")).arg(source).arg("-ldl");
    assert!(cc.status().unwrap().success(), "{cc:?}");
    library
}

#[test]
fn a_step_that_fails_ends_its_requests_and_no_others() {
    let home = Home::new();
    let prompts: Vec<Value> = (0..12)
        .map(|i| json!({"prompt": format!("What is {i} + {}?", i * 7 % 50), "temperature": 1.0, "seed": i}))
        .collect();
    let (input, output) = write(&home, &prompts);
    let library = faulty_plugin(&home);
    // For an accelerator, caches and weights are placed by executions, too.
    for (lowering, faults) in [(&[][..], [1, 9, 10]), (&["--lowering", "tpu"], [24, 25, 26])] {
        let args = [&["generate", "--input", &input, "--output", &output, "--slots", "2"], lowering].concat();
        home.run(&args).ok();
        let whole = lines(&home.path("out.jsonl"));
        for fault_at in faults {
            fs::remove_file(&output).unwrap();
            let mut faulty = home.command(&args);
            faulty.env("PJRT_PLUGIN", &library).env("REAL_PLUGIN", plugin()).env("FAULT_AT", fault_at.to_string());
            Ran::of(faulty.output().unwrap()).fails(1, &["12 lines", "could not be run"]);
            let found = lines(&home.path("out.jsonl"));
            let (failed, answered): (Vec<_>, Vec<_>) =
                found.iter().zip(&whole).partition(|(line, _)| line.get("error").is_some());
            assert!((1..=2).contains(&failed.len()), "{fault_at}: {found:?}");
            for (line, _) in failed {
                assert!(line["error"].as_str().unwrap().contains("running "), "{line}");
            }
            for (line, undisturbed) in answered {
                // Whose beginning was cached may differ.
                assert_eq!(line["choices"], undisturbed["choices"], "{fault_at}");
            }
        }
        fs::remove_file(&output).unwrap();
    }
}

#[test]
fn weights_that_cannot_be_placed_end_the_run_and_no_line() {
    let home = Home::new();
    let (input, output) = write(&home, &[json!({"prompt": "What is 1 + 2?"}), json!({"prompt": "What is 3 + 4?"})]);
    let args = ["generate", "--input", &input, "--output", &output, "--lowering", "tpu"];
    let mut faulty = home.command(&args);
    faulty.env("PJRT_PLUGIN", faulty_plugin(&home)).env("REAL_PLUGIN", plugin()).env("FAULT_AT", "3");
    Ran::of(faulty.output().unwrap()).fails(1, &["placing the weights of layer 0"]);
    assert!(!home.path("out.jsonl").exists());
    home.run(&args).ok();
    assert_eq!(lines(&home.path("out.jsonl")).len(), 2);
}

/// Clients find a token's text by its offset in characters: the bytes of a character share its own.
#[test]
fn bytes_of_one_character_have_its_offset() {
    let home = Home::new();
    let (input, output) = (home.path("in.jsonl"), home.path("out.jsonl"));
    let body = json!({"model": "demo", "prompt": "Größe 日本", "echo": true, "max_tokens": 1, "logprobs": 1, "temperature": 0});
    let line = json!({"custom_id": "one", "method": "POST", "url": "/v1/completions", "body": body});
    fs::write(&input, line.to_string()).unwrap();
    home.run(&["generate", "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()]).ok();
    let answer: Value = serde_json::from_str(&fs::read_to_string(&output).unwrap()).unwrap();
    let logprobs = &answer["response"]["body"]["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let bytes: Vec<u64> = list("tokens")
        .iter()
        .zip(list("text_offset"))
        .filter(|(token, _)| token.as_str().unwrap().starts_with("<0x"))
        .map(|(_, offset)| offset.as_u64().unwrap())
        .collect();
    assert_eq!(bytes, [2, 2, 3, 3, 6, 6, 6, 7, 7, 7], "{logprobs}");
}
