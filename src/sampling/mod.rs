//! Choosing the next token on the device: greedy, temperature, top-k, top-p, with noise that
//! depends only on the request's seed and the token's position.
//!
//! Nothing here gathers the vocabulary over devices. Top-k and top-p are both thresholds on the
//! logits, found by bisection over the 2^32 values of an order-preserving integer key
//! (`threshold`); the choice itself is an argmax of logits plus Gumbel noise. Of a vocabulary that
//! is split over devices, top-k up to [`MAX_TOP_K`] gathers each device's largest logits; without
//! top-k, each step of the bisection costs one all-reduce of a scalar per row.
//!
//! The order of what changes the distribution is that of transformers: penalties and biases,
//! temperature, top-k, top-p, min-p. Tokens that are not allowed have no part in it.

mod logprobs;
mod mask;
mod penalties;
mod random;
mod range;
mod threshold;
mod vocab;

pub use logprobs::{TOP_LOGPROBS, log_probability, merged_log_probability, packed_logprobs, top_logprobs};
pub use mask::allowed;
pub use penalties::{MAX_BIAS, Penalties, PenaltyInputs, PenaltyOps};
pub use random::{gumbel, threefry2x32};
pub use range::OutOfRange;
pub use vocab::VocabSplit;

use crate::{
    hlo::{DType, Mesh, Op},
    tree,
};

/// What a program can do with logits. A slower one does what a faster one can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sampler {
    /// Always the largest logit; the first one where several are equal.
    Greedy,
    /// By each row's parameters, of which top-k is 1 to [`MAX_TOP_K`]; rows with temperature 0 are
    /// greedy.
    TopK,
    /// By each row's parameters; rows with temperature 0 are greedy.
    Stochastic,
    /// As [`Self::Stochastic`], after penalties and biases.
    Penalized,
    /// As [`Self::Penalized`], with the log-probabilities of the token and of the [`TOP_LOGPROBS`]
    /// most likely ones.
    Logprobs,
    /// As [`Self::Greedy`], of the tokens that are allowed.
    MaskedGreedy,
    /// As [`Self::Penalized`], of the tokens that are allowed.
    Masked,
    /// As [`Self::Logprobs`], of the tokens that are allowed.
    MaskedLogprobs,
}

impl Sampler {
    /// All of them: those that allow all tokens, from fast to slow, and then those with masks.
    pub const ALL: [Self; 8] = [
        Self::Greedy,
        Self::TopK,
        Self::Stochastic,
        Self::Penalized,
        Self::Logprobs,
        Self::MaskedGreedy,
        Self::Masked,
        Self::MaskedLogprobs,
    ];

    /// Returns the sampler that does this for tokens that are allowed.
    pub fn masked(self) -> Self {
        match self {
            Self::Greedy | Self::MaskedGreedy => Self::MaskedGreedy,
            Self::TopK | Self::Stochastic | Self::Penalized | Self::Masked => Self::Masked,
            Self::Logprobs | Self::MaskedLogprobs => Self::MaskedLogprobs,
        }
    }

    /// Returns the fastest sampler that does what both can, for rows of one batch.
    pub fn joined(self, other: Self) -> Self {
        let (a, b) = (self.of_all_tokens(), other.of_all_tokens());
        let joined = if a as u8 > b as u8 { a } else { b };
        if self.is_masked() || other.is_masked() { joined.masked() } else { joined }
    }

    /// Without the mask.
    fn of_all_tokens(self) -> Self {
        match self {
            Self::MaskedGreedy => Self::Greedy,
            Self::Masked => Self::Penalized,
            Self::MaskedLogprobs => Self::Logprobs,
            other => other,
        }
    }

    /// Returns whether it takes the tokens that are allowed.
    pub fn is_masked(self) -> bool {
        self.of_all_tokens() != self
    }

    /// Returns whether it takes [`Params`].
    pub fn takes_params(self) -> bool {
        self.of_all_tokens() != Self::Greedy
    }

    /// Returns whether it takes [`Penalties`] and biases.
    pub fn takes_penalties(self) -> bool {
        matches!(self.of_all_tokens(), Self::Penalized | Self::Logprobs)
    }

    /// Returns whether it gives log-probabilities.
    pub fn gives_logprobs(self) -> bool {
        self.of_all_tokens() == Self::Logprobs
    }

    /// s32 numbers that a program returns for each row: the token, and its log-probabilities if
    /// there are some.
    pub fn width(self) -> i64 {
        if self.gives_logprobs() { 2 + 2 * TOP_LOGPROBS } else { 1 }
    }

    /// Name in program names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Greedy => "greedy",
            Self::TopK => "topk",
            Self::Stochastic => "sample",
            Self::Penalized => "penalties",
            Self::Logprobs => "logprobs",
            Self::MaskedGreedy => "masked-greedy",
            Self::Masked => "masked",
            Self::MaskedLogprobs => "masked-logprobs",
        }
    }
}

/// The most tokens that [`Sampler::TopK`] looks at. Where more than these are as probable as the
/// k-th, the first ones are kept.
pub const MAX_TOP_K: i32 = 128;

/// One request's sampling parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// 0 means greedy; else logits are divided by it.
    pub temperature: f32,
    /// Keep the k largest logits, and those equal to the k-th; 0 means all.
    pub top_k: i32,
    /// Keep the smallest set of most probable tokens whose probabilities sum to at least this, and
    /// those equal to its last; 1 means all. Applied after top-k, on the renormalised
    /// probabilities, as transformers does.
    pub top_p: f32,
    /// Keep tokens that are at least this share as probable as the most probable one; 0 means all.
    pub min_p: f32,
    pub seed: u64,
}

impl Params {
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };

    /// The program variant that this request needs.
    pub fn sampler(&self) -> Sampler {
        match self.top_k {
            _ if self.temperature == 0.0 => Sampler::Greedy,
            1..=MAX_TOP_K => Sampler::TopK,
            _ => Sampler::Stochastic,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first parameter that is out of its range.
    pub fn check(&self) -> Result<(), OutOfRange> {
        let Self { temperature, top_k, top_p, min_p, seed: _ } = *self;
        let wrong = |name, problem| Err(OutOfRange { name, problem });
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return wrong("temperature", format!("temperature must be a number from 0 (greedy) up, not {temperature}"));
        }
        if top_k < 0 {
            return wrong("top_k", format!("top-k must be at least 1, or 0 for all tokens, not {top_k}"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return wrong("top_p", format!("top-p must be above 0 and at most 1, not {top_p}"));
        }
        if !(0.0..=1.0).contains(&min_p) {
            return wrong("min_p", format!("min-p must be from 0 to 1, not {min_p}"));
        }
        Ok(())
    }
}

/// [`Params`] of every row, as inputs of a program.
#[derive(Clone, Copy)]
pub struct ParamOps<'g> {
    /// `f32[rows]`
    pub temperature: Op<'g>,
    /// `s32[rows]`
    pub top_k: Op<'g>,
    /// `f32[rows]`
    pub top_p: Op<'g>,
    /// `f32[rows]`
    pub min_p: Op<'g>,
    /// `u32[rows, 2]`: low and high word.
    pub seed: Op<'g>,
}
tree!(ParamOps { temperature, top_k, top_p, min_p, seed });

/// Stands in place of the token of a row whose logits are not numbers: NaN or infinite.
pub const NO_TOKEN: i32 = i32::MAX;

/// The largest logit's token of each row: `s32[rows]` from `f32[rows, per_device]`. First one wins.
pub fn greedy(logits: Op<'_>, vocab: VocabSplit) -> Op<'_> {
    let [value, index] = logits.max_with_index();
    largest(value, index, vocab)
}

/// The token of the largest logit, from each device's largest and its index there: `s32[rows]` from
/// `f32[rows]` and `s32[rows]`. The first one where several are equal; [`NO_TOKEN`] where the
/// largest one is not a number.
pub fn largest<'g>(value: Op<'g>, index: Op<'g>, vocab: VocabSplit) -> Op<'g> {
    let mesh = vocab.mesh;
    let most = mesh.max(value);
    if mesh.model == 1 {
        return token_if_number(most, index);
    }
    let token = index + vocab.first(value.graph());
    let none = value.graph().s32(i64::from(NO_TOKEN));
    token_if_number(most, mesh.min(value.ge(most).select(token, none)))
}

/// The token where the row's largest logit is a number, and [`NO_TOKEN`] elsewhere.
fn token_if_number<'g>(most: Op<'g>, token: Op<'g>) -> Op<'g> {
    let graph = token.graph();
    let is_number = most.abs().lt(graph.f32(f64::INFINITY));
    is_number.select(token, graph.s32(i64::from(NO_TOKEN)))
}

/// Tokens to choose from, of those that a device has.
#[derive(Clone, Copy)]
pub struct Candidates<'g> {
    /// `f32[rows, n]`
    pub logits: Op<'g>,
    /// Which of the device's tokens they are, `s32[rows, n]`, if not all in their order.
    pub tokens: Option<Op<'g>>,
    pub vocab: VocabSplit,
}

impl<'g> Candidates<'g> {
    /// All tokens that the device holds, `f32[rows, per_device]`.
    pub fn all(logits: Op<'g>, vocab: VocabSplit) -> Self {
        Self { logits, tokens: None, vocab }
    }

    /// The `most` largest logits of each device that shares the model, on all of them: one
    /// all-gather of so many numbers, after which each device samples by itself. On one device,
    /// what there is.
    pub fn merged(self, most: i64) -> Self {
        let VocabSplit { tokens, mesh } = self.vocab;
        if mesh.model == 1 {
            return self;
        }
        let whole = VocabSplit { tokens, mesh: Mesh::SINGLE };
        let [logits, tokens] =
            self.tokens.map_or_else(|| self.logits.top_k(most.min(self.logits.dim(1))), |tokens| [self.logits, tokens]);
        let tokens = tokens + self.vocab.first(logits.graph());
        let [rows, n] = [logits.dim(0), logits.dim(1)];
        let pair = [logits.bitcast_convert(DType::S32), tokens].map(|part| part.reshape(&[rows, 1, n]));
        let all = mesh.gather(Op::concatenate(&pair, 1), 2); // [rows, 2, n * devices]
        let [logits, tokens] = [0, 1].map(|i| all.slice_in_dim(1, i, i + 1).reshape(&[rows, n * mesh.model as i64]));
        Self { logits: logits.bitcast_convert(DType::F32), tokens: Some(tokens), vocab: whole }
    }
}

/// Samples a token for each row, `s32[rows]`. `positions` `s32[rows]` is where the token will
/// stand.
pub fn sample<'g>(candidates: Candidates<'g>, params: &ParamOps<'g>, positions: Op<'g>) -> Op<'g> {
    let Candidates { logits, tokens, vocab } = candidates;
    let mesh = vocab.mesh;
    let graph = logits.graph();
    let rows = logits.dim(0);
    let _scope = graph.scope("sample");
    let column = |x: Op<'g>| x.reshape(&[rows, 1]);

    let is_greedy = column(params.temperature.le(graph.f32(0.0))); // [rows, 1]
    let one = graph.f32(1.0);
    let scaled = logits / is_greedy.select(one, column(params.temperature)); // [rows, n]

    let by_top_k = threshold::top_k(scaled, column(params.top_k), mesh);
    let by_top_p = threshold::top_p(scaled, by_top_k, column(params.top_p), mesh);
    let most = mesh.max(scaled.reduce_max(&[1])); // [rows]
    let by_min_p = scaled.ge(column(most) + column(params.min_p).log());
    let kept = threshold::key(scaled).ge(by_top_p).and(by_min_p);

    // The noise of a token depends on its id, not on where its shard starts.
    let numbers = graph.iota(logits.shape().with_dtype(DType::S32), 1);
    let ids = tokens.unwrap_or(numbers) + vocab.first(graph);
    let noise = gumbel(params.seed, positions, ids); // [rows, n]
    let zero = graph.f32(0.0);
    let noisy = scaled + is_greedy.select(zero, noise);
    let masked = kept.or(is_greedy).select(noisy, graph.f32(f64::NEG_INFINITY));

    let [value, index] = masked.max_with_index();
    let token = match tokens {
        Some(tokens) => numbers.eq(column(index)).select(tokens, graph.s32(0)).reduce_sum(&[1]),
        None => index,
    };
    // NaN may be among the logits that are not kept.
    token_if_number(most, largest(value, token, vocab))
}
