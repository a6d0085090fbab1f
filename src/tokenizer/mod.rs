//! Text to token ids and back: `tokenizer.json`, the chat template, streaming detokenisation.
//!
//! Every tokenized prompt starts with exactly one `<bos>`. Without it Gemma scores at chance; with
//! two its quality drops.

mod chat;
mod fast_bpe;
mod minimal;
mod stop;
mod stream;

pub use chat::{ChatTemplate, Message, Role};
pub use minimal::minimal_tokenizer_json;
pub use stop::StopStrings;
pub use stream::Detokenizer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// An error of loading or using a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("there is no tokenizer {0}; copy tokenizer.json from the model's repository next to config.json")]
    Missing(PathBuf),
    #[error("{path} is not a usable tokenizer ({reason}); download it again from the model's repository")]
    Damaged { path: PathBuf, reason: String },
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    #[error("the chat template refuses this conversation: {0}")]
    Template(String),
    #[error("token id {id} is not in the vocabulary, which has {size} entries")]
    UnknownId { id: u32, size: usize },
}

/// Gemma's special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: u32,
    pub eos: u32,
    /// `<end_of_turn>`, where the vocabulary has it.
    pub end_of_turn: Option<u32>,
}

/// A loaded tokenizer with its chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    template: ChatTemplate,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a model directory, and its chat template: that of
    /// `chat_template.jinja`, as in newer exports, else of `tokenizer_config.json`, else Gemma's
    /// own.
    ///
    /// # Errors
    /// A file is missing or damaged.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            return Err(TokenizerError::Missing(path));
        }
        let damaged = |path: &Path, reason: String| TokenizerError::Damaged { path: path.to_owned(), reason };
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        let json = std::fs::read(&path).map_err(|e| damaged(&path, e.to_string()))?;
        let template = if let Some(source) = read("chat_template.jinja") {
            ChatTemplate::compile(source).map_err(|reason| damaged(&dir.join("chat_template.jinja"), reason))?
        } else if let Some(config) = read("tokenizer_config.json") {
            ChatTemplate::of_config(&config).map_err(|reason| damaged(&dir.join("tokenizer_config.json"), reason))?
        } else {
            ChatTemplate::gemma()
        };
        Self::new(&json, template).map_err(|reason| damaged(&path, reason))
    }

    /// Makes a tokenizer from the contents of `tokenizer.json`.
    ///
    /// # Errors
    /// They are not a tokenizer with Gemma's special tokens. The message says what is wrong.
    pub fn new(json: &[u8], template: ChatTemplate) -> Result<Self, String> {
        let inner = fast_bpe::tokenizer(json)?;
        let id = |token: &str| inner.token_to_id(token);
        let required = |token: &str| id(token).ok_or_else(|| format!("it has no {token} token"));
        let special =
            SpecialTokens { bos: required("<bos>")?, eos: required("<eos>")?, end_of_turn: id("<end_of_turn>") };
        Ok(Self { inner, special, template })
    }

    /// Returns the ids of the special tokens.
    pub fn special(&self) -> SpecialTokens {
        self.special
    }

    /// Returns the ids that end a generation: `<eos>` and `<end_of_turn>`.
    pub fn stop_ids(&self) -> Vec<u32> {
        [Some(self.special.eos), self.special.end_of_turn].into_iter().flatten().collect()
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
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the token ids of a conversation in the chat format, up to the start of the model's
    /// answer.
    ///
    /// # Errors
    /// The chat template refuses the conversation, or its text cannot be tokenized.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.template.render(messages)?)
    }

    /// Returns a conversation in the chat format, as text.
    ///
    /// # Errors
    /// The chat template refuses the conversation.
    pub fn render_chat(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        self.template.render(messages)
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
        self.inner.decode(ids, true).map_err(|e| TokenizerError::Encode(e.to_string()))
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
