//! Conversations as tokens. Control tokens come from the template alone: what a message's text
//! looks like, it stays text. Otherwise a user could write the model's turns.

use super::{
    Tokenizer,
    error::TokenizerError,
    message::{Message, Role},
};
use crate::shield::shielded;

/// A conversation as the template writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedChat {
    text: String,
    /// Stands in the text where a message has what looks like a control token: what is before and
    /// after it is tokenized apart. No message has this character.
    mark: char,
}

impl RenderedChat {
    /// Returns the text.
    pub fn text(&self) -> String {
        self.text.replace(self.mark, "")
    }

    /// Adds text at the end.
    pub fn push_str(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Returns what follows `earlier`, if this begins with it.
    pub fn strip_prefix(&self, earlier: &Self) -> Option<Self> {
        let text = self.text.strip_prefix(&earlier.text).filter(|_| self.mark == earlier.mark)?;
        Some(Self { text: text.to_owned(), mark: self.mark })
    }
}

impl Tokenizer {
    /// Returns a conversation in the chat format, up to the start of the model's answer.
    ///
    /// # Errors
    /// The chat template is broken or refuses the conversation, or writes a control token that a
    /// message has, too, depending on the message: it cannot be told whose it is.
    pub fn render_chat(&self, messages: &[Message]) -> Result<RenderedChat, TokenizerError> {
        self.render_marked(messages, mark(messages)?)
    }

    /// As [`Self::render_chat`], of a conversation whose last message is the beginning of the
    /// model's answer: it follows as it is, and is to be continued.
    ///
    /// # Errors
    /// As [`Self::render_chat`], or the last message is not the model's.
    pub fn render_chat_to_continue(&self, messages: &[Message]) -> Result<RenderedChat, TokenizerError> {
        let Some((last, before)) = messages.split_last().filter(|(last, _)| last.role == Role::Assistant) else {
            let refused = "only a message of the assistant can be continued; end the conversation with one";
            return Err(TokenizerError::Template(refused.into()));
        };
        let mark = mark(messages)?;
        let mut chat = self.render_marked(before, mark)?;
        chat.push_str(&self.break_control_tokens(&last.content, mark, |_| true)?);
        Ok(chat)
    }

    fn render_marked(&self, messages: &[Message], mark: char) -> Result<RenderedChat, TokenizerError> {
        let text = self.template.render(messages)?;
        let guard = |message: &Message| {
            let content = self.break_control_tokens(&message.content, mark, |_| true)?;
            Ok(Message { role: message.role, content })
        };
        let guarded = messages.iter().map(guard).collect::<Result<Vec<_>, TokenizerError>>()?;
        if guarded == messages {
            return Ok(RenderedChat { text, mark });
        }
        let marked = RenderedChat { text: self.template.render(&guarded)?, mark };
        if marked.text() == text {
            return Ok(marked);
        }
        // The template looks into messages and sees the marks: it counts characters, or searches
        // for a control token. What it writes of itself has no mark.
        let is_theirs = |token: &str| messages.iter().any(|message| message.content.contains(token));
        let own = self.encode_rendered_continuation(&marked)?;
        if let Some(token) = own.iter().filter_map(|id| self.control.get(id)).find(|token| is_theirs(token)) {
            let refused = format!(
                "a message has {token:?}, which the template writes itself, and it looks into messages, so that it \
                 cannot be told whose {token:?} is whose; remove it from the message"
            );
            return Err(TokenizerError::Template(refused));
        }
        Ok(RenderedChat { text: self.break_control_tokens(&text, mark, is_theirs)?, mark })
    }

    /// Returns a conversation in the chat format as one text, in which control tokens of messages
    /// are control tokens, as everything has them that tokenizes the text of a template.
    ///
    /// # Errors
    /// The chat template is broken or refuses the conversation.
    pub fn render_chat_as_text(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        self.template.render(messages)
    }

    /// Returns the token ids of a conversation, with exactly one `<bos>` in front.
    ///
    /// # Errors
    /// Its text cannot be tokenized.
    pub fn encode_rendered(&self, chat: &RenderedChat) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.with_one_bos(&self.encode_rendered_continuation(chat)?))
    }

    /// Returns the token ids of what follows an earlier part, if it begins with a control token:
    /// only then are they the ids of the whole.
    ///
    /// # Errors
    /// Its text cannot be tokenized.
    pub fn encode_next_turn(&self, chat: &RenderedChat) -> Result<Option<Vec<u32>>, TokenizerError> {
        let ids = self.encode_rendered_continuation(chat)?;
        Ok(Some(ids).filter(|ids| ids.first().is_some_and(|id| self.control.contains_key(id))))
    }

    /// Returns the token ids of a conversation in the chat format, up to the start of the model's
    /// answer.
    ///
    /// # Errors
    /// The chat template is broken or refuses the conversation, or its text cannot be tokenized.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, TokenizerError> {
        self.encode_rendered(&self.render_chat(messages)?)
    }

    fn encode_rendered_continuation(&self, chat: &RenderedChat) -> Result<Vec<u32>, TokenizerError> {
        let parts = chat.text.split(chat.mark).map(|part| self.encode_continuation(part));
        Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Puts marks into those control tokens of a text that are chosen by their names.
    fn break_control_tokens(
        &self,
        text: &str,
        mark: char,
        is_chosen: impl Fn(&str) -> bool,
    ) -> Result<String, TokenizerError> {
        let mut text = text.to_owned();
        loop {
            // A mark may bring a new token about: "<eos" and "<eos>" are in "<eos<eos>".
            let encoding = shielded(|| self.inner.encode(text.as_str(), false)).map_err(TokenizerError::Encode)?;
            let encoding = encoding.map_err(|e| TokenizerError::Encode(e.to_string()))?;
            let mut marks = vec![];
            for (id, &(from, to)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
                let Some(token) = self.control.get(id).filter(|token| is_chosen(token)) else { continue };
                // Spaces around it may belong to the token.
                let found = text[from..to].find(token.as_str());
                if found.is_none() && Some(*id) == self.unknown {
                    continue; // text that the vocabulary lacks
                }
                let at = from + found.unwrap_or(0);
                let first = text[at..].chars().next().map_or(0, char::len_utf8);
                if at + first >= to {
                    let refused = format!("a message has the control token {token:?}, which cannot be written as text");
                    return Err(TokenizerError::Template(refused));
                }
                marks.push(at + first);
            }
            if marks.is_empty() {
                return Ok(text);
            }
            marks.iter().rev().for_each(|&at| text.insert(at, mark));
        }
    }
}

/// Returns a character that no message has: the first of Unicode's noncharacters, or of a private
/// plane.
fn mark(messages: &[Message]) -> Result<char, TokenizerError> {
    let mut candidates = ('\u{FDD0}'..='\u{FDEF}').chain('\u{F0000}'..='\u{FFFFD}');
    let is_free = |c: &char| !messages.iter().any(|message| message.content.contains(*c));
    candidates.find(is_free).ok_or_else(|| TokenizerError::Template("its messages have all private characters".into()))
}
