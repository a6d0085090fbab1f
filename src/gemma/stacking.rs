//! Where all layers' arrays are stacked: the programs that make the arrays, and that put a layer's weights in their place.
//! Devices lay arrays out as they like, so that the host cannot write a part of one.

use super::{
    Config, Target,
    weights::{StoredTypes, arguments},
};
use crate::hlo::{DType, Graph, HloError, Mesh, Module, Op, Shape};

/// A program without inputs that gives arrays of zeros.
pub fn zeros(name: &str, shapes: &[Shape]) -> Result<Module, HloError> {
    let graph = Graph::new(name);
    let zero = |shape: &Shape| graph.scalar(shape.dtype, 0.0).broadcast_to(&shape.dims);
    let arrays: Vec<Op<'_>> = shapes.iter().map(zero).collect();
    graph.finish(&arrays)
}

/// Shapes of a device's stacked weights, in the order of [`arguments`].
pub fn stacked(target: Target, config: &Config, mesh: Mesh, stored: &StoredTypes) -> Vec<(String, Shape)> {
    let all = arguments(target, config, stored).into_iter().filter(|argument| argument.is_stacked);
    let shape = |name: &str, dims: Vec<i64>| target.weight_shape(stored.of(name), &dims);
    all.map(|a| (a.name.clone(), shape(&a.tensors[0].name, a.local_dims(config, mesh)))).collect()
}

/// A program that puts one layer's tensors in their place.
///
/// Inputs: layer `s32[]`, the layer's part of each of the [`stacked`] arrays, then these, which the outputs reuse.
pub fn put_layer(target: Target, config: &Config, mesh: Mesh, stored: &StoredTypes) -> Result<Module, HloError> {
    let graph = Graph::new("put_layer");
    let stacked = stacked(target, config, mesh, stored);
    let layer = graph.parameter("layer", Shape::new(DType::S32, []));
    let part = |(name, shape): &(String, Shape)| {
        graph.parameter(&format!("layer.{name}"), Shape::new(shape.dtype, &shape.dims[1..]))
    };
    let parts: Vec<Op<'_>> = stacked.iter().map(part).collect();
    let arrays: Vec<Op<'_>> = stacked.iter().map(|(name, shape)| graph.parameter(name, shape.clone())).collect();
    let zero = graph.scalar(DType::S32, 0.0);
    let mut updated = Vec::new();
    for (part, array) in parts.into_iter().zip(&arrays) {
        let dims = part.shape().dims;
        let starts: Vec<Op<'_>> = std::iter::once(layer).chain(dims.iter().map(|_| zero)).collect();
        updated.push(array.dynamic_update_slice(part.reshape(&[&[1], &dims[..]].concat()), &starts));
    }
    for (output, &array) in arrays.iter().enumerate() {
        graph.alias(array, output);
    }
    graph.finish(&updated)
}
