//! The type of an array: element type and dimensions.

use std::fmt;

use super::element_type::ElementType;

/// The element type and dimensions of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    pub element_type: ElementType,
    pub dims: Vec<i64>,
}

impl TensorType {
    /// Returns the type of arrays of this element type and these dimensions.
    pub fn new(element_type: ElementType, dims: impl Into<Vec<i64>>) -> Self {
        Self { element_type, dims: dims.into() }
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product::<i64>() as usize
    }

    /// Returns the size in host memory, row-major and dense, in bytes.
    pub fn host_bytes(&self) -> usize {
        self.elements() * self.element_type.host_bits() / 8
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(ToString::to_string).collect();
        write!(f, "{}[{}]", format!("{:?}", self.element_type).to_lowercase(), dims.join(","))
    }
}
