//! The programs that run the model: prefill, decode, score.
//!
//! Every program takes its own inputs first, then all weights in the order of [`weights::arguments`], then the cache's
//! arrays; it returns its own outputs first, then the updated caches, which reuse the memory of those passed in.

use super::{
    Cache, Config, Target,
    layers::{CacheAccess, Context, Positions, decoder_layer, embed, largest_logit, logits, top_logits},
    weights::{LayerWeights, Layers, StoredTypes, Weights},
};
use crate::{
    hlo::{Computation, DType, Graph, HloError, Mesh, Module, Op, Shape},
    sampling::{self, Candidates, MAX_TOP_K, ParamOps, Sampler},
};

/// What a step returns besides the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// The next token of each row, `s32[rows]`.
    Token(Sampler),
    /// The logits of each row's last token, `f32[rows, vocab]`.
    Logits,
}

/// One of the model's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// A chunk of one slot's prompt: `bucket` tokens from position `start` on, of which those after `last` are padding.
    ///
    /// Inputs: tokens `s32[bucket]`, slot `s32[]`, start `s32[]`, last `s32[]`; then the sampler's.
    Prefill { bucket: i64, output: Output },
    /// One token for every slot.
    ///
    /// Inputs: tokens `s32[slots]`, positions `s32[slots]`; then the sampler's.
    Decode { output: Output },
    /// A chunk of one slot's text, for its likelihood: as prefill, with the token that follows each one as a target.
    ///
    /// Inputs: tokens `s32[bucket]`, slot `s32[]`, start `s32[]`, targets `s32[bucket]`. Outputs: the targets' log-probabilities
    /// `f32[bucket]`, the most likely tokens `s32[bucket]` and, if asked for, all logits `f32[bucket, vocab]`.
    Score { bucket: i64, logits: bool },
    /// A chunk of one slot's text, for looking inside: inputs tokens `s32[bucket]`, slot `s32[]`, start `s32[]`. Output: what each
    /// layer takes, and what the last one gives, before the final norm, `f32[layers + 1, bucket, hidden]`.
    Trace { bucket: i64 },
}

/// All that determines a program's graph.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramSpec {
    pub program: Program,
    pub target: Target,
    pub config: Config,
    pub mesh: Mesh,
    /// Type of activations.
    pub compute: DType,
    /// Type of keys and values in the cache: that of activations, or S8.
    pub kv: DType,
    /// Types of the weights as stored.
    pub stored: StoredTypes,
    /// Sequences that the cache holds.
    pub slots: i64,
    /// Tokens that the cache holds for each.
    pub cache_len: i64,
    /// Cache positions that attention looks at.
    pub window: i64,
}

impl ProgramSpec {
    /// A readable name that tells the program, its buckets, mesh and types: `decode-greedy-b1-w1024-c2048-tp4-bf16-cpu`.
    pub fn name(&self) -> String {
        let Self { mesh, slots, cache_len, window, .. } = self;
        let output = |output: Output| match output {
            Output::Token(sampler) => sampler.name(),
            Output::Logits => "logits",
        };
        let program = match self.program {
            Program::Prefill { bucket, output: o } => format!("prefill-{}-t{bucket}", output(o)),
            Program::Decode { output: o } => format!("decode-{}", output(o)),
            Program::Score { bucket, logits } => {
                format!("score{}-t{bucket}", if logits { "-logits" } else { "" })
            }
            Program::Trace { bucket } => format!("trace-t{bucket}"),
        };
        let data = if mesh.data > 1 { format!("dp{}-", mesh.data) } else { String::new() };
        let stored = if self.stored.matrices == self.compute
            && self.stored.norms == self.compute
            && self.stored.exceptions.is_empty()
        {
            String::new()
        } else {
            format!("-w{}", self.stored.matrices)
        };
        let shifted = if self.stored.shifted { "-shifted" } else { "" };
        let kv = if self.kv == self.compute { String::new() } else { format!("-kv{}", self.kv) };
        let target = self.target.name();
        format!(
            "{program}-b{slots}-w{window}-c{cache_len}-{data}tp{}-{}{stored}{shifted}{kv}-{target}",
            mesh.model, self.compute
        )
    }

    /// Names and shapes of the cache's arrays on one device.
    pub fn cache_arrays(&self) -> Vec<(String, Shape)> {
        let c = &self.config;
        let dims = [self.slots, c.kv_heads_per_device(self.mesh), self.cache_len, c.head_dim];
        Cache::arrays(self.target, self.kv, c.num_hidden_layers, dims)
    }

    /// Emits the program of one device.
    pub fn build(&self) -> Result<Module, HloError> {
        let graph = Graph::new(&self.name().replace('-', "_"));
        let g = &graph;
        let s32 = |name: &str, dims: &[i64]| g.parameter(name, Shape::new(DType::S32, dims));
        let (window, hidden) = (self.window, self.config.hidden_size);
        // Inputs of a chunk of one slot, and where its tokens stand.
        let chunk = |bucket: i64| {
            let (tokens, slot, start) = (s32("tokens", &[bucket]), s32("slot", &[]), s32("start", &[]));
            let positions = move || {
                let tokens = g.iota(Shape::new(DType::S32, [1, bucket]), 1) + start;
                Positions { tokens, access: CacheAccess::Slot { slot, start }, window }
            };
            (tokens.reshape(&[1, bucket]), start, positions)
        };
        match self.program {
            Program::Prefill { bucket, output } => {
                let (tokens, start, positions) = chunk(bucket);
                let last = s32("last", &[]);
                let head = Head::declare(g, output, 1);
                let run = self.forward(tokens, g, positions);
                let zero = g.scalar(DType::S32, 0.0);
                let row = run.hidden().reshape(&[bucket, hidden]).dynamic_slice(&[last, zero], &[1, hidden]);
                let out = head.apply(self, row, &run.weights, (start + last + 1.0).reshape(&[1]));
                run.finish(g, &[out])
            }
            Program::Decode { output } => {
                let (tokens, positions) = (s32("tokens", &[self.slots]), s32("positions", &[self.slots]));
                let head = Head::declare(g, output, self.slots);
                let run = self.forward(tokens.reshape(&[self.slots, 1]), g, || {
                    let tokens = positions.reshape(&[self.slots, 1]);
                    Positions { tokens, access: CacheAccess::EachRow, window }
                });
                let rows = run.hidden().reshape(&[self.slots, hidden]);
                let out = head.apply(self, rows, &run.weights, positions + 1.0);
                run.finish(g, &[out])
            }
            Program::Score { bucket, logits: with_logits } => {
                let (tokens, _, positions) = chunk(bucket);
                let targets = s32("targets", &[bucket]);
                let run = self.forward(tokens, g, positions);
                let logits = logits(self.context(), run.hidden().reshape(&[bucket, hidden]), &run.weights);
                let likelihood = sampling::log_probability(logits, targets, self.mesh);
                let mut outputs = vec![likelihood, sampling::greedy(logits, self.mesh)];
                if with_logits {
                    outputs.push(self.mesh.gather(logits, 1));
                }
                run.finish(g, &outputs)
            }
            Program::Trace { bucket } => {
                let (tokens, _, positions) = chunk(bucket);
                let run = self.forward(tokens, g, positions);
                let parts: Vec<Op<'_>> = run.hidden.iter().map(|x| x.convert(DType::F32)).collect();
                run.finish(g, &[Op::concatenate(&parts, 0)])
            }
        }
    }

    fn context(&self) -> Context<'_> {
        Context { target: self.target, config: &self.config, mesh: self.mesh, dtype: self.compute }
    }

    /// Embedding and all layers. Declares weights and caches, after the inputs that the caller declared; `positions` may
    /// compute from those.
    fn forward<'g>(&self, tokens: Op<'g>, graph: &'g Graph, positions: impl FnOnce() -> Positions<'g>) -> Forward<'g> {
        let weights = Weights::declare(graph, self.context(), &self.stored);
        let given: Vec<Op<'g>> =
            self.cache_arrays().into_iter().map(|(name, shape)| graph.parameter(&name, shape)).collect();
        let positions = positions();
        let x = embed(self.context(), tokens, &weights);
        let (hidden, updated) = match &weights.layers {
            Layers::Unrolled(layers) => self.unrolled(x, layers, &given, positions),
            Layers::Stacked(layers) => self.looped(x, **layers, &given, positions),
        };
        Forward { hidden, weights, given, updated }
    }

    /// All layers, each a call of one computation; what each takes, and what the last one gives; the updated caches.
    fn unrolled<'g>(
        &self,
        x: Op<'g>,
        layers: &[LayerWeights<'g>],
        caches: &[Op<'g>],
        positions: Positions<'g>,
    ) -> (Vec<Op<'g>>, Vec<Op<'g>>) {
        let (graph, window) = (x.graph(), self.window);
        let arrays = caches.len() / layers.len(); // of one layer
        let mut hidden = vec![x];
        let mut updated = Vec::new();
        let mut computations: Vec<(Vec<Shape>, Computation)> = Vec::new();
        for (layer, (layer_weights, cache)) in layers.iter().zip(caches.chunks_exact(arrays)).enumerate() {
            let _scope = graph.scope(&format!("layer.{layer}"));
            let (weight_names, weight_ops): (Vec<String>, Vec<Op<'g>>) = layer_weights.to_list().into_iter().unzip();
            let mut arguments = vec![hidden[layer]];
            arguments.extend(cache);
            arguments.extend(&weight_ops);
            arguments.extend(positions.to_list());
            let shapes: Vec<Shape> = arguments.iter().map(|op| op.shape()).collect();
            let cache_names =
                self.cache_arrays().into_iter().take(arrays).map(|(name, _)| name.replace("cache.0.", ""));
            let names = std::iter::once("x".to_owned()).chain(cache_names).chain(weight_names);
            let names: Vec<String> = names.chain(["positions", "slot", "start"].map(str::to_owned)).collect();
            let parameters: Vec<(&str, Shape)> = names.iter().map(String::as_str).zip(shapes.iter().cloned()).collect();
            // All layers are calls of one computation, unless a checkpoint stores some in other types.
            let known = computations.iter().position(|(s, _)| *s == shapes).unwrap_or_else(|| {
                let computation = graph.computation("decoder_layer", &parameters, |_, p| {
                    let (cache, rest) = p[1..].split_at(arrays);
                    let cache = Cache::take(&mut cache.iter().copied(), self.kv);
                    let (weights, positions) = rest.split_at(weight_ops.len());
                    let weights = LayerWeights::take(&mut weights.iter().copied(), layer_weights.forms());
                    let positions = Positions::from_list(positions, window);
                    let (x, cache) = decoder_layer(self.context(), p[0], &weights, cache, &positions);
                    std::iter::once(x).chain(cache.to_list()).collect()
                });
                computations.push((shapes, computation));
                computations.len() - 1
            });
            let out = graph.call(&computations[known].1, &arguments);
            hidden.push(out[0]);
            updated.extend(&out[1..]);
        }
        (hidden, updated)
    }

    /// As [`Self::unrolled`], in a loop over stacked weights and caches. Of the hidden states there is only the last, unless the
    /// program wants them all: then it is those of all layers, `[layers + 1, seq, hidden]`.
    fn looped<'g>(
        &self,
        x: Op<'g>,
        layers: LayerWeights<'g>,
        caches: &[Op<'g>],
        positions: Positions<'g>,
    ) -> (Vec<Op<'g>>, Vec<Op<'g>>) {
        let (graph, window, forms) = (x.graph(), self.window, layers.forms());
        let _scope = graph.scope("layers");
        let weights: Vec<Op<'g>> = layers.to_list().into_iter().map(|(_, op)| op).collect();
        let traced = matches!(self.program, Program::Trace { .. }).then(|| {
            let mut dims = x.shape().dims;
            dims[0] = self.config.num_hidden_layers + 1;
            let zero = graph.scalar(DType::S32, 0.0);
            graph.scalar(self.compute, 0.0).broadcast_to(&dims).dynamic_update_slice(x, &[zero; 3])
        });
        let parts = [&[x], caches, &weights, &positions.to_list()[..], traced.as_slice()];
        let mut ends = parts.map(<[Op<'g>]>::len);
        (1..ends.len()).for_each(|i| ends[i] += ends[i - 1]);
        let out = graph.repeat(self.config.num_hidden_layers, &parts.concat(), |layer, state| {
            let part = |i: usize| &state[ends[i - 1]..ends[i]];
            let cache = Cache::take(&mut part(1).iter().copied(), self.kv).at(layer);
            let weights = LayerWeights::take(&mut part(2).iter().copied(), forms).at(layer);
            let positions = Positions::from_list(part(3), window);
            let (x, cache) = decoder_layer(self.context(), state[0], &weights, cache, &positions);
            let zero = layer.graph().scalar(DType::S32, 0.0);
            let traced = part(4).iter().map(|traced| traced.dynamic_update_slice(x, &[layer + 1.0, zero, zero]));
            let kept = state[ends[1]..ends[3]].iter().copied();
            std::iter::once(x).chain(cache.to_list()).chain(kept).chain(traced).collect()
        });
        let hidden = if traced.is_some() { out[ends[3]] } else { out[0] };
        (vec![hidden], out[ends[0]..ends[1]].to_vec())
    }
}

/// The model up to the final norm.
struct Forward<'g> {
    /// What each layer takes, and what the last one gives: `[batch, seq, hidden]`; or as [`ProgramSpec::looped`] says.
    hidden: Vec<Op<'g>>,
    weights: Weights<'g>,
    /// The cache's arrays as parameters, and as updated.
    given: Vec<Op<'g>>,
    updated: Vec<Op<'g>>,
}

impl<'g> Forward<'g> {
    /// The last layer's output.
    fn hidden(&self) -> Op<'g> {
        *self.hidden.last().expect("the embedding is there")
    }

    /// Ends the program: its own outputs, then the caches in place of those given.
    fn finish(&self, graph: &'g Graph, outputs: &[Op<'g>]) -> Result<Module, HloError> {
        let mut all = outputs.to_vec();
        for (&given, &updated) in self.given.iter().zip(&self.updated) {
            graph.alias(given, all.len());
            all.push(updated);
        }
        graph.finish(&all)
    }
}

/// What is done with the last hidden states.
enum Head<'g> {
    Greedy,
    SampleTop(ParamOps<'g>),
    Sample(ParamOps<'g>),
    Logits,
}

impl<'g> Head<'g> {
    /// Declares the inputs that it needs.
    fn declare(graph: &'g Graph, output: Output, rows: i64) -> Self {
        match output {
            Output::Token(Sampler::Greedy) => Self::Greedy,
            Output::Token(Sampler::TopK) => Self::SampleTop(ParamOps::declare(graph, rows)),
            Output::Token(Sampler::Stochastic) => Self::Sample(ParamOps::declare(graph, rows)),
            Output::Logits => Self::Logits,
        }
    }

    /// From hidden states `[rows, hidden]`; the tokens will stand at `positions` `s32[rows]`.
    fn apply(self, spec: &ProgramSpec, rows: Op<'g>, weights: &Weights<'g>, positions: Op<'g>) -> Op<'g> {
        let logits = || logits(spec.context(), rows, weights);
        match self {
            Self::Greedy => {
                let [value, index] = largest_logit(spec.context(), rows, weights);
                sampling::largest(value, index, weights.lm_head.rows(), spec.mesh)
            }
            Self::SampleTop(params) => {
                let most = i64::from(MAX_TOP_K);
                let (logits, tokens) = top_logits(spec.context(), rows, weights, most);
                let candidates = Candidates { logits, tokens, vocab: weights.lm_head.rows() }.merged(most, spec.mesh);
                sampling::sample(candidates, &params, positions, Mesh::SINGLE)
            }
            Self::Sample(params) => sampling::sample(Candidates::all(logits()), &params, positions, spec.mesh),
            Self::Logits => spec.mesh.gather(logits(), 1),
        }
    }
}
