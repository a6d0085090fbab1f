//! The handlers that compiled programs call. `gemma::target` emits the calls.
//!
//! bf16 keys and values are passed as u16, see `Target::cache_dtype`.

use std::{collections::HashSet, path::PathBuf, sync::Mutex};

use super::{
    Machine,
    attention::{KvCache, Shape, attention},
    linear::{Results, gate_up, linear, linear_max},
    matmul::{Activations, Elements, Matrix},
};
use crate::pjrt::{
    Api, ElementType,
    ffi::{self, Frame, Handler, Operand, Output},
};

/// Makes all handlers known to a CPU plugin, once for each plugin.
pub fn register(api: &Api) -> crate::pjrt::Result<()> {
    static DONE: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let mut done = DONE.lock().expect("nothing panics while it is held");
    if done.get_or_insert_default().insert(api.path().to_owned()) {
        ffi::register::<Linear>(api)?;
        ffi::register::<GateUp>(api)?;
        ffi::register::<LinearMax>(api)?;
        ffi::register::<Attention>(api)?;
    }
    Ok(())
}

type Result<T> = std::result::Result<T, String>;

/// `f32|bf16 [rows, in]` by `[out, in]` to `f32|bf16 [rows, out]`.
struct Linear;

impl Handler for Linear {
    const TARGET: &'static str = "gemma_pjrt.linear";

    fn call(frame: Frame<'_>) -> Result<()> {
        let ([x, weight], [out]) = frame.arrays()?;
        let [rows, width] = dims(x.dims(), "activations")?;
        let weight = matrix(&weight, width, "weight")?;
        expect("the result", out.dims(), &[rows, weight.rows()])?;
        linear(Machine::whole(), activations(&x)?, weight, results(out)?);
        Ok(())
    }
}

/// `f32|bf16 [rows, in]` by gate and up, `[out, in]` each, to `f32|bf16 [rows, out]`.
struct GateUp;

impl Handler for GateUp {
    const TARGET: &'static str = "gemma_pjrt.gate_up";

    fn call(frame: Frame<'_>) -> Result<()> {
        let ([x, gate, up], [out]) = frame.arrays()?;
        let [rows, width] = dims(x.dims(), "activations")?;
        if gate.dims() != up.dims() || gate.element_type() != up.element_type() {
            return Err(format!(
                "gate is {:?} {:?} and up is {:?} {:?}; they must be alike",
                gate.element_type(),
                gate.dims(),
                up.element_type(),
                up.dims()
            ));
        }
        let (gate, up) = (matrix(&gate, width, "gate")?, matrix(&up, width, "up")?);
        expect("the result", out.dims(), &[rows, gate.rows()])?;
        gate_up(Machine::whole(), activations(&x)?, gate, up, results(out)?);
        Ok(())
    }
}

/// `f32|bf16 [rows, in]` by `[out, in]` to each row's largest product `f32[rows]` and its column `s32[rows]`.
struct LinearMax;

impl Handler for LinearMax {
    const TARGET: &'static str = "gemma_pjrt.linear_max";

    fn call(frame: Frame<'_>) -> Result<()> {
        let ([x, weight], [values, columns]) = frame.arrays()?;
        let [rows, width] = dims(x.dims(), "activations")?;
        let weight = matrix(&weight, width, "weight")?;
        expect("the largest values", values.dims(), &[rows])?;
        expect("their columns", columns.dims(), &[rows])?;
        let (values, columns) = (values.as_mut_slice()?, columns.as_mut_slice()?);
        linear_max(Machine::whole(), activations(&x)?, weight, values, columns);
        Ok(())
    }
}

/// Queries `[batch, seq, heads, head_dim]`, keys and values `[slots, kv_heads, cache_len, head_dim]`, positions
/// `s32[batch, seq]` and the slot of the batch's first row `s32[]` to `[batch, seq, heads, head_dim]`.
struct Attention;

impl Handler for Attention {
    const TARGET: &'static str = "gemma_pjrt.attention";

    fn call(frame: Frame<'_>) -> Result<()> {
        let ([queries, keys, values, positions, slot], [out]) = frame.arrays()?;
        let [batch, seq, heads, head_dim] = dims(queries.dims(), "queries")?;
        let [slots, kv_heads, cache_len, _] = dims(keys.dims(), "keys")?;
        let shape = Shape { batch, seq, heads, kv_heads, head_dim, slots, cache_len };
        for (what, found) in [("keys", keys.dims()), ("values", values.dims())] {
            expect(what, found, &[slots, kv_heads, cache_len, head_dim])?;
        }
        expect("positions", positions.dims(), &[batch, seq])?;
        expect("the slot", slot.dims(), &[])?;
        expect("the result", out.dims(), &[batch, seq, heads, head_dim])?;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(format!("{heads} query heads cannot share {kv_heads} key/value heads"));
        }
        let positions = positions.as_slice::<i32>()?;
        let slot = slot.as_slice::<i32>()?[0];
        if slot < 0 || slot as usize + batch > slots {
            return Err(format!("slots {slot} to {} of a cache with {slots}", slot as usize + batch - 1));
        }
        if let Some(p) = positions.iter().find(|&&p| p < 0 || p as usize >= cache_len) {
            return Err(format!("position {p} in a cache of {cache_len} positions"));
        }
        let cache = KvCache { keys: elements(&keys, "keys")?, values: elements(&values, "values")? };
        let queries = activations(&queries)?;
        attention(Machine::whole(), shape, queries, cache, positions, slot as usize, results(out)?);
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
        other => Err(format!("{what} of type {other:?}; it must be F32, BF16 or F16")),
    }
}

/// A weight whose rows are `width` long.
fn matrix<'a>(x: &Operand<'a>, width: usize, what: &str) -> Result<Matrix<'a>> {
    let [rows, found] = dims(x.dims(), what)?;
    expect(what, x.dims(), &[rows, width])?;
    Ok(Matrix::new(elements(x, what)?, rows, found))
}

fn results(out: Output<'_>) -> Result<Results<'_>> {
    match out.element_type() {
        Some(ElementType::F32) => Ok(Results::F32(out.as_mut_slice()?)),
        Some(ElementType::BF16) => Ok(Results::Bf16(out.as_mut_slice()?)),
        other => Err(format!("a result of type {other:?}; it must be F32 or BF16")),
    }
}
