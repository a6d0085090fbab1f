//! A tensor of a checkpoint.

use std::{path::PathBuf, sync::Arc};

use crate::{hlo::DType, pjrt::HostBytes};

/// A tensor of a checkpoint. Its bytes are a range of a mapped file.
#[derive(Clone)]
pub struct Tensor {
    /// BF16, F16, F32, S8 or U8; or the safetensors name of a type that no model can use.
    pub dtype: Result<DType, String>,
    pub dims: Vec<i64>,
    pub bytes: HostBytes,
    /// The file that contains the tensor.
    pub file: Arc<PathBuf>,
}

impl Tensor {
    /// Returns whether type, shape and values are those of another tensor.
    pub fn is_same(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.dims == other.dims && self.bytes.bytes() == other.bytes.bytes()
    }
}
