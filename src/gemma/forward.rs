//! The model from token ids to the last hidden states: the embedding, then all layers, unrolled or
//! in a loop.

use super::{
    Context, ModelSpec,
    attention::Tokens,
    cache::Cache,
    config::LayerKind,
    layers::{decoder_layer, embed},
    weights::{LayerWeights, Layers, Weights},
};
use crate::hlo::{Computation, DType, Op, Shape, Tree};

/// What the layers give.
pub(super) struct Forward<'g> {
    /// The last layer's output, before the final norm: `[T, hidden]`.
    pub hidden: Op<'g>,
    /// What each layer takes and what the last one gives, if asked for: `f32[layers + 1, T,
    /// hidden]`.
    pub trace: Option<Op<'g>>,
    pub caches: Vec<Cache<'g>>,
}

/// Embedding and all layers of tokens `s32[T]`.
pub(super) fn forward<'g>(
    cx: Context<'_, 'g>,
    ids: Op<'g>,
    weights: &Weights<'g>,
    caches: Vec<Cache<'g>>,
    tokens: &Tokens<'g>,
    traced: bool,
) -> Forward<'g> {
    let x = embed(cx, ids, weights);
    match &weights.layers {
        Layers::Unrolled(layers) => unrolled(cx, x, layers, caches, tokens, traced),
        Layers::Stacked(layers) => looped(cx, x, **layers, caches[0], tokens, traced),
    }
}

/// What one layer takes.
type Argument<'g> = ((Op<'g>, Op<'g>), LayerWeights<'g>, Cache<'g>, Tokens<'g>); // (count, x), ..

fn run_layer<'b>(model: &ModelSpec, ((count, x), weights, cache, tokens): Argument<'b>) -> (Op<'b>, Cache<'b>) {
    decoder_layer(Context { model, count }, x, &weights, cache, &tokens)
}

/// Each layer is a call. Layers of one kind whose weights have the same types are calls of one
/// computation.
fn unrolled<'g>(
    cx: Context<'_, 'g>,
    x: Op<'g>,
    layers: &[LayerWeights<'g>],
    caches: Vec<Cache<'g>>,
    tokens: &Tokens<'g>,
    traced: bool,
) -> Forward<'g> {
    let (graph, model) = (x.graph(), cx.model);
    let mut hidden = vec![x];
    let mut updated = Vec::new();
    let mut computations: Vec<((LayerKind, Vec<Shape>), Computation)> = Vec::new();
    for (layer, (weights, cache)) in layers.iter().zip(caches).enumerate() {
        let _scope = graph.scope(&format!("layer.{layer}"));
        let argument: Argument<'g> = ((cx.count, hidden[layer]), *weights, cache, *tokens);
        let leaves = argument.flatten();
        let key = (model.config.layer_kind(layer as i64), leaves.iter().map(|op| op.shape()).collect());
        let known = computations.iter().position(|(other, _)| *other == key).unwrap_or_else(|| {
            computations.push((key, layer_computation(model, &argument)));
            computations.len() - 1
        });
        let mut out = graph.call(&computations[known].1, &leaves).into_iter();
        hidden.push(out.next().expect("a layer gives hidden states"));
        updated.push(cache.rebuild(&mut out));
    }
    let last = *hidden.last().expect("the embedding is there");
    let trace = traced.then(|| {
        let dims = last.shape().dims;
        let parts: Vec<Op<'g>> = hidden.iter().map(|x| x.convert(DType::F32).reshape(&[1, dims[0], dims[1]])).collect();
        Op::concatenate(&parts, 0)
    });
    Forward { hidden: last, trace, caches: updated }
}

fn layer_computation(model: &ModelSpec, argument: &Argument<'_>) -> Computation {
    let mut names = Vec::new();
    let (activations, weights, cache, tokens) = argument;
    activations.names("x", &mut names);
    weights.names("weights", &mut names);
    cache.names("cache", &mut names);
    tokens.names("tokens", &mut names);
    let leaves = argument.flatten();
    let parameters: Vec<(&str, Shape)> =
        names.iter().map(String::as_str).zip(leaves.iter().map(|op| op.shape())).collect();
    leaves[0].graph().computation("decoder_layer", &parameters, |_, p| {
        run_layer(model, argument.rebuild(&mut p.iter().copied())).flatten()
    })
}

/// All layers as iterations of one loop over stacked weights and caches.
fn looped<'g>(
    cx: Context<'_, 'g>,
    x: Op<'g>,
    layers: LayerWeights<'g>,
    cache: Cache<'g>,
    tokens: &Tokens<'g>,
    traced: bool,
) -> Forward<'g> {
    let (graph, model) = (x.graph(), cx.model);
    let _scope = graph.scope("layers");
    let layer_count = model.config.num_hidden_layers;
    let [rows, hidden] = [x.dim(0), x.dim(1)];
    let trace = traced.then(|| {
        let all = graph.full(&Shape::new(DType::F32, [layer_count + 1, rows, hidden]), 0.0);
        put_trace(all, x, graph.s32(0))
    });
    let state = ((x, trace), cache, (cx.count, layers, *tokens));
    let ((hidden, trace), cache, _) =
        graph.repeat(layer_count, &state, |layer, ((x, trace), cache, (count, layers, tokens))| {
            let argument = ((count, x), layers.at(layer), cache.at(layer), tokens);
            let (x, cache) = run_layer(model, argument);
            let trace = trace.map(|all| put_trace(all, x, layer + 1));
            ((x, trace), cache.of_all_layers(), (count, layers, tokens))
        });
    Forward { hidden, trace, caches: vec![cache] }
}

/// Puts hidden states `[T, hidden]` at `index` of `f32[layers + 1, T, hidden]`.
fn put_trace<'b>(all: Op<'b>, x: Op<'b>, index: Op<'b>) -> Op<'b> {
    all.dynamic_update_row(x.convert(DType::F32).reshape(&[1, x.dim(0), x.dim(1)]), index)
}
