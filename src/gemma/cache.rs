//! The KV cache: what it holds, and how a step writes to it.

use super::{
    Target,
    layers::{CacheAccess, Positions},
};
use crate::hlo::{DType, Op, Shape};

/// Keys and values, donated to the program and updated in place.
#[derive(Clone, Copy)]
pub struct Cache<'g> {
    pub(super) keys: Cached<'g>,
    pub(super) values: Cached<'g>,
}

/// One layer's keys or values, or those of all layers.
///
/// On CPU each layer has arrays of its own, `[slots, kv_heads, cache_len, head_dim]`: what a head reads is contiguous. Elsewhere
/// one array holds all layers, `[layers, slots, cache_len, kv_heads, head_dim]`: the order in which XLA:TPU updates it in place
/// in the loop over the layers; any other costs a copy of the whole cache.
#[derive(Clone, Copy)]
pub(super) struct Cached<'g> {
    pub elements: Op<'g>,
    /// In eight bits: what a position's elements are to be multiplied by, `f32[slots, kv_heads, cache_len, 1]`, or
    /// `f32[layers, cache_len, slots * kv_heads]` for all layers: a TPU's memory is padded to 128 of the last dimension.
    pub scale: Option<Op<'g>>,
    /// Of all layers' arrays, the one that is meant: `s32[]`.
    pub layer: Option<Op<'g>>,
}

impl<'g> Cached<'g> {
    fn take(ops: &mut impl Iterator<Item = Op<'g>>, quantised: bool) -> Self {
        let elements = next_of(ops);
        let scale = quantised.then(|| next_of(ops));
        Self { elements, scale, layer: None }
    }

    fn to_list(self) -> impl Iterator<Item = Op<'g>> {
        std::iter::once(self.elements).chain(self.scale)
    }

    /// With this step's keys or values `[batch, seq, kv_heads, head_dim]`, at their positions.
    pub fn updated(self, target: Target, new: Op<'g>, positions: &Positions<'g>) -> Self {
        let Some(scale) = self.scale else {
            return Self { elements: self.elements().write(target.cached(new), positions), ..self };
        };
        let (steps, new_scale) = quantize(new);
        let elements = self.elements().write(steps, positions);
        Self { elements, scale: Some(self.scale_array(scale).write(new_scale, positions)), ..self }
    }

    /// The elements that this step attends to, `[batch, kv_heads, window, head_dim]`, or of all layers' arrays
    /// `[batch, window, kv_heads, head_dim]`; and which dimension of them is the window.
    pub fn read(self, positions: &Positions<'g>) -> (Op<'g>, i64) {
        let part = self.elements().read(positions);
        if self.layer.is_none() { (part, 2) } else { (part.reshape(&part.shape().dims[1..]), 1) }
    }

    /// Their scales, if any: `[batch, kv_heads, 1, 1, window]`.
    pub fn read_scale(self, positions: &Positions<'g>) -> Option<Op<'g>> {
        let array = self.scale_array(self.scale?);
        let (part, heads) = (array.read(positions), array.kv_heads);
        let batch = part.shape().elements() / heads / positions.window;
        let heads_first = |part: Op<'g>| part.reshape(&[positions.window, batch, heads]).transpose(&[1, 2, 0]);
        let part = if self.layer.is_none() { part } else { heads_first(part) };
        Some(part.reshape(&[batch, heads, 1, 1, positions.window]))
    }

    fn elements(self) -> Array<'g> {
        let order = self.layer.map_or(Order::Layer, Order::AllLayers);
        let kv_heads = self.elements.dim(if self.layer.is_none() { 1 } else { 3 });
        Array { op: self.elements, kv_heads, order }
    }

    fn scale_array(self, scale: Op<'g>) -> Array<'g> {
        Array { op: scale, order: self.layer.map_or(Order::Layer, Order::ScalesOfAllLayers), ..self.elements() }
    }
}

/// An array of the cache, and what its dimensions are.
#[derive(Clone, Copy)]
struct Array<'g> {
    op: Op<'g>,
    kv_heads: i64,
    order: Order<'g>,
}

#[derive(Clone, Copy)]
enum Order<'g> {
    /// `[slots, kv_heads, cache_len, ...]`
    Layer,
    /// `[layers, slots, cache_len, kv_heads, head_dim]`, and the layer.
    AllLayers(Op<'g>),
    /// `[layers, cache_len, slots * kv_heads]`, and the layer.
    ScalesOfAllLayers(Op<'g>),
}

impl<'g> Array<'g> {
    /// Where a slot's position begins.
    fn starts(self, slot: Op<'g>, position: Op<'g>) -> Vec<Op<'g>> {
        let zero = slot.graph().scalar(DType::S32, 0.0);
        match self.order {
            Order::Layer => vec![slot, zero, position, zero],
            Order::AllLayers(layer) => vec![layer, slot, position, zero, zero],
            Order::ScalesOfAllLayers(layer) => vec![layer, position, slot * self.kv_heads as f64],
        }
    }

    /// With `new` `[batch, seq, kv_heads, ...]` at this step's positions.
    fn write(self, new: Op<'g>, positions: &Positions<'g>) -> Op<'g> {
        let each_row = |put: &dyn Fn(Self, i64, Op<'g>) -> Op<'g>| {
            let with_row = |array: Self, row| Self { op: put(array, row, new.slice_in_dim(0, row, row + 1)), ..array };
            (0..new.dim(0)).fold(self, with_row).op
        };
        match positions.access {
            CacheAccess::Slots { slots, starts, may_be_empty } => each_row(&|array, row, new| {
                let (slot, start) = (slots.scalar_at(row), starts.scalar_at(row));
                if !may_be_empty {
                    return array.put(new, slot, start);
                }
                let new = array.ordered(new);
                let starts = array.starts(slot, start);
                let old = array.op.dynamic_slice(&starts, &new.shape().dims);
                let has_tokens = positions.lengths.scalar_at(row).gt(start.graph().scalar(DType::S32, 0.0));
                array.op.dynamic_update_slice(has_tokens.select(new, old), &starts)
            }),
            CacheAccess::EachRow if new.dim(0) <= MAX_UNROLLED => each_row(&|array, row, new| {
                let slot = array.op.graph().scalar(DType::S32, row as f64);
                array.put(new, slot, positions.tokens.reshape(&[positions.tokens.dim(0)]).scalar_at(row))
            }),
            CacheAccess::EachRow => {
                let layer = match self.order {
                    Order::AllLayers(layer) | Order::ScalesOfAllLayers(layer) => Some(layer),
                    Order::Layer => None,
                };
                let state: Vec<Op<'g>> = [self.op, new, positions.tokens].into_iter().chain(layer).collect();
                self.op.graph().repeat(new.dim(0), &state, |row, s| {
                    let (one, position) = (s[1].row(row), s[2].row(row).reshape(&[]));
                    let order = match self.order {
                        Order::Layer => Order::Layer,
                        Order::AllLayers(_) => Order::AllLayers(s[3]),
                        Order::ScalesOfAllLayers(_) => Order::ScalesOfAllLayers(s[3]),
                    };
                    let array = Array { op: s[0], kv_heads: self.kv_heads, order }.put(one, row, position);
                    std::iter::once(array).chain(s[1..].iter().copied()).collect()
                })[0]
            }
        }
    }

    /// With `new` `[1, seq, kv_heads, ...]` in this slot, from this position on.
    fn put(self, new: Op<'g>, slot: Op<'g>, position: Op<'g>) -> Op<'g> {
        self.op.dynamic_update_slice(self.ordered(new), &self.starts(slot, position))
    }

    /// `[1, seq, kv_heads, ...]` in the order of the array's dimensions.
    fn ordered(self, new: Op<'g>) -> Op<'g> {
        match self.order {
            Order::Layer => new.transpose(&[0, 2, 1, 3]),
            Order::AllLayers(_) => new.reshape(&[&[1], &new.shape().dims[..]].concat()),
            Order::ScalesOfAllLayers(_) => new.reshape(&[1, new.dim(1), self.kv_heads]),
        }
    }

    /// What this step attends to: of all slots, or of the only one that it is about.
    fn read(self, positions: &Positions<'g>) -> Op<'g> {
        let zero = self.op.graph().scalar(DType::S32, 0.0);
        let mut sizes = self.op.shape().dims;
        let (slots, window) = match self.order {
            Order::Layer => (0, 2),
            Order::AllLayers(_) => (1, 2),
            Order::ScalesOfAllLayers(_) => (2, 1),
        };
        sizes[window] = positions.window;
        if !matches!(self.order, Order::Layer) {
            sizes[0] = 1;
        }
        match positions.access {
            CacheAccess::EachRow if matches!(self.order, Order::Layer) => self.op.slice_in_dim(2, 0, positions.window),
            CacheAccess::EachRow => self.op.dynamic_slice(&self.starts(zero, zero), &sizes),
            CacheAccess::Slots { slots: slot, .. } => {
                sizes[slots] = if let Order::ScalesOfAllLayers(_) = self.order { self.kv_heads } else { 1 };
                self.op.dynamic_slice(&self.starts(slot.reshape(&[]), zero), &sizes)
            }
        }
    }
}

/// Above so many slots a step's tokens are put into the cache by a loop: as many updates would take minutes to compile.
const MAX_UNROLLED: i64 = 16;

impl<'g> Cache<'g> {
    /// An array of [`Self::arrays`] with what one slot holds given to another.
    pub(super) fn copied(array: Op<'g>, kv_heads: i64, from: Op<'g>, to: Op<'g>) -> Op<'g> {
        let zero = array.graph().scalar(DType::S32, 0.0);
        let mut sizes = array.shape().dims;
        // As `Order` has them: a layer's arrays, those of all layers, and scales of all layers, each slot with its heads.
        let (dim, one) = [(2, kv_heads), (0, 1), (1, 1)][sizes.len() - 3];
        sizes[dim] = one;
        let starts = |slot: Op<'g>| -> Vec<Op<'g>> {
            (0..sizes.len()).map(|i| if i == dim { slot * one as f64 } else { zero }).collect()
        };
        array.dynamic_update_slice(array.dynamic_slice(&starts(from), &sizes), &starts(to))
    }

    /// Names and shapes of a device's arrays, those of a layer in the order of [`Self::to_list`]. `kv` is the type of activations,
    /// or S8; `dims` are slots, key/value heads, positions and `head_dim`.
    pub(super) fn arrays(target: Target, kv: DType, layers: i64, dims: [i64; 4]) -> Vec<(String, Shape)> {
        let [slots, kv_heads, cache_len, head_dim] = dims;
        let (elements, scale): (Vec<i64>, Vec<i64>) = if target.stacks_layers() {
            (vec![layers, slots, cache_len, kv_heads, head_dim], vec![layers, cache_len, slots * kv_heads])
        } else {
            (dims.to_vec(), vec![slots, kv_heads, cache_len, 1])
        };
        let elements = Shape::new(target.cache_dtype(kv), elements);
        let scale = (kv == DType::S8).then(|| Shape::new(DType::F32, scale));
        let of_layer = |prefix: String| {
            ["keys", "values"].map(|name| {
                let scale = scale.clone().map(|scale| (format!("{prefix}{name}_scale"), scale));
                std::iter::once((format!("{prefix}{name}"), elements.clone())).chain(scale)
            })
        };
        let prefixes: Vec<String> = if target.stacks_layers() {
            vec!["cache.".into()]
        } else {
            (0..layers).map(|layer| format!("cache.{layer}.")).collect()
        };
        prefixes.into_iter().flat_map(of_layer).flatten().collect()
    }

    /// From the ops that [`Self::to_list`] gave.
    pub(super) fn take(ops: &mut impl Iterator<Item = Op<'g>>, kv: DType) -> Self {
        let quantised = kv == DType::S8;
        Self { keys: Cached::take(ops, quantised), values: Cached::take(ops, quantised) }
    }

    /// The same, with the ops of another computation that [`Self::to_list`] gave to it, and the layer that is meant.
    pub(super) fn within<'b>(&self, ops: &[Op<'b>], layer: Option<Op<'b>>) -> Cache<'b> {
        let mut ops = ops.iter().copied();
        let mut take = |cached: Cached<'g>| Cached { layer, ..Cached::take(&mut ops, cached.scale.is_some()) };
        Cache { keys: take(self.keys), values: take(self.values) }
    }

    /// Of all layers' arrays, this layer's part.
    pub(super) fn at(self, layer: Op<'g>) -> Self {
        let at = |cached: Cached<'g>| Cached { layer: Some(layer), ..cached };
        Self { keys: at(self.keys), values: at(self.values) }
    }

    /// With other ops in the place of its own, which `f` makes of them all.
    pub(super) fn map_all(self, f: impl FnOnce(&[Op<'g>]) -> Vec<Op<'g>>) -> Self {
        let mut new = f(&self.to_list()).into_iter();
        let mut map = |cached: Cached<'g>| {
            let mut next = || next_of(&mut new);
            Cached { elements: next(), scale: cached.scale.map(|_| next()), layer: cached.layer }
        };
        Self { keys: map(self.keys), values: map(self.values) }
    }

    pub(super) fn to_list(self) -> Vec<Op<'g>> {
        self.keys.to_list().chain(self.values.to_list()).collect()
    }
}

fn next_of<'g>(ops: &mut impl Iterator<Item = Op<'g>>) -> Op<'g> {
    ops.next().expect("as many ops as to_list gave")
}

/// Rounds each head of each token `[batch, seq, kv_heads, head_dim]` to 127 steps of its largest magnitude; returns steps and
/// their size `f32[batch, seq, kv_heads, 1]`.
fn quantize(x: Op<'_>) -> (Op<'_>, Op<'_>) {
    let x = x.convert(DType::F32);
    let mut dims = x.shape().dims;
    dims[3] = 1;
    let largest = x.abs().reduce_max(&[3]).reshape(&dims);
    let zero = x.graph().scalar(DType::F32, 0.0);
    let steps = x * largest.gt(zero).select(x.graph().scalar(DType::F32, 127.0) / largest, zero);
    ((steps + 0.5).floor().convert(DType::S8), largest * (1.0 / 127.0))
}
