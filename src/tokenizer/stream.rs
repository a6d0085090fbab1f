//! Text as it comes, token by token.

use std::sync::Arc;

use super::{Tokenizer, TokenizerError};

/// Turns a stream of tokens into text, piece by piece. A piece never ends inside a UTF-8 character: bytes of an unfinished
/// one are held back until the rest arrives or the stream ends.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Tokens decoded so far that later ones may depend on, and those not given out yet.
    ids: Vec<u32>,
    /// `ids[..given]` have been given out as text.
    given: usize,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// Adds a token and returns the text that is complete now, which may be empty.
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

    /// What is left when the stream ends: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        let piece = self.pending()?;
        self.advance();
        Ok(piece)
    }

    /// Text of the tokens not given out yet, decoded after those before them: a decoder may treat the first token of a
    /// text differently (a leading space).
    fn pending(&self) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[..self.given])?;
        let all = self.tokenizer.decode(&self.ids)?;
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// Everything is given out. A few tokens stay as context, if they are whole characters: a run of byte tokens that starts
    /// inside one would decode to nothing but U+FFFD.
    fn advance(&mut self) {
        const CONTEXT: usize = 4;
        let whole = |ids: &[u32]| self.tokenizer.decode(ids).is_ok_and(|text| !text.contains('\u{FFFD}'));
        let keep = (1..=CONTEXT.min(self.ids.len())).find(|&n| whole(&self.ids[self.ids.len() - n..])).unwrap_or(0);
        self.ids.drain(..self.ids.len() - keep);
        self.given = self.ids.len();
    }
}
