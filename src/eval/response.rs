//! The model's responses to documents: log-likelihoods of choices, or generated texts.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{EvalRequest, GenerationConfig, Item, Likelihood, Result, Scorer, groups};
use crate::{
    engine::{Engine, Event, Request},
    sampling::Params,
};

/// The response to one document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Response {
    /// One for each choice.
    Loglikelihoods(Vec<Likelihood>),
    /// As many texts as the task asks for.
    Generated(Vec<String>),
}

/// Computes the log-likelihoods of the choices of all items that have some. `on_done` gets each
/// item's index and response. Ends early when `goes_on`, which is called now and then, returns
/// false.
///
/// # Errors
/// The model fails to run.
pub fn score(
    scorer: &mut Scorer,
    items: &[&Item],
    goes_on: impl Fn() -> bool,
    mut on_done: impl FnMut(usize, Response),
) -> Result<()> {
    let groups = groups(items);
    let mut found: Vec<Vec<Option<Likelihood>>> = items
        .iter()
        .map(|item| match &item.request {
            EvalRequest::Loglikelihood(choices) => vec![None; choices.instances.len()],
            EvalRequest::GenerateUntil { .. } => vec![],
        })
        .collect();
    scorer.score(&groups, |group, likelihoods| {
        let wanted = likelihoods.iter().zip(&groups[group].wanted);
        for (likelihood, &(item, pair)) in wanted.flat_map(|(l, wanted)| wanted.iter().map(move |place| (l, place))) {
            found[item][pair] = Some(*likelihood);
            if let Some(whole) = found[item].iter().copied().collect() {
                on_done(item, Response::Loglikelihoods(whole));
            }
        }
        Ok(goes_on())
    })
}

/// Generates the answers to all these items, each by its own configuration. An answer ends at one
/// of `stop_ids`. `on_done` gets each item's index and response. Ends early when `goes_on`, which
/// is called between steps, returns false. Sampling depends on the document's number alone, not on
/// what else runs.
///
/// # Errors
/// The model fails to run.
pub fn generate(
    engine: &mut Engine<'_>,
    items: &[(&Item, &GenerationConfig)],
    stop_ids: &[u32],
    goes_on: impl Fn() -> bool,
    mut on_done: impl FnMut(usize, Response),
) -> Result<()> {
    let mut order: Vec<(&[u32], usize)> = items
        .iter()
        .enumerate()
        .filter_map(|(i, (item, _))| match &item.request {
            EvalRequest::GenerateUntil { tokens, .. } => Some((&tokens[..], i)),
            EvalRequest::Loglikelihood(_) => None,
        })
        .collect();
    order.sort_unstable(); // neighbours have the longest common beginnings
    let mut queue = order.into_iter();
    let mut running: HashMap<_, (usize, Vec<Option<String>>)> = HashMap::new();
    loop {
        while engine.load().0 < 2 * engine.slots() {
            let Some((tokens, i)) = queue.next() else { break };
            let (item, generate) = items[i];
            let request = Request {
                params: Params {
                    temperature: generate.temperature,
                    top_k: generate.top_k,
                    seed: item.id as u64 * generate.repeats as u64,
                    ..Params::GREEDY
                },
                stop_ids: stop_ids.to_vec(),
                stop: generate.until.clone(),
                n: generate.repeats,
                ..Request::greedy(tokens.to_vec(), generate.max_tokens)
            };
            running.insert(engine.submit(request)?, (i, vec![None; generate.repeats]));
        }
        if engine.is_idle() || !goes_on() {
            return Ok(());
        }
        for event in engine.step()? {
            let Event::Finished { id, index, answer } = event else { continue };
            let (_, answers) = running.get_mut(&id).expect("it was submitted");
            answers[index] = Some(answer.text);
            if answers.iter().all(Option::is_some) {
                let (i, answers) = running.remove(&id).expect("it was there");
                on_done(i, Response::Generated(answers.into_iter().flatten().collect()));
            }
        }
    }
}
