//! Text to token ids and back: `tokenizer.json`, the chat template, streaming detokenisation.
//!
//! Every tokenized prompt starts with exactly one `<bos>`. Without it Gemma scores at chance; with
//! two its quality drops.

mod chat;
mod error;
mod fast_bpe;
mod files;
mod jinja;
mod message;
mod minimal;
mod stop;
mod stream;
mod template;
mod token_bytes;

pub use chat::RenderedChat;
pub use error::TokenizerError;
pub use files::{StopIds, TextFiles};
pub use message::{Message, Role};
pub use minimal::minimal_tokenizer_json;
pub use stop::StopStrings;
pub use stream::Detokenizer;

use std::{collections::HashMap, path::Path, sync::Arc};

use files::TextSettings;
use template::ChatTemplate;
use tokenizers::AddedToken;

use crate::{
    model_file::{LFS_POINTER, is_lfs_pointer},
    shield::shielded,
};

/// The ids of tokens that this program itself uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: u32,
    pub eos: u32,
    /// `<end_of_turn>`, where the vocabulary has it.
    pub end_of_turn: Option<u32>,
}

/// How one token is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its text, or its name where it is no text, or only part of a character.
    pub text: String,
    /// The bytes that it adds to the text. A control token adds none.
    pub bytes: Vec<u8>,
}

impl Piece {
    /// Returns the number of characters that begin in it.
    pub fn chars(&self) -> usize {
        self.bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count()
    }

    /// Returns whether it begins within a character.
    pub fn continues_character(&self) -> bool {
        self.bytes.first().is_some_and(|byte| byte & 0xC0 == 0x80)
    }
}

/// A loaded tokenizer with its chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    /// Tokens that are no text, by their ids.
    control: HashMap<u32, String>,
    /// The token that stands for text that the vocabulary lacks.
    unknown: Option<u32>,
    stop: StopIds,
    template: ChatTemplate,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a model directory, and what other files say of its tokens and
    /// chat template. Without a template it is Gemma's own.
    ///
    /// # Errors
    /// `tokenizer.json` is missing, or a file is damaged.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        Self::from_dirs(dir, dir)
    }

    /// As [`Self::from_dir`], but takes the ids that end a generation from `model`: an adapter's
    /// tokenizer for its base.
    ///
    /// # Errors
    /// As [`Self::from_dir`].
    pub fn from_dirs(dir: &Path, model: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            return Err(TokenizerError::Missing(path));
        }
        let json = std::fs::read(&path).map_err(|e| TokenizerError::damaged(&path, e))?;
        if is_lfs_pointer(&json) {
            return Err(TokenizerError::damaged(&path, LFS_POINTER));
        }
        Self::new(&json, &TextFiles::read(dir, model)?).map_err(|e| e.in_dir(dir))
    }

    /// Makes a tokenizer from the contents of `tokenizer.json` and other files.
    ///
    /// # Errors
    /// They are damaged, or name tokens that are not there.
    pub fn new(json: &[u8], files: &TextFiles) -> Result<Self, TokenizerError> {
        let damaged = |reason| TokenizerError::damaged("tokenizer.json", format!("{reason}; download it again"));
        let mut inner = shielded(|| fast_bpe::tokenizer(json)).flatten().map_err(damaged)?;
        let TextSettings { names, stop, template, control } = files.settings()?;
        let id = |token: &str| inner.token_to_id(token);
        let required = |token: &str| {
            let reason = || format!("it has no {token} token; name its own in tokenizer_config.json");
            id(token).ok_or_else(|| TokenizerError::damaged("tokenizer.json", reason()))
        };
        let special =
            SpecialTokens { bos: required(&names.bos)?, eos: required(&names.eos)?, end_of_turn: id("<end_of_turn>") };
        // What other files call control tokens are such, and new ones if they are unknown.
        let known = inner.get_added_tokens_decoder();
        let is_new = |token: &AddedToken| !known.values().any(|other| other.content == token.content);
        let new: Vec<AddedToken> = control.into_iter().filter(is_new).collect();
        shielded(|| inner.add_special_tokens(new)).map_err(damaged)?.map_err(|e| damaged(e.to_string()))?;
        let control = inner.get_added_tokens_decoder().into_iter();
        let control = control.filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect();
        let unknown = inner.token_to_id(names.unk.as_deref().unwrap_or("<unk>"));
        let stop = stop.unwrap_or_else(|| StopIds { ids: vec![special.eos], source: "the tokenizer's eos_token" });
        Ok(Self { inner, special, control, unknown, stop, template: ChatTemplate::new(template, names) })
    }

    /// Returns the ids of the special tokens.
    pub fn special(&self) -> SpecialTokens {
        self.special
    }

    /// Returns the ids that end a generation, as `generate` of transformers has them: those of
    /// `generation_config.json`, else of `config.json`, else the tokenizer's `eos_token`.
    pub fn stop_ids(&self) -> &StopIds {
        &self.stop
    }

    /// Returns the ids that end an answer in the chat format: those of [`Self::stop_ids`], the
    /// tokenizer's `eos_token` and `<end_of_turn>`, after which the model would write the user's
    /// turn.
    pub fn chat_stop_ids(&self) -> Vec<u32> {
        let mut ids = self.stop.ids.clone();
        for id in [Some(self.special.eos), self.special.end_of_turn].into_iter().flatten() {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// Returns the id of a text that is a control token, from one end to the other.
    pub fn control_token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text).filter(|id| self.control.contains_key(id))
    }

    /// Returns where the chat template is from.
    pub fn template_source(&self) -> &'static str {
        self.template.source()
    }

    /// Returns the chat template as it is in its file.
    pub fn chat_template(&self) -> Option<&str> {
        self.template.text()
    }

    /// Returns the name of the padding token, where the tokenizer has one.
    pub fn pad_token(&self) -> Option<&str> {
        self.template.names().pad.as_deref()
    }

    /// Returns whether the chat template has a system role. Without one, instructions go into the
    /// first turn of the user.
    ///
    /// # Errors
    /// There is no chat template that can be used.
    pub fn takes_system_messages(&self) -> Result<bool, TokenizerError> {
        self.template.takes_system_messages()
    }

    /// Returns the size of the vocabulary, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns the token ids of plain text, with exactly one `<bos>` in front. Special tokens in
    /// the text are recognised.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.with_one_bos(&self.encode_continuation(text)?))
    }

    /// Returns the token ids of text that follows other text, without a `<bos>`. They are the ids
    /// of the concatenation only where the text begins with a special token.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        // Without the tokenizer's own post-processing, which would add a <bos> to the one that a
        // template writes.
        let encoding = shielded(|| self.inner.encode_fast(text, false)).map_err(TokenizerError::Encode)?;
        Ok(encoding.map_err(|e| TokenizerError::Encode(e.to_string()))?.get_ids().to_vec())
    }

    fn with_one_bos(&self, ids: &[u32]) -> Vec<u32> {
        let bos = self.special.bos;
        let text = ids.iter().copied().skip_while(|&id| id == bos);
        std::iter::once(bos).chain(text).collect()
    }

    /// Returns the text of token ids, without special tokens.
    ///
    /// # Errors
    /// The decoder of the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        // Decoders of some kinds count on a token.
        let is_text = |id: &u32| !self.control.contains_key(id) && self.inner.id_to_token(*id).is_some();
        if !ids.iter().any(is_text) {
            return Ok(String::new());
        }
        let text = shielded(|| self.inner.decode(ids, true)).map_err(TokenizerError::Encode)?;
        text.map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    /// Returns whether a token is no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.contains_key(&id)
    }

    /// Returns how one token is written. Texts of different tokens differ.
    ///
    /// # Errors
    /// The decoder of the tokenizer fails.
    pub fn piece(&self, id: u32) -> Result<Piece, TokenizerError> {
        let name = || self.inner.id_to_token(id).unwrap_or_else(|| format!("<{id}>"));
        let text = self.decode(&[id])?;
        if text.is_empty() {
            return Ok(Piece { text: name(), bytes: vec![] });
        }
        if !text.contains(char::REPLACEMENT_CHARACTER) {
            return Ok(Piece { bytes: text.clone().into_bytes(), text });
        }
        // A byte of a character, such as <0xE6>.
        let name = name();
        let digits = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        Ok(Piece { bytes: byte.map_or_else(|| text.into_bytes(), |byte| vec![byte]), text: name })
    }

    /// Returns a detokenizer for one stream of tokens.
    pub fn stream(self: &Arc<Self>) -> Detokenizer {
        Detokenizer::new(self.clone())
    }
}

/// Checks that all ids are in the vocabulary.
///
/// # Errors
/// One is not.
pub fn check_ids(ids: &[u32], vocab_size: usize) -> Result<(), TokenizerError> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(TokenizerError::UnknownId { id, size: vocab_size }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(changes: serde_json::Value) -> Result<Tokenizer, TokenizerError> {
        let mut json = minimal_tokenizer_json(480);
        json.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        Tokenizer::new(json.to_string().as_bytes(), &TextFiles::default())
    }

    #[test]
    fn every_token_is_written_in_its_own_way() {
        let tokenizer = with(serde_json::json!({})).unwrap();
        let piece = |id: u32| tokenizer.piece(id).unwrap();
        let written = |text: &str, bytes: &[u8]| Piece { text: text.to_owned(), bytes: bytes.to_vec() };
        assert_eq!(piece(tokenizer.special().eos), written("<eos>", b""));
        let ids = tokenizer.encode_continuation("a\u{e9}").unwrap();
        let pieces: Vec<Piece> = ids.iter().map(|&id| piece(id)).collect();
        assert_eq!(pieces, [written("a", b"a"), written("<0xC3>", &[0xC3]), written("<0xA9>", &[0xA9])]);
        assert_eq!(pieces.iter().map(Piece::chars).collect::<Vec<_>>(), [1, 1, 0]);
        let all: std::collections::HashSet<String> = (0..480).map(|id| piece(id).text).collect();
        assert_eq!(all.len(), 480);
    }

    /// Found by fuzzing: this decoder takes the last of no tokens.
    #[test]
    fn no_tokens_are_no_text_whatever_the_decoder() {
        let tokenizer = with(serde_json::json!({"decoder": {"type": "BPEDecoder", "suffix": "</w>"}})).unwrap();
        let special = tokenizer.special();
        for ids in [&[][..], &[special.bos, special.eos], &[u32::MAX]] {
            assert_eq!(tokenizer.decode(ids).unwrap(), "", "{ids:?}");
        }
    }
}
