//! The model's tensors: names as in the checkpoint, shapes, and how each is split over the model axis of a mesh.

use std::{collections::BTreeMap, ops::Range};

use super::Config;
use crate::hlo::{DType, Graph, Mesh, Op, Shape};

/// How a matrix is split over the devices that share a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharding {
    /// Every device has all of it.
    Replicated,
    /// Each device has a range of rows (column-parallel in Megatron's words: rows of `[out, in]` are outputs).
    Rows,
    /// Each device has a range of columns; products are partial sums, added by an all-reduce.
    Columns,
    /// Rows in units of one key/value head, which is repeated where there are fewer heads than devices.
    KvHeads,
}

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name with the `model.` prefix, as Hugging Face writes it.
    pub name: String,
    /// Global shape; matrices are `[out, in]`.
    pub dims: Vec<i64>,
    pub sharding: Sharding,
}

impl TensorSpec {
    /// What device column `rank` of the mesh holds: a range of each dimension.
    pub fn shard(&self, config: &Config, mesh: Mesh, rank: usize) -> Vec<Range<i64>> {
        let mut ranges: Vec<Range<i64>> = self.dims.iter().map(|&d| 0..d).collect();
        let (devices, rank) = (mesh.model as i64, rank as i64);
        let part = |size: i64| rank * size / devices..(rank + 1) * size / devices;
        match self.sharding {
            Sharding::Replicated => {}
            Sharding::Rows => ranges[0] = part(self.dims[0]),
            Sharding::Columns => ranges[1] = part(self.dims[1]),
            Sharding::KvHeads => {
                let heads = config.kv_heads_per_device(mesh);
                // With fewer heads than devices, neighbours share one: device 3 of 8 uses head 0 of 2.
                let first = if heads * devices == config.num_key_value_heads {
                    rank * heads
                } else {
                    rank * config.num_key_value_heads / devices
                };
                ranges[0] = first * config.head_dim..(first + heads) * config.head_dim;
            }
        }
        ranges
    }

    /// Shape of a device's part.
    pub fn local_dims(&self, config: &Config, mesh: Mesh) -> Vec<i64> {
        self.shard(config, mesh, 0).iter().map(|r| r.end - r.start).collect()
    }
}

/// The tensors of one layer, in the order of [`LayerWeights`].
pub const LAYER_TENSORS: [&str; 9] = [
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// All tensors, in the order in which programs take them.
pub fn tensors(config: &Config) -> Vec<TensorSpec> {
    let c = config;
    let (hidden, mlp) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let tensor = |name: String, dims: &[i64], sharding| TensorSpec { name, dims: dims.to_vec(), sharding };
    let mut all = vec![tensor("model.embed_tokens.weight".into(), &[c.vocab_size, hidden], Sharding::Rows)];
    for layer in 0..c.num_hidden_layers {
        let parts: [(&[i64], Sharding); 9] = [
            (&[hidden], Sharding::Replicated),
            (&[q, hidden], Sharding::Rows),
            (&[kv, hidden], Sharding::KvHeads),
            (&[kv, hidden], Sharding::KvHeads),
            (&[hidden, q], Sharding::Columns),
            (&[hidden], Sharding::Replicated),
            (&[mlp, hidden], Sharding::Rows),
            (&[mlp, hidden], Sharding::Rows),
            (&[hidden, mlp], Sharding::Columns),
        ];
        for (part, (dims, sharding)) in LAYER_TENSORS.iter().zip(parts) {
            all.push(tensor(format!("model.layers.{layer}.{part}.weight"), dims, sharding));
        }
    }
    all.push(tensor("model.norm.weight".into(), &[hidden], Sharding::Replicated));
    if !c.tie_word_embeddings {
        all.push(tensor("lm_head.weight".into(), &[c.vocab_size, hidden], Sharding::Rows));
    }
    all
}

/// Number of parameters of the model.
pub fn num_parameters(config: &Config) -> i64 {
    tensors(config).iter().map(|t| t.dims.iter().product::<i64>()).sum()
}

/// One decoder layer's weights, as ops. Matrices are `[out, in]`, this device's part.
#[derive(Clone, Copy)]
pub struct LayerWeights<'g> {
    pub input_layernorm: Op<'g>,
    pub q_proj: Op<'g>,
    pub k_proj: Op<'g>,
    pub v_proj: Op<'g>,
    pub o_proj: Op<'g>,
    pub post_attention_layernorm: Op<'g>,
    pub gate_proj: Op<'g>,
    pub up_proj: Op<'g>,
    pub down_proj: Op<'g>,
}

impl<'g> LayerWeights<'g> {
    /// From a list in the order of [`tensors`].
    pub fn from_list(ops: &[Op<'g>]) -> Self {
        let [input_layernorm, q_proj, k_proj, v_proj, o_proj, post_attention_layernorm, gate_proj, up_proj, down_proj] =
            ops[..]
        else {
            unreachable!("a layer has nine tensors, tensors() lists them")
        };
        Self {
            input_layernorm,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            post_attention_layernorm,
            gate_proj,
            up_proj,
            down_proj,
        }
    }
}

impl<'g> LayerWeights<'g> {
    /// The list that [`Self::from_list`] takes.
    pub fn to_list(self) -> [Op<'g>; 9] {
        [
            self.input_layernorm,
            self.q_proj,
            self.k_proj,
            self.v_proj,
            self.o_proj,
            self.post_attention_layernorm,
            self.gate_proj,
            self.up_proj,
            self.down_proj,
        ]
    }
}

/// All weights, as ops.
pub struct Weights<'g> {
    /// `[vocab / devices, hidden]`
    pub embed_tokens: Op<'g>,
    pub layers: Vec<LayerWeights<'g>>,
    pub norm: Op<'g>,
    /// `[vocab / devices, hidden]`: the embedding itself where tied.
    pub lm_head: Op<'g>,
}

/// Element type of each tensor as stored, by name; all others are of type `default`.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTypes {
    pub default: DType,
    pub exceptions: BTreeMap<String, DType>,
}

impl StoredTypes {
    /// All tensors of one type.
    pub fn uniform(dtype: DType) -> Self {
        Self { default: dtype, exceptions: BTreeMap::new() }
    }

    /// Type of the tensor of this name.
    pub fn of(&self, name: &str) -> DType {
        self.exceptions.get(name).copied().unwrap_or(self.default)
    }
}

impl<'g> Weights<'g> {
    /// Declares all weights as parameters of the program, in the order of [`tensors`].
    pub fn declare(graph: &'g Graph, config: &Config, mesh: Mesh, stored: &StoredTypes) -> Self {
        let declare = |spec: &TensorSpec| {
            graph.parameter(&spec.name, Shape::new(stored.of(&spec.name), spec.local_dims(config, mesh)))
        };
        let ops: Vec<Op<'g>> = tensors(config).iter().map(declare).collect();
        let layers = config.num_hidden_layers as usize;
        let embed_tokens = ops[0];
        Self {
            embed_tokens,
            layers: ops[1..=9 * layers].chunks_exact(9).map(LayerWeights::from_list).collect(),
            norm: ops[9 * layers + 1],
            lm_head: if config.tie_word_embeddings { embed_tokens } else { ops[9 * layers + 2] },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_those_of_the_model_card() {
        assert_eq!(num_parameters(&Config::preset("gemma-2b").unwrap()), 2_506_172_416);
        assert_eq!(num_parameters(&Config::preset("gemma-7b").unwrap()), 8_537_680_896);
    }

    /// The parts of all devices cover each tensor; key/value heads may be repeated, and then match the query heads.
    #[test]
    fn shards_cover_every_tensor() {
        for kv_heads in [1, 2, 4, 8] {
            let config = Config { num_key_value_heads: kv_heads, ..Config::preset("tiny").unwrap() };
            for model in [1, 2, 4, 8] {
                let mesh = Mesh { data: 1, model };
                config.check_mesh(mesh).unwrap();
                for spec in tensors(&config) {
                    let dim = usize::from(spec.sharding == Sharding::Columns);
                    let mut end = 0;
                    for rank in 0..model {
                        let range = spec.shard(&config, mesh, rank)[dim].clone();
                        assert!(range.start <= end, "{} has a gap before {range:?}", spec.name);
                        end = end.max(range.end);
                        if spec.sharding == Sharding::KvHeads {
                            // The first query head of this device must find its key/value head here.
                            let query = rank as i64 * config.num_attention_heads / model as i64;
                            let kv = query / config.queries_per_kv();
                            assert_eq!(range.start, kv * config.head_dim, "{} rank {rank} of {model}", spec.name);
                        }
                    }
                    assert_eq!(end, spec.dims[dim], "{}", spec.name);
                }
            }
        }
    }
}
