//! The model's responses to documents: log-likelihoods of choices, or generated texts.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    Error, EvalRequest, GenerationConfig, Item, Result,
    score::{ContextGroup, InstanceIndex, context_groups},
};
use crate::{
    engine::{Engine, Event, Likelihood, Request, RequestId, Workload, drive},
    runtime,
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

/// Computes the responses to all items: log-likelihoods of those that have choices, answers to
/// those that come with a configuration. An answer ends at one of `stop_ids`. `on_done` gets each
/// item's index and response. Ends early when `goes_on`, which is called between steps, returns
/// false. Sampling depends on the document's number alone, not on what else runs.
///
/// # Errors
/// The model fails to run.
pub fn respond(
    engine: &mut Engine,
    items: &[(&Item, Option<&GenerationConfig>)],
    stop_ids: &[u32],
    goes_on: impl Fn() -> bool,
    on_done: impl FnMut(usize, Response),
) -> Result<()> {
    let only_items: Vec<&Item> = items.iter().map(|(item, _)| *item).collect();
    let mut prompts: Vec<(&[u32], usize)> = Vec::new();
    for (i, item) in only_items.iter().enumerate() {
        if let EvalRequest::GenerateUntil { tokens, .. } = &item.request {
            prompts.push((tokens, i));
        }
    }
    prompts.sort_unstable(); // neighbours have the longest common beginnings
    let instances = |item: &&Item| match &item.request {
        EvalRequest::Loglikelihood(choices) => choices.instances.len(),
        EvalRequest::GenerateUntil { .. } => 0,
    };
    let mut responding = Responding {
        items,
        stop_ids,
        groups: context_groups(&only_items).into_iter(),
        prompts: prompts.into_iter(),
        likelihoods: only_items.iter().map(|item| vec![None; instances(item)]).collect(),
        scoring: HashMap::new(),
        generating: HashMap::new(),
        goes_on,
        on_done,
    };
    drive(engine, &mut responding).map(drop)
}

/// Items whose responses are being computed.
struct Responding<'i, G, D> {
    items: &'i [(&'i Item, Option<&'i GenerationConfig>)],
    stop_ids: &'i [u32],
    groups: std::vec::IntoIter<ContextGroup>,
    prompts: std::vec::IntoIter<(&'i [u32], usize)>,
    /// Of each item, those of its instances that are there.
    likelihoods: Vec<Vec<Option<Likelihood>>>,
    /// The instances that want the likelihoods of a request.
    scoring: HashMap<RequestId, Vec<Vec<InstanceIndex>>>,
    /// The item of a request, and its answers so far.
    generating: HashMap<RequestId, (usize, Vec<Option<String>>)>,
    goes_on: G,
    on_done: D,
}

impl<'i, G: Fn() -> bool, D: FnMut(usize, Response)> Responding<'i, G, D> {
    fn request(&self, tokens: &[u32], i: usize) -> Request {
        let (item, generation) = self.items[i];
        let generation = generation.expect("an item with a prompt comes with a configuration");
        Request {
            params: Params {
                temperature: generation.temperature,
                top_k: generation.top_k,
                seed: item.id as u64 * generation.repeats as u64,
                ..Params::GREEDY
            },
            stop_ids: self.stop_ids.to_vec(),
            stop: generation.until.clone(),
            n: generation.repeats,
            ..Request::greedy(tokens.to_vec(), generation.max_tokens)
        }
    }
}

impl<'i, G: Fn() -> bool, D: FnMut(usize, Response)> Workload for Responding<'i, G, D> {
    type Error = Error;

    fn submit(&mut self, engine: &mut Engine) -> Result<bool> {
        let refused = |refusal: crate::engine::Refusal| Error::Invalid(refusal.to_string());
        if let Some(ContextGroup { request, wanted }) = self.groups.next() {
            self.scoring.insert(engine.submit_score(&request).map_err(refused)?, wanted);
        } else if let Some((tokens, i)) = self.prompts.next() {
            let request = self.request(tokens, i);
            let repeats = request.n;
            self.generating.insert(engine.submit(request).map_err(refused)?, (i, vec![None; repeats]));
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn event(&mut self, _: &mut Engine, event: Event) -> Result<()> {
        match event {
            Event::Started { .. } | Event::Tokens { .. } => {}
            Event::Scored { id, likelihoods } => {
                let wanted = self.scoring.remove(&id).expect("it was submitted");
                let places = likelihoods.into_iter().zip(wanted);
                for (likelihood, (i, j)) in places.flat_map(|(l, wanted)| wanted.into_iter().map(move |at| (l, at))) {
                    self.likelihoods[i][j] = Some(likelihood);
                    if let Some(all) = self.likelihoods[i].iter().copied().collect() {
                        (self.on_done)(i, Response::Loglikelihoods(all));
                    }
                }
            }
            Event::Finished { id, index, answer } => {
                let (_, answers) = self.generating.get_mut(&id).expect("it was submitted");
                answers[index] = Some(answer.text);
                if answers.iter().all(Option::is_some) {
                    let (i, answers) = self.generating.remove(&id).expect("it was there");
                    (self.on_done)(i, Response::Generated(answers.into_iter().flatten().collect()));
                }
            }
            Event::Failed { error, .. } => return Err(runtime::Error::Invalid(error).into()),
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        (self.goes_on)()
    }
}
