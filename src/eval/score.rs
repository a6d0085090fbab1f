//! Likelihoods of continuations, computed together: what contexts have in common is computed once, and choices of one token are
//! all read from one step's logits.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{EvalRequest, Item, Result};
use crate::runtime::{Extend, Model, Session};

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

/// A context with its continuations.
#[derive(Clone, Debug)]
pub struct Group {
    pub context: Arc<[u32]>,
    pub continuations: Vec<Vec<u32>>,
    /// For each continuation, where its likelihood is wanted: items and their instances.
    pub wanted: Vec<Vec<(usize, usize)>>,
}

/// Continuations of a context, and where they are wanted.
type Continuations<'i> = BTreeMap<&'i [u32], Vec<(usize, usize)>>;

/// What is asked for, by contexts in the order of their tokens: so that neighbours have the longest common beginnings.
pub fn groups(items: &[&Item]) -> Vec<Group> {
    let mut by_context: BTreeMap<&Arc<[u32]>, Continuations<'_>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let EvalRequest::Loglikelihood(choices) = &item.request else { continue };
        for (j, pair) in choices.instances.iter().enumerate() {
            let of_context = by_context.entry(&pair.context_tokens).or_default();
            of_context.entry(&pair.continuation_tokens).or_default().push((i, j));
        }
    }
    let group = |(context, continuations): (&Arc<[u32]>, Continuations<'_>)| {
        let (continuations, wanted) =
            continuations.into_iter().map(|(tokens, wanted)| (tokens.to_vec(), wanted)).unzip();
        Group { context: context.clone(), continuations, wanted }
    };
    by_context.into_iter().map(group).collect()
}

/// A context's rest of at most so many tokens is computed together with the first continuation.
const SHORT_REST: usize = 16;

/// Computes likelihoods, a group at a time on each data row of the mesh.
pub struct Scorer {
    session: Session,
    rows: Vec<Row>,
    /// Tokens that were computed, and that were in the cache.
    pub computed: u64,
    pub reused: u64,
}

/// A data row: what its slot holds, and what it is at.
#[derive(Default)]
struct Row {
    held: Vec<u32>,
    work: Option<Work>,
}

struct Work {
    group: usize,
    done: Vec<Likelihood>,
    /// Of the continuation that is being scored.
    sum: Likelihood,
}

const NOTHING: Likelihood = Likelihood { logprob: 0.0, is_greedy: true };

/// The next step of a row, by tokens of context and continuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// More of the context.
    Extend { to: usize },
    /// The context's rest, which fits one step, and what can follow it.
    Tell { to: usize },
    /// More of a continuation.
    Score { to: usize },
}

impl Scorer {
    /// For texts of up to `cache_len` tokens.
    pub fn new(model: Arc<Model>, cache_len: i64) -> Result<Self> {
        let session = Session::new(model, 1, cache_len)?;
        let rows = (0..session.data_rows()).map(|_| Row::default()).collect();
        Ok(Self { session, rows, computed: 0, reused: 0 })
    }

    /// Scores all groups; `on_done` is told of each, with a likelihood for each continuation, and may end it.
    pub fn score(
        &mut self,
        groups: &[Group],
        mut on_done: impl FnMut(usize, Vec<Likelihood>) -> Result<bool>,
    ) -> Result<()> {
        // Neighbours go to the same row, so that they meet what they share.
        let rows = self.rows.len();
        let share = groups.len().div_ceil(rows).max(1);
        let mut queues: Vec<std::ops::Range<usize>> =
            (0..rows).map(|row| row * share..((row + 1) * share).min(groups.len())).collect();
        loop {
            for (row, queue) in self.rows.iter_mut().zip(&mut queues) {
                if row.work.is_none()
                    && let Some(group) = queue.next()
                {
                    let context = &groups[group].context;
                    let common = row.held.iter().zip(&context[..]).take_while(|(a, b)| a == b).count();
                    row.held.truncate(common.min(context.len() - 1)); // the last token's logits are needed
                    self.reused += row.held.len() as u64;
                    row.work = Some(Work { group, done: vec![], sum: NOTHING });
                }
            }
            let steps: Vec<Option<Step>> = self.rows.iter().map(|row| row.step(groups, &self.session)).collect();
            let Some(first) = steps.iter().flatten().next() else { return Ok(()) };
            let kind = std::mem::discriminant(first);
            let chosen: Vec<(usize, Step)> = steps
                .iter()
                .enumerate()
                .filter_map(|(row, step)| Some((row, (*step)?)))
                .filter(|(_, step)| std::mem::discriminant(step) == kind)
                .collect();
            for (row, likelihoods) in self.run(groups, &chosen)? {
                let work = self.rows[row].work.take().expect("it has just ended");
                if !on_done(work.group, likelihoods)? {
                    return Ok(());
                }
            }
        }
    }

    /// Runs a step of some rows, all of one kind; returns what is complete.
    fn run(&mut self, groups: &[Group], steps: &[(usize, Step)]) -> Result<Vec<(usize, Vec<Likelihood>)>> {
        let texts: Vec<Vec<u32>> = steps.iter().map(|&(row, _)| self.rows[row].text(groups)).collect();
        let mut rests: Vec<Extend<'_>> = Vec::new();
        for (&(row, Step::Extend { to } | Step::Tell { to } | Step::Score { to }), text) in steps.iter().zip(&texts) {
            let start = self.rows[row].held.len();
            rests.push(Extend { slot: row as i64, start: start as i64, tokens: &text[start..to] });
        }
        let max = if matches!(steps[0].1, Step::Score { .. }) { Session::MAX_SCORE } else { Session::MAX_CHUNK };
        let parts = self.session.cut(&rests, max);
        let is_whole = |i: usize| parts[i].tokens.len() == rests[i].tokens.len();
        if matches!(steps[0].1, Step::Tell { .. }) && !(0..parts.len()).all(is_whole) {
            // Another row near its cache's end makes the bucket too small for a context's rest, which alone would fit.
            return self.run(groups, &steps[..1]);
        }
        let ranges: Vec<(usize, usize)> =
            parts.iter().map(|part| (part.start as usize, part.start as usize + part.tokens.len())).collect();
        self.computed += parts.iter().map(|part| part.tokens.len() as u64).sum::<u64>();

        let mut complete = Vec::new();
        match steps[0].1 {
            Step::Tell { .. } => {
                let logits = self.session.extend_and_tell(&parts)?;
                for (&(row, _), logits) in steps.iter().zip(&logits) {
                    let group = &groups[self.rows[row].group()];
                    complete.push((row, likelihoods(logits, group)));
                }
            }
            Step::Extend { .. } => self.session.extend_only(&parts)?,
            Step::Score { .. } => {
                let targets: Vec<Vec<u32>> =
                    texts.iter().zip(&ranges).map(|(text, &(from, to))| text[from + 1..=to].to_vec()).collect();
                let instances: Vec<(Extend<'_>, &[u32])> =
                    parts.iter().zip(&targets).map(|(&part, targets)| (part, &targets[..])).collect();
                let scored = self.session.score_parts(&instances, false)?;
                for (i, (&(row, _), scored)) in steps.iter().zip(&scored).enumerate() {
                    let context = groups[self.rows[row].group()].context.len();
                    let work = self.rows[row].work.as_mut().expect("it has a step");
                    for (token, greedy) in scored.iter().skip((context - 1).saturating_sub(ranges[i].0)) {
                        work.sum.logprob += f64::from(token.logprobs.as_ref().map_or(0.0, |l| l.own));
                        work.sum.is_greedy &= token.id == *greedy;
                    }
                    if is_whole(i) {
                        work.done.push(std::mem::replace(&mut work.sum, NOTHING));
                    }
                }
            }
        }
        for ((&(row, step), text), &(_, to)) in steps.iter().zip(&texts).zip(&ranges) {
            let row_state = &mut self.rows[row];
            row_state.held = text[..to].to_vec();
            if let Step::Score { to: end } = step
                && to == end
            {
                let work = row_state.work.as_ref().expect("it has a step");
                let group = &groups[work.group];
                if work.done.len() == group.continuations.len() {
                    complete.push((row, work.done.clone()));
                } else {
                    row_state.held.truncate(group.context.len() - 1); // the next one begins there
                }
            }
        }
        Ok(complete)
    }
}

impl Row {
    fn group(&self) -> usize {
        self.work.as_ref().expect("it has a step").group
    }

    /// Context and the continuation that is scored now; the last token is only a target.
    fn text(&self, groups: &[Group]) -> Vec<u32> {
        let work = self.work.as_ref().expect("it has a step");
        let group = &groups[work.group];
        if group.is_single() {
            group.context.to_vec()
        } else {
            [&group.context[..], &group.continuations[work.done.len()]].concat()
        }
    }

    fn step(&self, groups: &[Group], session: &Session) -> Option<Step> {
        let work = self.work.as_ref()?;
        let group = &groups[work.group];
        let (context, held) = (group.context.len(), self.held.len());
        if group.is_single() {
            let rest = Extend { slot: 0, start: held as i64, tokens: &group.context[held..] };
            let fits = session.cut(&[rest], Session::MAX_CHUNK)[0].tokens.len() == rest.tokens.len();
            return Some(if fits { Step::Tell { to: context } } else { Step::Extend { to: context - 1 } });
        }
        if work.sum == NOTHING && work.done.is_empty() && context - 1 > held + SHORT_REST {
            return Some(Step::Extend { to: context - 1 });
        }
        Some(Step::Score { to: context + group.continuations[work.done.len()].len() - 1 })
    }
}

impl Group {
    /// All continuations are one token: one step's logits tell them all.
    fn is_single(&self) -> bool {
        self.continuations.iter().all(|tokens| tokens.len() == 1)
    }
}

/// From the logits after a context, of continuations of one token.
fn likelihoods(logits: &[f32], group: &Group) -> Vec<Likelihood> {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    let largest = f64::from(logits[best]);
    let total = largest + logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln();
    let one = |tokens: &Vec<u32>| {
        let id = tokens[0] as usize;
        Likelihood { logprob: f64::from(logits[id]) - total, is_greedy: id == best }
    };
    group.continuations.iter().map(one).collect()
}
