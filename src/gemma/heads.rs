//! What a step computes from the last hidden states of chosen rows: the next token,
//! log-probabilities, or logits.

use super::{
    Context,
    inputs::{Field, Inputs},
    layers::{largest_logit, logits, score_logits, top_logits},
    weights::Weights,
};
use crate::{
    hlo::{DType, Op},
    sampling::{self, Candidates, MAX_TOP_K, ParamOps, PenaltyOps, Sampler, VocabSplit},
    tree,
};

/// What a sampler needs of each row.
#[derive(Clone, Copy)]
pub(super) struct SamplingOps<'g> {
    params: Option<ParamOps<'g>>,
    penalties: Option<PenaltyOps<'g>>,
    /// Tokens that are allowed, `s32[rows, mask_words]`.
    mask: Option<Op<'g>>,
    sampler: Sampler,
}
tree!(SamplingOps { params, penalties, mask } keeping { sampler });

impl<'g> SamplingOps<'g> {
    /// Takes them from the program's inputs.
    pub fn new(cx: Context<'_, 'g>, inputs: &Inputs<'g>, sampler: Sampler) -> Self {
        let penalties = || PenaltyOps::new(inputs.penalties(), cx.model.vocab());
        Self {
            params: sampler.takes_params().then(|| inputs.params()),
            penalties: sampler.takes_penalties().then(penalties),
            mask: sampler.is_masked().then(|| inputs.get(Field::Mask)),
            sampler,
        }
    }

    /// Counts a token of each row, `s32[rows]`, as generated.
    pub fn after(self, cx: Context<'_, 'g>, tokens: Op<'g>) -> Self {
        Self { penalties: self.penalties.map(|penalties| penalties.after(tokens, cx.model.vocab())), ..self }
    }

    /// Returns logits `f32[rows, per_device]` with minus infinity for tokens that are not allowed.
    fn allowed(&self, logits: Op<'g>, vocab: VocabSplit) -> Op<'g> {
        self.mask.map_or(logits, |mask| sampling::allowed(logits, mask, vocab))
    }

    /// Samples a token for each row of hidden states `[rows, hidden]`; it will stand at `positions`
    /// `s32[rows]`. Returns the tokens `s32[rows]`, and all that is reported of them, `s32[rows,
    /// width]`: the token and its packed log-probabilities.
    pub fn sample(
        &self,
        cx: Context<'_, 'g>,
        hidden: Op<'g>,
        weights: &Weights<'g>,
        positions: Op<'g>,
    ) -> (Op<'g>, Op<'g>) {
        let vocab = cx.model.vocab();
        let params = || self.params.as_ref().expect("samplers other than greedy have parameters");
        let mut packed_logprobs = None;
        let tokens = match self.sampler {
            Sampler::Greedy => {
                let [value, index] = largest_logit(cx, hidden, weights);
                sampling::largest(value, index, vocab)
            }
            Sampler::TopK => {
                let most = i64::from(MAX_TOP_K);
                let (logits, tokens) = top_logits(cx, hidden, weights, most);
                let candidates = Candidates { logits, tokens, vocab }.merged(most);
                sampling::sample(candidates, params(), positions)
            }
            Sampler::Stochastic => {
                sampling::sample(Candidates::all(logits(cx, hidden, weights), vocab), params(), positions)
            }
            Sampler::MaskedGreedy => sampling::greedy(self.allowed(logits(cx, hidden, weights), vocab), vocab),
            Sampler::Penalized | Sampler::Logprobs | Sampler::Masked | Sampler::MaskedLogprobs => {
                let logits = logits(cx, hidden, weights);
                let changed = self.penalties.expect("the sampler has penalties").apply(logits);
                let candidates = Candidates::all(self.allowed(changed, vocab), vocab);
                let tokens = sampling::sample(candidates, params(), positions);
                // Log-probabilities are those of the model's own distribution.
                packed_logprobs =
                    self.sampler.gives_logprobs().then(|| sampling::packed_logprobs(logits, tokens, true, vocab));
                tokens
            }
        };
        let column = tokens.reshape(&[tokens.dim(0), 1]);
        (tokens, packed_logprobs.map_or(column, |logprobs| Op::concatenate(&[column, logprobs], 1)))
    }
}

/// The most likely token of each row and the log-probability of its target `s32[rows]`, with those
/// of the most likely tokens if `top`: `s32[rows, 2]` or `s32[rows, 2 + 2 TOP_LOGPROBS]`, floats as
/// their bits.
pub(super) fn score<'g>(
    cx: Context<'_, 'g>,
    hidden: Op<'g>,
    weights: &Weights<'g>,
    targets: Op<'g>,
    top: bool,
) -> Op<'g> {
    let vocab = cx.model.vocab();
    let column = |x: Op<'g>| x.reshape(&[targets.dim(0), 1]);
    if top {
        let logits = logits(cx, hidden, weights);
        let greedy = column(sampling::greedy(logits, vocab));
        return Op::concatenate(&[greedy, sampling::packed_logprobs(logits, targets, top, vocab)], 1);
    }
    let [largest, index, log_total, chosen] = score_logits(cx, hidden, weights, vocab.on_this_device(targets));
    let greedy = sampling::largest(largest, index, vocab);
    let logprob = sampling::merged_log_probability(chosen, log_total, vocab.mesh);
    Op::concatenate(&[column(greedy), column(logprob).bitcast_convert(DType::S32)], 1)
}

/// `f32[rows, vocab]`, whole on every device.
pub(super) fn all_logits<'g>(cx: Context<'_, 'g>, hidden: Op<'g>, weights: &Weights<'g>) -> Op<'g> {
    cx.model.vocab().joined(logits(cx, hidden, weights))
}
