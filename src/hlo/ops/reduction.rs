//! Reductions, sorts, and what is made of them.

use crate::hlo::{DType, Op, Shape, Type, instruction::Attributes};

impl<'g> Op<'g> {
    /// Sum over `dims`, which are removed.
    #[track_caller]
    pub fn reduce_sum(self, dims: &[i64]) -> Self {
        let init = self.graph.scalar(self.shape().dtype, 0.0);
        self.reduce(init, dims, "sum", |a, b| a + b)
    }

    /// Maximum over `dims` of floats, which are removed.
    #[track_caller]
    pub fn reduce_max(self, dims: &[i64]) -> Self {
        let init = self.graph.scalar(self.shape().dtype, f64::NEG_INFINITY);
        self.reduce(init, dims, "max", |a, b| a.max(b))
    }

    /// Folds `dims` with an associative function whose neutral element is `init`. `name` stands for
    /// the function in this module: the same name must always mean the same one.
    #[track_caller]
    pub fn reduce(
        self,
        init: Self,
        dims: &[i64],
        name: &str,
        apply: impl for<'a> FnOnce(Op<'a>, Op<'a>) -> Op<'a>,
    ) -> Self {
        Self::reduce_many(&[self], &[init], dims, name, |a, b| vec![apply(a[0], b[0])])[0]
    }

    /// Folds several arrays of one shape together; `apply` takes two lists of scalars and returns
    /// one.
    #[track_caller]
    pub fn reduce_many(
        values: &[Self],
        inits: &[Self],
        dims: &[i64],
        name: &str,
        apply: impl for<'a> FnOnce(&[Op<'a>], &[Op<'a>]) -> Vec<Op<'a>>,
    ) -> Vec<Self> {
        let graph = values[0].graph;
        let shape = values[0].shape();
        let operands: Vec<Self> = values.iter().chain(inits).copied().collect();
        let valid = values.len() == inits.len()
            && values.iter().zip(inits).all(|(v, i)| {
                let (v, i) = (v.shape(), i.shape());
                v.dims == shape.dims && i.rank() == 0 && i.dtype == v.dtype
            })
            && dims.iter().all(|&d| 0 <= d && d < shape.rank() as i64);
        if !valid {
            let message = format!(
                "takes arrays of one shape, a scalar of each one's type, and dimensions of theirs, not {dims:?}"
            );
            return vec![graph.reject("reduce", message, &operands, shape)];
        }
        let kept: Vec<i64> =
            (0..shape.rank()).filter(|&i| !dims.contains(&(i as i64))).map(|i| shape.dims[i]).collect();
        let types: Vec<DType> = values.iter().map(|v| v.shape().dtype).collect();
        let n = values.len();
        let both: Vec<DType> = types.iter().chain(&types).copied().collect();
        let apply = graph.scalar_function(name, &both, |p| apply(&p[..n], &p[n..]));
        let results: Vec<Shape> = types.iter().map(|&dtype| Shape::new(dtype, kept.clone())).collect();
        let ty = if n == 1 { Type::Array(results[0].clone()) } else { Type::Tuple(results) };
        graph.push("reduce", ty, &operands, Attributes::Reduce { dims: dims.to_vec(), apply }).elements()
    }

    /// Index of the largest element along the last dimension, s32; the first one where several are
    /// equal.
    #[track_caller]
    pub fn argmax(self) -> Self {
        self.max_with_index()[1]
    }

    /// The largest element along the last dimension, and its index, s32 (the first one where
    /// several are equal). NaN is larger than all numbers.
    #[track_caller]
    pub fn max_with_index(self) -> [Self; 2] {
        let shape = self.shape();
        let last = shape.rank() as i64 - 1;
        let index = self.graph.iota(shape.with_dtype(DType::S32), last);
        let inits =
            [self.graph.scalar(shape.dtype, f64::NEG_INFINITY), self.graph.scalar(DType::S32, f64::from(i32::MAX))];
        let reduced = Self::reduce_many(&[self, index], &inits, &[last], "argmax", |a, b| {
            let first = a[0].gt(b[0]).or(a[0].eq(b[0]).and(a[1].lt(b[1]))).or(a[0].eq(a[0]).not());
            vec![first.select(a[0], b[0]), first.select(a[1], b[1])]
        });
        if let [value, index] = reduced[..] { [value, index] } else { [self, self] }
    }

    /// Sorts along `dim`; `before` says whether the first list of scalars comes before the second.
    /// Stable. `name` stands for that order, as in [`Self::reduce`].
    #[track_caller]
    pub fn sort(
        values: &[Self],
        dim: i64,
        name: &str,
        before: impl for<'a> FnOnce(&[Op<'a>], &[Op<'a>]) -> Op<'a>,
    ) -> Vec<Self> {
        let graph = values[0].graph;
        let shape = values[0].shape();
        if dim < 0 || dim >= shape.rank() as i64 || values.iter().any(|v| v.shape().dims != shape.dims) {
            let message = format!("takes arrays of one shape and a dimension of theirs, not {dim}");
            return vec![graph.reject("sort", message, values, shape)];
        }
        // HLO passes the scalars in pairs: (a0, b0, a1, b1, ...).
        let pairs: Vec<DType> = values.iter().flat_map(|v| [v.shape().dtype; 2]).collect();
        let compare = graph.scalar_function(name, &pairs, |p| {
            let a: Vec<Op<'_>> = p.iter().copied().step_by(2).collect();
            let b: Vec<Op<'_>> = p.iter().copied().skip(1).step_by(2).collect();
            vec![before(&a, &b)]
        });
        let shapes: Vec<Shape> = values.iter().map(|v| v.shape()).collect();
        let ty = if values.len() == 1 { Type::Array(shapes[0].clone()) } else { Type::Tuple(shapes) };
        graph.push("sort", ty, values, Attributes::Sort { dim, stable: true, compare }).elements()
    }

    /// The `k` largest elements along the last dimension, largest first, and their indices (s32).
    #[track_caller]
    pub fn top_k(self, k: i64) -> [Self; 2] {
        let last = self.shape().rank() as i64 - 1;
        let index = self.graph.iota(self.shape().with_dtype(DType::S32), last);
        let sorted = Self::sort(&[self, index], last, "larger", |a, b| a[0].gt(b[0]));
        if let [values, indices] = sorted[..] {
            [values.slice_in_dim(last, 0, k), indices.slice_in_dim(last, 0, k)]
        } else {
            [self, self]
        }
    }
}
