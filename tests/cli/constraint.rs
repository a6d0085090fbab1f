//! Answers held to a form: `generate` with constraints, and lines of `--input` with them.

use std::fs;

use serde_json::{Value, json};

use crate::Home;

const ASK: &str = "What is the capital of France?";

/// The text that `generate --json` prints.
fn answer(home: &Home, args: &[&str]) -> (String, String) {
    let all = [&["generate", ASK, "--json"][..], args].concat();
    let object = home.run(&all).json();
    let text = |name: &str| object[name].as_str().unwrap().to_owned();
    (text("text"), text("finish_reason"))
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let home = Home::new();
    let stop = "stop".to_owned();
    assert_eq!(answer(&home, &["--choice", "Rome", "--choice", "It is Paris"]).1, stop);
    let (text, reason) = answer(&home, &["--regex", "[A-Z][a-z]{2,8}"]);
    assert!(reason == stop && text.len() <= 9 && text.starts_with(|c: char| c.is_ascii_uppercase()), "{text}");

    let schema = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 10}, "sure": {"type": "boolean"}},
        "required": ["city", "sure"],
        "additionalProperties": false
    });
    let file = home.path("schema.json");
    fs::write(&file, schema.to_string()).unwrap();
    for given in [schema.to_string(), file.to_str().unwrap().to_owned()] {
        let (text, reason) = answer(&home, &["--json-schema", &given]);
        let object: Value = serde_json::from_str(&text).unwrap();
        assert!(reason == stop && object["city"].is_string() && object["sure"].is_boolean(), "{text}");
    }
    let grammar = home.path("sums.lark");
    fs::write(&grammar, "start: NUMBER \"+\" NUMBER\nNUMBER: /[1-9][0-9]{0,2}/\n").unwrap();
    let (text, _) = answer(&home, &["--grammar", grammar.to_str().unwrap()]);
    let (a, b) = text.split_once('+').unwrap();
    assert!(a.parse::<u16>().is_ok() && b.parse::<u16>().is_ok(), "{text}");
}

#[test]
fn constraints_that_cannot_be_honoured_are_refused() {
    let home = Home::new();
    let run = |args: &[&str]| home.run(&[&["generate", ASK][..], args].concat());
    run(&["--regex", "("]).fails(1, &["the regular expression cannot be honoured"]);
    run(&["--json-schema", "{\"oneOf\": [{}, {}]}"]).fails(1, &["the JSON schema cannot be honoured", "oneOf"]);
    run(&["--json-schema", "{"]).fails(2, &["it is no JSON"]);
    run(&["--json-schema", "missing.json"]).fails(2, &["cannot read missing.json"]);
    run(&["--grammar", "missing.lark"]).fails(2, &["cannot read missing.lark"]);
    run(&["--regex", "a", "--json-object"]).fails(2, &["cannot be used with"]);
}

#[test]
fn lines_have_their_own_forms() {
    let home = Home::new();
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let chat = json!({"messages": [{"role": "user", "content": ASK}], "response_format":
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, "two"]}}}});
    let lines = [
        json!({"prompt": ASK, "choices": ["Rome", "Paris"]}),
        json!({"prompt": ASK}),
        json!({"prompt": ASK, "regex": "[0-9]{3}", "n": 2, "temperature": 1}),
        json!({"prompt": ASK, "regex": "("}),
        json!({"prompt": ASK, "regex": 1}),
        json!({"custom_id": "c", "url": "/v1/chat/completions", "method": "POST", "body": chat}),
    ];
    fs::write(path("in.jsonl"), lines.map(|line| format!("{line}\n")).concat()).unwrap();
    let run = ["generate", "--input", &path("in.jsonl"), "--output", &path("out.jsonl")];
    home.run(&run).fails(1, &["2 lines could not be run"]);
    let text = fs::read_to_string(path("out.jsonl")).unwrap();
    let found: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let choice = |line: usize, index: usize| found[line]["choices"][index]["text"].as_str().unwrap();
    assert!(["Rome", "Paris"].contains(&choice(0, 0)), "{}", found[0]);
    assert_eq!(choice(1, 0), "The capital of France is Paris.");
    for index in [0, 1] {
        assert!(choice(2, index).len() == 3 && choice(2, index).parse::<u16>().is_ok(), "{}", found[2]);
    }
    for (line, words) in [(3, "cannot be honoured"), (4, "write a text")] {
        assert!(found[line]["error"].as_str().unwrap().contains(words), "{}", found[line]);
    }
    let content = found[5]["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(["1", "\"two\""].contains(&content), "{content}");
}
