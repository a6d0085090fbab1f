//! The KV cache: what it holds, and how a step writes to it.

use super::{
    Target,
    layers::{CacheAccess, Positions},
};
use crate::hlo::{DType, Op, Shape};

/// One layer's keys and values, donated to the program and updated in place.
#[derive(Clone, Copy)]
pub struct Cache<'g> {
    pub(super) keys: Cached<'g>,
    pub(super) values: Cached<'g>,
}

/// Keys or values: `[slots, kv_heads, cache_len, head_dim]`.
#[derive(Clone, Copy)]
pub(super) struct Cached<'g> {
    pub elements: Op<'g>,
    /// In eight bits: what a position's elements are to be multiplied by, `f32[slots, kv_heads, cache_len, 1]`.
    pub scale: Option<Op<'g>>,
}

impl<'g> Cached<'g> {
    fn take(ops: &mut impl Iterator<Item = Op<'g>>, quantised: bool) -> Self {
        let elements = ops.next().expect("as many ops as to_list gave");
        Self { elements, scale: quantised.then(|| ops.next().expect("as many ops as to_list gave")) }
    }

    fn to_list(self) -> impl Iterator<Item = Op<'g>> {
        std::iter::once(self.elements).chain(self.scale)
    }

    /// With this step's keys or values `[batch, kv_heads, seq, head_dim]`, at their positions.
    pub fn updated(self, target: Target, new: Op<'g>, positions: &Positions<'g>) -> Self {
        let Some(scale) = self.scale else {
            return Self { elements: update(self.elements, target.cached(new), positions), scale: None };
        };
        let (steps, new_scale) = quantize(new);
        Self { elements: update(self.elements, steps, positions), scale: Some(update(scale, new_scale, positions)) }
    }
}

impl<'g> Cache<'g> {
    /// Names and shapes of a layer's arrays on one device, in the order of [`Self::to_list`]. `kv` is the type of activations, or
    /// S8.
    pub(super) fn arrays(target: Target, kv: DType, dims: [i64; 4]) -> Vec<(&'static str, Shape)> {
        let elements = Shape::new(target.cache_dtype(kv), dims);
        let [slots, kv_heads, cache_len, _] = dims;
        let scale = Shape::new(DType::F32, [slots, kv_heads, cache_len, 1]);
        if kv == DType::S8 {
            let names = ["keys", "keys_scale", "values", "values_scale"];
            names.into_iter().zip([elements.clone(), scale.clone(), elements, scale]).collect()
        } else {
            vec![("keys", elements.clone()), ("values", elements)]
        }
    }

    /// From the ops that [`Self::to_list`] gave.
    pub(super) fn take(ops: &mut impl Iterator<Item = Op<'g>>, kv: DType) -> Self {
        let quantised = kv == DType::S8;
        Self { keys: Cached::take(ops, quantised), values: Cached::take(ops, quantised) }
    }

    pub(super) fn to_list(self) -> Vec<Op<'g>> {
        self.keys.to_list().chain(self.values.to_list()).collect()
    }
}

/// Writes `new` into the cache at this step's positions.
fn update<'g>(cache: Op<'g>, new: Op<'g>, positions: &Positions<'g>) -> Op<'g> {
    let graph = cache.graph();
    let zero = graph.scalar(DType::S32, 0.0);
    match positions.access {
        CacheAccess::Slot { slot, start } => cache.dynamic_update_slice(new, &[slot, zero, start, zero]),
        CacheAccess::EachRow => (0..new.dim(0)).fold(cache, |cache, row| {
            let slot = graph.scalar(DType::S32, row as f64);
            let position = positions.tokens.slice(&[row, 0], &[row + 1, 1]).reshape(&[]);
            cache.dynamic_update_slice(new.slice_in_dim(0, row, row + 1), &[slot, zero, position, zero])
        }),
    }
}

/// Rounds each head of each token `[batch, kv_heads, seq, head_dim]` to 127 steps of its largest magnitude; returns steps and
/// their size `f32[batch, kv_heads, seq, 1]`.
fn quantize(x: Op<'_>) -> (Op<'_>, Op<'_>) {
    let x = x.convert(DType::F32);
    let mut dims = x.shape().dims;
    dims[3] = 1;
    let largest = x.abs().reduce_max(&[3]).reshape(&dims);
    let zero = x.graph().scalar(DType::F32, 0.0);
    let steps = x * largest.gt(zero).select(x.graph().scalar(DType::F32, 127.0) / largest, zero);
    ((steps + 0.5).floor().convert(DType::S8), largest * (1.0 / 127.0))
}
