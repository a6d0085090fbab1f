//! The model's tensors: one row of a table for each, with its name in the checkpoint, its axes by
//! name, and its kind. How a tensor is split over the model axis of a mesh follows from its axes.

use std::ops::Range;

use super::{Config, config::LayerKind};
use crate::hlo::Mesh;

/// An axis of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Split as [`crate::sampling::VocabSplit`] says.
    Vocab,
    /// Whole on every device.
    Hidden,
    /// Columns of gate and up; split evenly.
    Mlp,
    /// Query heads times `head_dim`; split evenly.
    QueryHeads,
    /// Key/value heads times `head_dim`; split by heads, which are repeated where there are fewer
    /// than devices.
    KvHeads,
}

impl Axis {
    /// Number of elements of the whole axis.
    pub fn size(self, config: &Config) -> i64 {
        match self {
            Self::Vocab => config.vocab_size,
            Self::Hidden => config.hidden_size,
            Self::Mlp => config.intermediate_size,
            Self::QueryHeads => config.num_attention_heads * config.head_dim,
            Self::KvHeads => config.num_key_value_heads * config.head_dim,
        }
    }

    /// The part of the axis that tp rank `rank` holds.
    fn shard(self, config: &Config, mesh: Mesh, rank: usize) -> Range<i64> {
        let (size, devices, rank) = (self.size(config), mesh.model as i64, rank as i64);
        match self {
            Self::Hidden => 0..size,
            Self::Vocab => config.vocab(mesh).held(rank as usize),
            Self::Mlp | Self::QueryHeads => rank * size / devices..(rank + 1) * size / devices,
            Self::KvHeads => {
                let heads = config.kv_heads_per_device(mesh);
                // With fewer heads than devices, neighbours share one: device 3 of 8 uses head 0 of
                // 2.
                let first = if heads * devices == config.num_key_value_heads {
                    rank * heads
                } else {
                    rank * config.num_key_value_heads / devices
                };
                first * config.head_dim..(first + heads) * config.head_dim
            }
        }
    }
}

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// `[out, in]`, multiplied with activations; may be quantised.
    Matrix,
    /// Weight of an RMSNorm.
    Norm,
    /// Scale of a quantised matrix.
    Scale,
}

/// A row of the table.
struct Row {
    name: &'static str,
    axes: &'static [Axis],
    kind: TensorKind,
}

const fn matrix(name: &'static str, axes: &'static [Axis; 2]) -> Row {
    Row { name, axes, kind: TensorKind::Matrix }
}

const fn norm(name: &'static str) -> Row {
    Row { name, axes: &[Axis::Hidden], kind: TensorKind::Norm }
}

const EMBED_TOKENS: Row = matrix("model.embed_tokens.weight", &[Axis::Vocab, Axis::Hidden]);
const GLOBAL_LAYER: [Row; 9] = [
    norm("input_layernorm.weight"),
    matrix("self_attn.q_proj.weight", &[Axis::QueryHeads, Axis::Hidden]),
    matrix("self_attn.k_proj.weight", &[Axis::KvHeads, Axis::Hidden]),
    matrix("self_attn.v_proj.weight", &[Axis::KvHeads, Axis::Hidden]),
    matrix("self_attn.o_proj.weight", &[Axis::Hidden, Axis::QueryHeads]),
    norm("post_attention_layernorm.weight"),
    matrix("mlp.gate_proj.weight", &[Axis::Mlp, Axis::Hidden]),
    matrix("mlp.up_proj.weight", &[Axis::Mlp, Axis::Hidden]),
    matrix("mlp.down_proj.weight", &[Axis::Hidden, Axis::Mlp]),
];
const FINAL_NORM: Row = norm("model.norm.weight");
const LM_HEAD: Row = matrix("lm_head.weight", &[Axis::Vocab, Axis::Hidden]);

/// Name of the embedding.
pub const EMBED_TOKENS_NAME: &str = EMBED_TOKENS.name;
/// Name of the output layer, where it is not the embedding.
pub const LM_HEAD_NAME: &str = LM_HEAD.name;
/// Name of the final norm.
pub const FINAL_NORM_NAME: &str = FINAL_NORM.name;
/// Beginning of the names of all layers' tensors; the layer's number follows.
pub const LAYERS_PREFIX: &str = "model.layers.";
/// End of the name of a matrix's scale: `model.layers.0.mlp.up_proj.weight_scale`.
pub const SCALE_SUFFIX: &str = "_scale";

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name with the `model.` prefix, as Hugging Face writes it.
    pub name: String,
    pub kind: TensorKind,
    /// Number of its layer, if it belongs to one.
    pub layer: Option<i64>,
    /// Global shape; matrices are `[out, in]`.
    pub dims: Vec<i64>,
    axes: Vec<Axis>,
    /// Elements of the last axis that share an entry: more than 1 in scales of blocks.
    block: i64,
}

impl TensorSpec {
    fn new(name: String, row: &Row, layer: Option<i64>, config: &Config) -> Self {
        let dims = row.axes.iter().map(|axis| axis.size(config)).collect();
        Self { name, kind: row.kind, layer, dims, axes: row.axes.to_vec(), block: 1 }
    }

    /// The scale of this matrix: one number for each row, or for each `block` elements of a row.
    pub fn scale(&self, block: Option<i64>) -> Self {
        let name = format!("{}{SCALE_SUFFIX}", self.name);
        let scale = |dims, axes: &[Axis], block| Self {
            name,
            kind: TensorKind::Scale,
            layer: self.layer,
            dims,
            axes: axes.to_vec(),
            block,
        };
        match block {
            None => scale(vec![self.dims[0]], &self.axes[..1], 1),
            Some(block) => scale(vec![self.dims[0], self.dims[1] / block], &self.axes, block),
        }
    }

    /// The range of each dimension that tp rank `rank` of the mesh holds.
    pub fn shard(&self, config: &Config, mesh: Mesh, rank: usize) -> Vec<Range<i64>> {
        let mut ranges: Vec<Range<i64>> = self.axes.iter().map(|axis| axis.shard(config, mesh, rank)).collect();
        if let Some(last) = ranges.last_mut() {
            *last = last.start / self.block..last.end / self.block;
        }
        ranges
    }

    /// Shape of a device's shard.
    pub fn local_dims(&self, config: &Config, mesh: Mesh) -> Vec<i64> {
        self.shard(config, mesh, 0).iter().map(|range| range.end - range.start).collect()
    }

    /// The name without the layer's number: `mlp.up_proj.weight`.
    pub fn name_in_layer(&self) -> Option<&str> {
        self.name.strip_prefix(LAYERS_PREFIX)?.split_once('.').map(|(_, name)| name)
    }
}

/// All tensors, in the order in which programs take them.
pub fn tensors(config: &Config) -> Vec<TensorSpec> {
    let whole = |row: &Row| TensorSpec::new(row.name.to_owned(), row, None, config);
    let mut all = vec![whole(&EMBED_TOKENS)];
    for layer in 0..config.num_hidden_layers {
        let table = match config.layer_kind(layer) {
            LayerKind::Global => &GLOBAL_LAYER,
        };
        all.extend(table.iter().map(|row| {
            let name = format!("{LAYERS_PREFIX}{layer}.{}", row.name);
            TensorSpec::new(name, row, Some(layer), config)
        }));
    }
    all.push(whole(&FINAL_NORM));
    if !config.tie_word_embeddings {
        all.push(whole(&LM_HEAD));
    }
    all
}

/// Number of parameters of the model.
pub fn num_parameters(config: &Config) -> i64 {
    tensors(config).iter().map(|tensor| tensor.dims.iter().product::<i64>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemma::config::{MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_SIZE, MAX_WIDTH};

    #[test]
    fn the_bytes_of_the_largest_model_do_not_overflow() {
        let config = Config {
            vocab_size: MAX_SIZE,
            hidden_size: MAX_WIDTH,
            intermediate_size: MAX_WIDTH,
            num_hidden_layers: MAX_LAYERS,
            num_attention_heads: MAX_HEADS,
            num_key_value_heads: MAX_HEADS,
            head_dim: MAX_HEAD_DIM,
            ..Config::preset("gemma-7b").unwrap()
        };
        let parameters = num_parameters(&config);
        assert!(parameters > 1 << 55 && parameters.checked_mul(4).is_some(), "{parameters}");
    }

    #[test]
    fn parameter_counts_are_those_of_the_model_card() {
        assert_eq!(num_parameters(&Config::preset("gemma-2b").unwrap()), 2_506_172_416);
        assert_eq!(num_parameters(&Config::preset("gemma-7b").unwrap()), 8_537_680_896);
    }

    /// The shards of all devices cover each tensor; key/value heads may be repeated, and then match
    /// the query heads.
    #[test]
    fn shards_cover_every_tensor() {
        for kv_heads in [1, 2, 4, 8] {
            let vocab_size = 512 - kv_heads; // which no mesh but one divides
            let config = Config { num_key_value_heads: kv_heads, vocab_size, ..Config::preset("tiny").unwrap() };
            for model in [1, 2, 4, 8] {
                let mesh = Mesh { data: 1, model };
                config.check_mesh(mesh).unwrap();
                for spec in tensors(&config) {
                    let split = spec.axes.iter().position(|&axis| axis != Axis::Hidden).unwrap_or(0);
                    let mut end = 0;
                    for rank in 0..model {
                        let range = spec.shard(&config, mesh, rank)[split].clone();
                        assert!(range.start <= end, "{} has a gap before {range:?}", spec.name);
                        end = end.max(range.end);
                        if spec.axes[split] == Axis::KvHeads {
                            // The first query head of this device must find its key/value head
                            // here.
                            let query = rank as i64 * config.num_attention_heads / model as i64;
                            let kv = query / config.queries_per_kv();
                            assert_eq!(range.start, kv * config.head_dim, "{} rank {rank} of {model}", spec.name);
                        }
                    }
                    assert_eq!(end, spec.dims[split], "{}", spec.name);
                }
            }
        }
    }

    /// A matrix's scale is split as its rows are, and in blocks as its columns are.
    #[test]
    fn scales_are_split_with_their_matrices() {
        let config = Config::preset("tiny").unwrap();
        let mesh = Mesh { data: 1, model: 2 };
        let find = |name: &str| tensors(&config).into_iter().find(|spec| spec.name.ends_with(name)).unwrap();
        let (up, down) = (find("0.mlp.up_proj.weight"), find("0.mlp.down_proj.weight"));
        assert_eq!(up.scale(None).shard(&config, mesh, 1), vec![128..256; 1]);
        assert_eq!(up.scale(Some(32)).shard(&config, mesh, 1), [128..256, 0..2]);
        assert_eq!(down.scale(None).shard(&config, mesh, 1), vec![0..64; 1]);
        assert_eq!(down.scale(Some(32)).shard(&config, mesh, 1), [0..64, 4..8]);
    }
}
