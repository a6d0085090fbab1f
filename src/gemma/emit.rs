//! The programs as graphs.
//!
//! Every program takes its packed inputs first (see [`InputLayout`](super::InputLayout)), then all
//! weights in the order of [`ModelSpec::arguments`](super::ModelSpec::arguments), then the cache's
//! arrays. It returns its own output first, if it has one, then the updated caches, which reuse the
//! memory of those passed in.

use super::{
    Context,
    attention::{Rows, Tokens},
    cache::Cache,
    forward::forward,
    heads::{SamplingOps, all_logits, score},
    inputs::{Field, Inputs},
    program::{Head, Program, ProgramSpec},
    weights::Weights,
};
use crate::{
    hlo::{DType, Graph, HloError, Module, Op, Shape},
    sampling::Sampler,
    tree,
};

impl ProgramSpec {
    /// Emits the program of one device.
    ///
    /// # Errors
    /// The first op whose operands do not fit: a defect of this crate.
    pub fn build(&self) -> Result<Module, HloError> {
        let graph = Graph::new(&self.name().replace('-', "_"));
        let inputs = Inputs::declare(&graph, self);
        match self.program {
            Program::Step { head, .. } => self.step(&graph, &inputs, head),
            Program::Decode { sampler } => self.decode(&graph, &inputs, sampler),
            Program::Copy => self.copy(&graph, &inputs),
        }
    }

    /// One pass over the tokens, and the head on the chosen rows.
    fn step(&self, g: &Graph, inputs: &Inputs<'_>, head: Head) -> Result<Module, HloError> {
        let cx = Context { model: &self.model, count: inputs.get(Field::TokenCount) };
        let weights = Weights::declare(g, &self.model);
        let given = self.declare_caches(g);
        let positions = inputs.get(Field::Positions);
        let rows = Rows::Segments(inputs.get(Field::Segments));
        let tokens = Tokens { positions, rows, window: self.window };
        let caches = Cache::from_arrays(&self.model, &given);
        let run = forward(cx, inputs.get(Field::Tokens), &weights, caches, &tokens, head == Head::Hidden);

        // The hidden states of the rows that the head is for, and where the tokens after them
        // stand.
        let chosen = || {
            let rows = inputs.get(Field::Rows);
            let positions = positions.reshape(&[positions.dim(0), 1]).take_rows(rows).reshape(&[rows.dim(0)]);
            let cx = Context { count: inputs.get(Field::RowCount), ..cx };
            (cx, run.hidden.take_rows(rows), positions + 1)
        };
        let output = match head {
            Head::None => None,
            Head::Sample(sampler) => {
                let (cx, hidden, next) = chosen();
                Some(SamplingOps::new(cx, inputs, sampler).sample(cx, hidden, &weights, next).1)
            }
            Head::Logprobs { top } => {
                let (cx, hidden, _) = chosen();
                Some(score(cx, hidden, &weights, inputs.get(Field::Targets), top))
            }
            Head::Logits => {
                let (cx, hidden, _) = chosen();
                Some(all_logits(cx, hidden, &weights))
            }
            Head::Hidden => run.trace,
        };
        finish(g, output, &given, &Cache::to_arrays(&run.caches))
    }

    /// Steps of decoding until as many were taken as were asked for, or all slots are idle.
    fn decode(&self, g: &Graph, inputs: &Inputs<'_>, sampler: Sampler) -> Result<Module, HloError> {
        let (slots, max_steps) = (self.slots, self.model.decode_steps(sampler));
        let count = g.s32(slots);
        let weights = Weights::declare(g, &self.model);
        let given = self.declare_caches(g);
        let state = Decoding {
            tokens: inputs.get(Field::Tokens),
            positions: inputs.get(Field::Positions),
            max_new_tokens: inputs.get(Field::MaxNewTokens),
            sampling: SamplingOps::new(Context { model: &self.model, count }, inputs, sampler),
            caches: Cache::from_arrays(&self.model, &given),
            output: g.full(&Shape::new(DType::S32, [max_steps, slots, sampler.width()]), -1.0),
        };
        let kept = Kept { stop_ids: inputs.get(Field::StopIds), count, weights };
        let state = if max_steps == 1 {
            self.decode_step(g.s32(0), state, &kept)
        } else {
            let steps = inputs.get(Field::Steps).min(g.s32(max_steps));
            let (state, _) = g.repeat_while(
                steps,
                &(state, kept),
                |index, (state, _)| state.max_new_tokens.reduce_max(&[0]).gt(index.graph().s32(0)),
                |index, (state, kept)| (self.decode_step(index, state, &kept), kept),
            );
            state
        };
        finish(g, Some(state.output), &given, &Cache::to_arrays(&state.caches))
    }

    /// One token more of every active slot.
    fn decode_step<'g>(&self, index: Op<'g>, state: Decoding<'g>, kept: &Kept<'g>) -> Decoding<'g> {
        let cx = Context { model: &self.model, count: kept.count };
        let (g, zero) = (index.graph(), index.graph().s32(0));
        let active = state.max_new_tokens.gt(zero); // [slots]
        let tokens = Tokens { positions: state.positions, rows: Rows::Slots { active }, window: self.window };
        let run = forward(cx, state.tokens, &kept.weights, state.caches, &tokens, false);
        let (next, packed) = state.sampling.sample(cx, run.hidden, &kept.weights, state.positions + 1);

        let slots = self.slots;
        let column = active.reshape(&[slots, 1]);
        let shown = column.select(packed, g.s32(-1)).reshape(&[1, slots, packed.dim(1)]);
        let is_stop = next.reshape(&[slots, 1]).eq(kept.stop_ids).convert(DType::S32).reduce_max(&[1]).gt(zero);
        Decoding {
            tokens: active.select(next, state.tokens),
            positions: state.positions + active.convert(DType::S32),
            max_new_tokens: active.and(is_stop.not()).select(state.max_new_tokens - 1, zero),
            sampling: state.sampling.after(cx, next),
            caches: run.caches,
            output: state.output.dynamic_update_row(shown, index),
        }
    }

    fn copy(&self, g: &Graph, inputs: &Inputs<'_>) -> Result<Module, HloError> {
        let (from, to) = (inputs.get(Field::CopyFrom), inputs.get(Field::CopyTo));
        let given = self.declare_caches(g);
        let kv_heads = self.model.kv_heads();
        let copied: Vec<Op<'_>> = given.iter().map(|&array| Cache::copy_slot(array, kv_heads, from, to)).collect();
        finish(g, None, &given, &copied)
    }

    fn declare_caches<'g>(&self, graph: &'g Graph) -> Vec<Op<'g>> {
        self.cache_arrays().into_iter().map(|(name, shape)| graph.parameter(&name, shape)).collect()
    }
}

/// What changes from one decode step to the next.
struct Decoding<'g> {
    /// Each slot's last token, which is not in the cache yet, and its position, `s32[slots]` each.
    tokens: Op<'g>,
    positions: Op<'g>,
    /// The most tokens that each slot may still have, `s32[slots]`; 0 makes it idle.
    max_new_tokens: Op<'g>,
    sampling: SamplingOps<'g>,
    caches: Vec<Cache<'g>>,
    /// `s32[steps, slots, width]`
    output: Op<'g>,
}
tree!(Decoding { tokens, positions, max_new_tokens, sampling, caches, output });

/// What stays.
struct Kept<'g> {
    /// `s32[slots, MAX_STOP_IDS]`
    stop_ids: Op<'g>,
    /// Rows of a step, `s32[]`.
    count: Op<'g>,
    weights: Weights<'g>,
}
tree!(Kept { stop_ids, count, weights });

/// Ends a program: its own output, then the caches in place of those given.
fn finish(graph: &Graph, output: Option<Op<'_>>, given: &[Op<'_>], updated: &[Op<'_>]) -> Result<Module, HloError> {
    let mut all: Vec<Op<'_>> = output.into_iter().collect();
    for (&given, &updated) in given.iter().zip(updated) {
        graph.alias(given, all.len());
        all.push(updated);
    }
    graph.finish(&all)
}
