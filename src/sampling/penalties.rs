//! What a request changes in the logits before a token is chosen: penalties for tokens of its text,
//! and biases.

use super::{range::OutOfRange, vocab::VocabSplit};
use crate::{
    hlo::{DType, Op, Shape},
    tree,
};

/// The most tokens that a request may give a bias to: as many as OpenAI's interface takes.
pub const MAX_BIAS: usize = 300;

/// The count of a token of the prompt. One number tells both whether a token is in the prompt and
/// how often it was generated.
const PROMPT_COUNT: i64 = 65536;

/// Penalties of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Positive logits of tokens in prompt or answer are divided by this, negative ones multiplied
    /// (Keskar et al., "CTRL", 2019, as in transformers). 1 means none.
    pub repetition: f32,
    /// Subtracted from the logits of tokens in the answer. 0 means none.
    pub presence: f32,
    /// Subtracted from the logits of tokens in the answer, once for each occurrence. 0 means none.
    pub frequency: f32,
}

impl Penalties {
    pub const NONE: Self = Self { repetition: 1.0, presence: 0.0, frequency: 0.0 };

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first parameter that is out of its range.
    pub fn check(&self) -> Result<(), OutOfRange> {
        // Logits divided by less could become infinite.
        if !(0.01..=100.0).contains(&self.repetition) {
            let problem =
                format!("the repetition penalty must be from 0.01 to 100 (1 is none), not {}", self.repetition);
            return Err(OutOfRange { name: "repetition_penalty", problem });
        }
        for (name, what, value) in
            [("presence_penalty", "presence", self.presence), ("frequency_penalty", "frequency", self.frequency)]
        {
            if !(-2.0..=2.0).contains(&value) {
                return Err(OutOfRange {
                    name,
                    problem: format!("the {what} penalty must be from -2 to 2, not {value}"),
                });
            }
        }
        Ok(())
    }
}

/// Inputs of a program from which the penalties of each row are computed.
#[derive(Clone, Copy)]
pub struct PenaltyInputs<'g> {
    /// `f32[rows]`
    pub repetition: Op<'g>,
    /// `f32[rows]`
    pub presence: Op<'g>,
    /// `f32[rows]`
    pub frequency: Op<'g>,
    /// Each row's tokens so far, `s32[rows, n]`, padded with -1.
    pub history: Op<'g>,
    /// How many of them are the prompt's, `s32[rows]`.
    pub prompt_len: Op<'g>,
    /// Tokens with a bias, `s32[rows, MAX_BIAS]`, padded with -1, and the biases `f32[rows,
    /// MAX_BIAS]`.
    pub bias_tokens: Op<'g>,
    pub biases: Op<'g>,
}

/// [`Penalties`] of every row with the counts that they depend on.
#[derive(Clone, Copy)]
pub struct PenaltyOps<'g> {
    /// Occurrences of each token, `s32[rows, per_device]`: [`PROMPT_COUNT`] for each in the
    /// prompt, 1 in the answer.
    counts: Op<'g>,
    /// Added to each logit, `f32[rows, per_device]`.
    bias: Op<'g>,
    /// `f32[rows]`
    repetition: Op<'g>,
    /// `f32[rows]`
    presence: Op<'g>,
    /// `f32[rows]`
    frequency: Op<'g>,
}
tree!(PenaltyOps { counts, bias, repetition, presence, frequency });

impl<'g> PenaltyOps<'g> {
    /// Counts each row's tokens and spreads its biases.
    pub fn new(inputs: PenaltyInputs<'g>, vocab: VocabSplit) -> Self {
        let PenaltyInputs { repetition, presence, frequency, history, prompt_len, bias_tokens, biases } = inputs;
        let (graph, rows) = (history.graph(), history.dim(0));
        let in_prompt = graph.iota(history.shape(), 1).lt(prompt_len.reshape(&[rows, 1]));
        let count = in_prompt.select(graph.s32(PROMPT_COUNT), graph.s32(1));
        let zeros = |dtype: DType| graph.full(&Shape::new(dtype, [rows, vocab.per_device()]), 0.0);
        let counts = add_at_tokens(zeros(DType::S32), history, count, vocab);
        let bias = add_at_tokens(zeros(DType::F32), bias_tokens, biases, vocab);
        Self { counts, bias, repetition, presence, frequency }
    }

    /// Returns the logits `f32[rows, per_device]` with penalties and biases applied.
    pub fn apply(self, logits: Op<'g>) -> Op<'g> {
        let graph = logits.graph();
        let rows = logits.dim(0);
        let column = |x: Op<'g>| x.reshape(&[rows, 1]);
        let zero = graph.f32(0.0);
        let repetition = column(self.repetition);
        let repeated = logits.gt(zero).select(logits / repetition, logits * repetition);
        let logits = self.counts.gt(graph.s32(0)).select(repeated, logits);
        let times = self.counts.and(graph.s32(PROMPT_COUNT - 1)).convert(DType::F32);
        let once = times.gt(zero).select(graph.f32(1.0), zero);
        logits - once * column(self.presence) - times * column(self.frequency) + self.bias
    }

    /// Counts one more generated token of each row, `s32[rows]`.
    pub fn after(self, tokens: Op<'g>, vocab: VocabSplit) -> Self {
        let graph = tokens.graph();
        let ids = graph.iota(self.counts.shape(), 1) + vocab.first(graph);
        let is_it = ids.eq(tokens.reshape(&[tokens.dim(0), 1])).convert(DType::S32);
        Self { counts: self.counts + is_it, ..self }
    }
}

/// Adds `values` `[rows, n]` to `all` `[rows, per_device]` at `tokens` `s32[rows, n]`.
/// Tokens of other devices, and -1, are left out.
fn add_at_tokens<'g>(all: Op<'g>, tokens: Op<'g>, values: Op<'g>, vocab: VocabSplit) -> Op<'g> {
    let graph = all.graph();
    let [rows, n] = [tokens.dim(0), tokens.dim(1)];
    let local = tokens - vocab.first(graph);
    let row = graph.iota(tokens.shape(), 0);
    let indices = [row, local].map(|x| x.reshape(&[rows * n, 1]));
    all.scatter_add(Op::concatenate(&indices, 1), values.reshape(&[rows * n]))
}
