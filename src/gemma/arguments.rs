//! The weights as programs take them: in which order, and each in which shape.

use super::{
    ModelSpec,
    storage::{parameters, unaligned_shape, weight_shape},
    tensors::{LAYERS_PREFIX, TensorKind, TensorSpec},
};
use crate::hlo::Shape;

/// A weight as programs take it: one tensor, or that of every layer, stacked.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    /// The tensor's name; of stacked ones without the number of the layer:
    /// `model.layers.mlp.up_proj.weight`.
    pub name: String,
    /// The tensor, or those to be stacked.
    pub tensors: Vec<TensorSpec>,
    /// Whether the layers are its first dimension.
    pub is_stacked: bool,
}

impl ModelSpec {
    /// All weights in the order in which programs take them: that of [`parameters`], with all
    /// layers' tensors in the place of the first layer's where they are stacked.
    pub fn arguments(&self) -> Vec<Argument> {
        let mut all: Vec<Argument> = Vec::new();
        for tensor in parameters(&self.config, &self.stored) {
            let Some(name) = tensor.name_in_layer().filter(|_| self.lowering.stacks_layers) else {
                all.push(Argument { name: tensor.name.clone(), tensors: vec![tensor], is_stacked: false });
                continue;
            };
            let name = format!("{LAYERS_PREFIX}{name}");
            match all.iter_mut().find(|argument| argument.name == name) {
                Some(argument) => argument.tensors.push(tensor),
                None => all.push(Argument { name, tensors: vec![tensor], is_stacked: true }),
            }
        }
        all
    }

    /// Shape in which programs take a device's shard of the argument.
    pub fn argument_shape(&self, argument: &Argument) -> Shape {
        let first = &argument.tensors[0];
        let layers = argument.is_stacked.then_some(argument.tensors.len() as i64);
        let dims: Vec<i64> = layers.into_iter().chain(first.local_dims(&self.config, self.mesh)).collect();
        self.shape_of(first, &dims)
    }

    /// Shape in which programs take a device's shard of one tensor that is not stacked, or one
    /// layer's part of a stacked one.
    pub fn tensor_shape(&self, tensor: &TensorSpec) -> Shape {
        self.shape_of(tensor, &tensor.local_dims(&self.config, self.mesh))
    }

    fn shape_of(&self, tensor: &TensorSpec, dims: &[i64]) -> Shape {
        let dtype = self.stored.of(tensor);
        if self.is_unaligned(tensor) { unaligned_shape(dtype, dims) } else { weight_shape(self.lowering, dtype, dims) }
    }

    /// Whether programs take the tensor inside a larger array, see
    /// [`StoredTypes::unaligned`](super::StoredTypes::unaligned).
    pub fn is_unaligned(&self, tensor: &TensorSpec) -> bool {
        self.stored.unaligned && tensor.kind == TensorKind::Matrix
    }
}
