//! Gemma's own tokenizer: 256000 entries, byte fallback, no pre-tokenizer.

use std::sync::{Arc, OnceLock};

use gemma_pjrt::{
    constraint::{Constraint, Grammars},
    tokenizer::{Message, Tokenizer},
};
use serde_json::Value;

fn tokenizer() -> &'static Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        Arc::new(Tokenizer::from_dir(super::data("gemma-tokenizer/tokenizer.json").parent().unwrap()).unwrap())
    })
}

const HELLO_WORLD: [u32; 14] = [2, 106, 1645, 108, 5559, 476, 25612, 2134, 2733, 107, 108, 106, 2516, 108];

/// The ids of the model card's example, by its template and by ours.
#[test]
fn the_chat_format_gives_the_published_ids() {
    let t = tokenizer();
    assert_eq!(t.vocab_size(), 256_000);
    assert_eq!(t.encode_chat(&[Message::user("Write a hello world program")]).unwrap(), HELLO_WORLD);
    let text = "<bos><start_of_turn>user\nWrite a hello world program<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(t.encode(text).unwrap(), HELLO_WORLD);
    // Without its config, our own template is used: the same.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(super::data("gemma-tokenizer/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let plain = Tokenizer::from_dir(dir.path()).unwrap();
    let turns = [Message::user("Hi"), Message::assistant("Hello!"), Message::user("2+2?")];
    assert_eq!(plain.encode_chat(&turns).unwrap(), t.encode_chat(&turns).unwrap());
}

#[test]
fn special_tokens_have_their_ids() {
    let special = tokenizer().special();
    assert_eq!((special.bos, special.eos, special.end_of_turn), (2, 1, Some(107)));
}

#[test]
fn texts_of_many_scripts_survive_whole_and_streamed() {
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(400);
    let texts = [
        "Hello, world!",
        "  leading and trailing spaces  ",
        "tabs\tand\nnewlines\r\n\n\n",
        "Größe, naïve, žluťoučký kůň",
        "Привет, мир",
        "你好,世界。日本語のテキスト。한국어",
        "مرحبا بالعالم שלום עולם",
        "नमस्ते दुनिया",
        "👩🏽‍🚀🏴󠁧󠁢󠁳󠁣󠁴󠁿 emoji 🙂",
        "𓀀 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u{10FFFF} \u{0}\u{7f}",
        "fn main() { println!(\"{}\", 1 << 20); } // código",
        &long,
    ];
    let t = tokenizer();
    for text in texts {
        let ids = t.encode(text).unwrap();
        assert_eq!(ids[0], 2);
        assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 1);
        assert_eq!(t.decode(&ids).unwrap(), *text);
        let mut stream = t.stream();
        let mut streamed = String::new();
        for &id in &ids {
            let piece = stream.push(id).unwrap();
            assert!(!piece.contains(char::REPLACEMENT_CHARACTER));
            streamed += &piece;
        }
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, *text);
    }
}

/// Characters that the vocabulary lacks are bytes: ids 217 to 472.
#[test]
fn unknown_characters_fall_back_to_bytes() {
    let ids = tokenizer().encode("\u{F0000}").unwrap();
    assert_eq!(ids[1..], [0xF3, 0xB0, 0x80, 0x80].map(|byte: u32| 217 + byte));
}

/// The file is read in our own way, because that is faster: the result is that of the crate.
#[test]
fn the_tokenizer_is_the_one_that_the_crate_reads() {
    let (ours, crates) =
        (tokenizer(), tokenizers::Tokenizer::from_file(super::data("gemma-tokenizer/tokenizer.json")).unwrap());
    assert_eq!(ours.vocab_size(), crates.get_vocab_size(true));
    let texts = [
        "Hello, world!\n\n  indented\ttabs",
        "naïve 日本語 🙂🏽 \u{F0000} ﬁ",
        "<start_of_turn>user\nWhat is 12345 * 678?<end_of_turn>\n<start_of_turn>model\n",
        "<unused98><mask> a<bos>b <h1>title</h1> [multimodal]",
        "fn main() { println!(\"{}\", 1 + 2); }",
    ];
    for text in texts {
        let expected = crates.encode_fast(text, false).unwrap().get_ids().to_vec();
        assert_eq!(ours.encode_continuation(text).unwrap(), expected, "{text:?}");
        assert_eq!(ours.decode(&expected).unwrap(), crates.decode(&expected, true).unwrap());
    }
}

/// What transformers makes of texts and chats, see scripts/reference/gemma_tokenizer.py.
fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/compat/gemma_tokenizer.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The hash by which the golden holds long lists of ids.
fn fnv(ids: &[u32]) -> String {
    let step = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", ids.iter().flat_map(|id| id.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, step))
}

/// All planes of Unicode, combining marks, control characters, long runs, control tokens and what
/// looks like them.
#[test]
fn fuzzed_texts_are_those_of_transformers() {
    let t = tokenizer();
    let texts: Vec<(String, Value, Option<String>)> = serde_json::from_value(golden()["texts"].clone()).unwrap();
    assert!(texts.len() >= 500);
    let mut differences = vec![];
    for (text, expected, decoded) in texts {
        let ids = t.encode_continuation(&text).unwrap();
        let is_same = expected.as_str().map_or_else(|| expected == serde_json::json!(ids), |hash| fnv(&ids) == hash);
        if !is_same {
            differences.push(format!("{text:?} is {ids:?} instead of {expected}"));
        }
        // transformers' class for Gemma makes <mask> a control token, which tokenizer.json does not.
        let (found, decoded) = (t.decode(&ids).unwrap(), decoded.as_ref().unwrap_or(&text));
        if found.replace("<mask>", "") != *decoded {
            differences.push(format!("{text:?} is decoded as {found:?} instead of {decoded:?}"));
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// By its own template; what that refuses is rendered with instructions in the first turn and
/// neighbours joined, or refused.
#[test]
fn chats_are_those_of_transformers() {
    let t = tokenizer();
    for chat in golden()["chats"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(chat["messages"].clone()).unwrap();
        let expected = if chat["error"].is_null() { chat } else { &chat["folded"] };
        let found = t.render_chat_as_text(&messages);
        let Some(text) = expected["text"].as_str() else {
            assert!(found.is_err(), "{messages:?} is rendered, where transformers refuses it");
            continue;
        };
        assert_eq!(found.unwrap(), text);
        assert_eq!(serde_json::json!(t.encode_chat(&messages).unwrap()), expected["ids"], "{text:?}");
    }
}

/// What each of the 256,000 tokens writes, and answers that are held to a form in them.
#[test]
fn answers_can_be_held_to_a_form() {
    let bytes = tokenizer().token_bytes().unwrap();
    assert_eq!(bytes.len(), 256_000);
    let text = "{\n    \"k\": [1, -2.5e3, \"\u{4e16}\u{754c} \u{1f30d}\"]\n}";
    let ids = tokenizer().encode_continuation(text).unwrap();
    let written: Vec<u8> = ids.iter().flat_map(|&id| bytes[id as usize].clone()).collect();
    assert_eq!(written, text.as_bytes());

    let started = std::time::Instant::now();
    let grammars = Grammars::new(tokenizer().clone());
    let grammar = grammars.compile(&Constraint::JsonObject).unwrap();
    println!("the first constraint takes {:?}", started.elapsed());
    let mut matcher = grammar.matcher();
    let started = std::time::Instant::now();
    for &id in &ids {
        let mask = matcher.mask().unwrap();
        assert!(mask[id as usize / 32] >> (id % 32) & 1 == 1, "{:?} is not allowed", tokenizer().piece(id));
        matcher.accept(id).unwrap();
    }
    println!("{:?} a token", started.elapsed() / ids.len() as u32);
    assert!(matcher.is_finished());
}
