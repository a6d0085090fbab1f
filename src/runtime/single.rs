//! One sequence at a time: batches of one segment, for benchmarks, scoring of a text, and looking
//! inside the model.

use super::{
    batch::{BatchHead, DecodeRow, RowRef, SamplingInputs, ScoredRow, Segment, StepBatch, StepOutput, TokenScore},
    session::Session,
};
use crate::{
    device::{Error, Result},
    sampling::Params,
};

/// Likelihood of a text's tokens, given those before them.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Natural log-probability of each token after the first.
    pub logprobs: Vec<f32>,
    /// The most likely token at each of those places.
    pub greedy: Vec<u32>,
    /// Logits after each token, the last one included: `f32 [tokens, vocab]`, if asked for.
    pub logits: Option<Vec<f32>>,
}

impl Session {
    /// Extends the sequence of `slot`, which has `start` tokens, by `tokens`; returns the token
    /// that follows.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn prefill(&mut self, slot: i64, start: i64, tokens: &[u32], params: &Params) -> Result<u32> {
        let head = BatchHead::Sample(vec![(0, SamplingInputs::plain(*params))]);
        match self.prefill_with(slot, start, tokens, |_| head)? {
            StepOutput::Tokens(found) if found[0].is_chosen() => Ok(found[0].id),
            StepOutput::Tokens(_) => Err(self.not_numbers(slot, start, tokens)),
            other => unreachable!("the head samples: {other:?}"),
        }
    }

    /// As [`Self::prefill`], but returns the logits `f32[vocab]` after the last token.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn prefill_logits(&mut self, slot: i64, start: i64, tokens: &[u32]) -> Result<Vec<f32>> {
        let head = |len: usize| BatchHead::Logits(vec![RowRef { segment: 0, token: len - 1 }]);
        match self.prefill_with(slot, start, tokens, head)? {
            StepOutput::Logits(mut logits) => Ok(logits.swap_remove(0)),
            other => unreachable!("the head gives logits: {other:?}"),
        }
    }

    /// Extends a sequence in steps of as many tokens as one takes, with a head on the last one.
    fn prefill_with<'a>(
        &mut self,
        slot: i64,
        start: i64,
        tokens: &[u32],
        head: impl FnOnce(usize) -> BatchHead<'a>,
    ) -> Result<StepOutput> {
        let end = start + tokens.len() as i64;
        if end > self.cache_len() {
            // Refused before the first of several steps.
            return Err(self.does_not_fit(start, tokens.len()));
        }
        let max = self.max_step_tokens() as usize;
        let last = tokens.len().saturating_sub(1) / max * max;
        for (i, part) in tokens[..last].chunks(max).enumerate() {
            let segments = vec![Segment { slot, start: start + (i * max) as i64, tokens: part }];
            self.step(&StepBatch { segments, head: BatchHead::None })?;
        }
        let tokens = &tokens[last..];
        let segments = vec![Segment { slot, start: start + last as i64, tokens }];
        self.step(&StepBatch { segments, head: head(tokens.len()) })
    }

    fn does_not_fit(&self, start: i64, tokens: usize) -> Error {
        let cache_len = self.cache_len();
        Error::Invalid(format!(
            "{tokens} tokens from position {start} on do not fit a cache of {cache_len}; use a longer --context"
        ))
    }

    /// One step of the first slots: `tokens[i]` is put at position `positions[i]` of slot i;
    /// returns the tokens that follow.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn decode_each(&mut self, tokens: &[u32], positions: &[i64], params: &[Params]) -> Result<Vec<u32>> {
        let tokens: Vec<[u32; 1]> = tokens.iter().map(|&token| [token]).collect();
        let mut rows = Vec::new();
        for (slot, ((token, &position), &params)) in tokens.iter().zip(positions).zip(params).enumerate() {
            let sampling = SamplingInputs::plain(params);
            rows.push(DecodeRow { slot: slot as i64, token, position, max_new_tokens: 1, stop_ids: &[], sampling });
        }
        let decoded = self.decode(&rows, 1)?;
        if let Some(slot) = decoded.iter().position(|tokens| !tokens[0].is_chosen()) {
            return Err(self.not_numbers(slot as i64, positions[slot], &tokens[slot]));
        }
        Ok(decoded.into_iter().map(|tokens| tokens[0].id).collect())
    }

    /// Likelihood of a whole text, in slot 0, which is overwritten.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn score(&mut self, tokens: &[u32], with_logits: bool) -> Result<Scored> {
        if tokens.len() as i64 > self.cache_len() {
            return Err(self.does_not_fit(0, tokens.len()));
        }
        let mut scored = Scored { logprobs: vec![], greedy: vec![], logits: with_logits.then(Vec::new) };
        let max = self.max_scored_rows() as usize;
        for (i, part) in tokens.chunks(max).enumerate() {
            let start = i * max;
            let segments = vec![Segment { slot: 0, start: start as i64, tokens: part }];
            let row = |token: usize| RowRef { segment: 0, token };
            if let Some(all) = &mut scored.logits {
                let head = BatchHead::Logits((0..part.len()).map(row).collect());
                let StepOutput::Logits(logits) = self.step(&StepBatch { segments: segments.clone(), head })? else {
                    unreachable!("the head gives logits")
                };
                all.extend(logits.into_iter().flatten());
            }
            // What follows the last token is not in the text.
            let targets = tokens[start + 1..].iter().take(part.len()).enumerate();
            let rows: Vec<ScoredRow> = targets.map(|(token, &target)| ScoredRow { row: row(token), target }).collect();
            let head = BatchHead::Logprobs { rows, top: false };
            let StepOutput::Scores(scores) = self.step(&StepBatch { segments, head })? else {
                unreachable!("the head scores")
            };
            if !scores.iter().all(TokenScore::is_number) {
                return Err(self.not_numbers(0, 0, tokens));
            }
            scored.logprobs.extend(scores.iter().map(|score| score.logprobs.own));
            scored.greedy.extend(scores.iter().map(|score| score.greedy));
        }
        Ok(scored)
    }

    /// Returns the error of tokens whose logits are not numbers. It names the first layer where NaN
    /// or infinity appears: the tokens, which stand from position `start` on in `slot`, are traced.
    pub fn not_numbers(&mut self, slot: i64, start: i64, tokens: &[u32]) -> Error {
        let (max, hidden) = (self.max_step_tokens() as usize, self.model().config().hidden_size as usize);
        let mut first: Option<usize> = None;
        for (i, part) in tokens.chunks(max).enumerate() {
            let trace = match self.trace(slot, start + (i * max) as i64, part) {
                Ok(trace) => trace,
                Err(error) => return error,
            };
            let layer = trace.chunks_exact(part.len() * hidden).position(|layer| layer.iter().any(|x| !x.is_finite()));
            first = [first, layer].into_iter().flatten().min();
        }
        Error::NotNumbers(match first {
            Some(0) => "the embedding (model.embed_tokens.weight)".into(),
            Some(layer) => format!("layer {} (model.layers.{0}.*)", layer - 1),
            None => "the final norm or the output layer (model.norm.weight, lm_head.weight)".into(),
        })
    }

    /// What each layer takes, and what the last one gives, before the final norm: `f32 [layers + 1,
    /// tokens, hidden]`, of tokens that follow the `start` ones that `slot` has. They must fit one
    /// step.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn trace(&mut self, slot: i64, start: i64, tokens: &[u32]) -> Result<Vec<f32>> {
        let segments = vec![Segment { slot, start, tokens }];
        match self.step(&StepBatch { segments, head: BatchHead::Hidden })? {
            StepOutput::Hidden(hidden) => Ok(hidden),
            other => unreachable!("the head gives hidden states: {other:?}"),
        }
    }
}
