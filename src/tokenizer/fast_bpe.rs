//! Reads `tokenizer.json` quickly. The `tokenizers` crate parses the whole file into generic JSON
//! values first, which takes a second for Gemma's 256,000 tokens and 580,000 merges. This takes a
//! third of that.

use std::collections::HashMap;

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use tokenizers::{
    AddedToken, Tokenizer,
    models::bpe::{BPE, Vocab},
};

/// Makes a tokenizer from the contents of `tokenizer.json`.
///
/// # Errors
/// They are not a tokenizer. The message says what is wrong.
pub fn tokenizer(json: &[u8]) -> Result<Tokenizer, String> {
    let text = json.strip_prefix("\u{FEFF}".as_bytes()).unwrap_or(json);
    let mut parts: HashMap<String, &RawValue> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    // Left over from training. transformers sets both for each call, and so by default to none.
    parts.remove("truncation");
    parts.remove("padding");
    let model = parts.remove("model").ok_or("it has no model")?;
    let Ok(model) = serde_json::from_str::<BpeModel>(model.get()) else {
        // Another kind of model than Gemma's, or a damaged one, whose error the crate explains.
        parts.insert("model".into(), model);
        let whole = serde_json::to_string(&parts).map_err(|e| e.to_string())?;
        return whole.parse().map_err(|e: tokenizers::Error| e.to_string());
    };
    let added: Vec<AddedEntry> = match parts.remove("added_tokens") {
        Some(added) => serde_json::from_str(added.get()).map_err(|e| format!("added_tokens: {e}"))?,
        None => Vec::new(),
    };
    // The crate reads everything but the tokens.
    let empty = serde_json::value::to_raw_value(&serde_json::json!({"type": "BPE", "vocab": {}, "merges": []}));
    let empty = empty.map_err(|e| e.to_string())?;
    parts.insert("model".into(), &empty);
    let rest = serde_json::to_string(&parts).map_err(|e| e.to_string())?;
    let mut tokenizer: Tokenizer = rest.parse().map_err(|e: tokenizers::Error| e.to_string())?;
    tokenizer.with_model(model.build(&added)?);
    tokenizer.add_tokens(added.into_iter().map(|entry| entry.token)).map_err(|e| e.to_string())?;
    Ok(tokenizer)
}

/// The BPE model of `tokenizer.json`.
#[derive(Deserialize)]
struct BpeModel {
    vocab: Vocab,
    merges: Vec<Merge>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

impl BpeModel {
    /// Returns the model. Its vocabulary has the added tokens, too: the crate gives those that are
    /// not in it the next free ids, whatever ids the file says.
    fn build(mut self, added: &[AddedEntry]) -> Result<BPE, String> {
        let known = self.vocab.len();
        for AddedEntry { id, token } in added {
            if *self.vocab.entry(token.content.clone()).or_insert(*id) != *id {
                let other = self.vocab[&token.content];
                return Err(format!("the added token {:?} has id {id}, and in the vocabulary {other}", token.content));
            }
        }
        if self.vocab.len() > known {
            self.check_ids()?;
        }
        let merges: Vec<(String, String)> = self.merges.into_iter().map(|Merge(pair)| pair).collect();
        // The crate cuts as many bytes off the second token of a merge, whatever they are.
        let prefix = self.continuing_subword_prefix.as_deref().unwrap_or_default();
        if let Some((first, second)) = merges.iter().find(|(_, second)| !second.starts_with(prefix)) {
            return Err(format!(
                "the merge of {first:?} and {second:?} does not continue with the continuing_subword_prefix {prefix:?}"
            ));
        }
        let mut bpe = BPE::builder()
            .vocab_and_merges(self.vocab, merges)
            .fuse_unk(self.fuse_unk)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges);
        if let Some(token) = self.unk_token {
            bpe = bpe.unk_token(token);
        }
        if let Some(prefix) = self.continuing_subword_prefix {
            bpe = bpe.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = self.end_of_word_suffix {
            bpe = bpe.end_of_word_suffix(suffix);
        }
        bpe.build().map_err(|e| e.to_string())
    }

    /// Checks that each id is one token's, and says where ids are left out.
    fn check_ids(&self) -> Result<(), String> {
        let mut names: HashMap<u32, &str> = HashMap::with_capacity(self.vocab.len());
        for (token, &id) in &self.vocab {
            if let Some(other) = names.insert(id, token) {
                return Err(format!("{token:?} and {other:?} have the same id {id}"));
            }
        }
        let ids = names.keys().max().map_or(0, |&id| id as usize + 1);
        if ids > names.len() {
            tracing::info!(
                "tokenizer.json has {} tokens with ids up to {}: the others are no text",
                names.len(),
                ids - 1
            );
        }
        Ok(())
    }
}

/// A merge of two tokens: `"a b"` in older files, `["a", "b"]` in newer ones.
struct Merge((String, String));

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;

        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("two tokens")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Merge, E> {
                let pair = text.split_once(' ').filter(|(_, second)| !second.contains(' '));
                let (first, second) = pair.ok_or_else(|| E::custom(format!("{text:?} is no merge of two tokens")))?;
                Ok(Merge((first.into(), second.into())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Merge, A::Error> {
                let mut next = |i| sequence.next_element()?.ok_or_else(|| A::Error::invalid_length(i, &self));
                Ok(Merge((next(0)?, next(1)?)))
            }
        }

        deserializer.deserialize_any(Pair)
    }
}

/// An entry of `added_tokens`: a token beside the model's vocabulary, or a special one in it.
#[derive(Deserialize)]
struct AddedEntry {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn file(merges: Value, added: Value) -> Vec<u8> {
        let vocab = json!({"<unk>": 0, "a": 1, "b": 2, "ab": 3, "abb": 4, "<eos>": 5});
        let model = json!({"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": true});
        let whole =
            json!({"version": "1.0", "model": model, "added_tokens": added, "truncation": null, "padding": null});
        serde_json::to_vec(&whole).unwrap()
    }

    fn added(content: &str, id: u32, special: bool) -> Value {
        let flags = json!({"single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
        let mut token = json!({"id": id, "content": content, "special": special});
        token.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        token
    }

    #[test]
    fn both_forms_of_merges_and_added_tokens_read_as_by_the_crate() {
        let added = json!([added("<eos>", 5, true), added("<new>", 6, false)]);
        for merges in [json!(["a b", "ab b"]), json!([["a", "b"], ["ab", "b"]])] {
            let file = file(merges, added.clone());
            let (ours, crates) = (tokenizer(&file).unwrap(), Tokenizer::from_bytes(&file).unwrap());
            for text in ["abb", "aabbab<eos>b", "x<new>yab", ""] {
                let ids = |t: &Tokenizer| t.encode_fast(text, false).unwrap().get_ids().to_vec();
                assert_eq!(ids(&ours), ids(&crates), "{text:?}");
                assert_eq!(ours.decode(&ids(&ours), true).unwrap(), crates.decode(&ids(&ours), true).unwrap());
            }
        }
    }

    #[test]
    fn added_tokens_keep_their_ids() {
        let added = json!([added("<b>", 9, true), added("<a>", 7, false), added("<c>", 6, true)]);
        let tokenizer = tokenizer(&file(json!([]), added)).unwrap();
        let ids = tokenizer.encode_fast("<a><b>a<c>", false).unwrap().get_ids().to_vec();
        assert_eq!(ids, [7, 9, 1, 6]);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "<a> a");
    }

    #[test]
    fn settings_left_over_from_training_have_no_effect() {
        let mut json: Value = serde_json::from_slice(&file(json!([]), json!([]))).unwrap();
        json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
        let ids = |json: &Value| {
            let text = format!("\u{FEFF}{json}");
            tokenizer(text.as_bytes()).unwrap().encode_fast("abab", false).unwrap().get_ids().to_vec()
        };
        assert_eq!(ids(&json), [1, 2, 1, 2]);
        json["model"] = json!({"type": "WordLevel", "vocab": {"<unk>": 0, "abab": 1}, "unk_token": "<unk>"});
        assert_eq!(ids(&json), [1]);
    }

    #[test]
    fn what_does_not_fit_is_explained() {
        let error = |merges: Value, added: Value| tokenizer(&file(merges, added)).unwrap_err();
        for (entry, named) in [
            (added("<eos>", 9, true), "\"<eos>\" has id 9, and in the vocabulary 5"),
            (added("<new>", 3, true), "the same id 3"),
        ] {
            let error_of_id = error(json!([]), json!([entry]));
            assert!(error_of_id.contains(named), "{error_of_id}");
        }
        assert!(error(json!(["a c"]), json!([])).contains('c'));
        assert!(!error(json!(["a"]), json!([])).is_empty());
        assert!(error(json!([]), json!([{"id": "x"}])).contains("added_tokens"));
    }
}
