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
    let mut parts: HashMap<String, &RawValue> = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let model = parts.remove("model").ok_or("it has no model")?;
    let Ok(model) = serde_json::from_str::<BpeModel>(model.get()) else {
        // Another kind of model than Gemma's, or a damaged one, whose error the crate explains.
        return Tokenizer::from_bytes(json).map_err(|e| e.to_string());
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
    tokenizer.with_model(model.build()?);
    for AddedEntry { id, token } in added {
        let content = token.content.clone();
        if token.special { tokenizer.add_special_tokens([token]) } else { tokenizer.add_tokens([token]) }
            .map_err(|e| e.to_string())?;
        if tokenizer.token_to_id(&content) != Some(id) {
            return Err(format!("the added token {content:?} has id {id}, which is another one's or leaves a gap"));
        }
    }
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
    fn build(self) -> Result<BPE, String> {
        let merges = self.merges.into_iter().map(|Merge(pair)| pair).collect();
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
    fn what_does_not_fit_is_explained() {
        let error = |merges: Value, added: Value| tokenizer(&file(merges, added)).unwrap_err();
        let error_of_id = error(json!([]), json!([added("<new>", 9, false)]));
        assert!(error_of_id.contains("\"<new>\" has id 9"), "{error_of_id}");
        assert!(error(json!(["a c"]), json!([])).contains('c'));
        assert!(!error(json!(["a"]), json!([])).is_empty());
        assert!(error(json!([]), json!([{"id": "x"}])).contains("added_tokens"));
    }
}
