//! Elementwise ops, with numpy's broadcasting written out, and the operators.

use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::hlo::{Comparison, DType, Op, Shape, Type, instruction::Attributes};

/// Dims of an elementwise result: right-aligned, dimensions of size 1 stretch (the rules of numpy).
pub(super) fn broadcast_dims(a: &[i64], b: &[i64]) -> Option<Vec<i64>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[i64], i: usize| if i + dims.len() < rank { 1 } else { dims[i + dims.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// What element types an op takes.
#[derive(Clone, Copy)]
enum Takes {
    Any,
    Floats,
    Integers,
    /// Integers and pred.
    Bits,
}

impl Takes {
    fn allows(self, dtype: DType) -> bool {
        match self {
            Self::Any => true,
            Self::Floats => dtype.is_float(),
            Self::Integers => dtype.is_integer(),
            Self::Bits => !dtype.is_float(),
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Floats => "floating-point",
            Self::Integers => "integer",
            Self::Bits => "integer or pred",
        }
    }
}

macro_rules! unary_ops {
    ($($(#[$doc:meta])* $name:ident = $opcode:literal, $takes:ident;)*) => {
        $($(#[$doc])* #[track_caller] pub fn $name(self) -> Self { self.unary($opcode, Takes::$takes) })*
    };
}
macro_rules! binary_ops {
    ($($(#[$doc:meta])* $name:ident = $opcode:literal, $takes:ident;)*) => {
        $($(#[$doc])* #[track_caller]
        pub fn $name(self, other: Self) -> Self { self.binary($opcode, other, Takes::$takes) })*
    };
}

#[expect(clippy::should_implement_trait, reason = "the operators are implemented through these methods")]
impl<'g> Op<'g> {
    unary_ops! {
        neg = "negate", Any;
        abs = "abs", Any;
        exp = "exponential", Floats;
        log = "log", Floats;
        tanh = "tanh", Floats;
        sqrt = "sqrt", Floats;
        /// 1 / sqrt(x).
        rsqrt = "rsqrt", Floats;
        cos = "cosine", Floats;
        sin = "sine", Floats;
        floor = "floor", Floats;
        /// Bitwise, or logical for pred.
        not = "not", Bits;
    }
    binary_ops! {
        add = "add", Any;
        sub = "subtract", Any;
        mul = "multiply", Any;
        div = "divide", Any;
        /// The remainder; its sign is the dividend's.
        rem = "remainder", Any;
        pow = "power", Any;
        max = "maximum", Any;
        min = "minimum", Any;
        and = "and", Bits;
        or = "or", Bits;
        xor = "xor", Bits;
        shift_left = "shift-left", Integers;
        shift_right_logical = "shift-right-logical", Integers;
        shift_right_arithmetic = "shift-right-arithmetic", Integers;
    }

    #[track_caller]
    fn unary(self, opcode: &'static str, takes: Takes) -> Self {
        let shape = self.shape();
        if !takes.allows(shape.dtype) {
            return self.graph.reject(opcode, format!("takes {} elements", takes.describe()), &[self], shape);
        }
        self.graph.push(opcode, Type::Array(shape), &[self], Attributes::None)
    }

    /// Elementwise, with numpy's broadcasting written out.
    #[track_caller]
    fn binary(self, opcode: &'static str, other: Self, takes: Takes) -> Self {
        let (a, b) = (self.shape(), other.shape());
        if a.dtype != b.dtype {
            return self.graph.reject(opcode, "the element types differ".into(), &[self, other], a);
        }
        if !takes.allows(a.dtype) {
            let message = format!("takes {} elements", takes.describe());
            return self.graph.reject(opcode, message, &[self, other], a);
        }
        let Some(dims) = broadcast_dims(&a.dims, &b.dims) else {
            return self.graph.reject(opcode, "the dims do not broadcast".into(), &[self, other], a);
        };
        let (x, y) = (self.broadcast_to(&dims), other.broadcast_to(&dims));
        self.graph.push(opcode, Type::Array(Shape::new(a.dtype, dims)), &[x, y], Attributes::None)
    }

    /// The same with a scalar of this element type; integers are exact up to 2^53.
    #[track_caller]
    fn binary_scalar(self, opcode: &'static str, value: f64, takes: Takes) -> Self {
        let constant = self.graph.scalar(self.shape().dtype, value);
        self.binary(opcode, constant, takes)
    }

    /// pred: how the elements compare. NaN compares unequal to everything.
    #[track_caller]
    pub fn compare(self, direction: Comparison, other: Self) -> Self {
        let (a, b) = (self.shape(), other.shape());
        let dims = if a.dtype == b.dtype { broadcast_dims(&a.dims, &b.dims) } else { None };
        let Some(dims) = dims else {
            let message = "the element types differ or the dims do not broadcast".into();
            return self.graph.reject("compare", message, &[self, other], a.with_dtype(DType::Pred));
        };
        let operands = [self.broadcast_to(&dims), other.broadcast_to(&dims)];
        let ty = Type::Array(Shape::new(DType::Pred, dims));
        self.graph.push("compare", ty, &operands, Attributes::Compare(direction))
    }

    /// pred: equal elements.
    #[track_caller]
    pub fn eq(self, other: Self) -> Self {
        self.compare(Comparison::Eq, other)
    }

    /// pred: elements less than the other's.
    #[track_caller]
    pub fn lt(self, other: Self) -> Self {
        self.compare(Comparison::Lt, other)
    }

    /// pred: elements less than or equal to the other's.
    #[track_caller]
    pub fn le(self, other: Self) -> Self {
        self.compare(Comparison::Le, other)
    }

    /// pred: elements greater than the other's.
    #[track_caller]
    pub fn gt(self, other: Self) -> Self {
        self.compare(Comparison::Gt, other)
    }

    /// pred: elements greater than or equal to the other's.
    #[track_caller]
    pub fn ge(self, other: Self) -> Self {
        self.compare(Comparison::Ge, other)
    }

    /// `on_true` where this pred holds, else `on_false`; all three broadcast.
    #[track_caller]
    pub fn select(self, on_true: Self, on_false: Self) -> Self {
        let (p, a, b) = (self.shape(), on_true.shape(), on_false.shape());
        let dims = broadcast_dims(&a.dims, &b.dims).and_then(|dims| broadcast_dims(&p.dims, &dims));
        let (Some(dims), DType::Pred, true) = (dims, p.dtype, a.dtype == b.dtype) else {
            let message = "takes a pred and two arrays of one element type whose dims broadcast".into();
            return self.graph.reject("select", message, &[self, on_true, on_false], a);
        };
        let operands = [self.broadcast_to(&dims), on_true.broadcast_to(&dims), on_false.broadcast_to(&dims)];
        self.graph.push("select", Type::Array(Shape::new(a.dtype, dims)), &operands, Attributes::None)
    }

    /// Each element forced into `low..=high`; the bounds broadcast to the operand's shape. They are
    /// written out although HLO takes scalars: XLA's ReshapeMover aborts on a clamp of a reshaped
    /// operand by scalars (CPU 0.106).
    #[track_caller]
    pub fn clamp(self, low: Self, high: Self) -> Self {
        let shape = self.shape();
        let fits = |bound: Shape| {
            bound.dtype == shape.dtype && broadcast_dims(&bound.dims, &shape.dims).as_ref() == Some(&shape.dims)
        };
        if !fits(low.shape()) || !fits(high.shape()) {
            let message = "the bounds must be of the operand's element type and broadcast to its dims".into();
            return self.graph.reject("clamp", message, &[low, self, high], shape);
        }
        let operands = [low.broadcast_to(&shape.dims), self, high.broadcast_to(&shape.dims)];
        self.graph.push("clamp", Type::Array(shape), &operands, Attributes::None)
    }

    /// Converts the numbers. A no-op if they have this type already.
    #[track_caller]
    pub fn convert(self, dtype: DType) -> Self {
        let shape = self.shape();
        if shape.dtype == dtype {
            return self;
        }
        self.graph.push("convert", Type::Array(shape.with_dtype(dtype)), &[self], Attributes::None)
    }

    /// Reads the same bits as another type of the same width.
    #[track_caller]
    pub fn bitcast_convert(self, dtype: DType) -> Self {
        let shape = self.shape();
        if shape.dtype.bits() != dtype.bits() {
            let message = format!("{dtype} has another width");
            return self.graph.reject("bitcast-convert", message, &[self], shape.with_dtype(dtype));
        }
        self.graph.push("bitcast-convert", Type::Array(shape.with_dtype(dtype)), &[self], Attributes::None)
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $opcode:literal;)*) => {$(
        impl<'g> $trait for Op<'g> {
            type Output = Op<'g>;
            #[track_caller]
            fn $method(self, other: Self) -> Self { self.binary($opcode, other, Takes::Any) }
        }
        impl<'g> $trait<f64> for Op<'g> {
            type Output = Op<'g>;
            /// With a floating-point constant of the array's type.
            #[track_caller]
            fn $method(self, other: f64) -> Self { self.binary_scalar($opcode, other, Takes::Floats) }
        }
        impl<'g> $trait<i64> for Op<'g> {
            type Output = Op<'g>;
            /// With an integer constant of the array's type.
            #[track_caller]
            fn $method(self, other: i64) -> Self { self.binary_scalar($opcode, other as f64, Takes::Integers) }
        }
    )*};
}
operators! {
    Add add "add";
    Sub sub "subtract";
    Mul mul "multiply";
    Div div "divide";
}

impl<'g> Neg for Op<'g> {
    type Output = Op<'g>;
    #[track_caller]
    fn neg(self) -> Self {
        self.unary("negate", Takes::Any)
    }
}
