//! One sequence of a request: an answer under way, or a text whose tokens are scored.

use std::sync::Arc;

use super::{
    request::{Answer, FinishReason, Request, RequestId},
    scheduler::SequenceView,
};
use crate::{
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
    text: String,
}

/// What new tokens bring.
pub(super) struct Progress {
    pub tokens: Vec<Token>,
    pub text: String,
    /// Why the answer ends with them, if it does.
    pub finish_reason: Option<FinishReason>,
}

impl Sequence {
    /// The answer of number `index` to a request.
    pub fn answer(id: RequestId, order: u64, index: usize, request: &Arc<Request>, tokenizer: &Arc<Tokenizer>) -> Self {
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
            answer: Some(AnswerInProgress {
                index,
                params: Params { seed: request.params.seed.wrapping_add(index as u64), ..request.params },
                request: request.clone(),
                tokens: vec![],
                prompt: scores.then(Vec::new),
                detokenizer: tokenizer.stream(),
                stop: StopStrings::new(request.stop.clone()),
                text: String::new(),
            }),
        }
    }

    /// Whether a token follows the last one.
    pub fn samples(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.request.max_tokens > 0)
    }

    /// What the scheduler sees of it.
    pub fn view(&self) -> SequenceView<'_> {
        SequenceView { order: self.order, tokens: &self.tokens, scored: &self.scored, samples: self.samples() }
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
            bias: &request.logit_bias,
            logprobs: request.logprobs.is_some(),
            history: if request.penalties == Penalties::NONE { &[] } else { &self.tokens },
            prompt_len: request.prompt.len(),
        }
    }

    /// The most tokens that its answer may still have in a slot of `cache_len` tokens.
    pub fn max_new_tokens(&self, cache_len: usize) -> i64 {
        let asked = self.answer.as_ref().map_or(0, |answer| answer.request.max_tokens - answer.tokens.len());
        asked.min(cache_len + 1 - self.tokens.len()) as i64
    }

    /// Adds tokens to the answer, up to what ends it.
    ///
    /// # Errors
    /// A token that cannot be turned into text.
    ///
    /// # Panics
    /// If it is scored only.
    pub fn receive(&mut self, new: Vec<Token>, cache_len: usize) -> Result<Progress, TokenizerError> {
        let answer = self.answer.as_mut().expect("a sequence that samples has an answer");
        let mut progress = Progress { tokens: vec![], text: String::new(), finish_reason: None };
        let mut by_string = false;
        for token in new {
            if answer.request.stop_ids.contains(&token.id) {
                progress.finish_reason = Some(FinishReason::Stop);
                break;
            }
            let piece = answer.detokenizer.push(token.id)?;
            let (piece, is_stopped) = answer.stop.push(&piece);
            progress.text.push_str(&piece);
            self.tokens.push(token.id);
            let token = answer.reported(token);
            progress.tokens.push(token.clone());
            answer.tokens.push(token);
            if is_stopped {
                by_string = true;
                progress.finish_reason = Some(FinishReason::Stop);
                break;
            }
            if answer.tokens.len() >= answer.request.max_tokens || self.tokens.len() > cache_len {
                progress.finish_reason = Some(FinishReason::Length);
                break;
            }
        }
        if progress.finish_reason.is_some() && !by_string {
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
    /// A token with as many of the most likely ones as were asked for.
    fn reported(&self, mut token: Token) -> Token {
        if let Some(logprobs) = &mut token.logprobs {
            logprobs.top.truncate(self.request.logprobs.unwrap_or_default());
        }
        token
    }

    /// The complete answer.
    pub fn finish(self, finish_reason: FinishReason, cached: usize) -> Answer {
        Answer { tokens: self.tokens, text: self.text, finish_reason, prompt: self.prompt, cached }
    }
}
