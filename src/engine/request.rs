//! What an engine is asked for, and what it answers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::Refusal;
use crate::{
    constraint::Constraint,
    runtime::Token,
    sampling::{MAX_BIAS, OutOfRange, Params, Penalties, TOP_LOGPROBS},
};

/// The most answers to one prompt: as many as OpenAI's interface takes.
pub const MAX_N: usize = 128;
/// The most stop strings of a request, and the most bytes of one.
pub const MAX_STOP_STRINGS: usize = 64;
pub const MAX_STOP_BYTES: usize = 1024;

/// A prompt and how to go on from it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, with `<bos>`.
    pub prompt: Vec<u32>,
    /// The most tokens to generate; 0 only where `echo` asks for the prompt's log-probabilities.
    pub max_tokens: usize,
    /// No stop id or string ends an answer before it has so many tokens.
    pub min_tokens: usize,
    pub params: Params,
    pub penalties: Penalties,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Ids that end an answer; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// Strings that end an answer; they are not part of its text.
    pub stop: Vec<String>,
    /// How many answers; each draws with a seed of its own, `seed + i`.
    pub n: usize,
    /// How many of the most likely tokens to report at each place, beside the chosen one; none at
    /// all if `None`.
    pub logprobs: Option<usize>,
    /// Report the prompt's log-probabilities, too, if any are wanted.
    pub echo: bool,
    /// Requests share cached prefixes only with those of the same salt.
    pub cache_salt: u64,
    /// The form that the answer is held to. It ends where it is complete.
    pub constraint: Option<Constraint>,
}

impl Request {
    /// One greedy answer of up to so many tokens.
    pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            min_tokens: 0,
            params: Params::GREEDY,
            penalties: Penalties::NONE,
            logit_bias: vec![],
            stop_ids: vec![],
            stop: vec![],
            n: 1,
            logprobs: None,
            echo: false,
            cache_salt: 0,
            constraint: None,
        }
    }

    /// Whether the prompt's log-probabilities are wanted.
    pub(super) fn scores_prompt(&self) -> bool {
        self.echo && self.logprobs.is_some()
    }

    /// Checks it against slots of `cache_len` tokens and a vocabulary of `vocab`.
    ///
    /// # Errors
    /// The prompt does not fit, or a token or parameter is out of its range.
    pub fn check(&self, cache_len: i64, vocab: i64) -> Result<(), Refusal> {
        self.params.check()?;
        self.penalties.check()?;
        if self.prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if self.prompt.len() as i64 + i64::from(self.max_tokens > 0) > cache_len {
            return Err(Refusal::TooLong { tokens: self.prompt.len(), context: cache_len });
        }
        if let Some((name, problem)) = self.problem() {
            return Err(OutOfRange { name, problem }.into());
        }
        let biased = self.logit_bias.iter().map(|(id, _)| id);
        check_tokens(self.prompt.iter().chain(biased), vocab)
    }

    /// The first parameter that is out of its range.
    fn problem(&self) -> Option<(&'static str, String)> {
        if self.max_tokens == 0 && !self.scores_prompt() {
            return Some(("max_tokens", "max_tokens must be at least 1".into()));
        }
        if self.min_tokens > self.max_tokens {
            let (min, max) = (self.min_tokens, self.max_tokens);
            return Some(("min_tokens", format!("min_tokens is {min}, more than the {max} tokens that are possible")));
        }
        if self.n == 0 || self.n > MAX_N {
            return Some(("n", format!("n must be from 1 to {MAX_N}, not {}", self.n)));
        }
        if self.logprobs.is_some_and(|n| n > TOP_LOGPROBS as usize) {
            return Some(("logprobs", format!("logprobs must be at most {TOP_LOGPROBS}")));
        }
        if self.stop.len() > MAX_STOP_STRINGS || self.stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            let most = format!("at most {MAX_STOP_STRINGS} stop strings of {MAX_STOP_BYTES} bytes are possible");
            return Some(("stop", most));
        }
        // Until there are `min_tokens`, stop ids are kept away by biases.
        let biases = self.logit_bias.len() + if self.min_tokens > 0 { self.stop_ids.len() } else { 0 };
        if biases > MAX_BIAS {
            let entries = self.logit_bias.len();
            return Some(("logit_bias", format!("logit_bias has {entries} entries, at most {MAX_BIAS} are possible")));
        }
        let (id, bias) = self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias))?;
        Some(("logit_bias", format!("logit_bias of token {id} is {bias}, which is not from -100 to 100")))
    }
}

fn check_tokens<'t>(mut tokens: impl Iterator<Item = &'t u32>, vocab: i64) -> Result<(), Refusal> {
    match tokens.find(|&&id| i64::from(id) >= vocab) {
        Some(&id) => Err(Refusal::UnknownToken { id, vocab }),
        None => Ok(()),
    }
}

/// A context, and continuations whose likelihoods are wanted.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// Token ids, with `<bos>`; not empty.
    pub context: Arc<[u32]>,
    /// Not empty.
    pub continuations: Vec<Vec<u32>>,
    /// As [`Request::cache_salt`].
    pub cache_salt: u64,
}

impl ScoreRequest {
    pub(super) fn check(&self, cache_len: i64, vocab: i64) -> Result<(), Refusal> {
        if self.context.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if self.continuations.is_empty() || self.continuations.iter().any(Vec::is_empty) {
            let problem = "a continuation has at least one token".into();
            return Err(OutOfRange { name: "continuations", problem }.into());
        }
        // The last token of a continuation is not computed, only looked for.
        let longest = self.continuations.iter().map(Vec::len).max().unwrap_or(1) - 1;
        if (self.context.len() + longest) as i64 > cache_len {
            return Err(Refusal::TooLong { tokens: self.context.len() + longest, context: cache_len });
        }
        check_tokens(self.context.iter().chain(self.continuations.iter().flatten()), vocab)
    }
}

/// Log-likelihood of a continuation, and whether each of its tokens is the likeliest one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(f64, bool)", into = "(f64, bool)")]
pub struct Likelihood {
    pub logprob: f64,
    pub is_greedy: bool,
}

impl From<(f64, bool)> for Likelihood {
    fn from((logprob, is_greedy): (f64, bool)) -> Self {
        Self { logprob, is_greedy }
    }
}

impl From<Likelihood> for (f64, bool) {
    fn from(likelihood: Likelihood) -> Self {
        (likelihood.logprob, likelihood.is_greedy)
    }
}

/// Names a request in an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// What happened to a request in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An answer, or a text that is scored, has a slot now; so many of its tokens were in the
    /// cache.
    Started { id: RequestId, index: usize, cached: usize },
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
    /// All continuations of a [`ScoreRequest`] are scored, in their order.
    Scored { id: RequestId, likelihoods: Vec<Likelihood> },
    /// The request could not be finished, and has no more events. Others go on.
    Failed {
        id: RequestId,
        error: String,
        /// True if what was asked for is to blame, and not the step.
        by_request: bool,
    },
}

impl Event {
    /// Returns the request that it happened to.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Started { id, .. }
            | Self::Tokens { id, .. }
            | Self::Finished { id, .. }
            | Self::Scored { id, .. }
            | Self::Failed { id, .. } => *id,
        }
    }
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

/// The stop that ended an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    Token(u32),
    Text(String),
}

/// A complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub tokens: Vec<Token>,
    /// The text before what ended it.
    pub text: String,
    pub finish_reason: FinishReason,
    pub stopped_by: Option<Stop>,
    /// If asked for: the prompt's tokens after the first, each with its log-probability.
    pub prompt: Option<Vec<Token>>,
    /// Tokens of the prompt that were in the cache already.
    pub cached: usize,
}

impl Answer {
    /// Returns the number of tokens that were generated, a stop token included.
    pub fn generated(&self) -> usize {
        self.tokens.len() + usize::from(matches!(self.stopped_by, Some(Stop::Token(_))))
    }
}
