//! The KV cache: its arrays, and reading and writing blocks of positions in them.

use super::ModelSpec;
use crate::{
    hlo::{DType, Op, Shape, Tree},
    tree,
};

/// Keys and values of one layer, donated to the program and updated in place; or those of all
/// layers, and the layer.
///
/// Where layers are emitted one by one, each has arrays of its own, `[slots, kv_heads, cache_len,
/// head_dim]`: what a head reads is contiguous. Where they are a loop, one array holds all layers,
/// `[layers, slots, kv_heads, cache_len, head_dim]`; in eight bits `[layers, slots, cache_len,
/// kv_heads, head_dim]`, since a TPU packs four neighbours of the second last dimension, so that
/// one position of the other order cannot be written in place.
#[derive(Clone, Copy)]
pub(super) struct Cache<'g> {
    pub keys: Cached<'g>,
    pub values: Cached<'g>,
    /// The layer that is meant, of arrays that hold all layers: `s32[]`.
    pub layer: Option<Op<'g>>,
    /// Whether heads come after positions.
    pub heads_last: bool,
}
tree!(Cache { keys, values, layer } keeping { heads_last });

/// Keys or values.
#[derive(Clone, Copy)]
pub(super) struct Cached<'g> {
    pub elements: Op<'g>,
    /// Of eight-bit elements: what each head of each position is to be multiplied by, `f32[slots,
    /// kv_heads, cache_len, 1]`, or `f32[layers, slots * kv_heads, cache_len]` of all layers,
    /// because a TPU pads the last dimension to 128.
    pub scale: Option<Op<'g>>,
}
tree!(Cached { elements, scale });

/// Keys or values of positions, as the cache holds them: elements `[.., head_dim]`, and scales
/// `[.., 1]` if it has some.
#[derive(Clone, Copy)]
pub(super) struct Block<'g> {
    pub elements: Op<'g>,
    pub scale: Option<Op<'g>>,
}

impl<'g> Cache<'g> {
    /// Names and shapes of a device's arrays, in the order of the tree's leaves, layer by layer.
    pub fn arrays(model: &ModelSpec, slots: i64, cache_len: i64) -> Vec<(String, Shape)> {
        let (layers, head_dim, kv_heads) = (model.config.num_hidden_layers, model.config.head_dim, model.kv_heads());
        let of_layer = [slots, kv_heads, cache_len, head_dim];
        let (elements, scale): (Vec<i64>, Vec<i64>) = if model.lowering.stacks_layers {
            let elements = if model.caches_heads_last() {
                vec![layers, slots, cache_len, kv_heads, head_dim]
            } else {
                [&[layers], &of_layer[..]].concat()
            };
            (elements, vec![layers, slots * kv_heads, cache_len])
        } else {
            (of_layer.to_vec(), vec![slots, kv_heads, cache_len, 1])
        };
        let elements = Shape::new(model.cache_dtype(), elements);
        let scale = (model.kv == DType::S8).then(|| Shape::new(DType::F32, scale));
        let prefixes: Vec<String> = if model.lowering.stacks_layers {
            vec!["cache.".into()]
        } else {
            (0..layers).map(|layer| format!("cache.{layer}.")).collect()
        };
        let mut all = Vec::new();
        for prefix in prefixes {
            for name in ["keys", "values"] {
                all.push((format!("{prefix}{name}"), elements.clone()));
                all.extend(scale.iter().map(|scale| (format!("{prefix}{name}_scale"), scale.clone())));
            }
        }
        all
    }

    /// The caches whose arrays these are: one for each layer, or one of all layers.
    pub fn from_arrays(model: &ModelSpec, arrays: &[Op<'g>]) -> Vec<Self> {
        let mut arrays = arrays.iter().copied();
        let mut caches = Vec::new();
        while let Some(keys) = arrays.next() {
            let mut next = || arrays.next().expect("as many as Cache::arrays lists");
            let quantised = model.kv == DType::S8;
            let keys = Cached { elements: keys, scale: quantised.then(&mut next) };
            let values = Cached { elements: next(), scale: quantised.then(&mut next) };
            caches.push(Self { keys, values, layer: None, heads_last: model.caches_heads_last() });
        }
        caches
    }

    /// The arrays, without the number of the layer.
    pub fn to_arrays(caches: &[Self]) -> Vec<Op<'g>> {
        caches.iter().flat_map(|cache| (cache.keys, cache.values).flatten()).collect()
    }

    /// Of all layers' arrays, this layer's.
    pub fn at(self, layer: Op<'g>) -> Self {
        Self { layer: Some(layer), ..self }
    }

    /// All layers' arrays again.
    pub fn of_all_layers(self) -> Self {
        Self { layer: None, ..self }
    }

    /// Holds the arrays in the order in which they are updated in place, see
    /// [`Lowering::needs_barriers`](super::Lowering::needs_barriers).
    pub fn in_place(self, model: &ModelSpec) -> Self {
        let arrays = (self.keys, self.values);
        let (keys, values) = if model.lowering.needs_barriers {
            arrays.rebuild(&mut Op::optimization_barrier(&arrays.flatten()).into_iter())
        } else {
            arrays.map(Op::row_major)
        };
        Self { keys, values, ..self }
    }

    /// Holds the arrays in that order inside a loop over segments or slots; see [`Self::in_place`].
    pub fn in_loop(self, model: &ModelSpec) -> Self {
        if model.lowering.needs_barriers { self } else { self.in_place(model) }
    }

    /// Copies all that one slot holds to another. `array` is one of [`Self::arrays`]; slots are
    /// `s32[]`.
    pub fn copy_slot(array: Op<'g>, kv_heads: i64, from: Op<'g>, to: Op<'g>) -> Op<'g> {
        let zero = array.graph().s32(0);
        let mut sizes = array.shape().dims;
        // One layer's arrays, scales of all layers, elements of all layers.
        let (dim, size) = match sizes.len() {
            4 => (0, 1),
            3 => (1, kv_heads),
            _ => (1, 1),
        };
        sizes[dim] = size;
        let starts = |slot: Op<'g>| -> Vec<Op<'g>> {
            (0..sizes.len()).map(|i| if i == dim { slot * size } else { zero }).collect()
        };
        array.dynamic_update_slice(array.dynamic_slice(&starts(from), &sizes), &starts(to))
    }

    /// Keys and values of `len` positions of a slot, from `position` on: `[kv_heads, len, ..]`.
    pub fn read(&self, slot: Op<'g>, position: Op<'g>, len: i64) -> [Block<'g>; 2] {
        [self.keys, self.values].map(|cached| {
            let (starts, heads) = (self.starts(slot, position), self.kv_heads());
            let mut sizes = cached.elements.shape().dims;
            let rank = sizes.len();
            sizes[..rank - 3].fill(1);
            sizes[self.position_dim()] = len;
            let part = cached.elements.dynamic_slice(&starts, &sizes).reshape(&sizes[rank - 3..]);
            let elements = self.heads_first(part);
            let scale = cached.scale.map(|scale| match self.layer {
                None => scale.dynamic_slice(&starts, &[1, heads, len, 1]).reshape(&[heads, len, 1]),
                Some(_) => {
                    let starts = self.scale_starts(slot, position, heads);
                    scale.dynamic_slice(&starts, &[1, heads, len]).reshape(&[heads, len, 1])
                }
            });
            Block { elements, scale }
        })
    }

    /// Keys and values of the first `len` positions of all slots: `[slots, kv_heads, len, ..]`.
    pub fn read_all_slots(&self, len: i64) -> [Block<'g>; 2] {
        [self.keys, self.values].map(|cached| {
            let zero = cached.elements.graph().s32(0);
            let mut sizes = cached.elements.shape().dims;
            let rank = sizes.len();
            let (slots, heads) = (sizes[rank - 4], self.kv_heads());
            sizes[..rank - 4].fill(1);
            sizes[self.position_dim()] = len;
            let part = cached.elements.dynamic_slice(&self.starts(zero, zero), &sizes);
            let elements = self.heads_first(part.reshape(&sizes[rank - 4..]));
            let scale = cached.scale.map(|scale| match self.layer {
                None => scale.slice_in_dim(2, 0, len),
                Some(layer) => {
                    let part = scale.dynamic_slice(&[layer, zero, zero], &[1, slots * heads, len]);
                    part.reshape(&[slots, heads, len, 1])
                }
            });
            Block { elements, scale }
        })
    }

    /// Writes keys and values `[kv_heads, len, ..]` to a slot, from `position` on.
    pub fn write(&self, slot: Op<'g>, position: Op<'g>, blocks: [Block<'g>; 2]) -> Self {
        let write = |cached: Cached<'g>, block: Block<'g>| {
            let starts = self.starts(slot, position);
            let in_rank = |x: Op<'g>| {
                let dims = x.shape().dims;
                x.reshape(&[vec![1; starts.len() - 3], dims].concat())
            };
            let elements = cached.elements.dynamic_update_slice(in_rank(self.heads_first(block.elements)), &starts);
            let scale = cached.scale.zip(block.scale).map(|(scale, new)| match self.layer {
                None => scale.dynamic_update_slice(in_rank(new), &starts),
                Some(_) => {
                    let [heads, len] = [new.dim(0), new.dim(1)];
                    scale.dynamic_update_slice(new.reshape(&[1, heads, len]), &self.scale_starts(slot, position, heads))
                }
            });
            Cached { elements, scale }
        };
        let [keys, values] = blocks;
        Self { keys: write(self.keys, keys), values: write(self.values, values), ..*self }
    }

    /// Where a slot's position begins in an array of elements.
    fn starts(&self, slot: Op<'g>, position: Op<'g>) -> Vec<Op<'g>> {
        let zero = slot.graph().s32(0);
        let last = if self.heads_last { [slot, position, zero, zero] } else { [slot, zero, position, zero] };
        self.layer.into_iter().chain(last).collect()
    }

    /// Positions of a slot.
    pub fn cache_len(&self) -> i64 {
        self.keys.elements.shape().dims[self.position_dim()]
    }

    /// Key/value heads.
    pub fn kv_heads(&self) -> i64 {
        self.keys.elements.dim(if self.heads_last { -2 } else { -3 })
    }

    fn position_dim(&self) -> usize {
        let rank = self.keys.elements.shape().rank();
        if self.heads_last { rank - 3 } else { rank - 2 }
    }

    /// Swaps heads and positions of `[.., positions, heads, head_dim]`, or back, where the cache
    /// has them the other way round.
    fn heads_first(&self, x: Op<'g>) -> Op<'g> {
        match (self.heads_last, x.shape().rank()) {
            (false, _) => x,
            (true, 3) => x.transpose(&[1, 0, 2]),
            (true, _) => x.transpose(&[0, 2, 1, 3]),
        }
    }

    /// Where a slot's position begins in an array of all layers' scales.
    fn scale_starts(&self, slot: Op<'g>, position: Op<'g>, heads: i64) -> [Op<'g>; 3] {
        [self.layer.expect("an array of all layers"), slot * heads, position]
    }
}

impl<'g> Block<'g> {
    /// Activations `[rows, kv_heads, head_dim]` as the cache holds them, rows first: quantised, or
    /// as the bits of their type.
    pub fn of_activations(model: &ModelSpec, x: Op<'g>) -> Self {
        if model.kv == DType::S8 {
            return quantise(x);
        }
        let (dtype, cached) = (x.shape().dtype, model.cache_dtype());
        let elements = if dtype == cached { x } else { x.bitcast_convert(cached) };
        Self { elements, scale: None }
    }

    /// The elements as activations, without their scale.
    pub fn activations(&self, model: &ModelSpec) -> Op<'g> {
        match self.elements.shape().dtype {
            DType::U16 => self.elements.bitcast_convert(model.compute),
            _ => self.elements.convert(model.compute),
        }
    }

    /// The block with both parts replaced.
    pub fn map(self, f: impl Fn(Op<'g>) -> Op<'g>) -> Self {
        Self { elements: f(self.elements), scale: self.scale.map(f) }
    }

    /// This block where `mask` holds, else `other`.
    pub fn or(self, mask: Op<'g>, other: Self) -> Self {
        let scale = self.scale.zip(other.scale).map(|(own, other)| mask.select(own, other));
        Self { elements: mask.select(self.elements, other.elements), scale }
    }
}

/// Rounds each head of each token `[rows, kv_heads, head_dim]` to 127 steps of its largest
/// magnitude; the scale is the size of a step, `f32[rows, kv_heads, 1]`.
fn quantise(x: Op<'_>) -> Block<'_> {
    let x = x.convert(DType::F32);
    let largest = x.abs().reduce_max(&[2]).reshape(&[x.dim(0), x.dim(1), 1]);
    let graph = x.graph();
    let inverse = largest.gt(graph.f32(0.0)).select(graph.f32(127.0) / largest, graph.f32(0.0));
    Block { elements: (x * inverse + 0.5).floor().convert(DType::S8), scale: Some(largest * (1.0 / 127.0)) }
}
