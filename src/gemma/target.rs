//! What depends on the platform: the few primitives of the layers that a [`Target`] lowers in its own way. The layers
//! themselves are the same everywhere.

use crate::hlo::{DType, DotDims, Op};

/// The platform that a program is emitted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Cpu,
    Tpu,
    Cuda,
}

impl Target {
    /// Name in program names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Tpu => "tpu",
            Self::Cuda => "cuda",
        }
    }

    /// `x wᵀ`: `[..., in]` by `[out, in]` to `[..., out]`, accumulated in f32 and rounded to `out`.
    pub(super) fn linear<'g>(self, x: Op<'g>, weight: Op<'g>, out: DType) -> Op<'g> {
        let mut dims = x.shape().dims;
        let width = dims.pop().unwrap_or_default();
        let rows = dims.iter().product();
        dims.push(weight.dim(0));
        self.matmul(x.reshape(&[rows, width]), weight).convert(out).reshape(&dims)
    }

    /// `f32[rows, out]` from `[rows, in]` and `[out, in]`.
    fn matmul<'g>(self, x: Op<'g>, weight: Op<'g>) -> Op<'g> {
        let contract_last = DotDims { lhs_contract: vec![1], rhs_contract: vec![1], ..DotDims::default() };
        let dtype = x.shape().dtype;
        if self != Self::Cpu {
            return x.dot(weight.convert(dtype), &contract_last, DType::F32);
        }
        if weight.shape().dtype != dtype {
            // XLA:CPU materialises the converted weight. Behind a barrier that depends on x this happens when its turn comes;
            // else all layers' weights would be converted at the start, and live together.
            let [x, weight] = Op::optimization_barrier(&[x, weight])[..] else { unreachable!("two in, two out") };
            return x.dot(weight.convert(dtype), &contract_last, DType::F32);
        }
        if dtype == DType::BF16 && x.dim(0) == 1 {
            // One bf16 row becomes a matrix-vector product that XLA:CPU computes from weights converted to f32 (2.3 GiB of
            // temporaries in the 2B). Two rows take the matrix path, which reads bf16.
            let twice = x.broadcast_to(&[2, x.dim(1)]);
            return twice.dot(weight, &contract_last, DType::F32).slice_in_dim(0, 0, 1);
        }
        x.dot(weight, &contract_last, DType::F32)
    }

    /// Element type of the KV cache for activations of type `compute`.
    ///
    /// XLA:CPU has no bf16 dynamic-update-slice: it converts the whole cache to f32 and back for each token written. The
    /// same bits as u16 are updated in place.
    pub fn cache_dtype(self, compute: DType) -> DType {
        if self == Self::Cpu && compute == DType::BF16 { DType::U16 } else { compute }
    }

    /// Activations as the cache holds them.
    pub(super) fn cached<'g>(self, x: Op<'g>) -> Op<'g> {
        let dtype = x.shape().dtype;
        if self.cache_dtype(dtype) == dtype { x } else { x.bitcast_convert(self.cache_dtype(dtype)) }
    }

    /// A part of the cache as activations of type `compute`.
    pub(super) fn uncached<'g>(self, x: Op<'g>, compute: DType) -> Op<'g> {
        if x.shape().dtype == compute { x } else { x.bitcast_convert(compute) }
    }
}
