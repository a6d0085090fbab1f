//! The handlers that compiled programs call. `gemma::target` emits the calls.
//!
//! bf16 keys and values are passed as u16, see `Target::cache_dtype`.

use std::{collections::HashSet, path::PathBuf, sync::Mutex};

use super::{
    Machine,
    attention::{KvCache, Row, Shape, attention},
    integer::GROUP,
    linear::{Results, gate_up, linear, linear_max, linear_top},
    operands::{Activations, Elements, Groups, Matrix},
    rows::Rows,
};
use crate::pjrt::{
    Api, ElementType,
    ffi::{self, Frame, Handler, Operand, Output},
};

/// What the arrays of shifted weights have more than their matrices: `gemma::SHIFT_BYTES`.
const SHIFT_BYTES: usize = 64;

/// Makes all handlers known to a CPU plugin, once for each plugin.
pub fn register(api: &Api) -> crate::pjrt::Result<()> {
    static DONE: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let mut done = DONE.lock().expect("nothing panics while it is held");
    let done = done.get_or_insert_default();
    if !done.contains(api.path()) {
        ffi::register::<Linear>(api)?;
        ffi::register::<GateUp>(api)?;
        ffi::register::<LinearMax>(api)?;
        ffi::register::<LinearTop>(api)?;
        ffi::register::<Attention>(api)?;
        done.insert(api.path().to_owned());
    }
    Ok(())
}

type Result<T> = std::result::Result<T, String>;

/// `f32|bf16 [rows, in]` by a weight `[out, in]` to `f32|bf16 [rows, out]`.
///
/// As all products, after its activations it takes lengths `s32[batch]`: rows are `[batch, seq]`, and of each `seq` so many count.
/// Others are not computed; their results are zeros.
struct Linear;

impl Handler for Linear {
    const TARGET: &'static str = "gemma_pjrt.linear";

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [out]) = frame.arrays()?;
        let (x, rows, [weight]) = products(&operands)?;
        expect("the result", out.dims(), &[rows.all, weight.rows()])?;
        let out = results(out)?;
        rows.of(x, weight.width, |x| {
            rows.results(out, weight.rows(), |out| linear(Machine::whole(), x, weight, out));
        });
        Ok(())
    }
}

/// `f32|bf16 [rows, in]` by gate and up, weights `[out, in]` of one type, to `f32|bf16 [rows, out]`.
struct GateUp;

impl Handler for GateUp {
    const TARGET: &'static str = "gemma_pjrt.gate_up";

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [out]) = frame.arrays()?;
        let (x, rows, [gate, up]) = products(&operands)?;
        let of = |index: usize| (operands[index].element_type(), operands[index].dims());
        if of(2) != of(3) {
            return Err(format!("gate is {:?} and up is {:?}; they must be alike", of(2), of(3)));
        }
        expect("the result", out.dims(), &[rows.all, gate.rows()])?;
        let out = results(out)?;
        rows.of(x, gate.width, |x| {
            rows.results(out, gate.rows(), |out| gate_up(Machine::whole(), x, gate, up, out));
        });
        Ok(())
    }
}

/// `f32|bf16 [rows, in]` by a weight `[out, in]` to each row's largest product `f32[rows]` and its column `s32[rows]`.
struct LinearMax;

impl Handler for LinearMax {
    const TARGET: &'static str = "gemma_pjrt.linear_max";

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [values, columns]) = frame.arrays()?;
        let (x, rows, [weight]) = products(&operands)?;
        expect("the largest values", values.dims(), &[rows.all])?;
        expect("their columns", columns.dims(), &[rows.all])?;
        let (values, columns) = (values.as_mut_slice()?, columns.as_mut_slice()?);
        rows.of(x, weight.width, |x| {
            rows.put(values, 1, |values| {
                rows.put(columns, 1, |columns| linear_max(Machine::whole(), x, weight, values, columns));
            });
        });
        Ok(())
    }
}

/// `f32|bf16 [rows, in]` by a weight `[out, in]` to each row's largest products `f32[rows, most]`, from large to small, and
/// their columns `s32[rows, most]`.
struct LinearTop;

impl Handler for LinearTop {
    const TARGET: &'static str = "gemma_pjrt.linear_top";

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [values, columns]) = frame.arrays()?;
        let (x, rows, [weight]) = products(&operands)?;
        let [_, most] = dims(values.dims(), "the largest values")?;
        expect("the largest values", values.dims(), &[rows.all, most])?;
        expect("their columns", columns.dims(), &[rows.all, most])?;
        if most == 0 || most > weight.rows() {
            return Err(format!("the {most} largest of {} products", weight.rows()));
        }
        let (values, columns) = (values.as_mut_slice()?, columns.as_mut_slice()?);
        rows.of(x, weight.width, |x| {
            rows.put(values, most, |values| {
                rows.put(columns, most, |columns| linear_top(Machine::whole(), x, weight, most, values, columns));
            });
        });
        Ok(())
    }
}

/// Queries `[batch, seq, heads, head_dim]`, keys and values `[slots, kv_heads, cache_len, head_dim]`, positions
/// `s32[batch, seq]`, and of each row of the batch its length and its slot, `s32[batch]` each, to `[batch, seq, heads, head_dim]`.
/// In eight bits, keys' and values' scales `f32[slots, kv_heads, cache_len, 1]` follow.
struct Attention;

impl Handler for Attention {
    const TARGET: &'static str = "gemma_pjrt.attention";

    fn call(frame: Frame<'_>) -> Result<()> {
        let (operands, [out]) = frame.arrays()?;
        let [queries, keys, values, positions, lengths, row_slots, scales @ ..] = &operands[..] else {
            return Err(format!("takes 6 operands, and 2 scales if any, not {}", operands.len()));
        };
        let [batch, seq, heads, head_dim] = dims(queries.dims(), "queries")?;
        let [slots, kv_heads, cache_len, _] = dims(keys.dims(), "keys")?;
        let shape = Shape { batch, seq, heads, kv_heads, head_dim, slots, cache_len };
        for (what, found) in [("keys", keys.dims()), ("values", values.dims())] {
            expect(what, found, &[slots, kv_heads, cache_len, head_dim])?;
        }
        expect("positions", positions.dims(), &[batch, seq])?;
        expect("the rows' slots", row_slots.dims(), &[batch])?;
        expect("the result", out.dims(), &[batch, seq, heads, head_dim])?;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(format!("{heads} query heads cannot share {kv_heads} key/value heads"));
        }
        let positions = positions.as_slice::<i32>()?;
        expect("the rows' lengths", lengths.dims(), &[batch])?;
        let lengths = lengths.as_slice::<i32>()?;
        let rows = Rows::new(lengths, batch * seq)?;
        let row_slots = row_slots.as_slice::<i32>()?;
        if let Some(slot) = row_slots.iter().find(|&&slot| slot < 0 || slot as usize >= slots) {
            return Err(format!("slot {slot} of a cache with {slots}"));
        }
        if let Some(p) = positions.iter().find(|&&p| p < 0 || p as usize >= cache_len) {
            return Err(format!("position {p} in a cache of {cache_len} positions"));
        }
        for scale in scales {
            expect("a scale", scale.dims(), &[slots, kv_heads, cache_len, 1])?;
        }
        let scales = match scales {
            [] => None,
            [of_keys, of_values] => Some([of_keys.as_slice()?, of_values.as_slice()?]),
            others => return Err(format!("{} scales, expected those of keys and of values", others.len())),
        };
        let cache = KvCache { keys: elements(keys, "keys")?, values: elements(values, "values")?, scales };
        let queries = activations(queries)?;
        let mut results = results(out)?;
        match &mut results {
            Results::F32(out) => rows.clear_others(out, heads * head_dim),
            Results::Bf16(out) => rows.clear_others(out, heads * head_dim),
        }
        let row = |(&slot, &len): (&i32, &i32)| Row { slot: slot as usize, len: seq.min(len as usize) };
        let of_batch: Vec<Row> = row_slots.iter().zip(lengths).map(row).collect();
        attention(Machine::whole(), shape, queries, cache, positions, &of_batch, results);
        Ok(())
    }
}

/// The dimensions, which are expected to be this many.
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

fn elements<'a>(x: &Operand<'a>, what: &str) -> Result<Elements<'a>> {
    match x.element_type() {
        Some(ElementType::F32) => Ok(Elements::F32(x.as_slice()?)),
        Some(ElementType::BF16 | ElementType::U16) => Ok(Elements::Bf16(x.as_slice()?)),
        Some(ElementType::F16) => Ok(Elements::F16(x.as_slice()?)),
        Some(ElementType::S8) => Ok(Elements::I8(x.as_slice()?)),
        other => Err(format!("{what} of type {other:?}; it must be F32, BF16, F16, S8, or U8 (weights in four bits)")),
    }
}

/// Activations, which of their rows count, and the weights that they are multiplied by. Operands are the activations, the lengths
/// that tell the rows, the weights, and the weights' scales where they have them, or the indices of their first elements where they
/// are shifted.
fn products<'a, const N: usize>(operands: &[Operand<'a>]) -> Result<(Activations<'a>, Rows, [Matrix<'a>; N])> {
    let [x, lengths, rest @ ..] = operands else {
        return Err(format!("takes activations, lengths and {N} weights, not {} operands", operands.len()));
    };
    if rest.len() != N && rest.len() != 2 * N {
        return Err(format!(
            "takes activations, lengths, {N} weights and their scales, if any, not {} operands",
            operands.len()
        ));
    }
    let (weights, scales) = rest.split_at(N);
    let [rows, width] = dims(x.dims(), "activations")?;
    let mut matrices = Vec::with_capacity(N);
    for (i, weight) in weights.iter().enumerate() {
        let scale = scales.get(i);
        if let (&[len], Some(first)) = (weight.dims(), scale) {
            matrices.push(shifted(weight, len as usize, first, width)?);
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
            let groups = Groups { pairs: weight.as_slice()?, scales: scale.as_slice()? };
            matrices.push(Matrix::new(Elements::I4(groups), out, width));
            continue;
        }
        expect("a weight", weight.dims(), &[out, width])?;
        let matrix = Matrix::new(elements(weight, "a weight")?, out, width);
        matrices.push(match scale {
            Some(scale) => {
                expect("a weight's scale", scale.dims(), &[out])?;
                matrix.scaled(scale.as_slice()?)
            }
            None => matrix,
        });
    }
    let matrices = matrices.try_into().map_err(|_| "unreachable: N weights were pushed")?;
    Ok((activations(x)?, Rows::new(lengths.as_slice()?, rows)?, matrices))
}

/// A matrix in an array of `len` elements, which has [`SHIFT_BYTES`] more than the matrix: from the element on whose index is
/// `first`.
fn shifted<'a>(weight: &Operand<'a>, len: usize, first: &Operand<'_>, width: usize) -> Result<Matrix<'a>> {
    let elements = elements(weight, "a shifted weight")?;
    let spare = SHIFT_BYTES / elements.element_bytes();
    expect("a shifted weight's first index", first.dims(), &[])?;
    let first = first.as_slice::<i32>()?[0];
    let size = len.saturating_sub(spare);
    if width == 0 || !size.is_multiple_of(width) || len < spare {
        return Err(format!("a shifted weight of {len} elements, {spare} of which are spare, has no rows of {width}"));
    }
    if first < 0 || first as usize > len - size {
        return Err(format!("a shifted weight of {size} from {first} on, in an array of {len}"));
    }
    let first = first as usize;
    Ok(Matrix::new(elements.slice(first..first + size), size / width, width))
}

fn results(out: Output<'_>) -> Result<Results<'_>> {
    match out.element_type() {
        Some(ElementType::F32) => Ok(Results::F32(out.as_mut_slice()?)),
        Some(ElementType::BF16) => Ok(Results::Bf16(out.as_mut_slice()?)),
        other => Err(format!("a result of type {other:?}; it must be F32 or BF16")),
    }
}
