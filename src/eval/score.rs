//! The likelihoods that documents ask for, as score requests: one for each context, in the order of
//! their tokens, so that neighbours have the longest common beginnings.

use std::{collections::BTreeMap, sync::Arc};

use super::{EvalRequest, Item};
use crate::engine::ScoreRequest;

/// An item and one of its instances.
pub type InstanceIndex = (usize, usize);

/// A context with its continuations.
#[derive(Clone, Debug)]
pub struct ContextGroup {
    pub request: ScoreRequest,
    /// The instances that want each continuation's likelihood.
    pub wanted: Vec<Vec<InstanceIndex>>,
}

/// Groups the instances of all items by context. Continuations that several instances have in
/// common are scored once.
pub fn context_groups(items: &[&Item]) -> Vec<ContextGroup> {
    type Continuations<'i> = BTreeMap<&'i [u32], Vec<InstanceIndex>>;
    let mut by_context: BTreeMap<&Arc<[u32]>, Continuations<'_>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let EvalRequest::Loglikelihood(choices) = &item.request else { continue };
        for (j, instance) in choices.instances.iter().enumerate() {
            let continuations = by_context.entry(&instance.context_tokens).or_default();
            continuations.entry(&instance.continuation_tokens).or_default().push((i, j));
        }
    }
    let mut groups = Vec::new();
    for (context, by_continuation) in by_context {
        let (continuations, wanted) =
            by_continuation.into_iter().map(|(tokens, wanted)| (tokens.to_vec(), wanted)).unzip();
        groups.push(ContextGroup {
            request: ScoreRequest { context: context.clone(), continuations, cache_salt: 0 },
            wanted,
        });
    }
    groups
}
