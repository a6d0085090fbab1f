//! The model's tensors: names as in the checkpoint, shapes, and how each is split over the model axis of a mesh.

use std::{collections::BTreeMap, ops::Range};

use super::{Config, ConfigError, Target, layers::Context};
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

const EMBED_TOKENS: &str = "model.embed_tokens.weight";
const LM_HEAD: &str = "lm_head.weight";
const LAYERS: &str = "model.layers.";
const NORM: &str = "norm.weight";

/// Name of one of [`LAYER_TENSORS`].
fn layer_tensor(layer: i64, part: &str) -> String {
    format!("{LAYERS}{layer}.{part}.weight")
}

/// All tensors. Programs take them in this order, see [`arguments`].
pub fn tensors(config: &Config) -> Vec<TensorSpec> {
    let c = config;
    let (hidden, mlp) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let tensor = |name: String, dims: &[i64], sharding| TensorSpec { name, dims: dims.to_vec(), sharding };
    let mut all = vec![tensor(EMBED_TOKENS.into(), &[c.vocab_size, hidden], Sharding::Rows)];
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
            all.push(tensor(layer_tensor(layer, part), dims, sharding));
        }
    }
    all.push(tensor("model.norm.weight".into(), &[hidden], Sharding::Replicated));
    if !c.tie_word_embeddings {
        all.push(tensor(LM_HEAD.into(), &[c.vocab_size, hidden], Sharding::Rows));
    }
    all
}

/// Number of parameters of the model.
pub fn num_parameters(config: &Config) -> i64 {
    tensors(config).iter().map(|t| t.dims.iter().product::<i64>()).sum()
}

/// A matrix, `[out, in]`, this device's part.
#[derive(Clone, Copy)]
pub struct Matrix<'g> {
    pub elements: Op<'g>,
    /// Of quantised elements what they are to be multiplied by: each row of s8 by `f32[out]`, each [`GROUP`] of a row of s4
    /// by `f16[out, in / GROUP]`.
    pub scale: Option<Op<'g>>,
    /// Of shifted elements, see [`StoredTypes::shifted`], where they are.
    pub shift: Option<Shift<'g>>,
}

/// Where a matrix is in an array of elements.
#[derive(Clone, Copy)]
pub struct Shift<'g> {
    /// The first element's index, `s32[]`.
    pub first: Op<'g>,
    /// The matrix's shape.
    pub dims: [i64; 2],
}

/// What a tensor's ops are.
#[derive(Clone, Copy)]
pub enum Form {
    /// Its elements.
    Plain,
    /// Its elements and their scale.
    Quantised,
    /// An array with its elements in it, and the first one's index; the shape.
    Shifted([i64; 2]),
}

impl<'g> Matrix<'g> {
    /// Takes its ops.
    fn take(ops: &mut impl Iterator<Item = Op<'g>>, form: Form) -> Self {
        let mut next = || ops.next().expect("arguments() lists all tensors, with their scales and shifts");
        let plain = Self { elements: next(), scale: None, shift: None };
        match form {
            Form::Plain => plain,
            Form::Quantised => Self { scale: Some(next()), ..plain },
            Form::Shifted(dims) => Self { shift: Some(Shift { first: next(), dims }), ..plain },
        }
    }

    fn form(&self) -> Form {
        match (self.scale, self.shift) {
            (Some(_), _) => Form::Quantised,
            (None, Some(Shift { dims, .. })) => Form::Shifted(dims),
            (None, None) => Form::Plain,
        }
    }

    /// Number of outputs.
    pub fn rows(&self) -> i64 {
        match self.shift {
            Some(shift) => shift.dims[0],
            None if self.elements.shape().dtype == DType::S4 => self.elements.dim(2), // see Target::weight_shape
            None => self.elements.dim(0),
        }
    }
}

/// One decoder layer's weights, as ops.
#[derive(Clone, Copy)]
pub struct LayerWeights<'g> {
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

impl<'g> LayerWeights<'g> {
    /// Takes the ops of a layer's tensors, in the order of [`LAYER_TENSORS`], of these forms.
    pub fn take(ops: &mut impl Iterator<Item = Op<'g>>, forms: [Form; 9]) -> Self {
        let [input_layernorm, q_proj, k_proj, v_proj, o_proj, post_attention_layernorm, gate_proj, up_proj, down_proj] =
            forms.map(|form| Matrix::take(ops, form));
        Self {
            input_layernorm: input_layernorm.elements,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            post_attention_layernorm: post_attention_layernorm.elements,
            gate_proj,
            up_proj,
            down_proj,
        }
    }

    /// One layer's weights `[...]` of those of all layers, `[layers, ...]`.
    pub fn at(self, layer: Op<'g>) -> Self {
        let zero = layer.graph().scalar(DType::S32, 0.0);
        let slice = |(_, stacked): (String, Op<'g>)| {
            let dims = stacked.shape().dims;
            let starts: Vec<Op<'g>> = std::iter::once(layer).chain(dims[1..].iter().map(|_| zero)).collect();
            let sizes: Vec<i64> = std::iter::once(1).chain(dims[1..].iter().copied()).collect();
            stacked.dynamic_slice(&starts, &sizes).reshape(&dims[1..])
        };
        Self::take(&mut self.to_list().into_iter().map(slice), self.forms())
    }

    /// In the order of [`LAYER_TENSORS`].
    fn tensors(self) -> [Matrix<'g>; 9] {
        let norm = |elements| Matrix { elements, scale: None, shift: None };
        [
            norm(self.input_layernorm),
            self.q_proj,
            self.k_proj,
            self.v_proj,
            self.o_proj,
            norm(self.post_attention_layernorm),
            self.gate_proj,
            self.up_proj,
            self.down_proj,
        ]
    }

    /// Forms of [`LAYER_TENSORS`].
    pub fn forms(self) -> [Form; 9] {
        self.tensors().map(|tensor| tensor.form())
    }

    /// The ops that [`Self::take`] takes, with their names.
    pub fn to_list(self) -> Vec<(String, Op<'g>)> {
        let named = |(name, tensor): (&str, Matrix<'g>)| {
            let scale = tensor.scale.map(|scale| (format!("{name}{SCALE}"), scale));
            let shift = tensor.shift.map(|shift| (format!("{name}{SHIFT}"), shift.first));
            std::iter::once((name.to_owned(), tensor.elements)).chain(scale).chain(shift).collect::<Vec<_>>()
        };
        LAYER_TENSORS.into_iter().zip(self.tensors()).flat_map(named).collect()
    }
}

/// The weights of all layers, as ops.
pub enum Layers<'g> {
    /// Each with parameters of its own.
    Unrolled(Vec<LayerWeights<'g>>),
    /// Every tensor with the layers as its first dimension.
    Stacked(Box<LayerWeights<'g>>),
}

impl<'g> Layers<'g> {
    fn all(&self) -> &[LayerWeights<'g>] {
        match self {
            Self::Unrolled(layers) => layers,
            Self::Stacked(layers) => std::slice::from_ref(layers),
        }
    }
}

/// All weights, as ops.
pub struct Weights<'g> {
    /// `[vocab / devices, hidden]`
    pub embed_tokens: Matrix<'g>,
    pub layers: Layers<'g>,
    pub norm: Op<'g>,
    /// `[vocab / devices, hidden]`: the embedding itself where tied.
    pub lm_head: Matrix<'g>,
    is_tied: bool,
}

/// Element type of each tensor as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTypes {
    pub matrices: DType,
    pub norms: DType,
    /// Tensors of another type, by name.
    pub exceptions: BTreeMap<String, DType>,
    /// Matrices, which are not quantised then, lie at any address. XLA:CPU takes arrays at multiples of 64 only: a program takes
    /// an array of elements that begins at the last such address before the matrix (see [`Target::shifted_shape`]), and the
    /// index of the matrix's first element in it.
    pub shifted: bool,
}

impl StoredTypes {
    /// All tensors of one type.
    pub fn uniform(dtype: DType) -> Self {
        Self { matrices: dtype, norms: dtype, exceptions: BTreeMap::new(), shifted: false }
    }

    /// Matrices in eight bits with a scale for each row.
    pub fn int8(norms: DType) -> Self {
        Self { matrices: DType::S8, ..Self::uniform(norms) }
    }

    /// Matrices in four bits with a scale for each [`GROUP`] of a row; embedding and output layer in eight.
    pub fn int4(norms: DType) -> Self {
        let exceptions = [EMBED_TOKENS, LM_HEAD].map(|name| (name.to_owned(), DType::S8));
        Self { matrices: DType::S4, exceptions: exceptions.into(), ..Self::uniform(norms) }
    }

    /// Type of the tensor of this name. Scales of rows are f32, those of groups f16.
    pub fn of(&self, name: &str) -> DType {
        if let Some(matrix) = name.strip_suffix(SCALE) {
            return if self.of(matrix) == DType::S4 { DType::F16 } else { DType::F32 };
        }
        let usual = if name.ends_with(NORM) { self.norms } else { self.matrices };
        self.exceptions.get(name).copied().unwrap_or(usual)
    }

    /// Whether the tensor is quantised, with a scale after it.
    pub fn is_quantised(&self, name: &str) -> bool {
        matches!(self.of(name), DType::S8 | DType::S4)
    }

    /// What the ops of the tensor of this name are, of which a device has these dims.
    fn form(&self, name: &str, dims: &[i64]) -> Form {
        match *dims {
            _ if self.is_quantised(name) => Form::Quantised,
            [rows, width] if self.shifted => Form::Shifted([rows, width]),
            _ => Form::Plain,
        }
    }

    /// Checks that four-bit matrices are made of whole groups, on each device of the mesh, and that layers which are to be stacked
    /// have the same types.
    pub fn check(&self, target: Target, config: &Config, mesh: Mesh) -> Result<(), ConfigError> {
        let of_layer = self.exceptions.iter().find(|(name, _)| name.starts_with(LAYERS));
        if let Some((name, dtype)) = of_layer.filter(|_| target.stacks_layers()) {
            return Err(ConfigError(format!(
                "{name} is stored as {dtype} and others of its kind as {}: on {} all layers are one array, which has one type. \
                 Write a checkpoint of one type (gemma-pjrt quantize MODEL --weights int8 --out DIR), or run this one with \
                 --platform cpu",
                if name.ends_with(NORM) { self.norms } else { self.matrices },
                target.name()
            )));
        }
        for spec in tensors(config).iter().filter(|spec| spec.dims.len() == 2 && self.of(&spec.name) == DType::S4) {
            if spec.name == EMBED_TOKENS {
                return Err(ConfigError(format!(
                    "{EMBED_TOKENS} is stored in four bits; the embedding has at least eight"
                )));
            }
            let width = spec.local_dims(config, mesh)[1];
            if width % GROUP != 0 {
                return Err(ConfigError(format!(
                    "{} has rows of {width} on each device of mesh {mesh}, and in four bits only whole groups of {GROUP} can be \
                     split. Use fewer devices, or --weights int8",
                    spec.name
                )));
            }
        }
        Ok(())
    }
}

/// Elements of a row that share a scale, in four bits.
pub const GROUP: i64 = 32;

/// What the name of a matrix's scale ends with: `model.layers.0.mlp.up_proj.weight_scale`.
pub const SCALE: &str = "_scale";

/// What the name of a shifted matrix's first index ends with.
const SHIFT: &str = "_shift";

/// [`tensors`] as stored: a quantised matrix is followed by its scale.
pub fn parameters(config: &Config, stored: &StoredTypes) -> Vec<TensorSpec> {
    let with_scale = |spec: TensorSpec| {
        let scale = |dims, sharding| TensorSpec { name: format!("{}{SCALE}", spec.name), dims, sharding };
        let scale = match stored.of(&spec.name) {
            _ if spec.dims.len() == 1 => None,
            DType::S4 => Some(scale(vec![spec.dims[0], spec.dims[1] / GROUP], spec.sharding)),
            // Where columns are split, a device's products are partial sums of all rows.
            DType::S8 if spec.sharding == Sharding::Columns => Some(scale(vec![spec.dims[0]], Sharding::Replicated)),
            DType::S8 => Some(scale(vec![spec.dims[0]], spec.sharding)),
            _ => None,
        };
        std::iter::once(spec).chain(scale)
    };
    tensors(config).into_iter().flat_map(with_scale).collect()
}

/// A weight as programs take it: a tensor, or that of every layer, stacked.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    /// The tensor's name; of stacked ones without the number of the layer: `model.layers.mlp.up_proj.weight`.
    pub name: String,
    /// The tensor, or those to be stacked.
    pub tensors: Vec<TensorSpec>,
    /// Whether the layers are its first dimension.
    pub is_stacked: bool,
}

impl Argument {
    /// Shape of a device's part.
    pub fn local_dims(&self, config: &Config, mesh: Mesh) -> Vec<i64> {
        let layers = self.is_stacked.then_some(self.tensors.len() as i64);
        layers.into_iter().chain(self.tensors[0].local_dims(config, mesh)).collect()
    }
}

/// All weights in the order in which programs for this target take them: that of [`parameters`], with all layers' tensors in
/// the place of the first layer's where they are stacked.
pub fn arguments(target: Target, config: &Config, stored: &StoredTypes) -> Vec<Argument> {
    let mut all: Vec<Argument> = Vec::new();
    for spec in parameters(config, stored) {
        let part = spec.name.strip_prefix(LAYERS).and_then(|rest| rest.split_once('.')).map(|(_, part)| part);
        let Some(part) = part.filter(|_| target.stacks_layers()) else {
            all.push(Argument { name: spec.name.clone(), tensors: vec![spec], is_stacked: false });
            continue;
        };
        let name = format!("{LAYERS}{part}");
        match all.iter_mut().find(|argument| argument.name == name) {
            Some(argument) => argument.tensors.push(spec),
            None => all.push(Argument { name, tensors: vec![spec], is_stacked: true }),
        }
    }
    all
}

impl<'g> Weights<'g> {
    /// Its ops, in the order of [`arguments`].
    pub(super) fn to_list(&self) -> Vec<Op<'g>> {
        let matrix = |matrix: Matrix<'g>| {
            [Some(matrix.elements), matrix.scale, matrix.shift.map(|shift| shift.first)].into_iter().flatten()
        };
        let layers: Vec<Op<'g>> =
            self.layers.all().iter().flat_map(|layer| layer.to_list()).map(|(_, op)| op).collect();
        let lm_head = (!self.is_tied).then_some(self.lm_head);
        matrix(self.embed_tokens).chain(layers).chain([self.norm]).chain(lm_head.into_iter().flat_map(matrix)).collect()
    }

    /// The same weights, as the ops of another computation that [`Self::to_list`] gave to it.
    pub(super) fn within<'b>(&self, ops: &[Op<'b>]) -> Weights<'b> {
        let mut ops = ops.iter().copied();
        let embed_tokens = Matrix::take(&mut ops, self.embed_tokens.form());
        let mut take = |layer: &LayerWeights<'g>| LayerWeights::take(&mut ops, layer.forms());
        let layers = match &self.layers {
            Layers::Unrolled(layers) => Layers::Unrolled(layers.iter().map(take).collect()),
            Layers::Stacked(layers) => Layers::Stacked(Box::new(take(layers))),
        };
        let norm = ops.next().expect("as many ops as to_list gave");
        let lm_head = if self.is_tied { embed_tokens } else { Matrix::take(&mut ops, self.lm_head.form()) };
        Weights { embed_tokens, layers, norm, lm_head, is_tied: self.is_tied }
    }

    /// Declares all weights as parameters of the program, in the order of [`arguments`]; a shifted matrix is followed by the index
    /// of its first element.
    pub(super) fn declare(graph: &'g Graph, cx: Context<'_>, stored: &StoredTypes) -> Self {
        let Context { target, config, mesh, .. } = cx;
        let mut declared = Vec::new();
        let mut forms = BTreeMap::new();
        for argument in arguments(target, config, stored) {
            let first = &argument.tensors[0];
            let (dtype, dims) = (stored.of(&first.name), argument.local_dims(config, mesh));
            let form = stored.form(&first.name, &dims);
            if let Form::Shifted(_) = form {
                declared.push(graph.parameter(&argument.name, Target::shifted_shape(dtype, &dims)));
                declared.push(graph.parameter(&format!("{}{SHIFT}", argument.name), Shape::new(DType::S32, [])));
            } else {
                declared.push(graph.parameter(&argument.name, target.weight_shape(dtype, &dims)));
            }
            forms.insert(first.name.clone(), form);
        }
        let mut ops = declared.into_iter();
        let embed_tokens = Matrix::take(&mut ops, forms[EMBED_TOKENS]);
        let mut layer =
            |layer: i64| LayerWeights::take(&mut ops, LAYER_TENSORS.map(|part| forms[&layer_tensor(layer, part)]));
        let layers = if target.stacks_layers() {
            Layers::Stacked(Box::new(layer(0)))
        } else {
            Layers::Unrolled((0..config.num_hidden_layers).map(layer).collect())
        };
        let norm = ops.next().expect("arguments() lists all tensors");
        let lm_head = if config.tie_word_embeddings { embed_tokens } else { Matrix::take(&mut ops, forms[LM_HEAD]) };
        Self { embed_tokens, layers, norm, lm_head, is_tied: config.tie_word_embeddings }
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
