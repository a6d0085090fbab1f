//! Ops that move elements: reshapes, slices, gathers, joins, padding, tuples, barriers.

use super::elementwise::broadcast_dims;
use crate::hlo::{DType, GatherDims, Op, Shape, Type, instruction::Attributes};

/// Padding of one dimension. Negative edges cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Padding {
    pub low: i64,
    pub high: i64,
    /// Elements put between neighbours.
    pub interior: i64,
}

impl<'g> Op<'g> {
    /// The same elements, row-major, with other dims.
    #[track_caller]
    pub fn reshape(self, dims: &[i64]) -> Self {
        let shape = self.shape();
        let new = Shape::new(shape.dtype, dims);
        if new.elements() != shape.elements() {
            let message = format!("{} elements do not fit {}", shape.elements(), new.text());
            return self.graph.reject("reshape", message, &[self], new);
        }
        if shape.dims == dims {
            return self;
        }
        self.graph.push("reshape", Type::Array(new), &[self], Attributes::None)
    }

    /// Dimension `i` of the result is dimension `permutation[i]` of the operand.
    #[track_caller]
    pub fn transpose(self, permutation: &[i64]) -> Self {
        let shape = self.shape();
        let mut sorted = permutation.to_vec();
        sorted.sort_unstable();
        if sorted != (0..shape.rank() as i64).collect::<Vec<_>>() {
            let message = format!("{permutation:?} is no permutation of the {} dimensions", shape.rank());
            return self.graph.reject("transpose", message, &[self], shape);
        }
        let dims: Vec<i64> = permutation.iter().map(|&p| shape.dims[p as usize]).collect();
        let ty = Type::Array(Shape::new(shape.dtype, dims));
        self.graph.push("transpose", ty, &[self], Attributes::Dimensions(permutation.to_vec()))
    }

    /// HLO's own broadcast: dimension `i` of the operand becomes dimension `map[i]` of the result.
    #[track_caller]
    pub fn broadcast_in_dim(self, dims: &[i64], map: &[i64]) -> Self {
        let shape = self.shape();
        let new = Shape::new(shape.dtype, dims);
        let fits = map.len() == shape.rank()
            && map.windows(2).all(|pair| pair[0] < pair[1])
            && map.iter().zip(&shape.dims).all(|(&to, &size)| dims.get(to as usize) == Some(&size));
        if !fits {
            let message = format!("cannot map the dims by {map:?} to {}", new.text());
            return self.graph.reject("broadcast", message, &[self], new);
        }
        self.graph.push("broadcast", Type::Array(new), &[self], Attributes::Dimensions(map.to_vec()))
    }

    /// Stretches to `dims` by numpy's rules. A no-op if the dims are these already.
    #[track_caller]
    pub fn broadcast_to(self, dims: &[i64]) -> Self {
        let shape = self.shape();
        if shape.dims == dims {
            return self;
        }
        if broadcast_dims(&shape.dims, dims).as_deref() != Some(dims) {
            let new = Shape::new(shape.dtype, dims);
            return self.graph.reject("broadcast", format!("cannot stretch to {}", new.text()), &[self], new);
        }
        let offset = dims.len() - shape.rank();
        let kept: Vec<usize> = (0..shape.rank()).filter(|&i| shape.dims[i] == dims[i + offset]).collect();
        let squeezed: Vec<i64> = kept.iter().map(|&i| shape.dims[i]).collect();
        let map: Vec<i64> = kept.iter().map(|&i| (i + offset) as i64).collect();
        self.reshape(&squeezed).broadcast_in_dim(dims, &map)
    }

    /// Elements `starts[i]..limits[i]` of each dimension.
    #[track_caller]
    pub fn slice(self, starts: &[i64], limits: &[i64]) -> Self {
        self.strided_slice(starts, limits, &vec![1; starts.len()])
    }

    /// Elements `starts[i]..limits[i]` of each dimension, every `strides[i]`-th.
    #[track_caller]
    pub fn strided_slice(self, starts: &[i64], limits: &[i64], strides: &[i64]) -> Self {
        let shape = self.shape();
        let rank = shape.rank();
        let in_range =
            |i: usize| 0 <= starts[i] && starts[i] <= limits[i] && limits[i] <= shape.dims[i] && strides[i] > 0;
        if [starts.len(), limits.len(), strides.len()] != [rank; 3] || !(0..rank).all(in_range) {
            let message = format!("{starts:?}..{limits:?} by {strides:?} leaves the operand");
            return self.graph.reject("slice", message, &[self], shape);
        }
        let dims: Vec<i64> = (0..rank).map(|i| (limits[i] - starts[i] + strides[i] - 1) / strides[i]).collect();
        if dims == shape.dims {
            return self;
        }
        let attributes =
            Attributes::Slice { starts: starts.to_vec(), limits: limits.to_vec(), strides: strides.to_vec() };
        self.graph.push("slice", Type::Array(Shape::new(shape.dtype, dims)), &[self], attributes)
    }

    /// Elements `start..limit` of one dimension (counted from the end if negative), all of the
    /// others.
    #[track_caller]
    pub fn slice_in_dim(self, dim: i64, start: i64, limit: i64) -> Self {
        let shape = self.shape();
        let dim = if dim < 0 { dim + shape.rank() as i64 } else { dim } as usize;
        let mut starts = vec![0; shape.rank()];
        let mut limits = shape.dims.clone();
        if dim < shape.rank() {
            (starts[dim], limits[dim]) = (start, limit);
        } else {
            return self.graph.reject("slice", format!("there is no dimension {dim}"), &[self], shape);
        }
        self.slice(&starts, &limits)
    }

    /// A window of `sizes` at `starts` (integer scalars, one per dimension), moved inside the
    /// operand if it leaves it.
    #[track_caller]
    pub fn dynamic_slice(self, starts: &[Self], sizes: &[i64]) -> Self {
        let shape = self.shape();
        let new = Shape::new(shape.dtype, sizes);
        let operands: Vec<Self> = [self].iter().chain(starts).copied().collect();
        let fits = sizes.len() == shape.rank() && sizes.iter().zip(&shape.dims).all(|(&s, &d)| 0 <= s && s <= d);
        if !fits || !are_indices(starts, shape.rank()) {
            let message = format!("takes one integer scalar per dimension and sizes inside the operand, not {sizes:?}");
            return self.graph.reject("dynamic-slice", message, &operands, new);
        }
        let attributes = Attributes::DynamicSlice { sizes: sizes.to_vec() };
        self.graph.push("dynamic-slice", Type::Array(new), &operands, attributes)
    }

    /// The operand with `update` written at `starts` (moved inside if it leaves the operand).
    #[track_caller]
    pub fn dynamic_update_slice(self, update: Self, starts: &[Self]) -> Self {
        let (shape, new) = (self.shape(), update.shape());
        let operands: Vec<Self> = [self, update].iter().chain(starts).copied().collect();
        let fits = new.dtype == shape.dtype
            && new.rank() == shape.rank()
            && new.dims.iter().zip(&shape.dims).all(|(u, d)| u <= d);
        if !fits || !are_indices(starts, shape.rank()) {
            let message = "takes an update inside the operand and one integer scalar per dimension".into();
            return self.graph.reject("dynamic-update-slice", message, &operands, shape);
        }
        self.graph.push("dynamic-update-slice", Type::Array(shape), &operands, Attributes::None)
    }

    /// The element at `index` of an array `[n]`: `[]`.
    #[track_caller]
    pub fn scalar_at(self, index: i64) -> Self {
        self.slice_in_dim(0, index, index + 1).reshape(&[])
    }

    /// The part at `index` (`s32[]`) of the first dimension: `[1, ...]`.
    #[track_caller]
    pub fn row(self, index: Self) -> Self {
        let mut sizes = self.shape().dims;
        sizes[0] = 1;
        self.dynamic_slice(&self.row_starts(index), &sizes)
    }

    /// With `row` `[1, ...]` at `index` (`s32[]`) of the first dimension.
    #[track_caller]
    pub fn dynamic_update_row(self, row: Self, index: Self) -> Self {
        self.dynamic_update_slice(row, &self.row_starts(index))
    }

    fn row_starts(self, index: Self) -> Vec<Self> {
        let zero = self.graph.s32(0);
        std::iter::once(index).chain(std::iter::repeat(zero)).take(self.shape().rank()).collect()
    }

    /// HLO's gather of windows of the operand at `indices`.
    #[track_caller]
    pub fn gather(self, indices: Self, dims: GatherDims) -> Self {
        let (shape, index) = (self.shape(), indices.shape());
        let Some(new) = gather_shape(&shape, &index, &dims) else {
            let message = format!("the dimension numbers do not fit: {dims:?}");
            return self.graph.reject("gather", message, &[self, indices], shape);
        };
        self.graph.push("gather", Type::Array(new), &[self, indices], Attributes::Gather(dims))
    }

    /// Rows of a matrix `[rows, width]` at integer `indices` `[...]`: `[..., width]`. Indices are
    /// clamped to the rows.
    #[track_caller]
    pub fn take_rows(self, indices: Self) -> Self {
        let rank = indices.shape().rank() as i64;
        self.gather(
            indices,
            GatherDims {
                offset_dims: vec![rank],
                collapsed_slice_dims: vec![0],
                start_index_map: vec![0],
                index_vector_dim: rank,
                slice_sizes: vec![1, self.dim(1)],
            },
        )
    }

    /// With `updates` `[n]` added to the elements at `indices` `[n, rank]`. Those outside the array
    /// are left out.
    #[track_caller]
    pub fn scatter_add(self, indices: Self, updates: Self) -> Self {
        let (shape, index, update) = (self.shape(), indices.shape(), updates.shape());
        let rank = shape.rank() as i64;
        if index.dims != [update.elements(), rank] || update.rank() != 1 || update.dtype != shape.dtype {
            let message = "takes indices [n, rank] and n updates of the array's type".into();
            return self.graph.reject("scatter", message, &[self, indices, updates], shape);
        }
        let apply = self.graph.scalar_function("sum", &[shape.dtype; 2], |p| vec![p[0] + p[1]]);
        let attributes = Attributes::ScatterElements { rank, apply };
        self.graph.push("scatter", Type::Array(shape), &[self, indices, updates], attributes)
    }

    /// Slices of an array `[elements]`, `width` elements from integer `starts` `[...]` on: `[...,
    /// width]`. Starts are clamped so that slices lie inside.
    #[track_caller]
    pub fn gather_slices(self, starts: Self, width: i64) -> Self {
        let rank = starts.shape().rank() as i64;
        self.gather(
            starts,
            GatherDims {
                offset_dims: vec![rank],
                collapsed_slice_dims: vec![],
                start_index_map: vec![0],
                index_vector_dim: rank,
                slice_sizes: vec![width],
            },
        )
    }

    /// Joins arrays along `dim` (counted from the end if negative).
    #[track_caller]
    pub fn concatenate(parts: &[Self], dim: i64) -> Self {
        let first = parts[0];
        let mut shape = first.shape();
        let dim = if dim < 0 { dim + shape.rank() as i64 } else { dim } as usize;
        let agrees = |other: &Shape| {
            other.dtype == shape.dtype
                && other.rank() == shape.rank()
                && (0..shape.rank()).all(|i| i == dim || other.dims[i] == shape.dims[i])
        };
        if dim >= shape.rank() || !parts.iter().all(|part| agrees(&part.shape())) {
            let message = format!("the parts do not agree outside dimension {dim}");
            return first.graph.reject("concatenate", message, parts, shape);
        }
        shape.dims[dim] = parts.iter().map(|part| part.shape().dims[dim]).sum();
        first.graph.push("concatenate", Type::Array(shape), parts, Attributes::Dimensions(vec![dim as i64]))
    }

    /// Pads with the scalar `value`, one [`Padding`] per dimension.
    #[track_caller]
    pub fn pad(self, value: Self, padding: &[Padding]) -> Self {
        let shape = self.shape();
        let grow = |(p, &d): (&Padding, &i64)| d + p.low + p.high + p.interior * (d - 1).max(0);
        let dims: Vec<i64> = padding.iter().zip(&shape.dims).map(grow).collect();
        let scalar = value.shape();
        let valid = padding.len() == shape.rank()
            && (scalar.dtype, scalar.rank()) == (shape.dtype, 0)
            && dims.iter().all(|&d| d >= 0)
            && padding.iter().all(|p| p.interior >= 0);
        if !valid {
            let message =
                format!("cannot pad by {padding:?}; takes one padding per dimension and a scalar of its type");
            return self.graph.reject("pad", message, &[self, value], shape);
        }
        let attributes = Attributes::Pad {
            low: padding.iter().map(|p| p.low).collect(),
            high: padding.iter().map(|p| p.high).collect(),
            interior: padding.iter().map(|p| p.interior).collect(),
        };
        self.graph.push("pad", Type::Array(Shape::new(shape.dtype, dims)), &[self, value], attributes)
    }

    /// Element `index` of a tuple.
    #[track_caller]
    pub fn element(self, index: usize) -> Self {
        match self.ty() {
            Type::Tuple(shapes) if index < shapes.len() => {
                let ty = Type::Array(shapes[index].clone());
                self.graph.push("get-tuple-element", ty, &[self], Attributes::TupleIndex(index))
            }
            _ => {
                let message = format!("there is no element {index}");
                self.graph.reject("get-tuple-element", message, &[self], Shape::scalar(DType::F32))
            }
        }
    }

    /// All elements of a tuple.
    #[track_caller]
    pub fn elements(self) -> Vec<Self> {
        let Type::Tuple(shapes) = self.ty() else { return vec![self] };
        (0..shapes.len()).map(|i| self.element(i)).collect()
    }

    /// Values that the compiler may not move work across.
    #[track_caller]
    pub fn optimization_barrier(values: &[Self]) -> Vec<Self> {
        let graph = values[0].graph;
        let tuple = graph.tuple(values);
        graph.push("opt-barrier", tuple.ty(), &[tuple], Attributes::None).elements()
    }
}

fn are_indices(starts: &[Op<'_>], rank: usize) -> bool {
    starts.len() == rank && starts.iter().all(|s| s.shape().rank() == 0 && s.shape().dtype.is_integer())
}

/// Shape of a gather's result, or `None` where the dimension numbers do not fit.
fn gather_shape(operand: &Shape, indices: &Shape, dims: &GatherDims) -> Option<Shape> {
    let rank = operand.rank();
    if !indices.dtype.is_integer() || dims.slice_sizes.len() != rank {
        return None;
    }
    if !dims.slice_sizes.iter().zip(&operand.dims).all(|(&s, &d)| 0 <= s && s <= d) {
        return None;
    }
    let vector_dim = usize::try_from(dims.index_vector_dim).ok().filter(|&d| d <= indices.rank())?;
    let vector_len = indices.dims.get(vector_dim).copied().unwrap_or(1);
    if vector_len != dims.start_index_map.len() as i64 {
        return None;
    }
    if !dims.collapsed_slice_dims.iter().all(|&d| dims.slice_sizes.get(d as usize) == Some(&1)) {
        return None;
    }
    let mut window =
        (0..rank).filter(|&i| !dims.collapsed_slice_dims.contains(&(i as i64))).map(|i| dims.slice_sizes[i]);
    let mut batch = (0..indices.rank()).filter(|&i| i != vector_dim).map(|i| indices.dims[i]);
    let out_rank = rank - dims.collapsed_slice_dims.len() + indices.rank() - usize::from(vector_dim < indices.rank());
    let out: Option<Vec<i64>> = (0..out_rank as i64)
        .map(|i| if dims.offset_dims.contains(&i) { window.next() } else { batch.next() })
        .collect();
    (dims.offset_dims.len() == rank - dims.collapsed_slice_dims.len()).then_some(())?;
    Some(Shape::new(operand.dtype, out?))
}
