//! Recognises weights that other programs quantised.

use std::collections::BTreeMap;

use super::Tensor;
use crate::hlo::DType;

/// Names the format of weights that another program quantised, by their names and types, and one of
/// them. `None` if there are none.
pub(super) fn format_of_others(tensors: &BTreeMap<String, Tensor>) -> Option<(&'static str, &str)> {
    let with_ending = |endings: &[&str]| {
        let mut names = tensors.keys().map(String::as_str);
        names.find(|name| endings.iter().any(|ending| name.ends_with(ending)))
    };
    let of_type = |start: &str| {
        let is_one = |tensor: &Tensor| tensor.dtype.as_ref().is_err_and(|name| name.starts_with(start));
        tensors.iter().find(|(_, tensor)| is_one(tensor)).map(|(name, _)| name.as_str())
    };
    if let Some(name) =
        with_ending(&[".absmax", ".SCB", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"])
    {
        Some(("bitsandbytes", name))
    } else if let Some(name) = with_ending(&[".qweight"]) {
        // Both pack columns of four bits into 32; only GPTQ may reorder them.
        Some((if with_ending(&[".g_idx"]).is_some() { "GPTQ" } else { "AWQ or GPTQ" }, name))
    } else if let Some(name) = with_ending(&[".weight_packed"]) {
        Some(("compressed-tensors", name))
    } else if let Some(name) = of_type("F8_") {
        Some(("FP8", name))
    } else if let Some(name) = of_type("U32").filter(|_| with_ending(&[".biases"]).is_some()) {
        Some(("MLX", name))
    } else {
        // Our scales of eight-bit rows have one dimension.
        let has_columns = |(name, tensor): &(&String, &Tensor)| {
            let scale = tensors.get(&format!("{name}_scale"));
            tensor.dtype == Ok(DType::S8) && scale.is_some_and(|scale| scale.dims.len() == 2)
        };
        tensors.iter().find(has_columns).map(|(name, _)| ("compressed-tensors", name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use super::*;
    use crate::pjrt::{HostBytes, HostMemory};

    fn tensors(list: &[(&str, Result<DType, String>, &[i64])]) -> BTreeMap<String, Tensor> {
        static NONE: [u8; 0] = [];
        let bytes = || HostBytes::new(Arc::new(HostMemory::Static(&NONE)), 0..0);
        let tensor = |dtype: &Result<DType, String>, dims: &[i64]| Tensor {
            dtype: dtype.clone(),
            dims: dims.to_vec(),
            bytes: bytes(),
            file: Arc::new(PathBuf::new()),
        };
        list.iter().map(|(name, dtype, dims)| ((*name).to_owned(), tensor(dtype, dims))).collect()
    }

    #[test]
    fn formats_are_known_by_names_and_types() {
        let other = |name: &str| Err(name.to_owned());
        let u8s = || Ok(DType::U8);
        let bf16 = || Ok(DType::BF16);
        for (format, list) in [
            (Some("bitsandbytes"), vec![("q.weight", u8s(), &[64, 1][..]), ("q.weight.absmax", u8s(), &[8])]),
            (
                Some("bitsandbytes"),
                vec![("q.weight", u8s(), &[64, 1]), ("q.weight.quant_state.bitsandbytes__nf4", u8s(), &[90])],
            ),
            (Some("bitsandbytes"), vec![("q.weight", Ok(DType::S8), &[64, 64]), ("q.SCB", Ok(DType::F32), &[64])]),
            (
                Some("GPTQ"),
                vec![
                    ("q.qweight", other("I32"), &[8, 64]),
                    ("q.g_idx", other("I32"), &[64]),
                    ("q.scales", bf16(), &[1]),
                ],
            ),
            (Some("AWQ or GPTQ"), vec![("q.qweight", other("I32"), &[64, 8]), ("q.qzeros", other("I32"), &[1, 8])]),
            (Some("compressed-tensors"), vec![("q.weight_packed", other("I32"), &[64, 8])]),
            (
                Some("compressed-tensors"),
                vec![("q.weight", Ok(DType::S8), &[4, 4]), ("q.weight_scale", bf16(), &[4, 1])],
            ),
            (Some("FP8"), vec![("q.weight", other("F8_E4M3"), &[4, 4]), ("q.weight_scale", bf16(), &[])]),
            (Some("MLX"), vec![("q.biases", bf16(), &[4, 1]), ("q.weight", other("U32"), &[4, 1])]),
            (None, vec![("q.weight", Ok(DType::S8), &[4, 4]), ("q.weight_scale", Ok(DType::F32), &[4])]),
            (None, vec![("q.weight", u8s(), &[4, 32]), ("q.weight_scale", Ok(DType::F16), &[4, 2])]),
            (None, vec![("q.weight", bf16(), &[4, 4]), ("q.input_scale", Ok(DType::F32), &[])]),
        ] {
            let list = tensors(&list);
            assert_eq!(format_of_others(&list).map(|(format, _)| format), format, "{:?}", list.keys());
        }
    }
}
