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
    sampling::{self, AdjustOps, Candidates, MAX_TOP_K, ParamOps, Sampler, TOP_LOGPROBS},
};

/// What a step returns besides the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// The next token of each row, and what [`sampling::details`] tells of it if the sampler does: `s32[rows, width]`.
    Token(Sampler),
    /// The logits of each row's last token, `f32[rows, vocab]`.
    Logits,
    /// Nothing: there is more of the prompt to come.
    Nothing,
}

impl Output {
    /// Numbers for each row.
    pub fn width(self) -> i64 {
        if self == Self::Token(Sampler::Detailed) { 2 + 2 * TOP_LOGPROBS } else { 1 }
    }
}

/// How many ids may end a slot's text on the device.
pub const STOP_IDS: i64 = 8;

/// What scoring tells besides likelihoods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum More {
    Nothing,
    /// All logits.
    Logits,
    /// What [`sampling::top_logprobs`] gives.
    Top,
}

/// One of the model's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// Chunks of `batch` slots' prompts, padded to `bucket` tokens each.
    ///
    /// Inputs: tokens `s32[batch, bucket]`; of each chunk the slot, the position where it starts, and its length, `s32[batch]` each;
    /// then the sampler's. A chunk of no tokens leaves the cache as it is; there may be such ones where there are several chunks, or
    /// several data rows.
    Prefill { batch: i64, bucket: i64, output: Output },
    /// The next tokens of every slot, up to [`ProgramSpec::decode_steps`] of them in one dispatch; or one step's logits.
    ///
    /// Inputs: tokens `s32[slots]` and their positions `s32[slots]`. For tokens also: how many each slot may still have
    /// `s32[slots]`, of which 0 lets it rest; the ids that end it `s32[slots, STOP_IDS]`, padded with -1; how many steps to take
    /// `s32[]`; then the sampler's. Output: `s32[steps, slots, width]`, with -1 as the token where a slot rests; an id that ends it
    /// is its last.
    Decode { output: Output },
    /// A chunk of one slot's text, for its likelihood: as prefill, with the token that follows each one as a target.
    ///
    /// Inputs: those of one chunk, and targets `s32[1, bucket]`. Outputs: the targets' log-probabilities
    /// `f32[bucket]`, the most likely tokens `s32[bucket]` and, if asked for, all logits `f32[bucket, vocab]` or the few most likely
    /// tokens `s32[bucket, n]` and their log-probabilities `f32[bucket, n]`.
    Score { bucket: i64, more: More },
    /// Gives a slot what another one holds. Takes no weights. Inputs: from `s32[]`, to `s32[]`.
    Copy,
    /// A chunk of one slot's text, for looking inside: inputs are those of one chunk. Output: what each
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
            Output::Nothing => "nothing",
        };
        let program = match self.program {
            Program::Prefill { batch: 1, bucket, output: o } => format!("prefill-{}-t{bucket}", output(o)),
            Program::Prefill { batch, bucket, output: o } => format!("prefill-{}-{batch}xt{bucket}", output(o)),
            Program::Decode { output: o } => format!("decode-{}", output(o)),
            Program::Score { bucket, more: More::Nothing } => format!("score-t{bucket}"),
            Program::Score { bucket, more: More::Logits } => format!("score-logits-t{bucket}"),
            Program::Score { bucket, more: More::Top } => format!("score-top-t{bucket}"),
            Program::Copy => "copy".into(),
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

    /// The most tokens of each slot that one dispatch decodes.
    ///
    /// On CPU a dispatch costs little beside a step, and in a loop XLA:CPU would convert the whole embedding table to f32 before it
    /// looks up a row. XLA:TPU copies four-bit weights before a loop, all of them (3.8 GiB for the 7B).
    pub fn decode_steps(&self) -> i64 {
        if self.target.is_cpu() || self.stored.matrices == DType::S4 { 1 } else { 8 }
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
        // Inputs of chunks, and where their tokens stand.
        let chunks = |batch: i64, bucket: i64| {
            let (tokens, slots) = (s32("tokens", &[batch, bucket]), s32("slots", &[batch]));
            let (starts, lengths) = (s32("starts", &[batch]), s32("lengths", &[batch]));
            let may_be_empty = batch > 1 || self.mesh.data > 1;
            let positions = move || {
                let tokens = g.iota(Shape::new(DType::S32, [batch, bucket]), 1) + starts.reshape(&[batch, 1]);
                Positions { tokens, lengths, access: CacheAccess::Slots { slots, starts, may_be_empty }, window }
            };
            (tokens, starts, lengths, positions)
        };
        match self.program {
            Program::Prefill { batch, bucket, output } => {
                let (tokens, starts, lengths, positions) = chunks(batch, bucket);
                let head = self.declare_head(g, output, batch);
                let run = self.forward(tokens, g, positions);
                let first = g.iota(Shape::new(DType::S32, [batch]), 0) * bucket as f64;
                let rows = run.hidden().reshape(&[batch * bucket, hidden]).take_rows(first + lengths - 1.0); // [batch, hidden]
                let out = match (output, head) {
                    (Output::Nothing, _) => vec![],
                    (Output::Logits, _) => vec![self.all_logits(rows, lengths, &run.weights)],
                    (_, head) => vec![head.choose(self, rows, lengths, &run.weights, starts + lengths).packed()],
                };
                run.finish(g, &out)
            }
            Program::Decode { output: Output::Logits } => {
                let (tokens, positions) = (s32("tokens", &[self.slots]), s32("positions", &[self.slots]));
                let lengths = g.full(&Shape::new(DType::S32, [self.slots]), 1.0);
                let run = self.forward(tokens.reshape(&[self.slots, 1]), g, || self.each_row(positions, lengths));
                let rows = run.hidden().reshape(&[self.slots, hidden]);
                run.finish(g, &[self.all_logits(rows, lengths, &run.weights)])
            }
            Program::Decode { output } => self.decode(g, output),
            Program::Score { bucket, more } => {
                let (tokens, _, lengths, positions) = chunks(1, bucket);
                let targets = s32("targets", &[1, bucket]);
                let run = self.forward(tokens, g, positions);
                let rows = run.hidden().reshape(&[bucket, hidden]);
                let logits = logits(self.context(), rows, lengths, &run.weights);
                let likelihood = sampling::log_probability(logits, targets.reshape(&[bucket]), self.mesh);
                let mut outputs = vec![likelihood, sampling::greedy(logits, self.mesh)];
                match more {
                    More::Nothing => {}
                    More::Logits => outputs.push(self.mesh.gather(logits, 1)),
                    More::Top => outputs.extend(sampling::top_logprobs(logits, self.mesh)),
                }
                run.finish(g, &outputs)
            }
            Program::Copy => {
                let (from, to) = (s32("from", &[]), s32("to", &[]));
                let given = self.declare_caches(g);
                let kv_heads = self.config.kv_heads_per_device(self.mesh);
                for (i, &array) in given.iter().enumerate() {
                    g.alias(array, i);
                }
                g.finish(&given.iter().map(|&array| Cache::copied(array, kv_heads, from, to)).collect::<Vec<_>>())
            }
            Program::Trace { bucket } => {
                let (tokens, _, _, positions) = chunks(1, bucket);
                let run = self.forward(tokens, g, positions);
                let parts: Vec<Op<'_>> = run.hidden.iter().map(|x| x.convert(DType::F32)).collect();
                run.finish(g, &[Op::concatenate(&parts, 0)])
            }
        }
    }

    /// Steps of decoding until as many were taken as were asked for, or all slots rest.
    fn decode(&self, g: &Graph, output: Output) -> Result<Module, HloError> {
        let s32 = |name: &str, dims: &[i64]| g.parameter(name, Shape::new(DType::S32, dims));
        let slots = self.slots;
        let (tokens, positions, left) = (s32("tokens", &[slots]), s32("positions", &[slots]), s32("left", &[slots]));
        let (stop_ids, steps) = (s32("stop_ids", &[slots, STOP_IDS]), s32("steps", &[]));
        let head = self.declare_head(g, output, slots);
        let weights = Weights::declare(g, self.context(), &self.stored);
        let caches = self.declare_caches(g);

        let most = self.decode_steps();
        let none = g.full(&Shape::new(DType::S32, [most, slots, output.width()]), -1.0);
        let own = [g.scalar(DType::S32, 0.0), tokens, positions, left, none];
        let changing = [&own[..], &caches, &head.to_list()].concat();
        let kept = [&[steps, stop_ids], &weights.to_list()[..]].concat();
        let state = [&changing[..], &kept].concat();
        let out = if most == 1 {
            self.decode_step(&state, &head, &weights)
        } else {
            g.repeat_while(
                &state,
                |s| {
                    let (step, left, steps) = (s[0], s[3], s[changing.len()]);
                    let zero = step.graph().scalar(DType::S32, 0.0);
                    step.lt(steps).and(left.reduce_max(&[0]).gt(zero))
                },
                |s| self.decode_step(s, &head, &weights),
            )
        };
        let run =
            Forward { hidden: vec![], weights, given: caches, updated: out[5..5 + self.cache_arrays().len()].to_vec() };
        run.finish(g, &[out[4]])
    }

    /// One step of decoding, on the state that [`Self::decode`] makes; `head` and `weights` tell which of it is theirs.
    fn decode_step<'g>(&self, state: &[Op<'g>], head: &Head<'_>, weights: &Weights<'_>) -> Vec<Op<'g>> {
        let &[step, tokens, positions, left, chosen, ref rest @ ..] = state else { unreachable!("decode made it") };
        let (caches, rest) = rest.split_at(self.cache_arrays().len());
        let (head_ops, kept) = rest.split_at(head.to_list().len());
        let (stop_ids, weight_ops) = (kept[1], &kept[2..]);
        let (head, weights) = (head.within(head_ops), weights.within(weight_ops));
        let (g, slots) = (step.graph(), self.slots);

        let zero = g.scalar(DType::S32, 0.0);
        let goes_on = left.gt(zero);
        let lengths = goes_on.convert(DType::S32);
        let where_they_stand = self.each_row(positions, lengths);
        let (hidden, caches) = self.layers(tokens.reshape(&[slots, 1]), &weights, caches, where_they_stand);
        let rows = hidden.last().expect("the last layer's").reshape(&[slots, self.config.hidden_size]);
        let chosen_now = head.choose(self, rows, lengths, &weights, positions + 1.0);
        let next = chosen_now.tokens;

        let shown = Chosen { tokens: goes_on.select(next, g.scalar(DType::S32, -1.0)), ..chosen_now }.packed();
        let is_end = next.reshape(&[slots, 1]).eq(stop_ids).convert(DType::S32).reduce_max(&[1]).gt(zero);
        let changed = [
            step + 1.0,
            goes_on.select(next, tokens),
            positions + lengths,
            goes_on.and(is_end.not()).select(left - 1.0, zero),
            chosen.dynamic_update_slice(shown.reshape(&[1, slots, shown.dim(1)]), &[step, zero, zero]),
        ];
        [&changed[..], &caches, &head.after(next, self.mesh).to_list(), kept].concat()
    }

    fn declare_head<'g>(&self, graph: &'g Graph, output: Output, rows: i64) -> Head<'g> {
        let params = || ParamOps::declare(graph, rows);
        let vocab = self.config.vocab_size / self.mesh.model as i64;
        let adjust = || AdjustOps::declare(graph, rows, self.cache_len, vocab, self.mesh);
        match output {
            Output::Logits | Output::Nothing | Output::Token(Sampler::Greedy) => Head::Greedy,
            Output::Token(Sampler::TopK) => Head::SampleTop(params()),
            Output::Token(Sampler::Stochastic) => Head::Sample(params()),
            Output::Token(Sampler::Adjusted) => Head::Adjusted { params: params(), adjust: adjust(), detailed: false },
            Output::Token(Sampler::Detailed) => Head::Adjusted { params: params(), adjust: adjust(), detailed: true },
        }
    }

    /// `f32[rows, vocab]`, whole on every device.
    fn all_logits<'g>(&self, rows: Op<'g>, lengths: Op<'g>, weights: &Weights<'g>) -> Op<'g> {
        self.mesh.gather(logits(self.context(), rows, lengths, weights), 1)
    }

    /// Row i of a step is slot i, with one token at its position, or none.
    fn each_row<'g>(&self, positions: Op<'g>, lengths: Op<'g>) -> Positions<'g> {
        let tokens = positions.reshape(&[self.slots, 1]);
        Positions { tokens, lengths, access: CacheAccess::EachRow, window: self.window }
    }

    fn context(&self) -> Context<'_> {
        Context { target: self.target, config: &self.config, mesh: self.mesh, dtype: self.compute }
    }

    /// Embedding and all layers. Declares weights and caches, after the inputs that the caller declared; `positions` may
    /// compute from those.
    fn forward<'g>(&self, tokens: Op<'g>, graph: &'g Graph, positions: impl FnOnce() -> Positions<'g>) -> Forward<'g> {
        let weights = Weights::declare(graph, self.context(), &self.stored);
        let given = self.declare_caches(graph);
        let (hidden, updated) = self.layers(tokens, &weights, &given, positions());
        Forward { hidden, weights, given, updated }
    }

    fn declare_caches<'g>(&self, graph: &'g Graph) -> Vec<Op<'g>> {
        self.cache_arrays().into_iter().map(|(name, shape)| graph.parameter(&name, shape)).collect()
    }

    /// Embedding and all layers: what [`Self::unrolled`] or [`Self::looped`] give.
    fn layers<'g>(
        &self,
        tokens: Op<'g>,
        weights: &Weights<'g>,
        caches: &[Op<'g>],
        positions: Positions<'g>,
    ) -> (Vec<Op<'g>>, Vec<Op<'g>>) {
        let x = embed(self.context(), tokens, weights);
        match &weights.layers {
            Layers::Unrolled(layers) => self.unrolled(x, layers, caches, positions),
            Layers::Stacked(layers) => self.looped(x, **layers, caches, positions),
        }
    }

    /// All layers, each a call of one computation; what each takes, and what the last one gives; the updated caches.
    fn unrolled<'g>(
        &self,
        x: Op<'g>,
        layers: &[LayerWeights<'g>],
        caches: &[Op<'g>],
        positions: Positions<'g>,
    ) -> (Vec<Op<'g>>, Vec<Op<'g>>) {
        let graph = x.graph();
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
            let names: Vec<String> =
                names.chain(["positions", "lengths", "slots", "starts"].map(str::to_owned)).collect();
            let parameters: Vec<(&str, Shape)> = names.iter().map(String::as_str).zip(shapes.iter().cloned()).collect();
            // All layers are calls of one computation, unless a checkpoint stores some in other types.
            let known = computations.iter().position(|(s, _)| *s == shapes).unwrap_or_else(|| {
                let computation = graph.computation("decoder_layer", &parameters, |_, p| {
                    let (cache, rest) = p[1..].split_at(arrays);
                    let cache = Cache::take(&mut cache.iter().copied(), self.kv);
                    let (weights, own_positions) = rest.split_at(weight_ops.len());
                    let weights = LayerWeights::take(&mut weights.iter().copied(), layer_weights.forms());
                    let positions = positions.within(own_positions);
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
        let (graph, forms) = (x.graph(), layers.forms());
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
            let positions = positions.within(part(3));
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

/// How tokens are chosen from the last hidden states.
enum Head<'g> {
    Greedy,
    SampleTop(ParamOps<'g>),
    Sample(ParamOps<'g>),
    Adjusted { params: ParamOps<'g>, adjust: AdjustOps<'g>, detailed: bool },
}

/// Tokens `s32[rows]`, and what is told of them, `s32[rows, n]`.
#[derive(Clone, Copy)]
struct Chosen<'g> {
    tokens: Op<'g>,
    details: Option<Op<'g>>,
}

impl<'g> Chosen<'g> {
    /// All in one array, `s32[rows, 1 + n]`.
    fn packed(self) -> Op<'g> {
        let column = self.tokens.reshape(&[self.tokens.dim(0), 1]);
        self.details.map_or(column, |details| Op::concatenate(&[column, details], 1))
    }
}

impl<'g> Head<'g> {
    fn to_list(&self) -> Vec<Op<'g>> {
        match self {
            Self::Greedy => vec![],
            Self::SampleTop(params) | Self::Sample(params) => params.to_list().to_vec(),
            Self::Adjusted { params, adjust, .. } => [&params.to_list()[..], &adjust.to_list()].concat(),
        }
    }

    /// The same, with the ops of another computation that [`Self::to_list`] gave to it.
    fn within<'b>(&self, ops: &[Op<'b>]) -> Head<'b> {
        let params = || ParamOps::from_list(ops);
        match *self {
            Self::Greedy => Head::Greedy,
            Self::SampleTop(_) => Head::SampleTop(params()),
            Self::Sample(_) => Head::Sample(params()),
            Self::Adjusted { params: own, detailed, .. } => {
                let adjust = AdjustOps::from_list(&ops[own.to_list().len()..]);
                Head::Adjusted { params: params(), adjust, detailed }
            }
        }
    }

    /// After these tokens `s32[rows]` were chosen.
    fn after(self, tokens: Op<'g>, mesh: Mesh) -> Self {
        match self {
            Self::Adjusted { params, adjust, detailed } => {
                Self::Adjusted { params, adjust: adjust.after(tokens, mesh), detailed }
            }
            other => other,
        }
    }

    /// From hidden states `[rows, hidden]`, of which those matter that have a length (`s32[rows]`); the tokens will stand at
    /// `positions` `s32[rows]`.
    fn choose(
        &self,
        spec: &ProgramSpec,
        rows: Op<'g>,
        lengths: Op<'g>,
        weights: &Weights<'g>,
        positions: Op<'g>,
    ) -> Chosen<'g> {
        let (cx, mesh) = (spec.context(), spec.mesh);
        let tokens = match self {
            Self::Greedy => {
                let [value, index] = largest_logit(cx, rows, lengths, weights);
                sampling::largest(value, index, weights.lm_head.rows(), mesh)
            }
            Self::SampleTop(params) => {
                let most = i64::from(MAX_TOP_K);
                let (logits, tokens) = top_logits(cx, rows, lengths, weights, most);
                let candidates = Candidates { logits, tokens, vocab: weights.lm_head.rows() }.merged(most, mesh);
                sampling::sample(candidates, params, positions, Mesh::SINGLE)
            }
            Self::Sample(params) => {
                sampling::sample(Candidates::all(logits(cx, rows, lengths, weights)), params, positions, mesh)
            }
            Self::Adjusted { params, adjust, detailed } => {
                let logits = logits(cx, rows, lengths, weights);
                let tokens = sampling::sample(Candidates::all(adjust.apply(logits)), params, positions, mesh);
                let details = detailed.then(|| sampling::details(logits, tokens, mesh));
                return Chosen { tokens, details };
            }
        };
        Chosen { tokens, details: None }
    }
}
