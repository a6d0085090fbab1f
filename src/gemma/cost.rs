//! What a step costs at least: arithmetic, and bytes read from memory. With a machine's rates for
//! both they are the step's roofline (Williams, Waterman and Patterson 2009).

use super::{
    ProgramSpec,
    storage::parameters,
    tensors::{EMBED_TOKENS_NAME, LM_HEAD_NAME, TensorKind},
};

/// The least work of one device for a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Floating-point operations of products; a multiplication and an addition are two.
    pub flops: f64,
    /// Bytes of weights and of the KV cache, each read once.
    pub bytes: f64,
}

impl Cost {
    /// Seconds at these rates, if reading and computing hide each other.
    pub fn seconds(&self, flops_per_second: f64, bytes_per_second: f64) -> f64 {
        (self.flops / flops_per_second).max(self.bytes / bytes_per_second)
    }
}

/// A sequence's part of a step: `tokens` tokens, after the `start` that are in the cache.
#[derive(Clone, Copy, Debug)]
pub struct SequencePart {
    pub start: i64,
    pub tokens: i64,
}

impl ProgramSpec {
    /// The cost of extending these sequences, with logits after the last token of each.
    pub fn cost(&self, sequences: &[SequencePart]) -> Cost {
        let (model, c) = (&self.model, &self.model.config);
        let sum = |f: fn(&SequencePart) -> i64| sequences.iter().map(f).sum::<i64>() as f64;
        let tokens = sum(|s| s.tokens);
        let mut cost = Cost { flops: 0.0, bytes: 0.0 };
        for tensor in parameters(c, &model.stored) {
            let elements = tensor.local_dims(c, model.mesh).iter().product::<i64>() as f64;
            let is_output = tensor.name == LM_HEAD_NAME || c.tie_word_embeddings;
            let rows = match tensor.name.as_str() {
                EMBED_TOKENS_NAME | LM_HEAD_NAME if is_output => sequences.len() as f64,
                EMBED_TOKENS_NAME => continue, // a few rows of it are looked up
                _ if tensor.kind == TensorKind::Matrix => tokens,
                _ => 0.0,
            };
            cost.flops += 2.0 * rows * elements;
            cost.bytes += elements * model.stored.of(&tensor).bits() as f64 / 8.0;
        }
        let seen = sum(|s| s.tokens * s.start + s.tokens * (s.tokens + 1) / 2);
        let heads = (c.num_attention_heads / model.mesh.model as i64) as f64;
        let layers = c.num_hidden_layers as f64;
        cost.flops += 4.0 * seen * heads * c.head_dim as f64 * layers;
        let arrays = self.cache_arrays();
        let position =
            arrays.iter().map(|(_, shape)| shape.bytes()).sum::<i64>() as f64 / (self.slots * self.cache_len) as f64;
        cost.bytes += sum(|s| s.start + s.tokens) * position;
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gemma::{Config, Lowering, ModelSpec, Program, StoredTypes},
        hlo::{DType, Mesh},
        sampling::Sampler,
    };

    /// A step of the 2B with logits.
    fn spec(mesh: Mesh, stored: StoredTypes) -> ProgramSpec {
        let config = Config::preset("gemma-1.1-2b").unwrap();
        let (lowering, compute, kv) = (Lowering::TPU, DType::BF16, DType::BF16);
        ProgramSpec {
            model: ModelSpec { config, mesh, lowering, compute, kv, stored }.into(),
            program: Program::Decode { sampler: Sampler::Greedy },
            slots: 1,
            cache_len: 1024,
            window: 1024,
        }
    }

    /// The 2B: 2.5 G parameters, MQA with one head of 256 in 18 layers.
    #[test]
    fn a_step_of_the_2b() {
        let bf16 = || StoredTypes::uniform(DType::BF16);
        let one = spec(Mesh::SINGLE, bf16()).cost(&[SequencePart { start: 999, tokens: 1 }]);
        let weights = 2.0 * 2_506_172_416.0;
        let kv = 1000.0 * 2.0 * 256.0 * 2.0 * 18.0;
        assert_eq!(one.bytes, weights + kv);
        let norms = 2048.0 * 37.0;
        let attention = 4.0 * 1000.0 * 8.0 * 256.0 * 18.0;
        assert_eq!(one.flops, 2.0 * (2_506_172_416.0 - norms) + attention);

        // A prompt's logits are those of its last token.
        let prompt = spec(Mesh::SINGLE, bf16()).cost(&[SequencePart { start: 0, tokens: 512 }]);
        let embedding = 256_000.0 * 2048.0;
        let attention = 4.0 * (512.0 * 513.0 / 2.0) * 8.0 * 256.0 * 18.0;
        assert_eq!(prompt.flops, 2.0 * 512.0 * (2_506_172_416.0 - norms - embedding) + 2.0 * embedding + attention);

        // Four devices share matrices; each has all norms and the one key/value head.
        let four = spec(Mesh { data: 1, model: 4 }, bf16()).cost(&[SequencePart { start: 999, tokens: 1 }]);
        let kv_projections = 2.0 * 256.0 * 2048.0 * 18.0;
        let shared = 2_506_172_416.0 - norms - kv_projections;
        assert_eq!(four.bytes, 2.0 * (shared / 4.0 + norms + kv_projections) + kv);
    }

    /// Four bits and a 32nd of a scale for each element; scales are no matrices to multiply with.
    #[test]
    fn scales_are_read_and_not_multiplied() {
        let step = [SequencePart { start: 99, tokens: 1 }];
        let cost = |stored: fn(DType) -> StoredTypes| spec(Mesh::SINGLE, stored(DType::BF16)).cost(&step);
        let (bf16, int4) = (cost(StoredTypes::uniform), cost(StoredTypes::int4));
        assert_eq!(bf16.flops, int4.flops);
        let (norms, vocabulary) = (2048.0 * 37.0, 256_000.0);
        let matrices = 2_506_172_416.0 - norms - vocabulary * 2048.0;
        let kv = 100.0 * 2.0 * 256.0 * 2.0 * 18.0;
        assert_eq!(int4.bytes, matrices * (0.5 + 2.0 / 32.0) + vocabulary * (2048.0 + 4.0) + 2.0 * norms + kv);
    }

    #[test]
    fn a_roofline_is_the_slower_of_reading_and_computing() {
        let cost = Cost { flops: 100.0, bytes: 10.0 };
        assert_eq!(cost.seconds(10.0, 10.0), 10.0);
        assert_eq!(cost.seconds(1000.0, 1.0), 10.0);
    }
}
