//! What the model answers to documents: likelihoods of choices, or words.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Ask, Generate, Item, Likelihood, Result, Scorer, groups};
use crate::{
    engine::{Engine, Event, Request},
    sampling::Params,
};

/// To one document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Response {
    /// Of each choice.
    Likelihoods(Vec<Likelihood>),
    /// As many as the task asks for.
    Words(Vec<String>),
}

/// Scores the choices of all items that have some; `on_done` is told of each item's number. `goes_on` is asked now and then; false ends
/// it.
pub fn score(
    scorer: &mut Scorer,
    items: &[&Item],
    goes_on: impl Fn() -> bool,
    mut on_done: impl FnMut(usize, Response),
) -> Result<()> {
    let groups = groups(items);
    let mut found: Vec<Vec<Option<Likelihood>>> = items
        .iter()
        .map(|item| match &item.ask {
            Ask::Choices(choices) => vec![None; choices.pairs.len()],
            Ask::Words { .. } => vec![],
        })
        .collect();
    scorer.score(&groups, |group, likelihoods| {
        let wanted = likelihoods.iter().zip(&groups[group].wanted);
        for (likelihood, &(item, pair)) in wanted.flat_map(|(l, wanted)| wanted.iter().map(move |place| (l, place))) {
            found[item][pair] = Some(*likelihood);
            if let Some(whole) = found[item].iter().copied().collect() {
                on_done(item, Response::Likelihoods(whole));
            }
        }
        Ok(goes_on())
    })
}

/// Has all these items answered in words, with the way to answer for each; `on_done` is told of each item's number. `goes_on` is asked
/// between steps; false ends it. Draws at random depend on the document's number alone. An answer
/// ends at one of `stop_ids`.
pub fn generate(
    engine: &mut Engine<'_>,
    items: &[(&Item, &Generate)],
    stop_ids: &[u32],
    goes_on: impl Fn() -> bool,
    mut on_done: impl FnMut(usize, Response),
) -> Result<()> {
    let mut order: Vec<(&[u32], usize)> = items
        .iter()
        .enumerate()
        .filter_map(|(i, (item, _))| match &item.ask {
            Ask::Words { tokens, .. } => Some((&tokens[..], i)),
            Ask::Choices(_) => None,
        })
        .collect();
    order.sort_unstable(); // neighbours have the longest common beginnings
    let mut todo = order.into_iter();
    let mut running: HashMap<_, (usize, Vec<Option<String>>)> = HashMap::new();
    loop {
        while engine.load().0 < 2 * engine.slots() {
            let Some((tokens, i)) = todo.next() else { break };
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
                on_done(i, Response::Words(answers.into_iter().flatten().collect()));
            }
        }
    }
}
