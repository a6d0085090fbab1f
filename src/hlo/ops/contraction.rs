//! Dots.

use crate::hlo::{DType, DotDims, Op, Shape, Type, instruction::Attributes};

impl<'g> Op<'g> {
    /// Sums of products over the contracted dimensions, accumulated in `out`'s precision and
    /// returned as `out`.
    #[track_caller]
    pub fn dot(self, other: Self, dims: &DotDims, out: DType) -> Self {
        let (a, b) = (self.shape(), other.shape());
        let Some(result) = dot_dims(&a, &b, dims) else {
            let message = format!("the dimension numbers do not fit: {dims:?}");
            return self.graph.reject("dot", message, &[self, other], a.with_dtype(out));
        };
        let ty = Type::Array(Shape::new(out, result));
        self.graph.push("dot", ty, &[self, other], Attributes::Dot(dims.clone()))
    }
}

/// Dims of a dot's result, or `None` where the dimension numbers do not fit.
fn dot_dims(a: &Shape, b: &Shape, dims: &DotDims) -> Option<Vec<i64>> {
    let get = |shape: &Shape, dim: i64| usize::try_from(dim).ok().and_then(|d| shape.dims.get(d).copied());
    let pairs = |x: &[i64], y: &[i64]| {
        x.len() == y.len() && x.iter().zip(y).all(|(&i, &j)| get(a, i).is_some() && get(a, i) == get(b, j))
    };
    if !pairs(&dims.lhs_batch, &dims.rhs_batch) || !pairs(&dims.lhs_contract, &dims.rhs_contract) {
        return None;
    }
    let free = |shape: &Shape, batch: &[i64], contract: &[i64]| -> Option<Vec<i64>> {
        let mut used: Vec<i64> = batch.iter().chain(contract).copied().collect();
        used.sort_unstable();
        let distinct = used.windows(2).all(|pair| pair[0] != pair[1]);
        let rest = (0..shape.rank() as i64).filter(|i| !used.contains(i)).map(|i| shape.dims[i as usize]);
        distinct.then(|| rest.collect())
    };
    let mut result: Vec<i64> = dims.lhs_batch.iter().map(|&i| a.dims[i as usize]).collect();
    result.extend(free(a, &dims.lhs_batch, &dims.lhs_contract)?);
    result.extend(free(b, &dims.rhs_batch, &dims.rhs_contract)?);
    Some(result)
}
