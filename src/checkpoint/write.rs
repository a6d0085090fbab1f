//! Writes safetensors files whose tensors are aligned for zero copy.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use super::CheckpointError;
use crate::{hlo::DType, whole_file::write_whole};

/// The alignment of tensors in bytes, which the CPU plugin needs to use them without a copy.
pub const ALIGNMENT: usize = 64;

/// Writes a safetensors file of these tensors (name, type, dims), in this order. `fill` writes the
/// bytes of the tensor of an index.
///
/// The format allows no gaps, so the header is padded with spaces to [`ALIGNMENT`] and tensors
/// follow each other; all of a model's tensors have sizes that keep the alignment. The file appears
/// under its name only when it is complete.
///
/// # Errors
/// The file cannot be written, or `fill` fails.
pub fn write_safetensors(
    path: &Path,
    tensors: &[(String, DType, Vec<i64>)],
    mut fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let mut header = BTreeMap::new();
    header.insert("__metadata__".to_owned(), serde_json::json!({"format": "pt"}));
    let mut offset = 0;
    for (name, dtype, dims) in tensors {
        let end = offset + dims.iter().product::<i64>() as usize * dtype.bits() / 8;
        let dtype = match dtype {
            DType::S8 => "I8".to_owned(),
            dtype => dtype.name().to_uppercase(),
        };
        header.insert(name.clone(), serde_json::json!({"dtype": dtype, "shape": dims, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut text = serde_json::to_vec(&header).expect("JSON of strings and numbers");
    while !(text.len() + size_of::<u64>()).is_multiple_of(ALIGNMENT) {
        text.push(b' ');
    }
    let written = write_whole(path, |out| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        (0..tensors.len()).try_for_each(|i| fill(i, out))
    });
    written.map_err(|cause| CheckpointError::Write { path: path.to_owned(), cause })
}
