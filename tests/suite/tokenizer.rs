//! The tokenizer room on the byte tokenizer that the project makes. The real one is tested in
//! tests/external.

use std::{fs, sync::Arc};

use gemma_pjrt::tokenizer::{Message, Tokenizer, minimal_tokenizer_json};
use proptest::prelude::*;

fn tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), minimal_tokenizer_json(512).to_string()).unwrap();
    Tokenizer::from_dir(dir.path()).unwrap()
}

#[test]
fn special_tokens_have_gemmas_ids() {
    let t = tokenizer();
    assert_eq!((t.special().bos, t.special().eos, t.special().end_of_turn), (2, 1, Some(107)));
    assert_eq!(t.stop_ids(), [1, 107]);
    assert_eq!(t.vocab_size(), 512);
    let ids = t.encode_chat(&[Message::user("Hi")]).unwrap();
    assert_eq!(ids[..2], [2, 106]);
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 1);
}

#[test]
fn there_is_exactly_one_bos_in_every_path() {
    let t = tokenizer();
    for text in ["", "a", "<bos>", "<bos>a", "<bos><bos>a"] {
        let ids = t.encode(text).unwrap();
        assert_eq!(ids[0], 2, "{text:?}");
        assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 1, "{text:?}: {ids:?}");
    }
}

#[test]
fn a_template_of_the_model_is_used() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), minimal_tokenizer_json(512).to_string()).unwrap();
    let config = dir.path().join("tokenizer_config.json");
    fs::write(&config, r#"{"chat_template": "{{ bos_token }}[{{ messages[0]['content'].upper() }}]"}"#).unwrap();
    let t = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(t.render_chat(&[Message::user("hi")]).unwrap(), "<bos>[HI]");
    fs::write(&config, r#"{"chat_template": "{{ raise_exception('System role not supported') }}"}"#).unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap().encode_chat(&[Message::user("hi")]).unwrap_err().to_string();
    assert!(error.contains("System role not supported"), "{error}");
    fs::write(&config, r#"{"chat_template": "{% for %}"}"#).unwrap();
    assert!(Tokenizer::from_dir(dir.path()).err().unwrap().to_string().contains("chat template is broken"));
}

#[test]
fn damaged_tokenizers_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Tokenizer::from_dir(dir.path()).err().unwrap().to_string().contains("copy tokenizer.json"));
    for text in ["", "{", "{}", r#"{"model": {"type": "BPE"}}"#] {
        fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::from_dir(dir.path()).err().unwrap().to_string();
        assert!(error.contains("not a usable tokenizer"), "{text:?}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    /// Streamed pieces are whole characters, and together the text. The byte tokenizer splits every
    /// character.
    #[test]
    fn streams_never_split_a_character(text in "[a-zéß漢字🙂🏽\u{200d} ]{0,24}") {
        let t = Arc::new(tokenizer());
        let ids = t.encode(&text).unwrap();
        let mut stream = t.stream();
        let mut streamed = String::new();
        for &id in &ids {
            let piece = stream.push(id).unwrap();
            prop_assert!(!piece.contains(char::REPLACEMENT_CHARACTER));
            streamed.push_str(&piece);
        }
        streamed.push_str(&stream.finish().unwrap());
        prop_assert_eq!(&streamed, &text);
        prop_assert_eq!(t.decode(&ids).unwrap(), text);
    }
}

#[test]
fn an_unfinished_character_ends_as_a_replacement() {
    let t = tokenizer();
    let ids = t.encode("a\u{1f642}").unwrap();
    let mut stream = Arc::new(t).stream();
    let mut text = String::new();
    for &id in &ids[..ids.len() - 1] {
        text.push_str(&stream.push(id).unwrap());
    }
    assert_eq!(text, "a");
    assert!(stream.finish().unwrap().chars().all(|c| c == '\u{FFFD}'));
}
