//! Programs that make arrays on accelerators, where all layers' arrays are stacked: devices lay
//! arrays out as they like, so that the host cannot write a part of one.

use super::ModelSpec;
use crate::hlo::{DType, Graph, HloError, Module, Op, Shape};

/// A program without inputs that gives arrays of zeros.
///
/// # Errors
/// A defect of this crate.
pub fn zeros(name: &str, shapes: &[Shape]) -> Result<Module, HloError> {
    let graph = Graph::new(name);
    let arrays: Vec<Op<'_>> = shapes.iter().map(|shape| graph.full(shape, 0.0)).collect();
    graph.finish(&arrays)
}

impl ModelSpec {
    /// Names and shapes of a device's stacked weights, in the order of [`Self::arguments`].
    pub fn stacked_weights(&self) -> Vec<(String, Shape)> {
        let stacked = self.arguments().into_iter().filter(|argument| argument.is_stacked);
        stacked.map(|argument| (argument.name.clone(), self.argument_shape(&argument))).collect()
    }

    /// A program that puts one layer's tensors in their place in the stacked arrays.
    ///
    /// Inputs: layer `s32[]`, the layer's part of each of [`Self::stacked_weights`], then these,
    /// which the outputs reuse.
    ///
    /// # Errors
    /// A defect of this crate.
    pub fn put_layer(&self) -> Result<Module, HloError> {
        let graph = Graph::new("put_layer");
        let stacked = self.stacked_weights();
        let layer = graph.parameter("layer", Shape::new(DType::S32, []));
        let part = |(name, shape): &(String, Shape)| {
            graph.parameter(&format!("layer.{name}"), Shape::new(shape.dtype, &shape.dims[1..]))
        };
        let parts: Vec<Op<'_>> = stacked.iter().map(part).collect();
        let arrays: Vec<Op<'_>> = stacked.iter().map(|(name, shape)| graph.parameter(name, shape.clone())).collect();
        let mut updated = Vec::new();
        for (output, (part, &array)) in parts.into_iter().zip(&arrays).enumerate() {
            let dims = part.shape().dims;
            updated.push(array.dynamic_update_row(part.reshape(&[&[1], &dims[..]].concat()), layer));
            graph.alias(array, output);
        }
        graph.finish(&updated)
    }
}
