//! Constant arrays.

use half::{bf16, f16};

use super::{DType, Shape};

/// A constant array: a shape, and its elements in host byte order, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Literal {
    pub shape: Shape,
    pub bytes: Vec<u8>,
}

impl Literal {
    /// A scalar of type `dtype` with the value nearest to `value`.
    pub fn scalar(dtype: DType, value: f64) -> Self {
        let bytes = match dtype {
            DType::Pred => vec![u8::from(value != 0.0)],
            DType::S4 | DType::S8 => (value as i8).to_ne_bytes().to_vec(),
            DType::U8 => (value as u8).to_ne_bytes().to_vec(),
            DType::U16 => (value as u16).to_ne_bytes().to_vec(),
            DType::S32 => (value as i32).to_ne_bytes().to_vec(),
            DType::U32 => (value as u32).to_ne_bytes().to_vec(),
            DType::S64 => (value as i64).to_ne_bytes().to_vec(),
            DType::U64 => (value as u64).to_ne_bytes().to_vec(),
            DType::F16 => f16::from_f64(value).to_ne_bytes().to_vec(),
            DType::BF16 => bf16::from_f64(value).to_ne_bytes().to_vec(),
            DType::F32 => (value as f32).to_ne_bytes().to_vec(),
            DType::F64 => value.to_ne_bytes().to_vec(),
        };
        Self { shape: Shape::scalar(dtype), bytes }
    }

    /// An f32 array, row-major.
    pub fn f32s(dims: impl Into<Vec<i64>>, values: &[f32]) -> Self {
        Self { shape: Shape::new(DType::F32, dims), bytes: bytemuck::cast_slice(values).to_vec() }
    }

    /// An s32 array, row-major.
    pub fn s32s(dims: impl Into<Vec<i64>>, values: &[i32]) -> Self {
        Self { shape: Shape::new(DType::S32, dims), bytes: bytemuck::cast_slice(values).to_vec() }
    }

    /// The elements as numbers of type `T`.
    pub(super) fn numbers<T: bytemuck::AnyBitPattern>(&self) -> Vec<T> {
        self.bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
}
