//! Array shapes with layouts, and the tuples that loops and entry computations return.

use std::fmt;

use super::DType;

/// Element type, dimensions and layout of an array. Always row-major unless made otherwise: plugins
/// abort on a program without layouts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    pub dtype: DType,
    pub dims: Vec<i64>,
    /// Dimensions from the fastest varying to the slowest.
    pub minor_to_major: Vec<i64>,
}

impl Shape {
    /// A row-major array.
    pub fn new(dtype: DType, dims: impl Into<Vec<i64>>) -> Self {
        let dims = dims.into();
        let minor_to_major = (0..dims.len() as i64).rev().collect();
        Self { dtype, dims, minor_to_major }
    }

    /// A scalar.
    pub fn scalar(dtype: DType) -> Self {
        Self::new(dtype, [])
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> i64 {
        self.dims.iter().product()
    }

    /// Size in bytes, dense.
    pub fn bytes(&self) -> i64 {
        (self.elements() * self.dtype.bits() as i64 + 7) / 8
    }

    /// The same dims with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// HLO text without the layout: `f32[2,3]`.
    pub fn text(&self) -> String {
        format!("{}[{}]", self.dtype, join(&self.dims))
    }
}

/// HLO text with the layout: `f32[2,3]{1,0}`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())?;
        if self.rank() > 0 {
            write!(f, "{{{}}}", join(&self.minor_to_major))?;
        }
        Ok(())
    }
}

/// The type of a value: an array, or a flat tuple of arrays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Array(Shape),
    Tuple(Vec<Shape>),
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Array(shape) => shape.fmt(f),
            Self::Tuple(shapes) => {
                let shapes: Vec<String> = shapes.iter().map(ToString::to_string).collect();
                write!(f, "({})", shapes.join(", "))
            }
        }
    }
}

/// `1,2,3`.
fn join(numbers: &[i64]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
