//! HLO text in XLA's own form, from a `HloModuleProto`: ours, or what a plugin made of it.
//!
//! For reading and for golden files. Source lines are left out, so that moving code does not change
//! a golden file; op names are kept. Of instructions that we do not emit (fusions and what plugins
//! add), the fields that we know are printed.

use std::{
    collections::HashMap,
    fmt::{Display, Write},
};

use super::{DType, proto};

/// The module as text.
pub fn to_text(module: &proto::Module) -> String {
    let printer = Printer {
        computations: module.computations.iter().map(|c| (c.id, c.name.as_str())).collect(),
        names: module.computations.iter().flat_map(|c| &c.instructions).map(|i| (i.id, i.name.as_str())).collect(),
    };
    let mut out = format!("HloModule {}", module.name);
    let aliases = module.input_output_alias.iter().flat_map(|alias| &alias.entries);
    let aliases: Vec<String> = aliases
        .map(|e| {
            let kind = if e.kind == 2 { "must-alias" } else { "may-alias" };
            let (output, index) = (join(&e.output_shape_index), join(&e.parameter_shape_index));
            format!("{{{output}}}: ({}, {{{index}}}, {kind})", e.parameter_number)
        })
        .collect();
    if !aliases.is_empty() {
        let _ = write!(out, ", input_output_alias={{ {} }}", aliases.join(", "));
    }
    if let Some(shape) = &module.host_program_shape {
        let parameters: Vec<String> = shape.parameters.iter().map(shape_text).collect();
        let result = shape.result.as_ref().map(shape_text).unwrap_or_default();
        let _ = write!(out, ", entry_computation_layout={{({})->{result}}}", parameters.join(", "));
    }
    out.push('\n');
    for computation in &module.computations {
        let entry = if computation.id == module.entry_computation_id { "ENTRY " } else { "" };
        let _ = writeln!(out, "\n{entry}%{} {{", computation.name);
        for instruction in &computation.instructions {
            let root = if instruction.id == computation.root_id { "ROOT " } else { "" };
            let _ = writeln!(out, "  {root}{}", printer.instruction(instruction));
        }
        out.push_str("}\n");
    }
    out
}

struct Printer<'m> {
    computations: HashMap<i64, &'m str>,
    names: HashMap<i64, &'m str>,
}

impl Printer<'_> {
    fn instruction(&self, i: &proto::Instruction) -> String {
        let operands: Vec<String> =
            i.operand_ids.iter().map(|id| format!("%{}", self.names.get(id).unwrap_or(&"?"))).collect();
        let inner = match i.opcode.as_str() {
            "parameter" => i.parameter_number.to_string(),
            "constant" => i.literal.as_ref().map(literal_text).unwrap_or_default(),
            _ => operands.join(", "),
        };
        let shape = i.shape.as_ref().map(shape_text).unwrap_or_default();
        let mut line = format!("%{} = {shape} {}({inner})", i.name, i.opcode);
        for (name, value) in self.attributes(i) {
            let _ = write!(line, ", {name}={value}");
        }
        line
    }

    /// Name and value of all that stands behind the operands.
    fn attributes(&self, i: &proto::Instruction) -> Vec<(&'static str, String)> {
        let mut list = Vec::new();
        let mut dims = |name, dims: &[i64]| {
            if !dims.is_empty() {
                list.push((name, format!("{{{}}}", join(dims))));
            }
        };
        match (i.opcode.as_str(), &i.dimensions[..]) {
            ("iota", [dim]) => list.push(("iota_dimension", dim.to_string())),
            (_, all) => dims("dimensions", all),
        }
        let mut dims = |name, dims: &[i64]| {
            if !dims.is_empty() {
                list.push((name, format!("{{{}}}", join(dims))));
            }
        };
        if let Some(d) = &i.dot_dimension_numbers {
            dims("lhs_batch_dims", &d.lhs_batch_dimensions);
            dims("rhs_batch_dims", &d.rhs_batch_dimensions);
            dims("lhs_contracting_dims", &d.lhs_contracting_dimensions);
            dims("rhs_contracting_dims", &d.rhs_contracting_dimensions);
        }
        dims("dynamic_slice_sizes", &i.dynamic_slice_sizes);
        if let Some(d) = &i.gather_dimension_numbers {
            list.push(("offset_dims", format!("{{{}}}", join(&d.offset_dims))));
            list.push(("collapsed_slice_dims", format!("{{{}}}", join(&d.collapsed_slice_dims))));
            list.push(("start_index_map", format!("{{{}}}", join(&d.start_index_map))));
            list.push(("index_vector_dim", d.index_vector_dim.to_string()));
            list.push(("slice_sizes", format!("{{{}}}", join(&i.gather_slice_sizes))));
        }
        if let Some(d) = &i.scatter_dimension_numbers {
            list.push(("update_window_dims", format!("{{{}}}", join(&d.update_window_dims))));
            list.push(("inserted_window_dims", format!("{{{}}}", join(&d.inserted_window_dims))));
            list.push(("scatter_dims_to_operand_dims", format!("{{{}}}", join(&d.scatter_dims_to_operand_dims))));
            list.push(("index_vector_dim", d.index_vector_dim.to_string()));
        }
        if !i.slice_dimensions.is_empty() {
            let range = |d: &proto::SliceDimensions| match d.stride {
                1 => format!("[{}:{}]", d.start, d.limit),
                stride => format!("[{}:{}:{stride}]", d.start, d.limit),
            };
            let ranges: Vec<String> = i.slice_dimensions.iter().map(range).collect();
            list.push(("slice", format!("{{{}}}", ranges.join(", "))));
        }
        if let Some(padding) = &i.padding_config {
            let dim = |d: &proto::PaddingDimension| match d.interior_padding {
                0 => format!("{}_{}", d.edge_padding_low, d.edge_padding_high),
                interior => format!("{}_{}_{interior}", d.edge_padding_low, d.edge_padding_high),
            };
            let dims: Vec<String> = padding.dimensions.iter().map(dim).collect();
            list.push(("padding", dims.join("x")));
        }
        if i.opcode == "get-tuple-element" {
            list.push(("index", i.tuple_index.to_string()));
        }
        if !i.comparison_direction.is_empty() {
            list.push(("direction", i.comparison_direction.clone()));
        }
        if i.is_stable {
            list.push(("is_stable", "true".into()));
        }
        if !i.replica_groups.is_empty() {
            let groups: Vec<String> =
                i.replica_groups.iter().map(|g| format!("{{{}}}", join(&g.replica_ids))).collect();
            list.push(("replica_groups", format!("{{{}}}", groups.join(","))));
        }
        if !i.source_target_pairs.is_empty() {
            let pairs: Vec<String> =
                i.source_target_pairs.iter().map(|p| format!("{{{},{}}}", p.source, p.target)).collect();
            list.push(("source_target_pairs", format!("{{{}}}", pairs.join(","))));
        }
        list.extend(self.called(i));
        if i.constrain_layout {
            let shapes: Vec<String> = i.operand_shapes_with_layout.iter().map(shape_text).collect();
            list.push(("operand_layout_constraints", format!("{{{}}}", shapes.join(", "))));
        }
        if !i.output_operand_aliasing.is_empty() {
            let entry = |a: &proto::OutputOperandAliasing| {
                format!("{{{}}}: ({}, {{}})", join(&a.output_shape_index), a.operand_index)
            };
            let entries: Vec<String> = i.output_operand_aliasing.iter().map(entry).collect();
            list.push(("output_to_operand_aliasing", format!("{{{}}}", entries.join(", "))));
        }
        if !i.custom_call_target.is_empty() {
            list.push(("custom_call_target", format!("{:?}", i.custom_call_target)));
            if i.custom_call_api_version == 4 {
                list.push(("api_version", "API_VERSION_TYPED_FFI".into()));
                list.push(("backend_config", String::from_utf8_lossy(&i.backend_config).into_owned()));
            }
        }
        if !i.fusion_kind.is_empty() {
            list.push(("kind", i.fusion_kind.clone()));
        }
        if let Some(metadata) = i.metadata.as_ref().filter(|m| !m.op_name.is_empty()) {
            list.push(("metadata", format!("{{op_name={:?}}}", metadata.op_name)));
        }
        list
    }

    /// The computations that an instruction calls, under the names that XLA gives them.
    fn called(&self, i: &proto::Instruction) -> Vec<(&'static str, String)> {
        let names: Vec<String> = i
            .called_computation_ids
            .iter()
            .map(|id| format!("%{}", self.computations.get(id).unwrap_or(&"?")))
            .collect();
        match (i.opcode.as_str(), &names[..]) {
            (_, []) => vec![],
            ("while", [body, condition]) => vec![("condition", condition.clone()), ("body", body.clone())],
            ("conditional", all) => vec![("branch_computations", format!("{{{}}}", all.join(", ")))],
            ("fusion", [one]) => vec![("calls", one.clone())],
            (_, [one]) => vec![("to_apply", one.clone())],
            (_, all) => vec![("called_computations", format!("{{{}}}", all.join(", ")))],
        }
    }
}

fn shape_text(shape: &proto::Shape) -> String {
    if shape.element_type == proto::TUPLE {
        let shapes: Vec<String> = shape.tuple_shapes.iter().map(shape_text).collect();
        return format!("({})", shapes.join(", "));
    }
    let mut text = format!("{}[{}]", element_name(shape.element_type), join(&shape.dimensions));
    if let Some(layout) = shape.layout.as_ref().filter(|layout| !layout.minor_to_major.is_empty()) {
        let _ = write!(text, "{{{}}}", join(&layout.minor_to_major));
    }
    text
}

fn element_name(number: i32) -> String {
    let known = DType::ALL.iter().find(|dtype| **dtype as i32 == number);
    known.map_or_else(|| format!("type{number}"), |dtype| dtype.name().to_owned())
}

/// The elements, row-major; large arrays (which we do not emit) are cut.
fn literal_text(literal: &proto::Literal) -> String {
    const SHOWN: usize = 64;
    fn list<T: Display>(values: impl IntoIterator<Item = T>) -> Vec<String> {
        values.into_iter().map(|v| v.to_string()).collect()
    }
    fn floats(values: impl IntoIterator<Item = f64>) -> Vec<String> {
        values.into_iter().map(float_text).collect()
    }
    let halves =
        |bytes: &[u8]| -> Vec<u16> { bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect() };
    let number = literal.shape.as_ref().map_or(0, |shape| shape.element_type);
    let texts = match DType::ALL.iter().find(|dtype| **dtype as i32 == number) {
        Some(DType::Pred) => list(&literal.preds),
        Some(DType::S32) => list(&literal.s32s),
        Some(DType::S64) => list(&literal.s64s),
        Some(DType::U32) => list(&literal.u32s),
        Some(DType::U64) => list(&literal.u64s),
        Some(DType::U8) => list(&literal.u8s),
        Some(DType::U16) => list(halves(&literal.u16s)),
        Some(DType::S8) => list(literal.s8s.iter().map(|&b| b as i8)),
        Some(DType::S4) => list(literal.s4s.iter().map(|&b| b as i8)),
        Some(DType::F32) => literal.f32s.iter().map(|&x| float_text(x)).collect(),
        Some(DType::F64) => floats(literal.f64s.iter().copied()),
        Some(DType::F16) => floats(halves(&literal.f16s).into_iter().map(|b| half::f16::from_bits(b).to_f64())),
        Some(DType::BF16) => floats(halves(&literal.bf16s).into_iter().map(|b| half::bf16::from_bits(b).to_f64())),
        None => vec![],
    };
    let scalar = literal.shape.as_ref().is_none_or(|shape| shape.dimensions.is_empty());
    match (scalar, texts.len()) {
        (true, _) => texts.concat(),
        (false, n) if n > SHOWN => format!("{{{}, ...}}", texts[..SHOWN].join(", ")),
        (false, _) => format!("{{{}}}", texts.join(", ")),
    }
}

/// A float as HLO text: `-inf`, `nan`, or the shortest decimal that reads back as the same number.
fn float_text(value: impl Display + std::fmt::LowerExp) -> String {
    let plain = value.to_string();
    match plain.as_str() {
        "NaN" => "nan".into(),
        _ if plain.len() > 12 => format!("{value:e}"),
        _ => plain,
    }
}

fn join(numbers: &[i64]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
