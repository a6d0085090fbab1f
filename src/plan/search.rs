//! Deployments that fit a machine: the nearest ones to one that does not, and the largest for each
//! context.

use std::sync::Arc;

use super::estimate::{Deployment, Plan};
use crate::{
    compile::CompileTarget,
    device::{Error, Result},
    gemma::{ModelSpec, StoredTypes},
    hlo::{DType, Mesh},
};

/// A deployment that fits, and what was changed for it.
pub struct Alternative {
    pub change: String,
    pub plan: Plan,
}

/// The nearest deployments that fit, one for each thing that can be changed, each of them compiled.
///
/// # Errors
/// The plugin's.
pub fn alternatives(
    target: &CompileTarget,
    deployment: &Deployment,
    on_try: &mut dyn FnMut(&str),
) -> Result<Vec<Alternative>> {
    let mut found = Vec::new();
    let mut first = |ways: Vec<(String, Option<String>, Deployment)>| -> Result<()> {
        for (change, topology, deployment) in ways {
            let possible = deployment.model.check().is_ok()
                && target.memory.is_none_or(|limit| deployment.weight_bytes() + deployment.cache_bytes() < limit);
            if !possible {
                continue;
            }
            on_try(&change);
            let devices = deployment.model.mesh.devices();
            let other = topology.map(|name| target.with_topology(&name, devices)).transpose()?;
            let plan = Plan::new(other.as_ref().unwrap_or(target), &deployment)?;
            if plan.fits() {
                found.push(Alternative { change, plan });
                break;
            }
        }
        Ok(())
    };
    let model = &*deployment.model;
    let with_model = |model: ModelSpec| Deployment { model: Arc::new(model), ..deployment.clone() };
    let norms = model.stored.norms;
    let smaller = [("int8", DType::S8, StoredTypes::int8(norms)), ("int4", DType::S4, StoredTypes::int4(norms))];
    let fewer_bits = smaller.into_iter().filter(|(_, dtype, _)| dtype.bits() < model.stored.matrices.bits());
    let quantised = |(name, _, stored): (&str, DType, StoredTypes)| {
        (format!("--weights {name}"), None, with_model(ModelSpec { stored, ..model.clone() }))
    };
    first(fewer_bits.map(quantised).collect())?;
    let generation = target.name.split(':').next().unwrap_or_default();
    if ["v5e", "v6e"].contains(&generation) {
        // Of those that Google Cloud lends.
        let shapes = [(2, 2), (2, 4), (4, 4)].into_iter().filter(|(a, b)| a * b > target.devices);
        let larger = shapes.map(|(a, b)| {
            let name = format!("{generation}:{a}x{b}");
            let mesh = Mesh { model: a * b / model.mesh.data, ..model.mesh };
            let change = format!("--topology {name} --mesh {mesh}");
            (change, Some(name), with_model(ModelSpec { mesh, ..model.clone() }))
        });
        first(larger.collect())?;
    }
    if model.kv != DType::S8 {
        first(vec![("--kv int8".into(), None, with_model(ModelSpec { kv: DType::S8, ..model.clone() }))])?;
    }
    let halves = |from: i64, least: i64| {
        std::iter::successors(Some(from / 2), |n| Some(n / 2)).take_while(move |&n| n >= least).collect::<Vec<_>>()
    };
    let with_slots = |slots: i64| (format!("--slots {slots}"), None, Deployment { slots, ..deployment.clone() });
    first(halves(deployment.slots, 1).into_iter().map(with_slots).collect())?;
    let with_context =
        |context: i64| (format!("--context {context}"), None, Deployment { context, ..deployment.clone() });
    first(halves(deployment.context, 256).into_iter().map(with_context).collect())?;
    Ok(found)
}

/// For each context length in powers of two, the most slots that fit, compiled.
///
/// # Errors
/// The plugin's, or that it does not tell a device's memory.
pub fn search(target: &CompileTarget, deployment: &Deployment, on_try: &mut dyn FnMut(&str)) -> Result<Vec<Plan>> {
    let limit =
        target.memory.ok_or_else(|| Error::Invalid("the plugin does not tell how much memory a device has".into()))?;
    let mut found = Vec::new();
    let mut context = 512;
    while context <= deployment.model.config.max_position_embeddings {
        let one = Deployment { slots: 1, context, ..deployment.clone() };
        let room = limit.saturating_sub(one.weight_bytes());
        let mut slots = round_slots((room / one.cache_bytes()) as i64);
        while slots > 0 {
            on_try(&format!("--context {context} --slots {slots}"));
            let plan = Plan::new(target, &Deployment { slots, ..one.clone() })?;
            if plan.fits() {
                found.push(plan);
                break;
            }
            slots = round_slots(slots - 1);
        }
        context *= 2;
    }
    Ok(found)
}

/// At most so many slots: a multiple of 8, or below that any number; no more than 256.
fn round_slots(slots: i64) -> i64 {
    match slots.min(256) {
        few @ ..8 => few,
        many => many / 8 * 8,
    }
}
