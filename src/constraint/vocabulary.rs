//! The tokenizer as llguidance needs it: a trie of what tokens write, and texts as tokens.

use std::sync::Arc;

use llguidance::toktrie::{SimpleVob, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// Tokens that write text, and those that end an answer. No text can form a control token: they are
/// not in the trie.
pub(super) struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
    /// Ids that end an answer.
    pub ends: Vec<u32>,
    /// Tokens that write text, and those that end an answer. A grammar may name others by their
    /// ids.
    pub usable: SimpleVob,
    /// Tokens that begin with a digit.
    pub digits: SimpleVob,
}

impl Vocabulary {
    /// Builds the trie.
    ///
    /// # Errors
    /// The tokenizer is not of Gemma's kind.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, TokenizerError> {
        let mut words = tokenizer.token_bytes()?;
        // The byte 0xFF is in no text. In the trie it marks names of tokens that are no text.
        words
            .iter_mut()
            .filter(|word| **word == [TokTrie::SPECIAL_TOKEN_MARKER])
            .for_each(|word| word.extend(b"<0xFF>"));
        let ends = tokenizer.chat_stop_ids().into_iter().filter(|&id| (id as usize) < words.len()).collect::<Vec<_>>();
        let info = TokRxInfo::new(words.len() as u32, tokenizer.special().eos);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        let mut usable = trie.eos_token_set();
        (0..words.len()).filter(|&id| !words[id].is_empty()).for_each(|id| usable.allow_token(id as u32));
        let mut digits = trie.alloc_token_set();
        let is_digit = |word: &[u8]| word.first().is_some_and(u8::is_ascii_digit);
        (0..words.len()).filter(|&id| is_digit(&words[id])).for_each(|id| digits.allow_token(id as u32));
        Ok(Self { tokenizer, trie, ends, usable, digits })
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// The tokens that the model knows for a text, if they write just that; else the longest ones.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let text = str::from_utf8(bytes).ok();
        let ids = text.and_then(|text| self.tokenizer.encode_continuation(text).ok());
        let writes_it = |ids: &Vec<TokenId>| {
            ids.iter().all(|&id| !self.trie.token(id).is_empty()) && self.trie.decode_raw(ids) == bytes
        };
        ids.filter(writes_it).unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }
}
