//! What depends on the platform: the few primitives of the layers that a [`Target`] lowers in its own way. The layers
//! themselves are the same everywhere.

use super::{
    Cache,
    layers::{CacheAccess, Positions, last_dimension},
    weights::{GROUP, Matrix},
};
use crate::hlo::{DType, DotDims, Op, Shape};

/// Bytes by which a matrix's address may be off.
pub const SHIFT_BYTES: i64 = 64;

/// The platform that a program is emitted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// With `kernels`, products and attention are calls of `crate::kernels`; else they are XLA's own operations.
    Cpu {
        kernels: bool,
    },
    Tpu,
    Cuda,
}

impl Target {
    /// Name in program names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu { kernels: true } => "cpu",
            Self::Cpu { kernels: false } => "cpu-native",
            Self::Tpu => "tpu",
            Self::Cuda => "cuda",
        }
    }

    /// Whether it is the host's processor, whose memory is the device's.
    pub fn is_cpu(self) -> bool {
        matches!(self, Self::Cpu { .. })
    }

    /// Whether attention reads a window of the cache that has a fixed length, so that short contexts want programs of their own.
    /// The kernel reads as much as there is.
    pub fn has_windows(self) -> bool {
        !self.calls_kernels()
    }

    /// Whether layers are turns of one loop over stacked weights and caches, instead of each being emitted: then a program compiles
    /// in seconds, not minutes, and XLA:TPU needs no temporary memory between layers.
    pub fn stacks_layers(self) -> bool {
        !self.is_cpu()
    }

    /// Whether programs can take shifted matrices: only kernels find them in their arrays.
    pub fn takes_shifted(self) -> bool {
        self.calls_kernels()
    }

    fn calls_kernels(self) -> bool {
        self == Self::Cpu { kernels: true }
    }

    /// What programs take a tensor of these dims as: all but four-bit matrices `[out, in]` as they are.
    ///
    /// XLA:CPU has no packed four-bit arrays, so there a byte is two elements, `u8[out, in / 2]`. In each group of 32, byte i holds
    /// element i in its lower half and element i + 16 in its upper half, both plus 8.
    ///
    /// Elsewhere a matrix is `s4[in / 32, 32, out]`: XLA:TPU converts and scales it inside the product that uses it only if no
    /// reshape stands between, so groups and their elements are dimensions of the product.
    pub fn weight_shape(self, dtype: DType, dims: &[i64]) -> Shape {
        match dims {
            [layers @ .., out, width] if dtype == DType::S4 => {
                let packed: &[i64] = if self.is_cpu() { &[*out, width / 2] } else { &[width / GROUP, GROUP, *out] };
                let dtype = if self.is_cpu() { DType::U8 } else { dtype };
                Shape::new(dtype, [layers, packed].concat())
            }
            _ => Shape::new(dtype, dims),
        }
    }

    /// What programs take a shifted matrix as, see [`StoredTypes::shifted`](super::weights::StoredTypes::shifted): with place for
    /// the elements before it, and for as many after it as that leaves.
    pub fn shifted_shape(dtype: DType, dims: &[i64]) -> Shape {
        Shape::new(dtype, [dims.iter().product::<i64>() + SHIFT_BYTES / (dtype.bits() as i64 / 8)])
    }

    /// `x wᵀ`: `[..., in]` by `[out, in]` to `[..., out]`, accumulated in f32 and rounded to `out`. Of the rows, `lengths`
    /// (`s32[batch]`, see [`Positions`]) tells those that matter: kernels compute no others. So for all products.
    pub(super) fn linear<'g>(self, x: Op<'g>, lengths: Op<'g>, weight: Matrix<'g>, out: DType) -> Op<'g> {
        let (x, mut dims) = rows(x);
        dims.push(weight.rows());
        let product = if self.calls_kernels() {
            let shape = Shape::new(out, [x.dim(0), weight.rows()]);
            kernel("gemma_pjrt.linear", [x, lengths], &[weight], &[shape])[0]
        } else {
            self.matmul(x, weight).convert(out)
        };
        product.reshape(&dims)
    }

    /// `gelu(x gateᵀ) · (x upᵀ)`, in f32 and rounded to `out`: `[..., in]` by twice `[mlp, in]` to `[..., mlp]`.
    pub(super) fn gated_linear<'g>(
        self,
        x: Op<'g>,
        lengths: Op<'g>,
        gate: Matrix<'g>,
        up: Matrix<'g>,
        out: DType,
    ) -> Op<'g> {
        let (x, mut dims) = rows(x);
        dims.push(gate.rows());
        let product = if self.calls_kernels() {
            let shape = Shape::new(out, [x.dim(0), gate.rows()]);
            kernel("gemma_pjrt.gate_up", [x, lengths], &[gate, up], &[shape])[0]
        } else {
            (gelu_tanh(self.matmul(x, gate)) * self.matmul(x, up)).convert(out)
        };
        product.reshape(&dims)
    }

    /// The largest element of each row of `x wᵀ` and its column, `f32[rows]` and `s32[rows]` from `[rows, in]` and
    /// `[out, in]`; the first one where several are equal.
    pub(super) fn linear_max<'g>(self, x: Op<'g>, lengths: Op<'g>, weight: Matrix<'g>) -> [Op<'g>; 2] {
        if !self.calls_kernels() {
            return self.linear(x, lengths, weight, DType::F32).max_with_index();
        }
        let results = [DType::F32, DType::S32].map(|dtype| Shape::new(dtype, [x.dim(0)]));
        let found = kernel("gemma_pjrt.linear_max", [x, lengths], &[weight], &results);
        [found[0], found[1]]
    }

    /// At least the `most` largest elements of each row of `x wᵀ`, and their columns where they do not stand in theirs:
    /// `f32[rows, n]` and `s32[rows, n]` from `[rows, in]` and `[out, in]`.
    pub(super) fn linear_top<'g>(
        self,
        x: Op<'g>,
        lengths: Op<'g>,
        weight: Matrix<'g>,
        most: i64,
    ) -> (Op<'g>, Option<Op<'g>>) {
        if !self.calls_kernels() {
            return (self.linear(x, lengths, weight, DType::F32), None);
        }
        let results = [DType::F32, DType::S32].map(|dtype| Shape::new(dtype, [x.dim(0), most.min(weight.rows())]));
        let found = kernel("gemma_pjrt.linear_top", [x, lengths], &[weight], &results);
        (found[0], Some(found[1]))
    }

    /// `softmax(q kᵀ / sqrt(head_dim)) v` over the positions up to each token's own.
    ///
    /// `q` and the result are `[batch, seq, heads, head_dim]`; keys and values are the cache, with this step's tokens in it.
    pub(super) fn attend<'g>(self, q: Op<'g>, cache: Cache<'g>, positions: &Positions<'g>) -> Op<'g> {
        let Cache { keys, values } = cache;
        if self.calls_kernels() {
            let slots = match positions.access {
                CacheAccess::Slots { slots, .. } => slots,
                CacheAccess::EachRow => q.graph().iota(Shape::new(DType::S32, [q.dim(0)]), 0),
            };
            let scales = keys.scale.into_iter().chain(values.scale);
            let operands: Vec<Op<'g>> = [q, keys.elements, values.elements, positions.tokens, positions.lengths, slots]
                .into_iter()
                .chain(scales)
                .collect();
            return q.graph().custom_call("gemma_pjrt.attention", &operands, &[q.shape()], &[])[0];
        }
        if matches!(positions.access, CacheAccess::Slots { .. }) && q.dim(0) > 1 {
            return self.attend_one_by_one(q, cache, positions);
        }
        let graph = q.graph();
        let dtype = q.shape().dtype;
        let [batch, seq, heads, head_dim] = [0, 1, 2, 3].map(|dim| q.dim(dim));
        // What each key's scores, and each value's weights, are to be multiplied by.
        let (key_scale, value_scale) = (keys.read_scale(positions), values.read_scale(positions));
        let (keys, window_dim) = keys.read(positions);
        let head = 3 - window_dim;
        let kv_heads = keys.dim(head);
        let group = heads / kv_heads; // query heads that share a key/value head
        let keys = self.uncached(keys, dtype);
        let values = self.uncached(values.read(positions).0, dtype);

        // The queries of a group are rows of one matrix: [batch, kv_heads, seq * group, head_dim].
        let q = q.reshape(&[batch, seq, kv_heads, group, head_dim]).transpose(&[0, 2, 1, 3, 4]);
        let q = q.reshape(&[batch, kv_heads, seq * group, head_dim]);
        let over_heads = |lhs: i64, rhs: i64| DotDims {
            lhs_batch: vec![0, 1],
            rhs_batch: vec![0, head],
            lhs_contract: vec![lhs],
            rhs_contract: vec![rhs],
        };
        let scores = q.dot(keys, &over_heads(3, 3), DType::F32) * (head_dim as f64).powf(-0.5);
        let scores = scores.reshape(&[batch, kv_heads, seq, group, positions.window]);
        let scores = key_scale.map_or(scores, |scale| scores * scale);

        // What lies beyond a token's position in the cache is garbage.
        let key_position = graph.iota(Shape::new(DType::S32, [positions.window]), 0);
        let visible = key_position.le(positions.tokens.reshape(&[batch, 1, seq, 1, 1]));
        let scores = visible.select(scores, graph.scalar(DType::F32, f64::NEG_INFINITY));
        let probabilities = softmax(scores);
        let probabilities = value_scale.map_or(probabilities, |scale| probabilities * scale).convert(dtype);

        let probabilities = probabilities.reshape(&[batch, kv_heads, seq * group, positions.window]);
        let mixed = probabilities.dot(values, &over_heads(3, window_dim), DType::F32).convert(dtype);
        let mixed = mixed.reshape(&[batch, kv_heads, seq, group, head_dim]).transpose(&[0, 2, 1, 3, 4]);
        mixed.reshape(&[batch, seq, heads, head_dim])
    }

    /// As [`Self::attend`], one slot after the other: they do not lie side by side, and to bring them together takes as long as to
    /// attend to them.
    fn attend_one_by_one<'g>(self, q: Op<'g>, cache: Cache<'g>, positions: &Positions<'g>) -> Op<'g> {
        let (where_they_stand, arrays) = (positions.to_list(), cache.to_list());
        let own = [q.graph().full(&q.shape(), 0.0), q];
        let (arrays_from, end) = (2 + where_they_stand.len(), 2 + where_they_stand.len() + arrays.len());
        let state: Vec<Op<'g>> =
            [&own[..], &where_they_stand, &arrays].concat().into_iter().chain(cache.keys.layer).collect();
        q.graph().repeat(q.dim(0), &state, |row, s| {
            let positions = positions.within(&s[2..arrays_from].iter().map(|op| op.row(row)).collect::<Vec<_>>());
            let cache = cache.within(&s[arrays_from..end], s.get(end).copied());
            let mixed = s[0].with_row(self.attend(s[1].row(row), cache, &positions), row);
            std::iter::once(mixed).chain(s[1..].iter().copied()).collect()
        })[0]
    }

    /// `f32[rows, out]` from `[rows, in]` and `[out, in]`.
    fn matmul<'g>(self, x: Op<'g>, weight: Matrix<'g>) -> Op<'g> {
        match weight.scale {
            None => self.product(x, weight.elements, |weight| weight.convert(x.shape().dtype)),
            Some(scale) if scale.shape().dims.len() == 1 => {
                self.product(x, weight.elements, |weight| weight.convert(x.shape().dtype)) * scale
            }
            Some(scale) if self.is_cpu() => {
                self.product(x, weight.elements, |weight| from_pairs(weight, scale, x.shape().dtype))
            }
            Some(scale) => in_groups(x, weight.elements, scale),
        }
    }

    /// `f32[rows, out]` from `[rows, in]` and what `convert` makes of a weight as stored: `[out, in]` of x's type.
    fn product<'g>(self, x: Op<'g>, weight: Op<'g>, convert: impl FnOnce(Op<'g>) -> Op<'g>) -> Op<'g> {
        let contract_last = DotDims { lhs_contract: vec![1], rhs_contract: vec![1], ..DotDims::default() };
        let dtype = x.shape().dtype;
        if !self.is_cpu() {
            return x.dot(convert(weight), &contract_last, DType::F32);
        }
        if weight.shape().dtype != dtype {
            // XLA:CPU materialises the converted weight. Behind a barrier that depends on x this happens when its turn comes;
            // else all layers' weights would be converted at the start, and live together.
            let [x, weight] = Op::optimization_barrier(&[x, weight])[..] else { unreachable!("two in, two out") };
            return x.dot(convert(weight), &contract_last, DType::F32);
        }
        if dtype == DType::BF16 && x.dim(0) == 1 {
            // One bf16 row becomes a matrix-vector product that XLA:CPU computes from weights converted to f32 (2.3 GiB of
            // temporaries in the 2B). Two rows take the matrix path, which reads bf16.
            let twice = x.broadcast_to(&[2, x.dim(1)]);
            return twice.dot(weight, &contract_last, DType::F32).slice_in_dim(0, 0, 1);
        }
        x.dot(weight, &contract_last, DType::F32)
    }

    /// Element type of a KV cache of type `kv`.
    ///
    /// XLA:CPU has no bf16 dynamic-update-slice: it converts the whole cache to f32 and back for each token written. The
    /// same bits as u16 are updated in place.
    pub fn cache_dtype(self, kv: DType) -> DType {
        if self.is_cpu() && kv == DType::BF16 { DType::U16 } else { kv }
    }

    /// The cache, with its update in place. Without a barrier XLA:CPU copies the whole cache twice for each layer; XLA:TPU would
    /// give the loop's caches the order that the products like best, and copy them before and after the loop.
    pub(super) fn in_place<'g>(self, cache: Cache<'g>) -> Cache<'g> {
        if self.is_cpu() {
            cache.map_all(Op::optimization_barrier)
        } else {
            cache.map_all(|arrays| arrays.iter().map(|array| array.row_major()).collect())
        }
    }

    /// Activations as the cache holds them.
    pub(super) fn cached<'g>(self, x: Op<'g>) -> Op<'g> {
        let dtype = x.shape().dtype;
        if self.cache_dtype(dtype) == dtype { x } else { x.bitcast_convert(self.cache_dtype(dtype)) }
    }

    /// A part of the cache as activations of type `compute`.
    fn uncached<'g>(self, x: Op<'g>, compute: DType) -> Op<'g> {
        match x.shape().dtype {
            DType::U16 => x.bitcast_convert(compute),
            _ => x.convert(compute),
        }
    }
}

/// Calls a kernel with activations, their lengths and weights; scales, or the first indices of shifted weights, come after the
/// weights.
fn kernel<'g>(name: &str, x: [Op<'g>; 2], weights: &[Matrix<'g>], results: &[Shape]) -> Vec<Op<'g>> {
    let elements = weights.iter().map(|weight| weight.elements);
    let scales = weights.iter().filter_map(|weight| weight.scale);
    let shifts = weights.iter().filter_map(|weight| Some(weight.shift?.first));
    let operands: Vec<Op<'g>> = x.into_iter().chain(elements).chain(scales).chain(shifts).collect();
    x[0].graph().custom_call(name, &operands, results, &[])
}

/// A four-bit weight with two elements in a byte, `u8[out, in / 2]`, times its groups' scales `[out, in / GROUP]`: `[out, in]`.
fn from_pairs<'g>(pairs: Op<'g>, scale: Op<'g>, dtype: DType) -> Op<'g> {
    let [out, groups] = [scale.dim(0), scale.dim(1)];
    let bytes = pairs.reshape(&[out, groups, GROUP / 2]);
    let byte = |value: f64| pairs.graph().scalar(DType::U8, value);
    let halves = [bytes.and(byte(15.0)), bytes.shift_right_logical(byte(4.0))];
    let steps = Op::concatenate(&halves, 2).convert(DType::F32) - 8.0;
    let scale = scale.convert(DType::F32).reshape(&[out, groups, 1]);
    (steps * scale).convert(dtype).reshape(&[out, groups * GROUP])
}

/// `f32[rows, out]` from `[rows, in]` and a four-bit weight `s4[in / GROUP, GROUP, out]` with its groups' scales
/// `[out, in / GROUP]`.
fn in_groups<'g>(x: Op<'g>, weight: Op<'g>, scale: Op<'g>) -> Op<'g> {
    let [groups, out] = [weight.dim(0), weight.dim(2)];
    let scale = scale.transpose(&[1, 0]).convert(DType::F32).reshape(&[groups, 1, out]);
    let weight = (weight.convert(DType::F32) * scale).convert(x.shape().dtype);
    let over_groups = DotDims { lhs_contract: vec![1, 2], rhs_contract: vec![0, 1], ..DotDims::default() };
    // Of several sequences, XLA:TPU would join the reshape to the product, and then hold the whole weight converted.
    let x = Op::optimization_barrier(&[x])[0];
    x.reshape(&[x.dim(0), groups, GROUP]).dot(weight, &over_groups, DType::F32)
}

/// `[..., width]` as `[rows, width]`, and the dims before the last.
fn rows(x: Op<'_>) -> (Op<'_>, Vec<i64>) {
    let mut dims = x.shape().dims;
    let width = dims.pop().unwrap_or_default();
    (x.reshape(&[dims.iter().product(), width]), dims)
}

/// `x/2 · (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))` (Hendrycks and Gimpel 2016).
fn gelu_tanh(x: Op<'_>) -> Op<'_> {
    let inner = (x + x * x * x * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
    x * 0.5 * (inner.tanh() + 1.0)
}

/// Softmax over the last dimension.
fn softmax(x: Op<'_>) -> Op<'_> {
    let (last, column) = last_dimension(x);
    let exp = (x - x.reduce_max(&[last]).reshape(&column)).exp();
    exp / exp.reduce_sum(&[last]).reshape(&column)
}
