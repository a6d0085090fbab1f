//! The FFI handlers: they check types and shapes, and call the kernels. `gemma` emits the calls.
//!
//! A program runs over one token axis of `rows` rows. The first ones are real tokens, the rest are
//! padding: padding is not computed, and its results are zeros.

use std::{collections::HashSet, path::PathBuf, sync::Mutex};

use super::{
    attention::attention,
    context::ExecContext,
    kv_cache::{CacheData, KvCacheMut, NewKv},
    linear::{RowScores, gate_up, linear, linear_max, linear_score, linear_top},
    operands::{Activations, QuantBlocks, WeightData, WeightMatrix},
    output::{OutputRows, zero_beyond},
    segments::{AttentionShape, Segments},
};
use crate::{
    kernel_abi::{self, ALIGNMENT, GROUP, SEGMENT_FIELDS},
    pjrt::{
        Api, ElementType,
        ffi::{self, Frame, Handler, Operand, Output},
    },
};

/// Registers all handlers with a CPU plugin, once per plugin.
///
/// # Errors
/// If the plugin has no FFI extension, or refuses a handler.
///
/// # Panics
/// If an earlier call panicked.
pub fn register(api: &Api) -> crate::pjrt::Result<()> {
    static DONE: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let mut done = DONE.lock().expect("nothing panics while it is held");
    let done = done.get_or_insert_default();
    if !done.contains(api.path()) {
        ffi::register::<Linear>(api)?;
        ffi::register::<GateUp>(api)?;
        ffi::register::<LinearMax>(api)?;
        ffi::register::<LinearTop>(api)?;
        ffi::register::<LinearScore>(api)?;
        ffi::register::<Attention>(api)?;
        done.insert(api.path().to_owned());
    }
    Ok(())
}

type Result<T> = std::result::Result<T, String>;

const CACHE_TYPES: &str = "they must be F32, BF16, U16 (bits of bf16), F16 or S8";

/// Multiplies activations with a weight.
///
/// Operands: activations `f32|bf16[rows, in]`; the number of real rows `s32[]`; then the weight, in
/// one of these forms:
/// - `f32|bf16|f16|s8[out, in]`, which may be followed by scales `f32[out]`;
/// - four-bit elements `u8[out, in / 2]`, followed by their blocks' scales `f16[out, in / 32]`;
/// - an unaligned weight, as `f32|bf16|f16|s8[out * in + spare]` with 64 spare bytes, followed by
///   its element offset in that array, `s32[]`.
///
/// Result: `f32|bf16[rows, out]`.
struct Linear;

impl Handler for Linear {
    const TARGET: &str = kernel_abi::LINEAR;

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [out]) = frame.arrays()?;
        let ProductOperands { x, rows, count, weights: [weight] } = product_operands(&operands)?;
        expect("the result", out.dims(), &[rows, weight.rows()])?;
        linear(ExecContext::whole(), x, weight, output_rows(out)?.zero_beyond(count * weight.rows()));
        Ok(())
    }
}

/// Multiplies activations with a gate and an up projection: `gelu_tanh(x gateᵀ) · (x upᵀ)`.
///
/// Operands: as [`Linear`], with gate and up in the place of the weight. They have one form and
/// type; their scales or offsets follow both. Result: `f32|bf16[rows, out]`.
struct GateUp;

impl Handler for GateUp {
    const TARGET: &str = kernel_abi::GATE_UP;

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [out]) = frame.arrays()?;
        let ProductOperands { x, rows, count, weights: [gate, up] } = product_operands(&operands)?;
        let of = |index: usize| (operands[index].element_type(), operands[index].dims());
        if of(2) != of(3) {
            return Err(format!("gate is {:?} and up is {:?}; they must be alike", of(2), of(3)));
        }
        expect("the result", out.dims(), &[rows, gate.rows()])?;
        gate_up(ExecContext::whole(), x, gate, up, output_rows(out)?.zero_beyond(count * gate.rows()));
        Ok(())
    }
}

/// Finds each row's largest product.
///
/// Operands: as [`Linear`]. Results: the products `f32[rows]`, and their columns `s32[rows]`.
struct LinearMax;

impl Handler for LinearMax {
    const TARGET: &str = kernel_abi::LINEAR_MAX;

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [values, columns]) = frame.arrays()?;
        let ProductOperands { x, rows, count, weights: [weight] } = product_operands(&operands)?;
        expect("the largest values", values.dims(), &[rows])?;
        expect("their columns", columns.dims(), &[rows])?;
        let values = zero_beyond(values.as_mut_slice()?, count);
        let columns = zero_beyond(columns.as_mut_slice()?, count);
        linear_max(ExecContext::whole(), x, weight, values, columns);
        Ok(())
    }
}

/// Finds each row's `k` largest products, from large to small.
///
/// Operands: as [`Linear`]. Results: the products `f32[rows, k]`, and their columns `s32[rows, k]`.
struct LinearTop;

impl Handler for LinearTop {
    const TARGET: &str = kernel_abi::LINEAR_TOP;

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [values, columns]) = frame.arrays()?;
        let ProductOperands { x, rows, count, weights: [weight] } = product_operands(&operands)?;
        let [_, k] = dims(values.dims(), "the largest values")?;
        expect("the largest values", values.dims(), &[rows, k])?;
        expect("their columns", columns.dims(), &[rows, k])?;
        if k == 0 || k > weight.rows() {
            return Err(format!("the {k} largest of {} products", weight.rows()));
        }
        let values = zero_beyond(values.as_mut_slice()?, count * k);
        let columns = zero_beyond(columns.as_mut_slice()?, count * k);
        linear_top(ExecContext::whole(), x, weight, k, values, columns);
        Ok(())
    }
}

/// Scores a column of each row's products beside all of them.
///
/// Operands: target columns `s32[rows]`, then as [`Linear`]. Results: the largest products
/// `f32[rows]`, their columns `s32[rows]`, the logarithms of the sums of all exponentials
/// `f32[rows]`, and the targets' products `f32[rows]`, minus infinity where there is no such
/// column.
struct LinearScore;

impl Handler for LinearScore {
    const TARGET: &str = kernel_abi::LINEAR_SCORE;

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [largest, columns, log_totals, chosen]) = frame.arrays()?;
        let [targets, operands @ ..] = &operands[..] else {
            return Err("takes target columns, activations, a row count and a weight, not 0 operands".into());
        };
        let ProductOperands { x, rows, count, weights: [weight] } = product_operands(operands)?;
        expect("the targets", targets.dims(), &[rows])?;
        let results = [&largest, &columns, &log_totals, &chosen];
        for (what, result) in ["largest values", "columns", "log totals", "targets' products"].iter().zip(results) {
            expect(&format!("the {what}"), result.dims(), &[rows])?;
        }
        let scores = RowScores {
            largest: zero_beyond(largest.as_mut_slice()?, count),
            columns: zero_beyond(columns.as_mut_slice()?, count),
            log_totals: zero_beyond(log_totals.as_mut_slice()?, count),
            chosen: zero_beyond(chosen.as_mut_slice()?, count),
        };
        linear_score(ExecContext::whole(), x, weight, &targets.as_slice()?[..count], scores);
        Ok(())
    }
}

/// Appends a step's keys and values to the KV cache, then attends: each token sees the positions of
/// its slot up to its own.
///
/// Operands:
/// 1. queries `f32|bf16[rows, heads, head_dim]`;
/// 2. new keys `[rows, kv_heads, head_dim]`, in the cache's type: f32, bf16, f16, s8, or u16 for
///    bits of bf16;
/// 3. new values, like new keys;
/// 4. cached keys `[slots, kv_heads, cache_len, head_dim]`;
/// 5. cached values, like cached keys;
/// 6. segments `s32[n, 4]`, see [`Segments::parse`];
///
/// and, if the cache is s8 and only then, scales:
///
/// 7. of new keys, `f32[rows, kv_heads, 1]`;
/// 8. of new values, alike;
/// 9. of cached keys, `f32[slots, kv_heads, cache_len, 1]`;
/// 10. of cached values, alike.
///
/// Results: attention `[rows, heads, head_dim]` in the queries' type, then the updated operands 4
/// and 5, and 9 and 10 if there are scales. The program must alias these results to their operands
/// (`output_operand_aliasing`).
struct Attention;

impl Handler for Attention {
    const TARGET: &str = kernel_abi::ATTENTION;

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, outputs) = frame.array_lists()?;
        let [queries, new_keys, new_values, cached_keys, cached_values, segments, scales @ ..] = &operands[..] else {
            return Err(format!("takes 6 operands, and 4 scales if any, not {}", operands.len()));
        };
        let scales = match scales {
            [] => None,
            [new_keys, new_values, cached_keys, cached_values] => {
                Some(([new_keys, new_values], [cached_keys, cached_values]))
            }
            others => return Err(format!("{} scales, expected 4: of new and cached keys and values", others.len())),
        };
        let [rows, heads, head_dim] = dims(queries.dims(), "queries")?;
        let [slots, kv_heads, cache_len, _] = dims(cached_keys.dims(), "cached keys")?;
        let shape = AttentionShape { rows, heads, kv_heads, head_dim, slots, cache_len };
        let cache_dims = [slots, kv_heads, cache_len, head_dim];
        for (what, new, cached) in [("keys", new_keys, cached_keys), ("values", new_values, cached_values)] {
            expect(&format!("new {what}"), new.dims(), &[rows, kv_heads, head_dim])?;
            expect(&format!("cached {what}"), cached.dims(), &cache_dims)?;
            let (found, expected) = (new.element_type(), cached.element_type());
            if found != expected {
                return Err(format!("new {what} of type {found:?} for a cache of type {expected:?}"));
            }
            use ElementType::{BF16, F16, F32, S8, U16};
            if !matches!(expected, Some(F32 | BF16 | U16 | F16 | S8)) {
                return Err(format!("cached {what} of type {expected:?}; {CACHE_TYPES}"));
            }
            if (expected == Some(S8)) != scales.is_some() {
                return Err(format!("cached {what} of type {expected:?}; scales belong to S8, and to S8 alone"));
            }
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(format!("{heads} query heads cannot share {kv_heads} key/value heads"));
        }
        let scale_dims = [slots, kv_heads, cache_len, 1];
        if let Some((of_new, of_cached)) = scales {
            for scale in of_new {
                expect("a scale of new keys or values", scale.dims(), &[rows, kv_heads, 1])?;
            }
            for scale in of_cached {
                expect("a scale of cached keys or values", scale.dims(), &scale_dims)?;
            }
        }
        let [_, fields] = dims(segments.dims(), "segments")?;
        expect("a segment", &[fields as i64], &[SEGMENT_FIELDS])?;
        let segments = Segments::parse(segments.as_slice()?, shape)?;

        let (expected, given) = (if scales.is_some() { 5 } else { 3 }, outputs.len());
        let count = || format!("the call has {given} results, expected {expected}");
        if given != expected {
            return Err(count());
        }
        let mut outputs = outputs.into_iter();
        let mut next = || outputs.next().ok_or_else(count);
        let out = next()?;
        expect("the result", out.dims(), &[rows, heads, head_dim])?;
        if out.element_type() != queries.element_type() {
            return Err(format!("queries of type {:?}, a result of {:?}", queries.element_type(), out.element_type()));
        }
        let [keys, values] = [updated("keys", cached_keys, next()?)?, updated("values", cached_values, next()?)?];
        let (mut new_scales, mut cached_scales) = (None, None);
        if let Some(([new_keys, new_values], [cached_keys, cached_values])) = scales {
            new_scales = Some([new_keys.as_slice()?, new_values.as_slice()?]);
            let keys = updated("keys' scales", cached_keys, next()?)?.as_mut_slice()?;
            cached_scales = Some([keys, updated("values' scales", cached_values, next()?)?.as_mut_slice()?]);
        }
        let new = NewKv {
            keys: weight_data(new_keys, "new keys")?,
            values: weight_data(new_values, "new values")?,
            scales: new_scales,
        };
        let (keys, values) = (cache_data(keys)?, cache_data(values)?);
        let mut cache = KvCacheMut { keys, values, scales: cached_scales };
        let (queries, out) = (activations(queries)?, output_rows(out)?);
        let context = ExecContext::whole();
        cache.append(context, new, &segments);
        attention(context, queries, cache.view(), &segments, out);
        Ok(())
    }
}

/// Returns the result that is an updated operand, after checking that it lies in the operand's
/// memory.
fn updated<'a>(what: &str, operand: &Operand<'_>, result: Output<'a>) -> Result<Output<'a>> {
    if (operand.element_type(), operand.dims()) != (result.element_type(), result.dims()) {
        return Err(format!(
            "cached {what} are {:?} {:?} and their update is {:?} {:?}; they must be alike",
            operand.element_type(),
            operand.dims(),
            result.element_type(),
            result.dims()
        ));
    }
    if operand.data_address() != result.data_address() {
        return Err(format!("the updated {what} are not aliased to the cached {what}"));
    }
    Ok(result)
}

/// Returns the dimensions, of which there must be `N`.
fn dims<const N: usize>(dims: &[i64], what: &str) -> Result<[usize; N]> {
    let sizes: Vec<usize> = dims.iter().map(|&d| d as usize).collect();
    sizes.try_into().map_err(|_| format!("{what} have dimensions {dims:?}, expected {N} of them"))
}

fn expect(what: &str, found: &[i64], expected: &[usize]) -> Result<()> {
    if found.len() == expected.len() && found.iter().zip(expected).all(|(&f, &e)| f == e as i64) {
        return Ok(());
    }
    Err(format!("{what} has dimensions {found:?}, expected {expected:?}"))
}

fn activations<'a>(x: &Operand<'a>) -> Result<Activations<'a>> {
    match x.element_type() {
        Some(ElementType::F32) => Ok(Activations::F32(x.as_slice()?)),
        Some(ElementType::BF16) => Ok(Activations::Bf16(x.as_slice()?)),
        other => Err(format!("activations of type {other:?}; they must be F32 or BF16")),
    }
}

fn weight_data<'a>(x: &Operand<'a>, what: &str) -> Result<WeightData<'a>> {
    match x.element_type() {
        Some(ElementType::F32) => Ok(WeightData::F32(x.as_slice()?)),
        Some(ElementType::BF16 | ElementType::U16) => Ok(WeightData::Bf16(x.as_slice()?)),
        Some(ElementType::F16) => Ok(WeightData::F16(x.as_slice()?)),
        Some(ElementType::S8) => Ok(WeightData::I8(x.as_slice()?)),
        other => Err(format!("{what} of type {other:?}; it must be F32, BF16, F16, S8, or U8 (weights in four bits)")),
    }
}

fn cache_data(x: Output<'_>) -> Result<CacheData<'_>> {
    match x.element_type() {
        Some(ElementType::F32) => Ok(CacheData::F32(x.as_mut_slice()?)),
        Some(ElementType::BF16 | ElementType::U16) => Ok(CacheData::Bf16(x.as_mut_slice()?)),
        Some(ElementType::F16) => Ok(CacheData::F16(x.as_mut_slice()?)),
        Some(ElementType::S8) => Ok(CacheData::I8(x.as_mut_slice()?)),
        other => Err(format!("a cache of type {other:?}; {CACHE_TYPES}")),
    }
}

/// Operands of a product with `N` weights.
struct ProductOperands<'a, const N: usize> {
    /// The real rows alone.
    x: Activations<'a>,
    /// Number of rows, padding among them.
    rows: usize,
    /// Number of real rows.
    count: usize,
    weights: [WeightMatrix<'a>; N],
}

/// Reads activations, the number of real rows, the weights, and the weights' scales or element
/// offsets, as [`Linear`] documents them.
fn product_operands<'a, const N: usize>(operands: &[Operand<'a>]) -> Result<ProductOperands<'a, N>> {
    let [x, count, rest @ ..] = operands else {
        return Err(format!("takes activations, a row count and {N} weights, not {} operands", operands.len()));
    };
    if rest.len() != N && rest.len() != 2 * N {
        return Err(format!(
            "takes activations, a row count, {N} weights and their scales, if any, not {} operands",
            operands.len()
        ));
    }
    let (weights, scales) = rest.split_at(N);
    let [rows, width] = dims(x.dims(), "activations")?;
    expect("the number of real rows", count.dims(), &[])?;
    let given = count.as_slice::<i32>()?[0];
    let count = usize::try_from(given).ok().filter(|&count| count <= rows);
    let count = count.ok_or_else(|| format!("{given} real rows of {rows}"))?;
    let mut matrices = Vec::with_capacity(N);
    for (i, weight) in weights.iter().enumerate() {
        let scale = scales.get(i);
        if let (&[len], Some(offset)) = (weight.dims(), scale) {
            matrices.push(unaligned_weight(weight, len as usize, offset, width)?);
            continue;
        }
        let [out, _] = dims(weight.dims(), "a weight")?;
        if weight.element_type() == Some(ElementType::U8) {
            let scale = scale.ok_or("a weight in four bits has no scale")?;
            if width % GROUP != 0 {
                return Err(format!("rows of {width} four-bit elements, which are no whole groups of {GROUP}"));
            }
            expect("a weight, two elements in a byte,", weight.dims(), &[out, width / 2])?;
            expect("its scale", scale.dims(), &[out, width / GROUP])?;
            if scale.element_type() != Some(ElementType::F16) {
                return Err(format!("a four-bit weight's scale of type {:?}; it must be F16", scale.element_type()));
            }
            let blocks = QuantBlocks { nibbles: weight.as_slice()?, scales: scale.as_slice()? };
            matrices.push(WeightMatrix::new(WeightData::I4(blocks), out, width));
            continue;
        }
        expect("a weight", weight.dims(), &[out, width])?;
        let matrix = WeightMatrix::new(weight_data(weight, "a weight")?, out, width);
        matrices.push(match scale {
            Some(scale) => {
                expect("a weight's scale", scale.dims(), &[out])?;
                matrix.scaled(scale.as_slice()?)
            }
            None => matrix,
        });
    }
    let weights = matrices.try_into().map_err(|_| "unreachable: N weights were pushed")?;
    Ok(ProductOperands { x: activations(x)?.slice(0..count * width), rows, count, weights })
}

/// Reads an unaligned weight: a matrix that begins `offset` elements into an array of `len`
/// elements, which has [`ALIGNMENT`] bytes more than the matrix.
fn unaligned_weight<'a>(
    weight: &Operand<'a>,
    len: usize,
    offset: &Operand<'_>,
    width: usize,
) -> Result<WeightMatrix<'a>> {
    let data = weight_data(weight, "an unaligned weight")?;
    let spare = ALIGNMENT / data.element_bytes();
    expect("an unaligned weight's element offset", offset.dims(), &[])?;
    let offset = offset.as_slice::<i32>()?[0];
    let size = len.saturating_sub(spare);
    if width == 0 || !size.is_multiple_of(width) || len < spare {
        return Err(format!(
            "an unaligned weight of {len} elements, {spare} of which are spare, has no rows of {width}"
        ));
    }
    if offset < 0 || offset as usize > len - size {
        return Err(format!("an unaligned weight of {size} from {offset} on, in an array of {len}"));
    }
    let offset = offset as usize;
    Ok(WeightMatrix::new(data.slice(offset..offset + size), size / width, width))
}

fn output_rows(out: Output<'_>) -> Result<OutputRows<'_>> {
    match out.element_type() {
        Some(ElementType::F32) => Ok(OutputRows::F32(out.as_mut_slice()?)),
        Some(ElementType::BF16) => Ok(OutputRows::Bf16(out.as_mut_slice()?)),
        other => Err(format!("a result of type {other:?}; it must be F32 or BF16")),
    }
}
