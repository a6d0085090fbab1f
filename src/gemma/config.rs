//! `config.json` of a Gemma checkpoint, checked.

use serde_json::{Map, Value};

use crate::{
    hlo::Mesh,
    model_file::{parse_json, quantized_by_others},
    sampling::VocabSplit,
};

/// The architecture's sizes and constants. Field names are those of Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub vocab_size: i64,
    pub hidden_size: i64,
    /// Width of gate and up, each.
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    /// 1 is multi-query, `num_attention_heads` is multi-head, anything between is grouped-query
    /// attention.
    pub num_key_value_heads: i64,
    pub head_dim: i64,
    /// Longest context that the model was trained for, in tokens.
    pub max_position_embeddings: i64,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    /// Whether the output layer is the embedding (true for all of Google's checkpoints).
    pub tie_word_embeddings: bool,
}

/// What distinguishes the layers of a model from each other. Those of Gemma 1 are all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Attention over the whole context, with norms before attention and MLP.
    Global,
}

/// A config that cannot be used, or things about it worth telling.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// The largest sizes. Those above are not a model, they are a mistake or an attack: the bytes of
/// all weights would overflow, or the list of tensors would fill the memory.
pub(super) const MAX_SIZE: i64 = 1 << 24;
pub(super) const MAX_WIDTH: i64 = 1 << 20;
pub(super) const MAX_HEADS: i64 = 1 << 12;
pub(super) const MAX_HEAD_DIM: i64 = 1 << 12;
pub(super) const MAX_LAYERS: i64 = 1 << 10;

impl Config {
    /// The sizes of `gemma-2b`, `gemma-7b`, or a tiny model of the same architecture for tests and
    /// demos.
    pub fn preset(name: &str) -> Option<Self> {
        let base = Self {
            vocab_size: 256_000,
            hidden_size: 2048,
            intermediate_size: 16384,
            num_hidden_layers: 18,
            num_attention_heads: 8,
            num_key_value_heads: 1,
            head_dim: 256,
            max_position_embeddings: 8192,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
        };
        match name {
            "gemma-2b" | "gemma-1.1-2b" => Some(base),
            "gemma-7b" | "gemma-1.1-7b" => Some(Self {
                hidden_size: 3072,
                intermediate_size: 24576,
                num_hidden_layers: 28,
                num_attention_heads: 16,
                num_key_value_heads: 16,
                ..base
            }),
            "tiny" => Some(Self {
                vocab_size: 512,
                hidden_size: 64,
                intermediate_size: 256,
                num_hidden_layers: 2,
                num_attention_heads: 8,
                num_key_value_heads: 1,
                head_dim: 16,
                max_position_embeddings: 1024,
                ..base
            }),
            _ => None,
        }
    }

    /// Names that [`Self::preset`] knows.
    pub const PRESETS: [&str; 3] = ["tiny", "gemma-1.1-2b", "gemma-1.1-7b"];

    /// Reads a `config.json`. Fields that are absent or null have the defaults of transformers'
    /// `GemmaConfig`, which are the 7B's. The second part of the result are remarks for the user:
    /// things that were accepted although they look odd.
    ///
    /// # Errors
    /// All fields that cannot be used, or weights in a format of other programs.
    pub fn parse(text: &str) -> Result<(Self, Vec<String>), ConfigError> {
        let json = parse_json(text).map_err(|problem| ConfigError(format!("config.json cannot be read: {problem}")))?;
        let Some(object) = json.as_object() else {
            return Err(ConfigError("config.json does not hold a JSON object; download it again".into()));
        };
        let mut problems = Vec::new();
        let mut remarks = Vec::new();
        let present = |name: &str| object.get(name).filter(|value| !value.is_null());

        match present("model_type").and_then(Value::as_str) {
            Some("gemma") => {
                if let Some(format) = format_of_others(object) {
                    return Err(ConfigError(format!("config.json says: {}", quantized_by_others(&format))));
                }
            }
            Some(other) => problems.push(format!("model_type is {other:?}, this program runs \"gemma\" (1 and 1.1)")),
            None => problems.push("model_type is missing (expected \"gemma\")".into()),
        }
        let mut size = |name: &str, default: i64, max: i64| -> i64 {
            let Some(value) = present(name) else { return default };
            value.as_i64().filter(|n| (1..=max).contains(n)).unwrap_or_else(|| {
                problems.push(format!("{name} is {value}, expected an integer from 1 to {max}"));
                default
            })
        };
        let mut config = Self {
            vocab_size: size("vocab_size", 256_000, MAX_SIZE),
            hidden_size: size("hidden_size", 3072, MAX_WIDTH),
            intermediate_size: size("intermediate_size", 24576, MAX_WIDTH),
            num_hidden_layers: size("num_hidden_layers", 28, MAX_LAYERS),
            num_attention_heads: size("num_attention_heads", 16, MAX_HEADS),
            num_key_value_heads: size("num_key_value_heads", 16, MAX_HEADS),
            head_dim: size("head_dim", 256, MAX_HEAD_DIM),
            max_position_embeddings: size("max_position_embeddings", 8192, MAX_SIZE),
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
        };
        let rope = rope_settings(object, &mut problems, &mut remarks);
        let mut positive = |name: &str, value: Option<&Value>, default: f64, below: f64| -> f64 {
            match value.map(Value::as_f64) {
                None => default,
                Some(Some(n)) if n > 0.0 && n < below => n,
                Some(_) => {
                    problems.push(format!("{name} is {}, expected a number above 0 and below {below}", value.unwrap()));
                    default
                }
            }
        };
        config.rms_norm_eps = positive("rms_norm_eps", present("rms_norm_eps"), 1e-6, 1.0);
        let theta = rope.and_then(|rope| rope.get("rope_theta")).filter(|theta| !theta.is_null());
        let theta = theta.or_else(|| present("rope_theta"));
        config.rope_theta = positive("rope_theta", theta, 10_000.0, 1e12);
        match present("tie_word_embeddings").map(Value::as_bool) {
            None => {}
            Some(Some(tie)) => config.tie_word_embeddings = tie,
            Some(None) => problems.push("tie_word_embeddings is not true or false".into()),
        }

        if present("attention_bias").is_some_and(|bias| bias.as_bool() != Some(false)) {
            problems.push("attention_bias is set; Gemma's linear layers have no bias".into());
        }
        check_attention(object, &config, &mut problems);
        for name in ["text_config", "per_layer_config"] {
            if present(name).is_some_and(|value| value.as_object().is_none_or(|fields| !fields.is_empty())) {
                problems.push(format!("{name} is set; Gemma 1 and 1.1 have one config for the whole model"));
            }
        }
        check_activation(present("hidden_activation"), present("hidden_act"), &mut problems, &mut remarks);
        if config.head_dim % 2 != 0 {
            problems.push(format!("head_dim is {}, which RoPE cannot split in halves", config.head_dim));
        }
        if config.num_attention_heads % config.num_key_value_heads != 0 {
            let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
            problems.push(format!("{heads} attention heads do not divide over {kv} key/value heads"));
        }
        if !problems.is_empty() {
            let list = problems.join("\n  - ");
            return Err(ConfigError(format!(
                "config.json cannot be used:\n  - {list}\nCheck that this is a Gemma 1 or 1.1 model."
            )));
        }
        Ok((config, remarks))
    }

    /// The config as `config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "architectures": ["GemmaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "head_dim": self.head_dim,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "gemma",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab_size,
        })
    }

    /// The kind of a layer.
    pub fn layer_kind(&self, _layer: i64) -> LayerKind {
        LayerKind::Global
    }

    /// Query heads that share one key/value head.
    pub fn queries_per_kv(&self) -> i64 {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Key/value heads on each device: split over the model axis, or repeated where there are fewer
    /// heads than devices.
    pub fn kv_heads_per_device(&self, mesh: Mesh) -> i64 {
        (self.num_key_value_heads / mesh.model as i64).max(1)
    }

    /// Checks that this model can be split over the mesh's model axis.
    ///
    /// # Errors
    /// What does not divide, and which meshes fit.
    pub fn check_mesh(&self, mesh: Mesh) -> Result<(), ConfigError> {
        let problems = self.uneven_over(mesh.model as i64);
        if problems.is_empty() {
            return Ok(());
        }
        let fitting = (1..=self.num_attention_heads).filter(|&n| self.uneven_over(n).is_empty());
        let options: Vec<String> = fitting.map(|n| format!("1x{n}")).collect();
        Err(ConfigError(format!(
            "mesh {mesh} does not fit this model: {} do not divide over {} devices. Use one of --mesh {}",
            problems.join(" and "),
            mesh.model,
            options.join(", ")
        )))
    }

    /// How the vocabulary is split over the devices of a mesh.
    pub fn vocab(&self, mesh: Mesh) -> VocabSplit {
        VocabSplit { tokens: self.vocab_size, mesh }
    }

    /// What of this model does not divide over so many devices.
    fn uneven_over(&self, devices: i64) -> Vec<String> {
        let sizes = [("attention heads", self.num_attention_heads), ("MLP columns", self.intermediate_size)];
        let uneven = sizes.iter().filter(|(_, size)| size % devices != 0);
        let mut problems: Vec<String> = uneven.map(|(what, size)| format!("{size} {what}")).collect();
        let kv = self.num_key_value_heads;
        if kv % devices != 0 && devices % kv != 0 {
            problems.push(format!("{kv} key/value heads"));
        }
        if !self.vocab(Mesh { data: 1, model: devices as usize }).is_possible() {
            problems.push(format!("{} vocabulary entries", self.vocab_size));
        }
        problems
    }
}

/// Checks that nothing changes which tokens attention sees. For transformers a null `is_causal` is
/// false, and a window makes its cache forget, although the mask does not know of it.
fn check_attention(object: &Map<String, Value>, config: &Config, problems: &mut Vec<String>) {
    let present = |name: &str| object.get(name).filter(|value| !value.is_null());
    for (name, value, usual) in [
        ("use_bidirectional_attention", present("use_bidirectional_attention"), false),
        ("is_causal", object.get("is_causal"), true),
    ] {
        if let Some(value) = value.filter(|value| value.as_bool() != Some(usual)) {
            problems.push(format!("{name} is {value}; this program computes causal attention only"));
        }
    }
    if let Some(kinds) = present("layer_types") {
        let layers = config.num_hidden_layers as usize;
        let is_full = |kinds: &Vec<Value>| kinds.len() == layers && kinds.iter().all(|kind| kind == "full_attention");
        if !kinds.as_array().is_some_and(is_full) {
            problems
                .push(format!("layer_types are {kinds}; Gemma 1 and 1.1 have full_attention in all {layers} layers"));
        }
        return; // no layer has a window, whatever its size would be
    }
    for name in ["sliding_window", "attention_chunk_size"] {
        let Some(window) = present(name) else { continue };
        if window.as_i64().is_none_or(|window| window < config.max_position_embeddings) {
            problems.push(format!("{name} is {window}; this program attends to the whole context"));
        }
    }
}

/// Returns RoPE's settings as transformers 5 finds them: in `rope_scaling`, the name of earlier
/// versions, or else in `rope_parameters`.
fn rope_settings<'c>(
    object: &'c Map<String, Value>,
    problems: &mut Vec<String>,
    remarks: &mut Vec<String>,
) -> Option<&'c Map<String, Value>> {
    let set = |name| object.get(name).filter(|value: &&Value| !value.is_null()).map(|value| (name, value));
    let is_empty = |value: &Value| value == &Value::Bool(false) || value.as_object().is_some_and(Map::is_empty);
    let (name, value) = set("rope_scaling").filter(|(_, value)| !is_empty(value)).or_else(|| set("rope_parameters"))?;
    let Some(settings) = value.as_object() else {
        problems.push(format!("{name} is {value}, expected an object"));
        return None;
    };
    let setting = |name: &str| settings.get(name).filter(|value| !value.is_null());
    if let Some(kind) = setting("rope_type").or_else(|| setting("type")).filter(|&kind| kind != "default") {
        problems.push(format!("{name} is of the type {kind}; Gemma 1 and 1.1 have the default one"));
        return Some(settings);
    }
    let known = ["rope_theta", "rope_type", "type"];
    let unknown: Vec<&str> = settings.keys().map(String::as_str).filter(|name| !known.contains(name)).collect();
    if !unknown.is_empty() {
        remarks.push(format!("{} in {name} of config.json: ignored, as by transformers", unknown.join(", ")));
    }
    Some(settings)
}

/// Checks both names of the activation: transformers 5 reads `hidden_act` alone, earlier versions
/// `hidden_activation`. The legacy `gelu` means the tanh form (transformers PR #29402).
fn check_activation(
    activation: Option<&Value>,
    legacy: Option<&Value>,
    problems: &mut Vec<String>,
    remarks: &mut Vec<String>,
) {
    if activation.or(legacy).is_none() {
        remarks.push("config.json names no activation; \"gelu_pytorch_tanh\" is used, as transformers does".into());
    }
    let is_tanh = |name: &str| {
        matches!(name, "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_new" | "gelu_fast" | "gelu_accurate")
    };
    let mut values: Vec<&Value> = [activation, legacy].into_iter().flatten().collect();
    values.dedup();
    for value in values {
        match value.as_str() {
            Some("gelu") if activation.is_none_or(|name| name == "gelu") => remarks.push(
                "config.json says hidden_act \"gelu\": a known mistake of early Gemma configs, read as the tanh form that \
                 the model was trained with"
                    .into(),
            ),
            Some("gelu") => {}
            Some(name) if is_tanh(name) => {}
            _ => problems.push(format!("the activation is {value}, Gemma's is \"gelu_pytorch_tanh\"")),
        }
    }
}

/// The format in which a config says that the weights are quantised, if it is not ours.
fn format_of_others(config: &Map<String, Value>) -> Option<String> {
    let quantization = |name: &str| config.get(name).filter(|value| !value.is_null());
    // MLX writes its settings under both of the first two names, without a method.
    let is_mlx = quantization("quantization").is_some();
    let Some(settings) = quantization("quantization_config").or(quantization("compression_config")) else {
        return is_mlx.then(|| "MLX".into());
    };
    let is_on = |name: &str| settings.get(name).and_then(Value::as_bool) == Some(true);
    match settings.get("quant_method").and_then(Value::as_str) {
        Some("gemma-pjrt") => None,
        Some("gptq") => Some("GPTQ".into()),
        Some("awq") => Some("AWQ".into()),
        Some("fp8" | "fbgemm_fp8") => Some("FP8".into()),
        Some(other) => Some(other.into()),
        None if is_on("load_in_4bit") || is_on("load_in_8bit") => Some("bitsandbytes".into()),
        None if is_mlx => Some("MLX".into()),
        None => Some(format!("quantization_config is {settings}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_with(
        change: impl FnOnce(&mut serde_json::Map<String, Value>),
    ) -> Result<(Config, Vec<String>), ConfigError> {
        let mut json = Config::preset("gemma-2b").unwrap().to_json();
        change(json.as_object_mut().unwrap());
        Config::parse(&json.to_string())
    }

    #[test]
    fn round_trips_through_json() {
        for name in Config::PRESETS {
            let config = Config::preset(name).unwrap();
            assert_eq!(Config::parse(&config.to_json().to_string()), Ok((config, vec![])));
        }
    }

    #[test]
    fn legacy_gelu_means_tanh_and_is_remarked() {
        let (_, remarks) = parse_with(|c| {
            c.remove("hidden_activation");
            c.insert("hidden_act".into(), "gelu".into());
        })
        .unwrap();
        assert_eq!(remarks.len(), 1);
        // Where both are given, hidden_activation counts, as in transformers.
        let (_, remarks) = parse_with(|c| {
            c.insert("hidden_act".into(), "gelu".into());
        })
        .unwrap();
        assert_eq!(remarks.len(), 0);
    }

    #[test]
    fn sizes_of_no_model_are_refused() {
        for (name, largest) in [
            ("vocab_size", MAX_SIZE),
            ("hidden_size", MAX_WIDTH),
            ("intermediate_size", MAX_WIDTH),
            ("num_attention_heads", MAX_HEADS),
            ("num_hidden_layers", MAX_LAYERS),
            ("head_dim", MAX_HEAD_DIM),
        ] {
            let with = |size: i64| parse_with(|c| drop(c.insert(name.into(), size.into())));
            assert!(with(largest).is_ok(), "{name}");
            let error = with(largest + 1).unwrap_err().0;
            assert!(error.contains(&format!("{name} is {}, expected an integer from 1 to {largest}", largest + 1)));
        }
    }

    #[test]
    fn transformers_5_rope_parameters() {
        let (config, _) = parse_with(|c| {
            c.remove("rope_theta");
            c.insert("rope_parameters".into(), serde_json::json!({"rope_theta": 5000.0, "rope_type": "default"}));
        })
        .unwrap();
        assert_eq!(config.rope_theta, 5000.0);
        // They win over the older field, here 10000.
        let theta = |name: &str, settings: Value| parse_with(|c| drop(c.insert(name.into(), settings))).unwrap();
        let (config, remarks) = theta("rope_parameters", serde_json::json!({"rope_theta": 5000.0}));
        assert_eq!((config.rope_theta, remarks.len()), (5000.0, 0));
        let (config, remarks) = theta("rope_scaling", serde_json::json!({"type": "default", "factor": 2.0}));
        assert_eq!((config.rope_theta, remarks.len()), (10_000.0, 1));
    }

    #[test]
    fn bad_values_are_all_named_in_one_error() {
        let error = parse_with(|c| {
            c.insert("head_dim".into(), "wide".into());
            c.insert("hidden_size".into(), 0.into());
            c.insert("num_hidden_layers".into(), (-3).into());
            c.insert("vocab_size".into(), serde_json::json!(1e30));
            c.insert("intermediate_size".into(), i64::MAX.into());
            c.insert("rms_norm_eps".into(), "small".into());
            c.insert("model_type".into(), "gemma2".into());
            c.insert("hidden_activation".into(), "silu".into());
        })
        .unwrap_err()
        .0;
        for name in [
            "head_dim",
            "hidden_size",
            "num_hidden_layers",
            "vocab_size",
            "intermediate_size",
            "rms_norm_eps",
            "gemma2",
            "silu",
        ] {
            assert!(error.contains(name), "{name} is not in: {error}");
        }
    }

    #[test]
    fn absent_and_null_fields_have_the_defaults_of_transformers() {
        let defaults = Config::preset("gemma-7b").unwrap();
        let hidden_act = r#"{"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"}"#;
        assert_eq!(Config::parse(hidden_act), Ok((defaults.clone(), vec![])));
        let with_nulls = parse_with(|c| {
            let optional = |name: &str| name != "model_type" && name != "hidden_activation";
            c.iter_mut().filter(|(name, _)| optional(name)).for_each(|(_, value)| *value = Value::Null);
            for name in ["use_bidirectional_attention", "sliding_window", "quantization_config", "rope_scaling"] {
                c.insert(name.into(), Value::Null);
            }
        });
        assert_eq!(with_nulls, Ok((defaults.clone(), vec![])));

        let (config, remarks) = Config::parse("\u{feff}{\"model_type\": \"gemma\"}").unwrap();
        assert_eq!(config, defaults);
        assert!(remarks[0].contains("gelu_pytorch_tanh"), "{remarks:?}");
    }

    #[test]
    fn what_changes_the_maths_is_refused() {
        for (name, value, words) in [
            ("use_bidirectional_attention", Value::from(true), "use_bidirectional_attention is true"),
            ("use_bidirectional_attention", "all".into(), "use_bidirectional_attention is \"all\""),
            ("is_causal", false.into(), "is_causal is false"),
            ("is_causal", Value::Null, "is_causal is null"),
            ("sliding_window", 4096.into(), "sliding_window is 4096"),
            ("attention_chunk_size", 4096.into(), "attention_chunk_size is 4096"),
            ("layer_types", serde_json::json!(["sliding_attention"]), "layer_types are [\"sliding_attention\"]"),
            ("per_layer_config", serde_json::json!({"1": {"rms_norm_eps": 0.5}}), "per_layer_config is set"),
            (
                "rope_scaling",
                serde_json::json!({"type": "linear", "factor": 2.0}),
                "rope_scaling is of the type \"linear\"",
            ),
            ("hidden_act", "relu".into(), "the activation is \"relu\""),
            ("hidden_activation", "relu".into(), "the activation is \"relu\""),
            ("hidden_activation", 3.into(), "the activation is 3"),
        ] {
            let error = parse_with(|c| drop(c.insert(name.into(), value))).unwrap_err().0;
            assert!(error.contains(words), "{error}");
        }
        let causal = parse_with(|c| {
            c.insert("is_causal".into(), true.into());
            c.insert("use_bidirectional_attention".into(), false.into());
        });
        assert!(causal.is_ok());
    }

    #[test]
    fn weights_quantised_by_others_are_one_line_that_names_the_format() {
        let quantization = |name: &str, settings: Value| parse_with(|c| drop(c.insert(name.into(), settings)));
        for (settings, format) in [
            (serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true}), "bitsandbytes"),
            (serde_json::json!({"load_in_8bit": true}), "bitsandbytes"),
            (serde_json::json!({"quant_method": "gptq", "bits": 4}), "GPTQ"),
            (serde_json::json!({"quant_method": "awq"}), "AWQ"),
            (serde_json::json!({"quant_method": "compressed-tensors"}), "compressed-tensors"),
            (serde_json::json!({"quant_method": "fbgemm_fp8"}), "FP8"),
            (serde_json::json!({"bits": 4}), "{\"bits\":4}"),
        ] {
            let error = quantization("quantization_config", settings).unwrap_err().0;
            assert!(error.contains(format) && error.contains("original bf16") && !error.contains('\n'), "{error}");
        }
        let error = quantization("quantization", serde_json::json!({"bits": 4, "group_size": 64})).unwrap_err().0;
        assert!(error.contains("MLX"), "{error}");
        assert!(quantization("quantization_config", serde_json::json!({"quant_method": "gemma-pjrt"})).is_ok());
    }

    #[test]
    fn meshes_that_do_not_divide_the_model_name_those_that_do() {
        let config = Config::preset("gemma-2b").unwrap();
        assert!(config.check_mesh(Mesh { data: 1, model: 8 }).is_ok());
        let error = config.check_mesh(Mesh { data: 1, model: 3 }).unwrap_err().0;
        assert!(error.contains("8 attention heads") && error.contains("1x1, 1x2, 1x4, 1x8"), "{error}");
    }
}
