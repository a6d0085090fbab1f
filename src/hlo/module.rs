//! A finished module, and its `HloModuleProto`.

use prost::Message;

use super::{
    DType, Literal, Shape, Type,
    instruction::{Attributes, ComputationData, Instruction},
    proto,
    text::to_text,
};

/// A finished module. Computations are in an order in which callees come before callers; the entry
/// is the last.
#[derive(Clone, Debug)]
pub struct Module {
    pub(super) name: String,
    pub(super) computations: Vec<ComputationData>,
    pub(super) outputs: Vec<Shape>,
    pub(super) aliases: Vec<(usize, usize)>,
}

/// An operation by which devices send each other arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collective {
    /// HLO's name for it.
    pub op: &'static str,
    /// Of the result, on one device.
    pub bytes: i64,
    /// Devices that take part in one.
    pub devices: usize,
    /// How often a program does it.
    pub times: i64,
}

const ORIGINAL: i32 = 1;
const TYPED_FFI: i32 = 4;
const MAY_ALIAS: i32 = 1;

impl Module {
    /// The module's name, which is its entry computation's.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn entry(&self) -> &ComputationData {
        self.computations.last().expect("a module has an entry")
    }

    /// Names and shapes of the entry's parameters.
    pub fn parameters(&self) -> Vec<(String, Shape)> {
        let named = |instruction: &Instruction| match (&instruction.attributes, &instruction.ty) {
            (Attributes::Parameter { .. }, Type::Array(shape)) => Some((instruction.name.clone(), shape.clone())),
            _ => None,
        };
        self.entry().instructions.iter().filter_map(named).collect()
    }

    /// Shapes of the outputs.
    pub fn outputs(&self) -> &[Shape] {
        &self.outputs
    }

    /// (parameter, output) pairs that may share memory.
    pub fn aliases(&self) -> &[(usize, usize)] {
        &self.aliases
    }

    /// Number of instructions in all computations.
    pub fn num_instructions(&self) -> usize {
        self.computations.iter().map(|c| c.instructions.len()).sum()
    }

    /// What devices send each other when the program runs.
    pub fn collectives(&self) -> Vec<Collective> {
        let mut all = Vec::new();
        self.count_collectives(self.entry(), 1, &mut all);
        all
    }

    fn count_collectives(&self, of: &ComputationData, times: i64, all: &mut Vec<Collective>) {
        for instruction in &of.instructions {
            match (&instruction.attributes, &instruction.ty) {
                (Attributes::Collective { groups, .. }, Type::Array(shape)) => {
                    let (op, bytes, devices) = (instruction.opcode, shape.bytes(), groups[0].len());
                    let same = |c: &&mut Collective| (c.op, c.bytes, c.devices) == (op, bytes, devices);
                    match all.iter_mut().find(same) {
                        Some(known) => known.times += times,
                        None => all.push(Collective { op, bytes, devices, times }),
                    }
                }
                (Attributes::Call { apply }, _) => self.count_collectives(&self.computations[*apply], times, all),
                (Attributes::While { body, times: turns, .. }, _) => {
                    self.count_collectives(&self.computations[*body], times * turns, all);
                }
                _ => {}
            }
        }
    }

    /// The serialized `HloModuleProto` (format `"hlo"`).
    pub fn encode(&self) -> Vec<u8> {
        self.to_proto().encode_to_vec()
    }

    /// The module as HLO text.
    pub fn text(&self) -> String {
        to_text(&self.to_proto())
    }

    /// The module as `HloModuleProto`.
    pub fn to_proto(&self) -> proto::Module {
        let alias = |&(parameter, output): &(usize, usize)| proto::AliasEntry {
            output_shape_index: vec![output as i64],
            parameter_number: parameter as i64,
            parameter_shape_index: vec![],
            kind: MAY_ALIAS,
        };
        let entries: Vec<proto::AliasEntry> = self.aliases.iter().map(alias).collect();
        proto::Module {
            name: self.name.clone(),
            entry_computation_name: self.entry().name.clone(),
            entry_computation_id: self.entry().id,
            id: 1,
            computations: self.computations.iter().map(|c| self.computation(c)).collect(),
            host_program_shape: Some(program_shape(self.entry())),
            input_output_alias: (!entries.is_empty()).then_some(proto::InputOutputAlias { entries }),
        }
    }

    fn computation(&self, data: &ComputationData) -> proto::Computation {
        proto::Computation {
            name: data.name.clone(),
            instructions: data.instructions.iter().map(|i| self.instruction(data, i)).collect(),
            program_shape: Some(program_shape(data)),
            id: data.id,
            root_id: data.instructions[data.root].id,
        }
    }

    fn instruction(&self, data: &ComputationData, instruction: &Instruction) -> proto::Instruction {
        let id_of = |index: usize| self.computations[index].id;
        let mut out = proto::Instruction {
            name: instruction.unique_name(),
            opcode: instruction.opcode.to_owned(),
            shape: Some(type_proto(&instruction.ty)),
            id: instruction.id,
            operand_ids: instruction.operands.iter().map(|&i| data.instructions[i].id).collect(),
            metadata: Some(proto::OpMetadata {
                op_name: instruction.scope.clone(),
                source_file: instruction.location.file().to_owned(),
                source_line: instruction.location.line() as i32,
            }),
            ..Default::default()
        };
        match &instruction.attributes {
            Attributes::None => {}
            Attributes::Parameter { number } => out.parameter_number = *number as i64,
            Attributes::Constant(literal) => out.literal = Some(literal_proto(literal)),
            Attributes::Dimensions(dims) => out.dimensions.clone_from(dims),
            Attributes::Slice { starts, limits, strides } => {
                let dims = starts.iter().zip(limits).zip(strides);
                out.slice_dimensions =
                    dims.map(|((&start, &limit), &stride)| proto::SliceDimensions { start, limit, stride }).collect();
            }
            Attributes::DynamicSlice { sizes } => out.dynamic_slice_sizes.clone_from(sizes),
            Attributes::Gather(dims) => {
                out.gather_dimension_numbers = Some(proto::GatherDimensionNumbers {
                    offset_dims: dims.offset_dims.clone(),
                    collapsed_slice_dims: dims.collapsed_slice_dims.clone(),
                    start_index_map: dims.start_index_map.clone(),
                    index_vector_dim: dims.index_vector_dim,
                });
                out.gather_slice_sizes.clone_from(&dims.slice_sizes);
            }
            Attributes::ScatterElements { rank, apply } => {
                let all: Vec<i64> = (0..*rank).collect();
                out.scatter_dimension_numbers = Some(proto::ScatterDimensionNumbers {
                    update_window_dims: vec![],
                    inserted_window_dims: all.clone(),
                    scatter_dims_to_operand_dims: all,
                    index_vector_dim: 1,
                });
                out.called_computation_ids = vec![id_of(*apply)];
            }
            Attributes::Pad { low, high, interior } => {
                let dims = low.iter().zip(high).zip(interior);
                let dimension = |((&low, &high), &interior)| proto::PaddingDimension {
                    edge_padding_low: low,
                    edge_padding_high: high,
                    interior_padding: interior,
                };
                out.padding_config = Some(proto::PaddingConfig { dimensions: dims.map(dimension).collect() });
            }
            Attributes::Compare(direction) => out.comparison_direction = direction.name().to_owned(),
            Attributes::Dot(dims) => {
                out.dot_dimension_numbers = Some(proto::DotDimensionNumbers {
                    lhs_contracting_dimensions: dims.lhs_contract.clone(),
                    rhs_contracting_dimensions: dims.rhs_contract.clone(),
                    lhs_batch_dimensions: dims.lhs_batch.clone(),
                    rhs_batch_dimensions: dims.rhs_batch.clone(),
                });
            }
            Attributes::Reduce { dims, apply } => {
                out.dimensions.clone_from(dims);
                out.called_computation_ids = vec![id_of(*apply)];
            }
            Attributes::Sort { dim, stable, compare } => {
                out.dimensions = vec![*dim];
                out.is_stable = *stable;
                out.called_computation_ids = vec![id_of(*compare)];
            }
            Attributes::While { condition, body, .. } => {
                out.called_computation_ids = vec![id_of(*body), id_of(*condition)];
            }
            Attributes::Conditional { branches } => {
                out.called_computation_ids = branches.iter().map(|&b| id_of(b)).collect();
            }
            Attributes::Call { apply } => out.called_computation_ids = vec![id_of(*apply)],
            Attributes::Collective { groups, dim, apply } => {
                out.replica_groups = groups.iter().map(|g| proto::ReplicaGroup { replica_ids: g.clone() }).collect();
                out.dimensions = dim.iter().copied().collect();
                out.called_computation_ids = apply.iter().map(|&a| id_of(a)).collect();
            }
            Attributes::CollectivePermute { pairs } => {
                let pair = |&(source, target): &(i64, i64)| proto::SourceTarget { source, target };
                out.source_target_pairs = pairs.iter().map(pair).collect();
            }
            Attributes::TupleIndex(index) => out.tuple_index = *index as i64,
            Attributes::CustomCall { target, config, is_ffi, aliases } => {
                let is_tuple = matches!(instruction.ty, Type::Tuple(_));
                let alias = |&(result, operand): &(usize, usize)| proto::OutputOperandAliasing {
                    output_shape_index: if is_tuple { vec![result as i64] } else { vec![] },
                    operand_index: operand as i64,
                    operand_shape_index: vec![],
                };
                out.output_operand_aliasing = aliases.iter().map(alias).collect();
                out.custom_call_target.clone_from(target);
                out.backend_config = config.clone().into_bytes();
                out.custom_call_api_version = if *is_ffi { TYPED_FFI } else { ORIGINAL };
                // Handlers read and write row-major arrays. Unconstrained, an all-gather along the
                // columns of a result makes XLA choose the layout of the result to its liking.
                out.constrain_layout = true;
                out.operand_shapes_with_layout =
                    instruction.operands.iter().map(|&i| type_proto(&data.instructions[i].ty)).collect();
            }
        }
        out
    }
}

fn program_shape(data: &ComputationData) -> proto::ProgramShape {
    let parameters = || data.instructions.iter().filter(|i| matches!(i.attributes, Attributes::Parameter { .. }));
    proto::ProgramShape {
        parameters: parameters().map(|i| type_proto(&i.ty)).collect(),
        result: Some(type_proto(&data.instructions[data.root].ty)),
        parameter_names: parameters().map(Instruction::unique_name).collect(),
    }
}

fn type_proto(ty: &Type) -> proto::Shape {
    match ty {
        Type::Array(shape) => shape_proto(shape),
        Type::Tuple(shapes) => proto::Shape {
            element_type: proto::TUPLE,
            tuple_shapes: shapes.iter().map(shape_proto).collect(),
            ..Default::default()
        },
    }
}

fn shape_proto(shape: &Shape) -> proto::Shape {
    proto::Shape {
        element_type: shape.dtype as i32,
        dimensions: shape.dims.clone(),
        tuple_shapes: vec![],
        layout: Some(proto::Layout { minor_to_major: shape.minor_to_major.clone() }),
        is_dynamic_dimension: vec![false; shape.rank()],
    }
}

fn literal_proto(literal: &Literal) -> proto::Literal {
    let bytes = || literal.bytes.clone();
    let mut out = proto::Literal { shape: Some(shape_proto(&literal.shape)), ..Default::default() };
    match literal.shape.dtype {
        DType::Pred => out.preds = literal.bytes.iter().map(|&b| b != 0).collect(),
        DType::S4 => out.s4s = bytes(),
        DType::S8 => out.s8s = bytes(),
        DType::U8 => out.u8s = bytes(),
        DType::U16 => out.u16s = bytes(),
        DType::S32 => out.s32s = literal.numbers(),
        DType::S64 => out.s64s = literal.numbers(),
        DType::U32 => out.u32s = literal.numbers(),
        DType::U64 => out.u64s = literal.numbers(),
        DType::F32 => out.f32s = literal.numbers(),
        DType::F64 => out.f64s = literal.numbers(),
        DType::F16 => out.f16s = bytes(),
        DType::BF16 => out.bf16s = bytes(),
    }
    out
}
