//! The weights of a program, as values of its graph.

use std::collections::BTreeMap;

use super::{
    ModelSpec,
    tensors::{EMBED_TOKENS_NAME, FINAL_NORM_NAME, LAYERS_PREFIX, LM_HEAD_NAME, SCALE_SUFFIX, TensorKind},
};
use crate::{
    hlo::{DType, Graph, Op, Shape, Tree},
    tree,
};

/// A device's shard of a matrix `[out, in]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'g> {
    /// As [`ModelSpec::argument_shape`] says.
    pub elements: Op<'g>,
    /// Of quantised elements: `f32[out]` for rows of s8, `f16[out, in / GROUP]` for blocks of four
    /// bits.
    pub scale: Option<Op<'g>>,
    /// Index of an unaligned matrix's first element in the array that holds it, `s32[]`.
    pub offset: Option<Op<'g>>,
    /// `[out, in]`
    pub dims: [i64; 2],
}
tree!(Matrix { elements, scale, offset } keeping { dims });

impl Matrix<'_> {
    /// Number of outputs.
    pub fn rows(&self) -> i64 {
        self.dims[0]
    }

    /// Returns whether elements and scales have the same types.
    pub fn is_stored_as(&self, other: Self) -> bool {
        let types = |matrix: &Self| {
            (matrix.elements.shape().dtype, matrix.scale.map(|scale| scale.shape().dtype), matrix.offset.is_some())
        };
        types(self) == types(&other)
    }
}

/// One decoder layer's weights, or those of all layers with the layers as first dimension.
#[derive(Clone, Copy)]
pub(super) struct LayerWeights<'g> {
    pub input_layernorm: Op<'g>,
    pub q_proj: Matrix<'g>,
    pub k_proj: Matrix<'g>,
    pub v_proj: Matrix<'g>,
    pub o_proj: Matrix<'g>,
    pub post_attention_layernorm: Op<'g>,
    pub gate_proj: Matrix<'g>,
    pub up_proj: Matrix<'g>,
    pub down_proj: Matrix<'g>,
}
tree!(LayerWeights {
    input_layernorm,
    q_proj,
    k_proj,
    v_proj,
    o_proj,
    post_attention_layernorm,
    gate_proj,
    up_proj,
    down_proj,
});

impl<'g> LayerWeights<'g> {
    /// One layer's weights of stacked ones: `[...]` of `[layers, ...]`.
    pub fn at(&self, layer: Op<'g>) -> Self {
        self.map(|stacked| stacked.row(layer).reshape(&stacked.shape().dims[1..]))
    }
}

/// The weights of all layers.
pub(super) enum Layers<'g> {
    /// Each with parameters of its own.
    Unrolled(Vec<LayerWeights<'g>>),
    /// Every tensor with the layers as its first dimension.
    Stacked(Box<LayerWeights<'g>>),
}

impl<'g> Tree<'g> for Layers<'g> {
    type In<'b> = Layers<'b>;

    fn leaves(&self, out: &mut Vec<Op<'g>>) {
        match self {
            Self::Unrolled(layers) => layers.leaves(out),
            Self::Stacked(layers) => layers.leaves(out),
        }
    }

    fn names(&self, path: &str, out: &mut Vec<String>) {
        match self {
            Self::Unrolled(layers) => layers.names(path, out),
            Self::Stacked(layers) => layers.names(path, out),
        }
    }

    fn rebuild<'b>(&self, leaves: &mut dyn Iterator<Item = Op<'b>>) -> Layers<'b> {
        match self {
            Self::Unrolled(layers) => Layers::Unrolled(layers.rebuild(leaves)),
            Self::Stacked(layers) => Layers::Stacked(Box::new(layers.rebuild(leaves))),
        }
    }
}

/// All weights.
pub(super) struct Weights<'g> {
    /// `[vocab, hidden]`
    pub embed_tokens: Matrix<'g>,
    pub layers: Layers<'g>,
    pub norm: Op<'g>,
    /// `[vocab, hidden]`; none where it is the embedding.
    lm_head: Option<Matrix<'g>>,
}
tree!(Weights { embed_tokens, layers, norm, lm_head });

impl<'g> Weights<'g> {
    /// The output layer, `[vocab, hidden]`.
    pub fn output(&self) -> Matrix<'g> {
        self.lm_head.unwrap_or(self.embed_tokens)
    }

    /// Declares all weights as parameters of the program, in the order of [`ModelSpec::arguments`];
    /// an unaligned matrix is followed by its offset.
    pub fn declare(graph: &'g Graph, model: &ModelSpec) -> Self {
        let mut declared: BTreeMap<String, Matrix<'g>> = BTreeMap::new();
        for argument in model.arguments() {
            let tensor = &argument.tensors[0];
            let elements = graph.parameter(&argument.name, model.argument_shape(&argument));
            if tensor.kind == TensorKind::Scale {
                let matrix = argument.name.strip_suffix(SCALE_SUFFIX).and_then(|name| declared.get_mut(name));
                matrix.expect("a scale follows its matrix").scale = Some(elements);
                continue;
            }
            let offset = model
                .is_unaligned(tensor)
                .then(|| graph.parameter(&format!("{}_offset", argument.name), Shape::new(DType::S32, [])));
            let dims = tensor.local_dims(&model.config, model.mesh);
            let dims = [dims[0], dims.get(1).copied().unwrap_or(1)];
            declared.insert(argument.name, Matrix { elements, scale: None, offset, dims });
        }
        let layer = |prefix: String| {
            let matrix = |name: &str| declared[&format!("{prefix}{name}.weight")];
            LayerWeights {
                input_layernorm: matrix("input_layernorm").elements,
                q_proj: matrix("self_attn.q_proj"),
                k_proj: matrix("self_attn.k_proj"),
                v_proj: matrix("self_attn.v_proj"),
                o_proj: matrix("self_attn.o_proj"),
                post_attention_layernorm: matrix("post_attention_layernorm").elements,
                gate_proj: matrix("mlp.gate_proj"),
                up_proj: matrix("mlp.up_proj"),
                down_proj: matrix("mlp.down_proj"),
            }
        };
        let layers = if model.lowering.stacks_layers {
            Layers::Stacked(Box::new(layer(LAYERS_PREFIX.to_owned())))
        } else {
            let numbers = 0..model.config.num_hidden_layers;
            Layers::Unrolled(numbers.map(|i| layer(format!("{LAYERS_PREFIX}{i}."))).collect())
        };
        Self {
            embed_tokens: declared[EMBED_TOKENS_NAME],
            layers,
            norm: declared[FINAL_NORM_NAME].elements,
            lm_head: declared.get(LM_HEAD_NAME).copied(),
        }
    }
}
