//! What a request changes in the logits before a token is chosen: penalties for tokens that there were, and biases.

use super::token_offset;
use crate::hlo::{DType, Graph, Mesh, Op, Shape};

/// The most tokens that a request may give a bias to: as many as OpenAI's interface takes.
pub const MAX_BIAS: usize = 300;

/// What a token of the prompt counts, so that one number tells both whether it was in the prompt and how often it was generated.
const OF_PROMPT: f64 = 65536.0;

/// Penalties of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjust {
    /// Logits of tokens in prompt or answer are divided by this if positive, else multiplied (Keskar et al., "CTRL", 2019, as in
    /// transformers); 1 means none.
    pub repetition: f32,
    /// Taken from the logits of tokens in the answer; 0 means none.
    pub presence: f32,
    /// Taken from the logits of tokens in the answer, for each time they are in it; 0 means none.
    pub frequency: f32,
}

impl Adjust {
    pub const NONE: Self = Self { repetition: 1.0, presence: 0.0, frequency: 0.0 };

    /// Says what is wrong with it, if anything.
    pub fn check(&self) -> Result<(), String> {
        if !(self.repetition > 0.0 && self.repetition.is_finite()) {
            return Err(format!("the repetition penalty must be above 0 (1 is none), not {}", self.repetition));
        }
        for (name, value) in [("presence", self.presence), ("frequency", self.frequency)] {
            if !(-2.0..=2.0).contains(&value) {
                return Err(format!("the {name} penalty must be from -2 to 2, not {value}"));
            }
        }
        Ok(())
    }
}

/// [`Adjust`] of every row, and what it needs to know of them.
#[derive(Clone, Copy)]
pub struct AdjustOps<'g> {
    /// How often each token was there, `s32[rows, vocab / mesh.model]`: [`OF_PROMPT`] times in the prompt, once in the answer.
    counts: Op<'g>,
    /// What is added to each logit, `f32[rows, vocab / mesh.model]`.
    bias: Op<'g>,
    /// `f32[rows]`
    repetition: Op<'g>,
    /// `f32[rows]`
    presence: Op<'g>,
    /// `f32[rows]`
    frequency: Op<'g>,
}

impl<'g> AdjustOps<'g> {
    /// Declares the inputs: penalties, each row's tokens `s32[rows, length]` (padded with -1), how many of them are the prompt's
    /// `s32[rows]`, tokens with a bias `s32[rows, MAX_BIAS]` (padded with -1) and the biases. `vocab` is that of one device.
    pub fn declare(graph: &'g Graph, rows: i64, length: i64, vocab: i64, mesh: Mesh) -> Self {
        let input = |name: &str, dtype: DType, dims: &[i64]| graph.parameter(name, Shape::new(dtype, dims));
        let penalty = |name: &str| input(name, DType::F32, &[rows]);
        let [repetition, presence, frequency] = ["repetition", "presence", "frequency"].map(penalty);
        let tokens = input("history", DType::S32, &[rows, length]);
        let prompt = input("prompt", DType::S32, &[rows]).reshape(&[rows, 1]);
        let biased = input("biased", DType::S32, &[rows, MAX_BIAS as i64]);
        let biases = input("biases", DType::F32, &[rows, MAX_BIAS as i64]);

        let in_prompt = graph.iota(tokens.shape(), 1).lt(prompt);
        let counted = in_prompt.select(graph.scalar(DType::S32, OF_PROMPT), graph.scalar(DType::S32, 1.0));
        let all = |dtype: DType| graph.full(&Shape::new(dtype, [rows, vocab]), 0.0);
        let counts = add_at_tokens(all(DType::S32), tokens, counted, mesh);
        let bias = add_at_tokens(all(DType::F32), biased, biases, mesh);
        Self { counts, bias, repetition, presence, frequency }
    }

    /// Logits `f32[rows, vocab / mesh.model]`, changed.
    pub fn apply(self, logits: Op<'g>) -> Op<'g> {
        let graph = logits.graph();
        let rows = logits.dim(0);
        let column = |x: Op<'g>| x.reshape(&[rows, 1]);
        let zero = graph.scalar(DType::F32, 0.0);
        let none = graph.scalar(DType::S32, 0.0);
        let repetition = column(self.repetition);
        let repeated = logits.gt(zero).select(logits / repetition, logits * repetition);
        let logits = self.counts.gt(none).select(repeated, logits);
        let times = self.counts.and(graph.scalar(DType::S32, OF_PROMPT - 1.0)).convert(DType::F32);
        let once = times.gt(zero).select(graph.scalar(DType::F32, 1.0), zero);
        logits - once * column(self.presence) - times * column(self.frequency) + self.bias
    }

    /// After another token of each row, `s32[rows]`.
    pub fn after(self, tokens: Op<'g>, mesh: Mesh) -> Self {
        let graph = tokens.graph();
        let ids = graph.iota(self.counts.shape(), 1) + token_offset(graph, self.counts.dim(1), mesh);
        let is_it = ids.eq(tokens.reshape(&[tokens.dim(0), 1])).convert(DType::S32);
        Self { counts: self.counts + is_it, ..self }
    }

    /// The ops in it, to pass them to a computation.
    pub fn to_list(self) -> [Op<'g>; 5] {
        [self.counts, self.bias, self.repetition, self.presence, self.frequency]
    }

    /// From the list that [`Self::to_list`] made.
    pub fn from_list(ops: &[Op<'g>]) -> Self {
        Self { counts: ops[0], bias: ops[1], repetition: ops[2], presence: ops[3], frequency: ops[4] }
    }
}

/// `all` `[rows, vocab / mesh.model]` with `values` `[rows, n]` added at `tokens` `s32[rows, n]`; those that another device has, and
/// -1, are left out.
fn add_at_tokens<'g>(all: Op<'g>, tokens: Op<'g>, values: Op<'g>, mesh: Mesh) -> Op<'g> {
    let graph = all.graph();
    let [rows, n, vocab] = [tokens.dim(0), tokens.dim(1), all.dim(1)];
    let local = tokens - token_offset(graph, vocab, mesh);
    let row = graph.iota(tokens.shape(), 0);
    let indices = [row, local].map(|x| x.reshape(&[rows * n, 1]));
    all.scatter_add(Op::concatenate(&indices, 1), values.reshape(&[rows * n]))
}
