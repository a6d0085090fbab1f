//! How weights are stored, and as what programs take them: element types, scales, stacked layers.

use std::collections::BTreeMap;

use super::{
    Config, ConfigError, Lowering,
    tensors::{EMBED_TOKENS_NAME, LAYERS_PREFIX, LM_HEAD_NAME, TensorKind, TensorSpec, tensors},
};
use crate::{
    hlo::{DType, Mesh, Shape},
    kernel_abi::{ALIGNMENT, GROUP},
};

/// Elements of a row that share a scale, in four bits.
const BLOCK: i64 = GROUP as i64;

/// Element type of each tensor as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTypes {
    pub matrices: DType,
    pub norms: DType,
    /// Tensors of another type, by name.
    pub exceptions: BTreeMap<String, DType>,
    /// Matrices lie at any address; they are not quantised then. XLA:CPU takes arrays at multiples
    /// of [`ALIGNMENT`] only, so a program takes an array that begins at the last such address
    /// before the matrix, and the index of the matrix's first element in it.
    pub unaligned: bool,
}

impl StoredTypes {
    /// All tensors of one type.
    pub fn uniform(dtype: DType) -> Self {
        Self { matrices: dtype, norms: dtype, exceptions: BTreeMap::new(), unaligned: false }
    }

    /// Matrices in eight bits with a scale for each row.
    pub fn int8(norms: DType) -> Self {
        Self { matrices: DType::S8, ..Self::uniform(norms) }
    }

    /// Matrices in four bits with a scale for each [`GROUP`] elements of a row; embedding and
    /// output layer in eight.
    pub fn int4(norms: DType) -> Self {
        let exceptions = [EMBED_TOKENS_NAME, LM_HEAD_NAME].map(|name| (name.to_owned(), DType::S8));
        Self { matrices: DType::S4, exceptions: exceptions.into(), ..Self::uniform(norms) }
    }

    /// Element type of a tensor. Scales of rows are f32, those of blocks f16.
    pub fn of(&self, tensor: &TensorSpec) -> DType {
        let usual = match tensor.kind {
            TensorKind::Matrix => self.matrices,
            TensorKind::Norm => self.norms,
            TensorKind::Scale => return if tensor.dims.len() == 2 { DType::F16 } else { DType::F32 },
        };
        self.exceptions.get(&tensor.name).copied().unwrap_or(usual)
    }

    /// The scale that follows a tensor, if it is quantised.
    fn scale_of(&self, tensor: &TensorSpec) -> Option<TensorSpec> {
        match self.of(tensor) {
            _ if tensor.kind != TensorKind::Matrix => None,
            DType::S8 => Some(tensor.scale(None)),
            DType::S4 => Some(tensor.scale(Some(BLOCK))),
            _ => None,
        }
    }

    /// Whether the tensor is a quantised matrix.
    pub fn is_quantised(&self, tensor: &TensorSpec) -> bool {
        self.scale_of(tensor).is_some()
    }

    /// Checks that four-bit rows are made of whole blocks on each device of the mesh, and that
    /// layers which are to be stacked have the same types.
    ///
    /// # Errors
    /// The first tensor that does not fit, and what to do.
    pub fn check(&self, lowering: Lowering, config: &Config, mesh: Mesh) -> Result<(), ConfigError> {
        let in_layer = self.exceptions.iter().find(|(name, _)| name.starts_with(LAYERS_PREFIX));
        if let Some((name, dtype)) = in_layer.filter(|_| lowering.stacks_layers) {
            let usual = if name.ends_with("norm.weight") { self.norms } else { self.matrices };
            return Err(ConfigError(format!(
                "{name} is stored as {dtype} and others of its kind as {usual}: on {} all layers are one array, which has one \
                 type. Write a checkpoint of one type (gemma-pjrt quantize MODEL --weights int8 --out DIR), or run this one \
                 with --platform cpu",
                lowering.name
            )));
        }
        for tensor in tensors(config) {
            if tensor.kind != TensorKind::Matrix || self.of(&tensor) != DType::S4 {
                continue;
            }
            if tensor.name == EMBED_TOKENS_NAME {
                let message = "is stored in four bits; the embedding has at least eight";
                return Err(ConfigError(format!("{EMBED_TOKENS_NAME} {message}")));
            }
            let width = tensor.local_dims(config, mesh)[1];
            if width % BLOCK != 0 {
                return Err(ConfigError(format!(
                    "{} has rows of {width} on each device of mesh {mesh}, and in four bits only whole groups of {GROUP} can be \
                     split. Use fewer devices, or --weights int8",
                    tensor.name
                )));
            }
        }
        Ok(())
    }
}

/// [`tensors`] as stored: a quantised matrix is followed by its scale.
pub fn parameters(config: &Config, stored: &StoredTypes) -> Vec<TensorSpec> {
    let with_scale = |tensor: TensorSpec| {
        let scale = stored.scale_of(&tensor);
        std::iter::once(tensor).chain(scale)
    };
    tensors(config).into_iter().flat_map(with_scale).collect()
}

/// Shape in which programs take a tensor of these dims: all but four-bit matrices `[out, in]` as
/// they are.
///
/// Where nibbles are packed, a byte is two elements, `u8[out, in / 2]`: of each group of 32, byte i
/// holds element i in its lower half and element i + 16 in its upper half, both plus 8. Elsewhere a
/// matrix is `s4[in / 32, 32, out]`: XLA:TPU converts and scales it inside the product that uses it
/// only if no reshape stands between, so groups and their elements are dimensions of the product.
pub fn weight_shape(lowering: Lowering, dtype: DType, dims: &[i64]) -> Shape {
    let [layers @ .., out, width] = dims else { return Shape::new(dtype, dims) };
    if dtype != DType::S4 {
        return Shape::new(dtype, dims);
    }
    if lowering.packs_nibbles {
        return Shape::new(DType::U8, [layers, &[*out, width / 2]].concat());
    }
    Shape::new(DType::S4, [layers, &[width / BLOCK, BLOCK, *out]].concat())
}

/// Shape in which programs take an unaligned matrix: with room for the elements before it, and for
/// as many after it as that leaves.
pub(super) fn unaligned_shape(dtype: DType, dims: &[i64]) -> Shape {
    Shape::new(dtype, [dims.iter().product::<i64>() + ALIGNMENT as i64 / (dtype.bits() as i64 / 8)])
}
