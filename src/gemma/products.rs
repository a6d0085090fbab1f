//! Products of activations with weights as stored: calls of kernels where there are some, else
//! XLA's own operations.

use super::{Context, weights::Matrix};
use crate::{
    hlo::{DType, DotDims, Op, Shape},
    kernel_abi::{GATE_UP, GROUP, LINEAR, LINEAR_MAX, LINEAR_SCORE, LINEAR_TOP},
};

/// Elements of a row that share a scale, in four bits.
const BLOCK: i64 = GROUP as i64;

/// `x wᵀ`: `[rows, in]` by `[out, in]` to `[rows, out]`, accumulated in f32 and rounded to `out`.
/// Rows from `cx.count` on are padding: kernels do not compute them. So for all products.
pub(super) fn linear<'g>(cx: Context<'_, 'g>, x: Op<'g>, weight: Matrix<'g>, out: DType) -> Op<'g> {
    if cx.model.lowering.kernels {
        return kernel(cx, LINEAR, x, &[weight], &[Shape::new(out, [x.dim(0), weight.rows()])])[0];
    }
    matmul(cx, x, weight).convert(out)
}

/// `gelu(x gateᵀ) · (x upᵀ)`, in f32 and rounded to `out`: `[rows, in]` by twice `[mlp, in]` to
/// `[rows, mlp]`.
pub(super) fn gated_linear<'g>(cx: Context<'_, 'g>, x: Op<'g>, gate: Matrix<'g>, up: Matrix<'g>, out: DType) -> Op<'g> {
    // The kernel reads both in the same way.
    if cx.model.lowering.kernels && gate.is_stored_as(up) {
        return kernel(cx, GATE_UP, x, &[gate, up], &[Shape::new(out, [x.dim(0), gate.rows()])])[0];
    }
    (gelu_tanh(linear(cx, x, gate, DType::F32)) * linear(cx, x, up, DType::F32)).convert(out)
}

/// `x wᵀ` of an output layer: `f32[rows, vocab]`, minus infinity where another device owns the
/// token.
pub(super) fn linear_logits<'g>(cx: Context<'_, 'g>, x: Op<'g>, weight: Matrix<'g>) -> Op<'g> {
    cx.model.vocab().owned(linear(cx, x, weight, DType::F32))
}

/// Returns whether kernels reduce logits as they compute them. They cannot leave out tokens that
/// another device owns.
fn reduces_logits(cx: Context<'_, '_>) -> bool {
    cx.model.lowering.kernels && cx.model.vocab().shared() == 0
}

/// The largest element of each row of [`linear_logits`] and its column, `f32[rows]` and
/// `s32[rows]`; the first column where several are equal.
pub(super) fn linear_max<'g>(cx: Context<'_, 'g>, x: Op<'g>, weight: Matrix<'g>) -> [Op<'g>; 2] {
    if !reduces_logits(cx) {
        return linear_logits(cx, x, weight).max_with_index();
    }
    let results = [DType::F32, DType::S32].map(|dtype| Shape::new(dtype, [x.dim(0)]));
    let found = kernel(cx, LINEAR_MAX, x, &[weight], &results);
    [found[0], found[1]]
}

/// At least the `most` largest elements of each row of [`linear_logits`], `f32[rows, n]`, and their
/// columns `s32[rows, n]`; no columns where they are all elements in their order.
pub(super) fn linear_top<'g>(
    cx: Context<'_, 'g>,
    x: Op<'g>,
    weight: Matrix<'g>,
    most: i64,
) -> (Op<'g>, Option<Op<'g>>) {
    if !reduces_logits(cx) {
        return (linear_logits(cx, x, weight), None);
    }
    let results = [DType::F32, DType::S32].map(|dtype| Shape::new(dtype, [x.dim(0), most.min(weight.rows())]));
    let found = kernel(cx, LINEAR_TOP, x, &[weight], &results);
    (found[0], Some(found[1]))
}

/// Returns four numbers for each row of [`linear_logits`]: the largest element, its column, the
/// log-sum-exp, and the element in the column `targets` `s32[rows]`, which is minus infinity where
/// there is no such column. All are `[rows]`, the column s32, the others f32.
pub(super) fn linear_score<'g>(cx: Context<'_, 'g>, x: Op<'g>, weight: Matrix<'g>, targets: Op<'g>) -> [Op<'g>; 4] {
    if !reduces_logits(cx) {
        let products = linear_logits(cx, x, weight);
        let [largest, column] = products.max_with_index();
        let in_column = |x: Op<'g>| x.reshape(&[x.dim(0), 1]);
        let total = (products - in_column(largest)).exp().reduce_sum(&[1]);
        let columns = x.graph().iota(products.shape().with_dtype(DType::S32), 1);
        let is_target = columns.eq(in_column(targets));
        let chosen = is_target.select(products, x.graph().f32(f64::NEG_INFINITY)).reduce_max(&[1]);
        return [largest, column, largest + total.log(), chosen];
    }
    let results = [DType::F32, DType::S32, DType::F32, DType::F32].map(|dtype| Shape::new(dtype, [x.dim(0)]));
    let operands = [vec![targets], product_operands(cx, x, &[weight])].concat();
    let found = x.graph().custom_call(LINEAR_SCORE, &operands, &results, &[], &[]);
    [found[0], found[1], found[2], found[3]]
}

/// Calls a kernel with the operands of a product.
fn kernel<'g>(cx: Context<'_, 'g>, target: &str, x: Op<'g>, weights: &[Matrix<'g>], results: &[Shape]) -> Vec<Op<'g>> {
    x.graph().custom_call(target, &product_operands(cx, x, weights), results, &[], &[])
}

/// Activations, the number of real rows, and weights, followed by their scales or offsets.
fn product_operands<'g>(cx: Context<'_, 'g>, x: Op<'g>, weights: &[Matrix<'g>]) -> Vec<Op<'g>> {
    let elements = weights.iter().map(|weight| weight.elements);
    let scales = weights.iter().filter_map(|weight| weight.scale);
    let offsets = weights.iter().filter_map(|weight| weight.offset);
    [x, cx.count].into_iter().chain(elements).chain(scales).chain(offsets).collect()
}

/// `f32[rows, out]` from `[rows, in]` and `[out, in]`.
fn matmul<'g>(cx: Context<'_, 'g>, x: Op<'g>, weight: Matrix<'g>) -> Op<'g> {
    let upcast = |elements: Op<'g>| elements.convert(x.shape().dtype);
    match weight.scale {
        None => dot(cx, x, weight.elements, upcast),
        Some(scale) if scale.shape().dims.len() == 1 => dot(cx, x, weight.elements, upcast) * scale,
        Some(scale) if cx.model.lowering.packs_nibbles => {
            dot(cx, x, weight.elements, |nibbles| dequantise_nibbles(nibbles, scale, x.shape().dtype))
        }
        Some(scale) => dot_blocks(x, weight.elements, scale),
    }
}

/// `f32[rows, out]` from `[rows, in]` and what `upcast` makes of a weight as stored: `[out, in]` of
/// x's type.
fn dot<'g>(cx: Context<'_, 'g>, x: Op<'g>, weight: Op<'g>, upcast: impl FnOnce(Op<'g>) -> Op<'g>) -> Op<'g> {
    let contract_last = DotDims { lhs_contract: vec![1], rhs_contract: vec![1], ..DotDims::default() };
    let dtype = x.shape().dtype;
    if !cx.model.lowering.needs_barriers {
        return x.dot(upcast(weight), &contract_last, DType::F32);
    }
    if weight.shape().dtype != dtype {
        // XLA:CPU materialises the converted weight. Behind a barrier that depends on x this
        // happens when its turn comes; else all layers' weights would be converted at the start,
        // and live together.
        let [x, weight] = Op::optimization_barrier(&[x, weight])[..] else { unreachable!("two in, two out") };
        return x.dot(upcast(weight), &contract_last, DType::F32);
    }
    if dtype == DType::BF16 && x.dim(0) == 1 {
        // One bf16 row becomes a matrix-vector product that XLA:CPU computes from weights converted
        // to f32 (2.3 GiB of temporaries in the 2B). Two rows take the matrix path, which reads
        // bf16.
        let twice = x.broadcast_to(&[2, x.dim(1)]);
        return twice.dot(weight, &contract_last, DType::F32).slice_in_dim(0, 0, 1);
    }
    x.dot(weight, &contract_last, DType::F32)
}

/// A four-bit weight with two elements in a byte, `u8[out, in / 2]`, times its blocks' scales
/// `[out, in / GROUP]`: `[out, in]`.
fn dequantise_nibbles<'g>(nibbles: Op<'g>, scale: Op<'g>, dtype: DType) -> Op<'g> {
    let [out, blocks] = [scale.dim(0), scale.dim(1)];
    let bytes = nibbles.reshape(&[out, blocks, BLOCK / 2]);
    let byte = |value: f64| nibbles.graph().scalar(DType::U8, value);
    let halves = [bytes.and(byte(15.0)), bytes.shift_right_logical(byte(4.0))];
    let quantised = Op::concatenate(&halves, 2).convert(DType::F32) - 8.0;
    let scale = scale.convert(DType::F32).reshape(&[out, blocks, 1]);
    (quantised * scale).convert(dtype).reshape(&[out, blocks * BLOCK])
}

/// `f32[rows, out]` from `[rows, in]` and a four-bit weight `s4[in / GROUP, GROUP, out]` with its
/// blocks' scales `[out, in / GROUP]`.
fn dot_blocks<'g>(x: Op<'g>, weight: Op<'g>, scale: Op<'g>) -> Op<'g> {
    let [blocks, out] = [weight.dim(0), weight.dim(2)];
    let scale = scale.transpose(&[1, 0]).convert(DType::F32).reshape(&[blocks, 1, out]);
    let weight = (weight.convert(DType::F32) * scale).convert(x.shape().dtype);
    let over_blocks = DotDims { lhs_contract: vec![1, 2], rhs_contract: vec![0, 1], ..DotDims::default() };
    // Without the barrier XLA:TPU joins the reshape to the product, and then holds the whole weight
    // converted.
    let x = Op::optimization_barrier(&[x])[0];
    x.reshape(&[x.dim(0), blocks, BLOCK]).dot(weight, &over_blocks, DType::F32)
}

/// `x/2 · (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))` (Hendrycks and Gimpel 2016).
fn gelu_tanh(x: Op<'_>) -> Op<'_> {
    let inner = (x + x * x * x * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
    x * 0.5 * (inner.tanh() + 1.0)
}
