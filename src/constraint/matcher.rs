//! One answer under a constraint.

use std::sync::Arc;

use llguidance::toktrie::{SimpleVob, TokenizerEnv};

use super::{
    error::{MatchError, first_line},
    numbers::NumberLimit,
    vocabulary::Vocabulary,
};

/// Follows an answer, and says which tokens may come next.
pub struct Matcher {
    inner: llguidance::Matcher,
    vocabulary: Arc<Vocabulary>,
    /// In JSON.
    numbers: Option<NumberLimit>,
    mask: SimpleVob,
    tokens: usize,
}

impl Matcher {
    pub(super) fn new(inner: llguidance::Matcher, vocabulary: Arc<Vocabulary>, is_json: bool) -> Self {
        let numbers = is_json.then(NumberLimit::default);
        Self { inner, vocabulary, numbers, mask: SimpleVob::new(), tokens: 0 }
    }

    /// Returns the tokens that may come next, at least one, as bits: that of token i is bit i % 32
    /// of number i / 32. Ids beyond are not allowed. Where the answer may end, the tokens that end
    /// one are among them.
    ///
    /// # Errors
    /// The constraint comes to a dead end, or takes more time than is allowed.
    pub fn mask(&mut self) -> Result<&[u32], MatchError> {
        let failed = |reason| MatchError::NoToken { tokens: self.tokens, reason };
        self.mask = self.inner.compute_mask().map_err(|e| failed(first_line(&e)))?;
        self.mask.and(&self.vocabulary.usable);
        if self.mask.is_zero() {
            return Err(failed("those that it names are control tokens".into()));
        }
        if self.numbers.is_some_and(|numbers| numbers.is_reached()) {
            let mut ended = self.mask.clone();
            ended.sub(&self.vocabulary.digits);
            // A schema may ask for a longer number.
            if !ended.is_zero() {
                self.mask = ended;
            }
        }
        Ok(self.mask.as_slice())
    }

    /// Takes the answer's next token.
    ///
    /// # Errors
    /// The token is not one of [`Self::mask`].
    pub fn accept(&mut self, token: u32) -> Result<(), MatchError> {
        let failed = |e| MatchError::Unexpected { token, tokens: self.tokens, reason: first_line(&e) };
        self.inner.consume_token(token).map_err(failed)?;
        self.tokens += 1;
        if let Some(numbers) = &mut self.numbers {
            numbers.read(self.vocabulary.tok_trie().token(token));
        }
        Ok(())
    }

    /// Returns whether nothing can follow: the answer is complete.
    pub fn is_finished(&self) -> bool {
        self.inner.is_stopped()
    }
}
