//! Values from nothing: constants, counters, the device's number, tuples.

use crate::hlo::{DType, Graph, Literal, Op, Shape, Type, instruction::Attributes};

impl Graph {
    /// A scalar constant.
    #[track_caller]
    pub fn scalar(&self, dtype: DType, value: f64) -> Op<'_> {
        self.constant(Literal::scalar(dtype, value))
    }

    /// An s32 constant, `s32[]`.
    ///
    /// # Panics
    /// If the value does not fit s32.
    #[track_caller]
    pub fn s32(&self, value: i64) -> Op<'_> {
        self.constant(Literal::s32s([], &[i32::try_from(value).expect("a constant that fits s32")]))
    }

    /// An f32 constant, `f32[]`.
    #[track_caller]
    pub fn f32(&self, value: f64) -> Op<'_> {
        self.scalar(DType::F32, value)
    }

    /// An array that holds `value` everywhere.
    #[track_caller]
    pub fn full(&self, shape: &Shape, value: f64) -> Op<'_> {
        self.scalar(shape.dtype, value).broadcast_to(&shape.dims)
    }

    /// 0, 1, 2, ... along `dim`, the same along all other dimensions.
    #[track_caller]
    pub fn iota(&self, shape: Shape, dim: i64) -> Op<'_> {
        if dim < 0 || dim >= shape.rank() as i64 {
            return self.reject("iota", format!("there is no dimension {dim} in {shape}"), &[], shape);
        }
        self.push("iota", Type::Array(shape), &[], Attributes::Dimensions(vec![dim]))
    }

    /// This device's number among the replicas, `u32[]`.
    #[track_caller]
    pub fn replica_id(&self) -> Op<'_> {
        self.push("replica-id", Type::Array(Shape::scalar(DType::U32)), &[], Attributes::None)
    }

    /// A flat tuple.
    #[track_caller]
    pub fn tuple(&self, elements: &[Op<'_>]) -> Op<'_> {
        let shapes = elements.iter().map(|op| op.shape()).collect();
        self.push("tuple", Type::Tuple(shapes), elements, Attributes::None)
    }
}
