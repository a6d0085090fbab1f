//! The figures of one request: its usage and timings for the client, a line for the log, and
//! observations for the metrics. Times are those of the engine's steps, not of bytes sent.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{guard::Caller, served::State};
use crate::engine::service::{Happened, Update};

/// The target of the log's lines about requests.
pub const ACCESS_LOG: &str = "gemma_pjrt::access";

/// Figures of a request, which may have several prompts. It is written when it is dropped.
pub struct Record {
    served: State,
    caller: Caller,
    route: &'static str,
    streams: bool,
    submitted: Instant,
    prompt_tokens: usize,
    /// Tokens of prompts found in the cache.
    cached: usize,
    generated: usize,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Why it ended.
    outcome: &'static str,
}

impl Record {
    pub fn new(served: &State, caller: &Caller, route: &'static str, streams: bool, prompt_tokens: usize) -> Self {
        Self {
            served: served.clone(),
            caller: caller.clone(),
            route,
            streams,
            submitted: Instant::now(),
            prompt_tokens,
            cached: 0,
            generated: 0,
            started: None,
            first_token: None,
            last_token: None,
            outcome: "refused",
        }
    }

    /// The engine has it now: if nothing more happens, the client has left.
    pub fn taken(&mut self) {
        self.outcome = "cancelled";
    }

    /// Takes what happened to one of the prompts.
    pub fn observe(&mut self, update: &Update) {
        let metrics = &self.served.metrics;
        match &update.happened {
            Happened::Started { index, cached } => {
                // Answers of number 1 and on share the first one's prompt.
                self.cached += if *index == 0 { *cached } else { 0 };
                if self.started.is_none() {
                    self.started = Some(update.at);
                    metrics.queued(update.at - self.submitted);
                }
            }
            Happened::Tokens { tokens, .. } => {
                match self.last_token {
                    None => metrics.first_token(update.at - self.submitted),
                    Some(last) => metrics.between_tokens(update.at - last, tokens.len()),
                }
                self.first_token.get_or_insert(update.at);
                self.last_token = Some(update.at);
            }
            Happened::Finished { answer, .. } => {
                self.generated += answer.generated();
                self.outcome = answer.finish_reason.name();
            }
            Happened::Scored(_) => self.outcome = "scored",
            Happened::Failed(_) => self.outcome = "failed",
        }
    }

    /// Returns the usage so far, with `more` tokens of answers under way.
    pub fn usage(&self, more: usize) -> Value {
        let completion = self.generated + more;
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }

    /// Returns `(prompt, cached, completion)` tokens.
    pub fn tokens(&self) -> (usize, usize, usize) {
        (self.prompt_tokens, self.cached, self.generated)
    }

    /// Returns the times as llama-server reports them, and the time in the queue.
    pub fn timings(&self) -> Value {
        let milliseconds = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64() * 1000.0,
            _ => 0.0,
        };
        let rate = |count: usize, ms: f64| if ms > 0.0 { count as f64 / ms * 1000.0 } else { 0.0 };
        let (computed, decoded) =
            (self.prompt_tokens - self.cached.min(self.prompt_tokens), self.generated.saturating_sub(1));
        let prompt_ms = milliseconds(self.started, self.first_token);
        let predicted_ms = milliseconds(self.first_token, self.last_token);
        json!({
            "queue_ms": milliseconds(Some(self.submitted), self.started),
            "cache_n": self.cached,
            "prompt_n": computed,
            "prompt_ms": prompt_ms,
            "prompt_per_second": rate(computed, prompt_ms),
            "predicted_n": self.generated,
            "predicted_ms": predicted_ms,
            // The first token is prefill's.
            "predicted_per_second": rate(decoded, predicted_ms),
        })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.submitted.elapsed();
        self.served.metrics.finished(self.outcome, self.prompt_tokens, self.generated, elapsed);
        let seconds =
            |duration: Option<Duration>| duration.map_or(-1.0, |duration| (duration.as_secs_f64() * 1e4).round() / 1e4);
        let since = |at: Option<Instant>| seconds(at.map(|at| at - self.submitted));
        let decoded = self.generated.saturating_sub(1) as u32;
        let tpot = match (self.first_token, self.last_token) {
            (Some(first), Some(last)) if decoded > 0 => Some((last - first) / decoded),
            _ => None,
        };
        tracing::info!(
            target: ACCESS_LOG,
            id = %self.caller.request_id,
            key = %self.caller.key,
            route = self.route,
            stream = self.streams,
            prompt_tokens = self.prompt_tokens,
            cached_tokens = self.cached,
            completion_tokens = self.generated,
            queue_s = since(self.started),
            ttft_s = since(self.first_token),
            tpot_s = seconds(tpot),
            total_s = seconds(Some(elapsed)),
            reason = self.outcome,
        );
    }
}
