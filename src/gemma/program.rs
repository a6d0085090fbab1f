//! Which programs run a model. One pass over a flat token axis serves prefill, mixed batches,
//! scoring, verification and tracing: they differ in the batch and the head only. Decoding alone is
//! a special case where the devices gain from it.

use std::sync::Arc;

use super::{ModelSpec, attention::query_block, cache::Cache};
use crate::{hlo::Shape, sampling::Sampler};

/// What a step computes from the last hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Head {
    /// Nothing: it fills the cache.
    None,
    /// The next token after each of up to `slots` rows: `s32[slots, width]`, see
    /// [`Sampler::width`].
    Sample(Sampler),
    /// The most likely token at each row and the log-probability of a target, and those of the most
    /// likely tokens if `top`: `s32[rows, 2]` or `s32[rows, 2 + 2 TOP_LOGPROBS]`.
    Logprobs { top: bool },
    /// All logits of each row: `f32[rows, vocab]`.
    Logits,
    /// What each layer takes and what the last one gives, of all tokens: `f32[layers + 1, T,
    /// hidden]`.
    Hidden,
}

impl Head {
    fn name(self) -> &'static str {
        match self {
            Self::None => "prefill",
            Self::Sample(sampler) => sampler.name(),
            Self::Logprobs { top: false } => "score",
            Self::Logprobs { top: true } => "score-top",
            Self::Logits => "logits",
            Self::Hidden => "hidden",
        }
    }
}

/// The most rows that are scored at once: f32 logits of 256k tokens take 1 MiB for each.
pub const MAX_SCORED_ROWS: i64 = 128;

/// One of the model's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// One pass over up to `tokens` tokens in segments of any slots.
    Step { tokens: i64, head: Head },
    /// The next tokens of every slot, up to [`ModelSpec::decode_steps`] of them: `s32[steps, slots,
    /// width]`, with -1 as the token of an idle slot. An id that ends a slot's text is its last.
    Decode { sampler: Sampler },
    /// Copies all that one slot holds to another. Takes no weights and has no output of its own.
    Copy,
}

/// All that determines a program's graph.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramSpec {
    pub model: Arc<ModelSpec>,
    pub program: Program,
    /// Sequences that the cache holds.
    pub slots: i64,
    /// Tokens that the cache holds for each.
    pub cache_len: i64,
    /// Cache positions that [`Program::Decode`] looks at. Other programs look at as many as there
    /// are.
    pub window: i64,
}

impl ProgramSpec {
    /// A readable name that tells the program, its buckets, mesh and types:
    /// `decode-greedy-b8-w512-c2048-tp4-bf16-tpu`.
    pub fn name(&self) -> String {
        let Self { model, slots, cache_len, window, .. } = self;
        let (program, window) = match self.program {
            Program::Step { tokens, head } => (format!("step-{}-t{tokens}", head.name()), String::new()),
            Program::Decode { sampler } => (format!("decode-{}", sampler.name()), format!("-w{window}")),
            Program::Copy => ("copy".into(), String::new()),
        };
        format!("{program}-b{slots}{window}-c{cache_len}-{}", model.name())
    }

    /// Rows of the token axis that the head is for.
    pub fn head_rows(&self) -> i64 {
        match self.program {
            Program::Step { head: Head::Sample(_), .. } => self.slots,
            Program::Step { head: Head::Logprobs { .. } | Head::Logits, tokens } => tokens.min(MAX_SCORED_ROWS),
            Program::Step { .. } | Program::Decode { .. } | Program::Copy => 0,
        }
    }

    /// The most tokens of a segment of a step of `tokens` tokens.
    pub fn max_segment(&self, tokens: i64) -> i64 {
        query_block(self.model.lowering.kernels, tokens, self.cache_len)
    }

    /// The most segments that a step can have: each slot's tokens are cut into whole blocks and a
    /// rest.
    pub(super) fn max_segments(&self) -> i64 {
        let Program::Step { tokens, .. } = self.program else { return 0 };
        tokens / self.max_segment(tokens) + self.slots
    }

    /// Whether it takes the weights.
    pub fn takes_weights(&self) -> bool {
        self.program != Program::Copy
    }

    /// Names and shapes of the cache's arrays on one device.
    pub fn cache_arrays(&self) -> Vec<(String, Shape)> {
        Cache::arrays(&self.model, self.slots, self.cache_len)
    }
}
