//! What people's tokenizers, templates and generation configs mean: variations of the demo model's
//! files, each as transformers reads it (`tests/golden/compat`, made by
//! scripts/reference/variations.py).

use std::{fs, path::Path};

use gemma_pjrt::{
    demo,
    tokenizer::{Message, Tokenizer},
};
use serde_json::{Value, json};

/// Variations that this program reads in another way than transformers, and why.
const OTHERWISE: [(&str, &str); 3] = [
    ("config without eos", "the tokenizer's eos_token ends a generation, where transformers never ends"),
    ("template: dictionaries", "tuples are written as lists"),
    ("generation_config: with a BOM", "a byte order mark means nothing"),
];
/// Variations that this program refuses, and a part of the reason that it gives.
const REFUSED: [(&[&str], &str); 4] = [
    (
        // Ids that no token has: generation would never end, or fail at its first step.
        &[
            "generation_config eos text",
            "odd generation_config eos [1.0, 107]",
            "odd generation_config eos 1.0",
            "odd generation_config eos 1.5",
            "odd generation_config eos \"1\"",
            "odd generation_config eos true",
            "odd generation_config eos -1",
            "odd generation_config eos [-1, 107]",
            "odd generation_config eos 8589934592",
            "odd generation_config eos [[1, 107]]",
            "odd generation_config eos {\"a\": 1}",
            "odd generation_config eos [null]",
            "odd generation_config eos [\"<eos>\"]",
            "odd config eos \"1\"",
            "odd config eos 1.0",
            "odd config eos -1",
            "odd config eos [null]",
            "odd config eos true",
        ],
        "which is no list of token ids",
    ),
    (&["generation_config: damaged", "generation_config: an empty file"], "EOF while parsing"),
    (&["generation_config: a list", "generation_config: null"], "it does not hold a JSON object"),
    // JSON has neither, although Python reads and writes NaN.
    (&["generation_config: with a comment", "generation_config: with NaN"], "generation_config.json cannot be used"),
];

/// Writes the demo model's files with a variation's changes.
pub fn write(dir: &Path, changes: &Value) {
    let base = [
        ("config.json", demo::CONFIG.as_bytes()),
        ("tokenizer.json", demo::TOKENIZER),
        ("tokenizer_config.json", demo::TOKENIZER_CONFIG.as_bytes()),
    ];
    for (file, text) in base {
        fs::write(dir.join(file), text).unwrap();
    }
    for (file, change) in changes.as_object().unwrap() {
        let text = || fs::read_to_string(dir.join(file)).unwrap();
        let changed = match (change, change.get("$replace")) {
            (Value::String(whole), _) => whole.clone(),
            (_, Some(pairs)) => {
                let replace = |text: String, (old, new): (&String, &Value)| text.replace(old, new.as_str().unwrap());
                pairs.as_object().unwrap().iter().fold(text(), replace)
            }
            (patch, None) => {
                let mut json: Value = serde_json::from_str(&text()).unwrap();
                merge(&mut json, patch);
                json.to_string()
            }
        };
        fs::write(dir.join(file), changed).unwrap();
    }
}

/// Applies a merge patch in which null is a value.
pub fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            patch.iter().for_each(|(key, value)| merge(target.entry(key).or_insert(Value::Null), value));
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// Compares a chat with what transformers renders. What a template refuses there is refused here,
/// or rendered with instructions in the first turn and neighbours joined.
fn compare_chat(tokenizer: &Tokenizer, messages: &[Message], expected: &Value) -> Result<(), String> {
    let found = tokenizer.render_chat_as_text(messages);
    let expected = if expected["error"].is_null() { expected } else { &expected["folded"] };
    let Some(text) = expected["text"].as_str() else {
        return found.map_or(Ok(()), |text| Err(format!("rendered {text:?}, which transformers refuses")));
    };
    let found = found.map_err(|e| format!("refused ({e}) instead of {text:?}"))?;
    if found != text {
        return Err(format!("rendered\n  {found:?}\n  instead of\n  {text:?}"));
    }
    // Exactly one <bos>, whatever the template writes.
    if let Some(ids) = expected["ids"].as_array() {
        let bos = tokenizer.special().bos;
        let ids = ids.iter().map(|id| id.as_u64().unwrap() as u32).skip_while(|&id| id == bos);
        let ids: Vec<u32> = std::iter::once(bos).chain(ids).collect();
        let found = tokenizer.encode_chat(messages).map_err(|e| e.to_string())?;
        if found != ids {
            return Err(format!("tokenized {text:?} as\n  {found:?}\n  instead of\n  {ids:?}"));
        }
    }
    Ok(())
}

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/compat/variations.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// All of Unicode, control characters, long runs, control tokens in the middle.
#[test]
fn fuzzed_texts_have_the_ids_of_transformers() {
    let fuzzed: Vec<(String, Vec<u32>)> = serde_json::from_value(golden()["fuzzed"].clone()).unwrap();
    assert!(fuzzed.len() >= 300);
    let tokenizer = demo::tokenizer();
    for (text, ids) in fuzzed {
        assert_eq!(tokenizer.encode_continuation(&text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn every_variation_is_read_as_by_transformers_or_refused() {
    let golden = golden();
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let chats: Vec<Vec<Message>> = serde_json::from_value(golden["chats"].clone()).unwrap();
    let variations = golden["variations"].as_array().unwrap();
    assert!(variations.len() >= 170, "{}", variations.len());
    let base_ids = &variations[0]["expected"]["ids"];
    let mut differences = vec![];
    for variation in variations {
        let (name, expected) = (variation["name"].as_str().unwrap(), &variation["expected"]);
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &variation["changes"]);
        let tokenizer = Tokenizer::from_dir(dir.path());
        let is_otherwise = OTHERWISE.iter().any(|(other, _)| *other == name);
        let mut differ = |what: String| {
            if !is_otherwise {
                differences.push(format!("{name}: {what}"));
            }
        };
        let refused = REFUSED.iter().find(|(refused, _)| refused.contains(&name));
        let tokenizer = match (tokenizer, refused) {
            (Ok(tokenizer), None) => tokenizer,
            (Err(error), Some((_, reason))) if error.to_string().contains(reason) => continue,
            (Err(error), _) => {
                differ(format!("is refused: {error}"));
                continue;
            }
            (Ok(_), Some(_)) => {
                differ("is not refused".into());
                continue;
            }
        };
        let stop = &expected["stop"];
        if *stop != json!(tokenizer.stop_ids().ids) {
            differ(format!("stops at {:?} instead of {stop}", tokenizer.stop_ids().ids));
        }
        let ids = expected.get("ids").unwrap_or(base_ids);
        let Some(ids) = ids.as_array() else {
            differ(format!("is read, where transformers says {ids}"));
            continue;
        };
        for (text, ids) in texts.iter().zip(ids) {
            let found = tokenizer.encode_continuation(text).unwrap();
            if *ids != json!(found) {
                differ(format!("{text:?} is\n  {found:?}\n  instead of\n  {ids}"));
            }
        }
        for (messages, expected) in chats.iter().zip(expected["chats"].as_array().unwrap()) {
            if let Err(what) = compare_chat(&tokenizer, messages, expected) {
                differ(what);
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
