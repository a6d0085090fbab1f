//! The instructions of a computation, before they are written as proto or text.

use std::panic::Location;

use super::{Literal, Type};

/// Direction of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Comparison {
    /// Name in HLO.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eq => "EQ",
            Self::Ne => "NE",
            Self::Lt => "LT",
            Self::Le => "LE",
            Self::Gt => "GT",
            Self::Ge => "GE",
        }
    }
}

/// Dimension numbers of a dot. The result's dims are: batch, free of lhs, free of rhs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DotDims {
    pub lhs_batch: Vec<i64>,
    pub rhs_batch: Vec<i64>,
    pub lhs_contract: Vec<i64>,
    pub rhs_contract: Vec<i64>,
}

/// Dimension numbers of a gather; `slice_sizes` has one entry for each operand dim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatherDims {
    pub offset_dims: Vec<i64>,
    pub collapsed_slice_dims: Vec<i64>,
    pub start_index_map: Vec<i64>,
    pub index_vector_dim: i64,
    pub slice_sizes: Vec<i64>,
}

/// What an instruction has besides its operands.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Attributes {
    None,
    Parameter {
        number: usize,
    },
    Constant(Literal),
    /// iota, transpose, broadcast, concatenate, reverse.
    Dimensions(Vec<i64>),
    Slice {
        starts: Vec<i64>,
        limits: Vec<i64>,
        strides: Vec<i64>,
    },
    DynamicSlice {
        sizes: Vec<i64>,
    },
    Gather(GatherDims),
    /// Of single elements: indices are `[elements, rank]`.
    ScatterElements {
        rank: i64,
        apply: usize,
    },
    Pad {
        low: Vec<i64>,
        high: Vec<i64>,
        interior: Vec<i64>,
    },
    Compare(Comparison),
    Dot(DotDims),
    Reduce {
        dims: Vec<i64>,
        apply: usize,
    },
    Sort {
        dim: i64,
        stable: bool,
        compare: usize,
    },
    While {
        condition: usize,
        body: usize,
        /// How often the body runs; 1 where only the program knows.
        times: i64,
    },
    Conditional {
        branches: Vec<usize>,
    },
    Call {
        apply: usize,
    },
    /// all-reduce (no dim), reduce-scatter (dim), all-gather (dim, nothing to apply).
    Collective {
        groups: Vec<Vec<i64>>,
        dim: Option<i64>,
        apply: Option<usize>,
    },
    CollectivePermute {
        pairs: Vec<(i64, i64)>,
    },
    TupleIndex(usize),
    CustomCall {
        target: String,
        config: String,
        /// Whether it is a typed-FFI handler, not something that XLA itself knows.
        is_ffi: bool,
        /// Pairs of a result and an operand that share their memory.
        aliases: Vec<(usize, usize)>,
    },
}

/// One instruction.
#[derive(Clone, Debug)]
pub(super) struct Instruction {
    pub id: i64,
    pub opcode: &'static str,
    /// Given for parameters, `opcode` for all others; the printed name is `name.id`.
    pub name: String,
    pub ty: Type,
    /// Indices of instructions in the same computation.
    pub operands: Vec<usize>,
    pub attributes: Attributes,
    /// Path of scopes: `layer/attention`.
    pub scope: String,
    pub location: &'static Location<'static>,
}

impl Instruction {
    pub(super) fn unique_name(&self) -> String {
        format!("{}.{}", self.name, self.id)
    }
}

/// A finished computation: a reducer, a loop body, a callee.
#[derive(Clone, Debug)]
pub(super) struct ComputationData {
    pub id: i64,
    pub name: String,
    pub instructions: Vec<Instruction>,
    pub root: usize,
}
