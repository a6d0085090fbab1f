//! Quantised checkpoints: matrices in eight or four bits, with scales.
//!
//! Names and other tensors, such as norms, stay as they are. The scales of a matrix have its name
//! with `_scale` appended, and follow it in the file. Tensors are aligned as [`write_safetensors`]
//! does.
//!
//! **int8.** A matrix `W [out, in]` becomes `q` (safetensors type I8) and `s` (F32 `[out]`), so
//! that `W[i, j] ≈ q[i, j] · s[i]`: s is the row's largest magnitude over 127, and q is rounded to
//! the nearest.
//!
//! **int4.** `W [out, in]` becomes `q` (U8 `[out, in / 2]`) and `s` (F16 `[out, in / 32]`). Each 32
//! elements of a row are a block with a scale of its own: `W[i, 32 g + j] ≈ (n(j) - 8) · s[i, g]`,
//! where n(j) is the lower half of the block's byte j for the first 16 elements, and the upper half
//! of byte j - 16 for the others. The scale is the candidate with the least squared error.
//! Embedding and output layer are int8, and so is a matrix whose rows are not whole blocks.

use std::{io, num::NonZero, path::Path, thread};

use half::{bf16, f16};

use super::{Checkpoint, CheckpointError, OutputLayer, Tensor, write_safetensors};
use crate::{
    gemma::tensors::{EMBED_TOKENS_NAME, LM_HEAD_NAME, SCALE_SUFFIX},
    hlo::DType,
};

/// A quantisation of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    Int8,
    Int4,
}

/// Elements of a row that share a scale in four bits.
const GROUP: usize = 32;

impl Quantization {
    /// Returns how a tensor of this name and shape is quantised; `None` if it stays as it is.
    pub fn of(self, name: &str, dims: &[i64]) -> Option<Self> {
        let is_vocabulary = [EMBED_TOKENS_NAME, LM_HEAD_NAME].contains(&name);
        let &[rows, width] = dims else { return None };
        match self {
            _ if rows == 0 || width == 0 => None,
            Self::Int4 if width % GROUP as i64 == 0 && !is_vocabulary => Some(Self::Int4),
            _ => Some(Self::Int8),
        }
    }
}

/// A quantised matrix, as bytes of the file.
#[derive(Debug, PartialEq)]
pub struct Quantized {
    pub elements: Vec<u8>,
    pub scales: Vec<u8>,
}

/// Quantises a matrix, on all cores. `None` if it has an element that is not finite, or too large
/// for scales in f16.
///
/// # Panics
/// If the tensor is not a matrix of floats, or has no elements.
pub fn quantize(tensor: &Tensor, how: Quantization) -> Option<Quantized> {
    let dtype = *tensor.dtype.as_ref().expect("a float");
    let row_bytes = tensor.dims[1] as usize * dtype.bits() / 8;
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let part_bytes = (tensor.dims[0] as usize).div_ceil(threads).max(1) * row_bytes;
    let quantize_part = |bytes: &[u8]| {
        let mut part = Quantized { elements: Vec::new(), scales: Vec::new() };
        for row in bytes.chunks_exact(row_bytes) {
            let row = to_f32(row, dtype);
            let is_done = row.iter().all(|x| x.is_finite())
                && match how {
                    Quantization::Int8 => quantize_row(&row, &mut part),
                    Quantization::Int4 => row.as_chunks().0.iter().all(|group| quantize_group(group, &mut part)),
                };
            if !is_done {
                return None;
            }
        }
        Some(part)
    };
    let parts: Vec<Option<Quantized>> = thread::scope(|scope| {
        let parts = tensor.bytes.bytes().chunks(part_bytes).map(|part| scope.spawn(|| quantize_part(part)));
        let threads: Vec<_> = parts.collect();
        threads.into_iter().map(|thread| thread.join().expect("quantising does not panic")).collect()
    });
    let mut whole = Quantized { elements: Vec::new(), scales: Vec::new() };
    for part in parts {
        let part = part?;
        whole.elements.extend(part.elements);
        whole.scales.extend(part.scales);
    }
    Some(whole)
}

pub(super) fn to_f32(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        other => panic!("{other} is no float"),
    }
}

/// Quantises a row to eight bits.
fn quantize_row(row: &[f32], out: &mut Quantized) -> bool {
    let scale = row.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    out.elements.extend(row.iter().map(|x| (x * inverse).round_ties_even() as i8 as u8));
    out.scales.extend(scale.to_le_bytes());
    true
}

/// Quantises a block to four bits. False if its scale is too large for f16.
fn quantize_group(group: &[f32; GROUP], out: &mut Quantized) -> bool {
    // The element of the largest magnitude becomes about -8. The best of these values is found by
    // trial.
    const CANDIDATES: [f32; 9] = [-8.0, -8.8, -8.6, -8.4, -8.2, -7.8, -7.6, -7.4, -7.2];
    let largest = group.iter().fold(0.0_f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let mut best = (f32::INFINITY, f16::ZERO, [0.0; GROUP]);
    for candidate in CANDIDATES {
        let scale = f16::from_f32(largest / candidate);
        if !scale.is_finite() {
            return false;
        }
        let step = scale.to_f32();
        let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
        // Adding this constant rounds to even. A function call would take longer than the rest.
        const ROUND: f32 = 1.5 * (1 << 23) as f32;
        let quantized = group.map(|x| (x * inverse + ROUND - ROUND).clamp(-8.0, 7.0));
        let error = group.iter().zip(&quantized).map(|(x, n)| (x - n * step) * (x - n * step)).sum();
        if error < best.0 {
            best = (error, scale, quantized);
        }
    }
    let (_, scale, quantized) = best;
    let (low, high) = quantized.split_at(GROUP / 2);
    out.elements.extend(low.iter().zip(high).map(|(low, high)| (low + 8.0) as u8 | ((high + 8.0) as u8) << 4));
    out.scales.extend(scale.to_le_bytes());
    true
}

/// Writes the checkpoint to the file `path` with its matrices quantised, and without an output
/// layer that is the embedding a second time. `progress` gets the bytes read.
///
/// # Errors
/// A tensor is no float or not finite, or the file cannot be written.
pub fn write_quantized(
    checkpoint: &Checkpoint,
    how: Quantization,
    path: &Path,
    progress: impl Fn(u64),
) -> Result<(), CheckpointError> {
    let mut list = Vec::new();
    let mut sources = Vec::new();
    let is_tied = checkpoint.output_layer() == OutputLayer::Embedding;
    for (name, tensor) in checkpoint.tensors() {
        if is_tied && name == LM_HEAD_NAME {
            continue;
        }
        let dtype = match &tensor.dtype {
            Ok(dtype) if dtype.is_float() => *dtype,
            other => {
                let found = other.as_ref().map_or_else(Clone::clone, |dtype| dtype.name().to_owned());
                return Err(CheckpointError::NotQuantizable { tensor: name.clone(), found });
            }
        };
        let how = how.of(name, &tensor.dims);
        let (elements, scale) = match (how, &tensor.dims[..]) {
            (Some(Quantization::Int8), &[rows, _]) => {
                ((DType::S8, tensor.dims.clone()), Some((DType::F32, vec![rows])))
            }
            (Some(Quantization::Int4), &[rows, width]) => {
                ((DType::U8, vec![rows, width / 2]), Some((DType::F16, vec![rows, width / GROUP as i64])))
            }
            _ => ((dtype, tensor.dims.clone()), None),
        };
        list.push((name.clone(), elements.0, elements.1));
        sources.push(Some((tensor, how)));
        if let Some((dtype, dims)) = scale {
            list.push((format!("{name}{SCALE_SUFFIX}"), dtype, dims));
            sources.push(None);
        }
    }
    let mut scales = Vec::new();
    write_safetensors(path, &list, |i, out| {
        let Some((tensor, how)) = sources[i] else { return out.write_all(&std::mem::take(&mut scales)) };
        let bytes = tensor.bytes.bytes();
        let Some(how) = how else { return out.write_all(bytes) };
        let quantized = quantize(tensor, how).ok_or_else(|| {
            io::Error::other(format!("{} holds a number that is not finite, or far too large", list[i].0))
        })?;
        out.write_all(&quantized.elements)?;
        scales = quantized.scales;
        progress(bytes.len() as u64);
        Ok(())
    })
}
