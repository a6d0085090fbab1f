//! One sequence of a request: an answer under way, or a text whose tokens are scored.

use std::sync::Arc;

use super::{
    request::{Answer, FinishReason, Request, RequestId, Stop},
    scheduler::SequenceView,
};
use crate::{
    constraint::{Grammar, MatchError, Matcher},
    runtime::{SamplingInputs, Token, TokenScore},
    sampling::{Params, Penalties},
    tokenizer::{Detokenizer, StopStrings, Tokenizer, TokenizerError},
};

/// A sequence that waits for a slot, or has one.
pub(super) struct Sequence {
    pub id: RequestId,
    /// Sequences are served in this order.
    pub order: u64,
    /// All tokens that are to be in the cache.
    pub tokens: Vec<u32>,
    /// Positions of the tokens after which a target's log-probability is wanted, in ascending
    /// order, and the targets.
    pub scored: Vec<usize>,
    pub targets: Vec<Target>,
    /// Tokens that were in the cache when it got its slot.
    pub cached: usize,
    /// Sequences of different salts share nothing in the cache.
    pub salt: u64,
    /// The answer, unless it is scored only.
    pub answer: Option<AnswerInProgress>,
}

/// A token whose log-probability is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub token: u32,
    /// Whose token it is: a continuation's, by its number, and its index there. Of a prompt these
    /// are 0 and its position.
    pub continuation: usize,
    pub index: usize,
}

/// An answer under way.
pub(super) struct AnswerInProgress {
    pub index: usize,
    pub request: Arc<Request>,
    params: Params,
    tokens: Vec<Token>,
    /// The prompt's tokens after the first with their log-probabilities, as far as they are scored,
    /// if they are wanted.
    prompt: Option<Vec<Token>>,
    detokenizer: Detokenizer,
    stop: StopStrings,
    /// The token or string that ended the answer, if one did.
    stopped_by: Option<Stop>,
    text: String,
    /// The request's biases, and those that keep stop ids away until there are `min_tokens`.
    bias_without_stop: Vec<(u32, f32)>,
    /// Follows the form that the answer is held to.
    matcher: Option<Matcher>,
    /// The tokens that the matcher allows next.
    mask: Vec<u32>,
}

/// Why an answer cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Constraint(#[from] MatchError),
}

/// A bias that no logit makes up for, but a number: infinities would meet zeros.
const NEVER: f32 = -1e30;

/// What new tokens bring.
pub(super) struct Progress {
    pub tokens: Vec<Token>,
    pub text: String,
    /// Why the answer ends with them, if it does.
    pub finish_reason: Option<FinishReason>,
}

impl Sequence {
    /// The answer of number `index` to a request, whose constraint is compiled as `grammar`.
    pub fn answer(
        id: RequestId,
        (order, index): (u64, usize),
        request: &Arc<Request>,
        grammar: Option<&Grammar>,
        tokenizer: &Arc<Tokenizer>,
    ) -> Self {
        let scores = request.scores_prompt();
        let count = if scores { request.prompt.len() - 1 } else { 0 };
        let target =
            |position: usize| Target { token: request.prompt[position + 1], continuation: 0, index: position + 1 };
        Self {
            id,
            order,
            tokens: request.prompt.clone(),
            scored: (0..count).collect(),
            targets: (0..count).map(target).collect(),
            cached: 0,
            salt: request.cache_salt,
            answer: Some(AnswerInProgress {
                index,
                params: Params { seed: request.params.seed.wrapping_add(index as u64), ..request.params },
                request: request.clone(),
                tokens: vec![],
                prompt: scores.then(Vec::new),
                detokenizer: tokenizer.stream(),
                stop: StopStrings::new(request.stop.clone()),
                stopped_by: None,
                text: String::new(),
                bias_without_stop: match request.min_tokens {
                    0 => vec![],
                    _ => {
                        let never = request.stop_ids.iter().map(|&id| (id, NEVER));
                        request.logit_bias.iter().copied().chain(never).collect()
                    }
                },
                matcher: grammar.map(Grammar::matcher),
                mask: vec![],
            }),
        }
    }

    /// Whether a token follows the last one.
    pub fn samples(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.request.max_tokens > 0)
    }

    /// What the scheduler sees of it.
    pub fn view(&self) -> SequenceView<'_> {
        let (tokens, scored, samples) = (&self.tokens, &self.scored, self.samples());
        SequenceView { order: self.order, salt: self.salt, tokens, scored, samples }
    }

    /// The targets of tokens `from..to`, each with its token's position.
    pub fn targets_of(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, Target)> {
        let range = self.scored.partition_point(|&p| p < from)..self.scored.partition_point(|&p| p < to);
        range.map(|i| (self.scored[i], self.targets[i]))
    }

    /// How its next token is chosen.
    ///
    /// # Panics
    /// If it is scored only.
    pub fn sampling(&self) -> SamplingInputs<'_> {
        let answer = self.answer.as_ref().expect("a sequence that samples has an answer");
        let request = &*answer.request;
        SamplingInputs {
            params: answer.params,
            penalties: request.penalties,
            bias: if answer.may_stop() { &request.logit_bias } else { &answer.bias_without_stop },
            logprobs: request.logprobs.is_some(),
            history: if request.penalties == Penalties::NONE { &[] } else { &self.tokens },
            prompt_len: request.prompt.len(),
            mask: answer.matcher.as_ref().map(|_| &answer.mask[..]),
        }
    }

    /// Computes which tokens may come next, if the answer is held to a form.
    ///
    /// # Errors
    /// None may.
    pub fn compute_mask(&mut self) -> Result<(), MatchError> {
        let Some(AnswerInProgress { matcher: Some(matcher), mask, .. }) = &mut self.answer else { return Ok(()) };
        mask.clear();
        mask.extend_from_slice(matcher.mask()?);
        Ok(())
    }

    /// The most tokens that one dispatch may add to its answer in a slot of `cache_len` tokens.
    pub fn max_new_tokens(&self, cache_len: usize) -> i64 {
        let remaining = |answer: &AnswerInProgress| {
            let (request, generated) = (&answer.request, answer.tokens.len());
            // Biases are those of a whole dispatch: from `min_tokens` on they are others.
            if answer.may_stop() { request.max_tokens - generated } else { request.min_tokens - generated }
        };
        let asked = self.answer.as_ref().map_or(0, remaining);
        asked.min(cache_len + 1 - self.tokens.len()) as i64
    }

    /// Adds tokens to the answer, up to what ends it.
    ///
    /// # Errors
    /// A token that cannot be turned into text, or that the answer's constraint does not allow.
    ///
    /// # Panics
    /// If it is scored only.
    pub fn receive(&mut self, new: Vec<Token>, cache_len: usize) -> Result<Progress, AnswerError> {
        let answer = self.answer.as_mut().expect("a sequence that samples has an answer");
        let mut progress = Progress { tokens: vec![], text: String::new(), finish_reason: None };
        for token in new {
            if answer.request.stop_ids.contains(&token.id) {
                answer.stopped_by = Some(Stop::Token(token.id));
                progress.finish_reason = Some(FinishReason::Stop);
                break;
            }
            if let Some(matcher) = &mut answer.matcher {
                matcher.accept(token.id)?;
            }
            let piece = answer.detokenizer.push(token.id)?;
            let (piece, stop) = if answer.may_stop() { answer.stop.push(&piece) } else { (piece, None) };
            progress.text.push_str(&piece);
            self.tokens.push(token.id);
            let token = answer.reported(token);
            progress.tokens.push(token.clone());
            answer.tokens.push(token);
            if let Some(stop) = stop {
                answer.stopped_by = Some(Stop::Text(stop));
                progress.finish_reason = Some(FinishReason::Stop);
                break;
            }
            if answer.matcher.as_ref().is_some_and(Matcher::is_finished) {
                progress.finish_reason = Some(FinishReason::Stop);
                break;
            }
            if answer.tokens.len() >= answer.request.max_tokens || self.tokens.len() > cache_len {
                progress.finish_reason = Some(FinishReason::Length);
                break;
            }
        }
        if progress.finish_reason.is_some() && !matches!(answer.stopped_by, Some(Stop::Text(_))) {
            let rest = answer.detokenizer.finish()?;
            progress.text.push_str(&answer.stop.push(&rest).0);
            progress.text.push_str(&answer.stop.take_held());
        }
        answer.text.push_str(&progress.text);
        Ok(progress)
    }

    /// Takes the log-probability of a token of the prompt.
    pub fn receive_prompt_score(&mut self, target: Target, score: TokenScore) {
        let Some(answer) = &mut self.answer else { return };
        let token = answer.reported(Token { id: target.token, logprobs: Some(score.logprobs) });
        answer.prompt.get_or_insert_default().push(token);
    }
}

impl AnswerInProgress {
    /// Whether the next token may end it.
    fn may_stop(&self) -> bool {
        self.tokens.len() >= self.request.min_tokens
    }

    /// A token with as many of the most likely ones as were asked for.
    fn reported(&self, mut token: Token) -> Token {
        if let Some(logprobs) = &mut token.logprobs {
            logprobs.top.truncate(self.request.logprobs.unwrap_or_default());
        }
        token
    }

    /// The complete answer.
    pub fn finish(self, finish_reason: FinishReason, cached: usize) -> Answer {
        let Self { tokens, text, prompt, stopped_by, .. } = self;
        Answer { tokens, text, finish_reason, stopped_by, prompt, cached }
    }
}
