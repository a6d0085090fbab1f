//! Text to token ids and back: `tokenizer.json`, the chat template, streaming detokenisation.
//!
//! Every prompt that leaves this room starts with exactly one `<bos>`: without it Gemma scores at chance, doubled its quality
//! drops.

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

/// A tokenizer that cannot be loaded or used.
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
    /// Loads `tokenizer.json` of a model directory, and its chat template: that of `chat_template.jinja`, where newer exports
    /// put it, or of `tokenizer_config.json`, or Gemma's own.
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

    /// A tokenizer from the contents of its `tokenizer.json`. The error says what is wrong with them.
    pub fn new(json: &[u8], template: ChatTemplate) -> Result<Self, String> {
        let inner = fast_bpe::tokenizer(json)?;
        let id = |token: &str| inner.token_to_id(token);
        let required = |token: &str| id(token).ok_or_else(|| format!("it has no {token} token"));
        let special =
            SpecialTokens { bos: required("<bos>")?, eos: required("<eos>")?, end_of_turn: id("<end_of_turn>") };
        Ok(Self { inner, special, template })
    }

    /// Ids of the special tokens.
    pub fn special(&self) -> SpecialTokens {
        self.special
    }

    /// Ids that end a generation: `<eos>` and `<end_of_turn>`.
    pub fn stop_ids(&self) -> Vec<u32> {
        [Some(self.special.eos), self.special.end_of_turn].into_iter().flatten().collect()
    }

    /// Number of entries, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Token ids of plain text, with exactly one `<bos>` in front. Special tokens written in the text are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.with_one_bos(&self.encode_continuation(text)?))
    }

    /// Token ids of text that follows other text, without a `<bos>`. They are those of the whole only where the text begins with
    /// a special token.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        // Without the tokenizer's own post-processing, which would add a <bos> to the one that a template writes.
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a conversation in the chat format, ready for the model's answer.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.template.render(messages)?)
    }

    /// The conversation as the template writes it, before tokenization.
    pub fn render_chat(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        self.template.render(messages)
    }

    fn with_one_bos(&self, ids: &[u32]) -> Vec<u32> {
        let bos = self.special.bos;
        let text = ids.iter().copied().skip_while(|&id| id == bos);
        std::iter::once(bos).chain(text).collect()
    }

    /// Text of token ids; special tokens are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, true).map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    /// A detokenizer for one stream of tokens.
    pub fn stream(self: &Arc<Self>) -> Detokenizer {
        Detokenizer::new(self.clone())
    }
}

/// Refuses ids that the vocabulary does not have.
pub fn check_ids(ids: &[u32], vocab_size: usize) -> Result<(), TokenizerError> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(TokenizerError::UnknownId { id, size: vocab_size }),
        None => Ok(()),
    }
}
