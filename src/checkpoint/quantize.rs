//! Quantised checkpoints: matrices in eight bits, with a scale for each row.
//!
//! A matrix `W [out, in]` becomes `q` (safetensors type I8, same name and shape) and `s` (F32 `[out]`, the name with `_scale`
//! appended), so that `W[i, j] ≈ q[i, j] · s[i]`: s is the row's largest magnitude over 127, and q is rounded to the nearest.
//! Norms stay as they are. Each scale follows its matrix in the file, and tensors are aligned as in any file of ours.

use std::{io, path::Path};

use half::{bf16, f16};

use super::{Checkpoint, CheckpointError, Tensor, write_safetensors};
use crate::hlo::DType;

/// Rows of a matrix, quantised: elements row by row, and a scale for each row. `None` if it holds a number that is not finite.
///
/// # Panics
/// If the tensor is no matrix of floats.
pub fn quantize_rows(tensor: &Tensor) -> Option<(Vec<i8>, Vec<f32>)> {
    let dtype = *tensor.dtype.as_ref().expect("a float");
    let width = tensor.dims[1] as usize;
    let row_bytes = width * dtype.bits() / 8;
    let mut elements = Vec::with_capacity(tensor.dims[0] as usize * width);
    let mut scales = Vec::with_capacity(tensor.dims[0] as usize);
    let mut row = Vec::with_capacity(width);
    for bytes in tensor.bytes.bytes().chunks_exact(row_bytes) {
        row.clear();
        match dtype {
            DType::F32 => row.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            DType::BF16 => row.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
            DType::F16 => row.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            other => panic!("{other} is no float"),
        }
        if !row.iter().all(|x| x.is_finite()) {
            return None;
        }
        let scale = row.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        elements.extend(row.iter().map(|x| (x * inverse).round_ties_even() as i8));
        scales.push(scale);
    }
    Some((elements, scales))
}

/// Writes the checkpoint to the file `path` with its matrices quantised. `progress` gets the bytes read.
pub fn write_quantized(checkpoint: &Checkpoint, path: &Path, progress: impl Fn(u64)) -> Result<(), CheckpointError> {
    let mut list = Vec::new();
    let mut sources = Vec::new();
    for (name, tensor) in checkpoint.tensors() {
        let dtype = match &tensor.dtype {
            Ok(dtype) if dtype.is_float() => *dtype,
            other => {
                let found = other.as_ref().map_or_else(Clone::clone, |dtype| dtype.name().to_owned());
                return Err(CheckpointError::NotQuantizable { tensor: name.clone(), found });
            }
        };
        if tensor.dims.len() == 2 {
            list.push((name.clone(), DType::S8, tensor.dims.clone()));
            list.push((format!("{name}_scale"), DType::F32, vec![tensor.dims[0]]));
            sources.extend([tensor, tensor]);
        } else {
            list.push((name.clone(), dtype, tensor.dims.clone()));
            sources.push(tensor);
        }
    }
    let mut scales = Vec::new();
    write_safetensors(path, &list, |i, out| {
        let tensor = sources[i];
        match list[i].1 {
            DType::S8 => {
                let quantised = quantize_rows(tensor);
                let (elements, of_rows) = quantised
                    .ok_or_else(|| io::Error::other(format!("{} holds a number that is not finite", list[i].0)))?;
                scales = of_rows;
                out.write_all(bytemuck::cast_slice(&elements))?;
                progress(tensor.bytes.bytes().len() as u64);
            }
            _ if tensor.dims.len() == 2 => out.write_all(bytemuck::cast_slice(&scales))?,
            _ => out.write_all(tensor.bytes.bytes())?,
        }
        Ok(())
    })
}
