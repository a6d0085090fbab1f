//! Score requests as sequences: what continuations of a context have in common is computed once.
//!
//! The hidden state after the context is the same for all continuations: one sequence reads the
//! log-probabilities of all their first tokens from it. Continuations of more tokens than one have
//! sequences of their own, which begin with the whole context from the cache.

use super::{
    request::{Likelihood, RequestId, ScoreRequest},
    sequence::{Sequence, Target},
};
use crate::runtime::TokenScore;

/// A score request under way.
pub(super) struct ScoreInProgress {
    /// Of each continuation, each token's log-probability and whether it is the likeliest one.
    scores: Vec<Vec<Option<(f32, bool)>>>,
    missing: usize,
}

impl ScoreInProgress {
    pub fn new(request: &ScoreRequest) -> Self {
        let scores: Vec<Vec<_>> = request.continuations.iter().map(|tokens| vec![None; tokens.len()]).collect();
        Self { missing: scores.iter().map(Vec::len).sum(), scores }
    }

    /// Takes a token's score. Returns all likelihoods if it was the last one.
    pub fn receive(&mut self, target: Target, score: &TokenScore) -> Option<Vec<Likelihood>> {
        let place = &mut self.scores[target.continuation][target.index];
        if place.replace((score.logprobs.own, score.greedy == target.token)).is_none() {
            self.missing -= 1;
        }
        if self.missing > 0 {
            return None;
        }
        let likelihood = |tokens: &Vec<Option<(f32, bool)>>| Likelihood {
            // Summed in f64 in the order of the tokens, whenever they came.
            logprob: tokens.iter().flatten().map(|&(logprob, _)| f64::from(logprob)).sum(),
            is_greedy: tokens.iter().flatten().all(|&(_, is_greedy)| is_greedy),
        };
        Some(self.scores.iter().map(likelihood).collect())
    }
}

/// The sequences of a score request, of which a step can score up to `max_rows` rows. `order` gives
/// each its place.
pub(super) fn sequences(
    id: RequestId,
    request: &ScoreRequest,
    max_rows: usize,
    mut order: impl FnMut() -> u64,
) -> Vec<Sequence> {
    let context = &request.context;
    let mut sequence = |tokens: Vec<u32>, scored: Vec<(usize, Target)>| {
        let (scored, targets) = scored.into_iter().unzip();
        Sequence { id, order: order(), tokens, scored, targets, cached: 0, salt: request.cache_salt, answer: None }
    };
    let last = context.len() - 1;
    let firsts: Vec<(usize, Target)> = request
        .continuations
        .iter()
        .enumerate()
        .map(|(continuation, tokens)| (last, Target { token: tokens[0], continuation, index: 0 }))
        .collect();
    let rest = |continuation: usize| {
        let tokens = request.continuations[continuation].iter().enumerate().skip(1);
        tokens.map(move |(index, &token)| (last + index, Target { token, continuation, index }))
    };
    let mut all = Vec::new();
    // The first tokens of many continuations are more than one step scores.
    let mut chunks = firsts.chunks(max_rows);
    let mut longer = (0..request.continuations.len()).filter(|&i| request.continuations[i].len() > 1);
    // The first sequence goes on with the first longer continuation.
    let with_context = |continuation: usize| {
        let tokens = &request.continuations[continuation];
        [context, &tokens[..tokens.len() - 1]].concat()
    };
    let mut first_scored = chunks.next().unwrap_or_default().to_vec();
    match longer.next() {
        Some(continuation) => {
            first_scored.extend(rest(continuation));
            all.push(sequence(with_context(continuation), first_scored));
        }
        None => all.push(sequence(context.to_vec(), first_scored)),
    }
    all.extend(chunks.map(|chunk| sequence(context.to_vec(), chunk.to_vec())).collect::<Vec<_>>());
    for continuation in longer {
        all.push(sequence(with_context(continuation), rest(continuation).collect()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Logprobs;

    fn request(continuations: &[&[u32]]) -> ScoreRequest {
        ScoreRequest {
            context: vec![2, 5, 6].into(),
            continuations: continuations.iter().map(|tokens| tokens.to_vec()).collect(),
            cache_salt: 0,
        }
    }

    fn sequences_of(continuations: &[&[u32]], max_rows: usize) -> Vec<(Vec<u32>, Vec<usize>)> {
        let mut order = 0;
        let next = || {
            order += 1;
            order
        };
        let all = sequences(RequestId(0), &request(continuations), max_rows, next);
        all.into_iter().map(|sequence| (sequence.tokens, sequence.scored)).collect()
    }

    #[test]
    fn first_tokens_are_read_from_one_row() {
        assert_eq!(sequences_of(&[&[7], &[8], &[9]], 8), [(vec![2, 5, 6], vec![2, 2, 2])]);
        assert_eq!(
            sequences_of(&[&[7], &[8, 9, 1], &[9, 4]], 8),
            [(vec![2, 5, 6, 8, 9], vec![2, 2, 2, 3, 4]), (vec![2, 5, 6, 9], vec![3])]
        );
        assert_eq!(sequences_of(&[&[7], &[8], &[9]], 2), [(vec![2, 5, 6], vec![2, 2]), (vec![2, 5, 6], vec![2])]);
    }

    #[test]
    fn likelihoods_are_complete_with_the_last_token() {
        let request = request(&[&[7], &[8, 9]]);
        let mut progress = ScoreInProgress::new(&request);
        let score = |own: f32, greedy: u32| TokenScore { logprobs: Logprobs { own, top: vec![] }, greedy };
        let target = |token, continuation, index| Target { token, continuation, index };
        assert_eq!(progress.receive(target(9, 1, 1), &score(-2.0, 9)), None);
        assert_eq!(progress.receive(target(7, 0, 0), &score(-1.0, 8)), None);
        let all = progress.receive(target(8, 1, 0), &score(-0.5, 8)).unwrap();
        assert_eq!(all, [(-1.0, false).into(), (-2.5, true).into()]);
    }
}
