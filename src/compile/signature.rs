//! From graphs to plugins: lowerings, element types and program signatures.

use crate::{
    gemma::Lowering,
    hlo::{DType, Module, Shape},
    pjrt::{ElementType, Signature, TensorType},
    plugins::Kind,
};

/// PJRT's number for an element type.
pub fn element_type(dtype: DType) -> ElementType {
    match dtype {
        DType::Pred => ElementType::Pred,
        DType::S4 => ElementType::S4,
        DType::S8 => ElementType::S8,
        DType::S32 => ElementType::S32,
        DType::S64 => ElementType::S64,
        DType::U8 => ElementType::U8,
        DType::U16 => ElementType::U16,
        DType::U32 => ElementType::U32,
        DType::U64 => ElementType::U64,
        DType::F16 => ElementType::F16,
        DType::F32 => ElementType::F32,
        DType::F64 => ElementType::F64,
        DType::BF16 => ElementType::BF16,
    }
}

/// PJRT's type of an array.
pub fn tensor_type(shape: &Shape) -> TensorType {
    TensorType::new(element_type(shape.dtype), shape.dims.clone())
}

/// The parameters and results of a module, for the checks before each execution.
pub fn signature(module: &Module) -> Signature {
    Signature {
        parameters: module.parameters().into_iter().map(|(name, shape)| (name, tensor_type(&shape))).collect(),
        outputs: module.outputs().iter().map(tensor_type).collect(),
        aliased: module.aliases().iter().map(|&(parameter, _)| parameter).collect(),
    }
}

/// The lowering of programs for a platform, with our kernels or without them.
pub fn lowering(kind: Kind, kernels: bool) -> Lowering {
    match kind {
        Kind::Cpu if kernels => Lowering::CPU,
        Kind::Cpu => Lowering::CPU_NATIVE,
        Kind::Tpu => Lowering::TPU,
        Kind::Cuda => Lowering::CUDA,
    }
}
