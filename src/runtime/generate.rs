//! Generating one answer: prefill, then decode until something ends it.

use std::time::{Duration, Instant};

use super::{error::Result, session::Session};
use crate::sampling::Params;

/// A prompt and how to go on from it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub prompt: &'a [u32],
    /// How many of the prompt's first tokens the slot holds already; fewer than all.
    pub cached: usize,
    pub max_tokens: usize,
    pub params: Params,
    /// Ids that end the answer; they are not part of it.
    pub stop_ids: &'a [u32],
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

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Generation {
    pub tokens: Vec<u32>,
    /// How many tokens of prompt and answer the slot holds now: the last one of the answer may not have been needed.
    pub cached: usize,
    pub finish_reason: FinishReason,
    pub prefill: Duration,
    pub decode: Duration,
}

/// Runs the request in slot 0 of a session of one slot. `on_token` gets each token as it comes and may end the answer.
pub fn generate(
    session: &mut Session,
    request: &Request<'_>,
    mut on_token: impl FnMut(u32) -> Option<FinishReason>,
) -> Result<Generation> {
    let started = Instant::now();
    let mut position = request.prompt.len() as i64;
    let new = &request.prompt[request.cached..];
    let mut next = session.prefill(0, request.cached as i64, new, &request.params)?;
    let prefill = started.elapsed();
    let started = Instant::now();
    let mut tokens = Vec::new();
    let finish_reason = loop {
        if request.stop_ids.contains(&next) {
            break FinishReason::Stop;
        }
        tokens.push(next);
        if let Some(reason) = on_token(next) {
            break reason;
        }
        if tokens.len() >= request.max_tokens || position >= session.cache_len() {
            break FinishReason::Length;
        }
        next = session.decode(&[next], &[position], &[request.params])?[0];
        position += 1;
    };
    Ok(Generation { tokens, cached: position as usize, finish_reason, prefill, decode: started.elapsed() })
}
