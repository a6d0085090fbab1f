//! Streaming detokenisation.

use std::sync::Arc;

use super::{Tokenizer, TokenizerError};

/// Turns a stream of tokens into text, piece by piece. A piece never ends inside a UTF-8 character:
/// bytes of an unfinished one are held back until the rest arrives or the stream ends.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Tokens that later ones may depend on, followed by those that have not been returned as text.
    ids: Vec<u32>,
    /// `ids[..returned]` have been returned as text.
    returned: usize,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, ids: Vec::new(), returned: 0 }
    }

    /// Adds a token. Returns the text that is complete now, which may be empty.
    ///
    /// # Errors
    /// The decoder of the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let piece = self.pending()?;
        // U+FFFD at the end stands for the bytes of an unfinished character.
        if piece.is_empty() || piece.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        self.advance();
        Ok(piece)
    }

    /// Returns the remaining text when the stream ends. An unfinished character becomes U+FFFD.
    ///
    /// # Errors
    /// The decoder of the tokenizer fails.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        let piece = self.pending()?;
        self.advance();
        Ok(piece)
    }

    /// Returns the text of the tokens not returned yet. They are decoded together with those before
    /// them, since a decoder may treat the first token of a text differently (a leading space).
    fn pending(&self) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[..self.returned])?;
        let all = self.tokenizer.decode(&self.ids)?;
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// Marks all tokens as returned. Keeps a few as context, if they are whole characters: byte
    /// tokens that start inside a character would decode to U+FFFD only.
    fn advance(&mut self) {
        const CONTEXT: usize = 4;
        let whole = |ids: &[u32]| self.tokenizer.decode(ids).is_ok_and(|text| !text.contains('\u{FFFD}'));
        let keep = (1..=CONTEXT.min(self.ids.len())).find(|&n| whole(&self.ids[self.ids.len() - n..])).unwrap_or(0);
        self.ids.drain(..self.ids.len() - keep);
        self.returned = self.ids.len();
    }
}
