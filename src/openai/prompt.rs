//! What a request is about: text, token ids, or a conversation.

use serde_json::Value;

use super::fields::{FieldError, Fields, Result, shortened};
use crate::tokenizer::{Message, Tokenizer, TokenizerError};

/// The most messages of a conversation.
const MAX_MESSAGES: usize = 4096;

/// A prompt before it is tokenized.
#[derive(Clone, Debug)]
pub enum Prompt {
    Text(String),
    /// Used as they are.
    Tokens(Vec<u32>),
    Messages(Vec<Message>),
}

impl Prompt {
    /// Returns the prompt's token ids. Text is a user's message in the chat format, unless it is
    /// `raw`.
    ///
    /// # Errors
    /// The text cannot be tokenized, or the template refuses the conversation.
    pub fn tokens(&self, raw: bool, tokenizer: &Tokenizer) -> std::result::Result<Vec<u32>, TokenizerError> {
        match self {
            Self::Text(text) if raw => tokenizer.encode(text),
            Self::Text(text) => tokenizer.encode_chat(&[Message::user(text)]),
            Self::Tokens(tokens) => Ok(tokens.clone()),
            Self::Messages(messages) => tokenizer.encode_chat(messages),
        }
    }
}

/// Takes the conversation, if one is given.
///
/// # Errors
/// It is no list of messages, or one of them cannot be read; the error names it.
pub fn messages(fields: &mut Fields) -> Result<Option<Vec<Message>>> {
    let Some(given) = fields.take::<Vec<Value>>("messages")? else { return Ok(None) };
    if given.is_empty() || given.len() > MAX_MESSAGES {
        let problem = format!("\"messages\" has {} messages; give from 1 to {MAX_MESSAGES}", given.len());
        return Err(FieldError::new("messages", problem));
    }
    let read = |(index, value): (usize, Value)| {
        let shown = shortened(&value);
        let wrong =
            |e: String| FieldError::new(format!("messages[{index}]"), format!("messages[{index}] is {shown}: {e}"));
        if !value.is_object() {
            return Err(wrong("give an object with \"role\" and \"content\"".into()));
        }
        serde_json::from_value(value).map_err(|e| wrong(e.to_string()))
    };
    given.into_iter().enumerate().map(read).collect::<Result<_>>().map(Some)
}
