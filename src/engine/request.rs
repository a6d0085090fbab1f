//! What an engine is asked for, and what it answers.

use crate::{
    runtime::Token,
    sampling::{Adjust, MAX_BIAS, Params, TOP_LOGPROBS},
};

/// A prompt and how to go on from it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, with `<bos>`.
    pub prompt: Vec<u32>,
    /// The most tokens to generate; 0 only where `echo` asks for the prompt's log-probabilities.
    pub max_tokens: usize,
    pub params: Params,
    pub adjust: Adjust,
    /// What is added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Ids that end an answer; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// Strings that end an answer; they are not part of its text.
    pub stop: Vec<String>,
    /// How many answers; each draws with a seed of its own, `seed + i`.
    pub n: usize,
    /// How many of the most likely tokens to tell at each place, beside the chosen one; none at all if `None`.
    pub logprobs: Option<usize>,
    /// Tell the prompt's log-probabilities, too, if any are wanted.
    pub echo: bool,
}

impl Request {
    /// One greedy answer of up to so many tokens.
    pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            params: Params::GREEDY,
            adjust: Adjust::NONE,
            logit_bias: vec![],
            stop_ids: vec![],
            stop: vec![],
            n: 1,
            logprobs: None,
            echo: false,
        }
    }

    /// Says what is wrong with it, if anything, for slots of `cache_len` tokens and a vocabulary of `vocab`.
    pub(super) fn check(&self, cache_len: i64, vocab: i64) -> Result<(), String> {
        self.params.check()?;
        self.adjust.check()?;
        if self.prompt.is_empty() {
            return Err("the prompt is empty; it begins with <bos> at least".into());
        }
        let len = self.prompt.len() as i64;
        if len + i64::from(self.max_tokens > 0) > cache_len {
            return Err(format!(
                "the prompt has {len} tokens, which leaves no room for an answer in a context of {cache_len}; shorten it, or use a \
                 longer --context"
            ));
        }
        if self.max_tokens == 0 && !(self.echo && self.logprobs.is_some()) {
            return Err("max_tokens must be at least 1".into());
        }
        if self.n == 0 {
            return Err("n must be at least 1".into());
        }
        if self.logprobs.is_some_and(|n| n > TOP_LOGPROBS as usize) {
            return Err(format!("logprobs must be at most {TOP_LOGPROBS}"));
        }
        if self.logit_bias.len() > MAX_BIAS {
            return Err(format!("logit_bias has {} entries, at most {MAX_BIAS} are possible", self.logit_bias.len()));
        }
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            return Err(format!("logit_bias of token {id} is {bias}, which is not from -100 to 100"));
        }
        let biased = self.logit_bias.iter().map(|(id, _)| id);
        match self.prompt.iter().chain(biased).find(|&&id| i64::from(id) >= vocab) {
            Some(id) => Err(format!("token id {id} is not in the vocabulary, which has {vocab} entries")),
            None => Ok(()),
        }
    }
}

/// Names a request in an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// What happened to a request in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More of an answer.
    Tokens {
        id: RequestId,
        /// Which of its answers.
        index: usize,
        tokens: Vec<Token>,
        /// The text that is certain now: what may yet become a stop string is held back.
        text: String,
    },
    /// An answer is complete.
    Finished { id: RequestId, index: usize, answer: Answer },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, or the caller said so (a stop string).
    Stop,
    /// As many tokens as were asked for, or as fit the context.
    Length,
    /// The user interrupted.
    Interrupted,
}

impl FinishReason {
    /// The reason's name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub tokens: Vec<Token>,
    /// The text before what ended it.
    pub text: String,
    pub finish_reason: FinishReason,
    /// If asked for: the prompt's tokens after the first, each with its log-probability.
    pub prompt: Option<Vec<Token>>,
    /// Tokens of the prompt that were in the cache already.
    pub cached: usize,
}
