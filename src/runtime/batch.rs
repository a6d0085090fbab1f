//! What a step is asked for and what it gives, and how both are packed: one array of numbers for
//! each device, and one back.

use std::ops::Range;

use crate::{
    gemma::{Field, MAX_STOP_IDS, PackedInputs},
    sampling::{MAX_BIAS, NO_TOKEN, Params, Penalties, Sampler, TOP_LOGPROBS},
};

/// Consecutive tokens of one slot's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub slot: i64,
    /// Position of the first one: how many tokens of the sequence are in the cache.
    pub start: i64,
    pub tokens: &'a [u32],
}

/// A batch of segments, at most one for each slot, and what is wanted of them.
#[derive(Clone, Debug)]
pub struct StepBatch<'a> {
    pub segments: Vec<Segment<'a>>,
    pub head: BatchHead<'a>,
}

/// What is wanted of a step.
#[derive(Clone, Debug)]
pub enum BatchHead<'a> {
    /// Only that the tokens are in the cache.
    None,
    /// The next token after each of these segments.
    Sample(Vec<(usize, SamplingInputs<'a>)>),
    /// Log-probabilities of the rows' targets, and of the most likely tokens if `top`.
    Logprobs { rows: Vec<ScoredRow>, top: bool },
    /// All logits after each of these tokens.
    Logits(Vec<RowRef>),
    /// Hidden states of all layers.
    Hidden,
}

/// A token of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRef {
    pub segment: usize,
    /// Index in the segment.
    pub token: usize,
}

/// A token of a batch, and one that may follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoredRow {
    pub row: RowRef,
    pub target: u32,
}

impl BatchHead<'_> {
    /// The tokens of the batch that it is for.
    pub(super) fn rows(&self, segments: &[Segment<'_>]) -> Vec<RowRef> {
        match self {
            Self::None | Self::Hidden => vec![],
            Self::Sample(rows) => {
                let last = |&(segment, _): &(usize, _)| RowRef { segment, token: segments[segment].tokens.len() - 1 };
                rows.iter().map(last).collect()
            }
            Self::Logprobs { rows, .. } => rows.iter().map(|scored| scored.row).collect(),
            Self::Logits(rows) => rows.clone(),
        }
    }
}

/// How a sequence's next token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct SamplingInputs<'a> {
    pub params: Params,
    pub penalties: Penalties,
    /// Added to the logits of these tokens; at most [`MAX_BIAS`] of them.
    pub bias: &'a [(u32, f32)],
    /// Whether log-probabilities are wanted.
    pub logprobs: bool,
    /// The sequence so far, and how much of it is the prompt: for penalties. May be empty where
    /// there are none.
    pub history: &'a [u32],
    pub prompt_len: usize,
    /// The tokens that are allowed, if not all; see [`crate::sampling::allowed`]. Those beyond its
    /// end are not.
    pub mask: Option<&'a [u32]>,
}

impl SamplingInputs<'_> {
    /// By these parameters alone.
    pub fn plain(params: Params) -> Self {
        Self { params, penalties: Penalties::NONE, bias: &[], logprobs: false, history: &[], prompt_len: 0, mask: None }
    }

    /// The sampler that it needs.
    pub fn sampler(&self) -> Sampler {
        let sampler = if self.logprobs {
            Sampler::Logprobs
        } else if self.penalties != Penalties::NONE || !self.bias.is_empty() {
            Sampler::Penalized
        } else {
            self.params.sampler()
        };
        if self.mask.is_some() { sampler.masked() } else { sampler }
    }

    /// Writes the inputs of row `row`, as far as the program takes them.
    pub(super) fn pack(&self, row: usize, inputs: &mut PackedInputs) {
        let bits = |x: f32| [x.to_bits() as i32];
        if inputs.has(Field::Temperature) {
            let Params { temperature, top_k, top_p, min_p, seed } = self.params;
            inputs.set(Field::Temperature, row, bits(temperature));
            inputs.set(Field::TopK, row, [top_k]);
            inputs.set(Field::TopP, row, bits(top_p));
            inputs.set(Field::MinP, row, bits(min_p));
            inputs.set(Field::Seed, row, [seed as i32, (seed >> 32) as i32]);
        }
        if inputs.has(Field::History) {
            let Penalties { repetition, presence, frequency } = self.penalties;
            inputs.set(Field::RepetitionPenalty, row, bits(repetition));
            inputs.set(Field::PresencePenalty, row, bits(presence));
            inputs.set(Field::FrequencyPenalty, row, bits(frequency));
            inputs.set(Field::History, row, ids(self.history));
            inputs.set(Field::PromptLen, row, [self.prompt_len as i32]);
            inputs.set(Field::BiasTokens, row, self.bias.iter().map(|&(id, _)| id as i32).take(MAX_BIAS));
            inputs.set(Field::Biases, row, self.bias.iter().map(|&(_, bias)| bias.to_bits() as i32).take(MAX_BIAS));
        }
        let words = inputs.dims(Field::Mask).map(|dims| dims[1] as usize);
        if let (Some(words), Some(mask)) = (words, self.mask) {
            let all = mask.iter().map(|&word| word as i32).chain(std::iter::repeat(0));
            inputs.set(Field::Mask, row, all.take(words));
        }
    }
}

/// A slot's part of a dispatch of decoding.
#[derive(Clone, Copy, Debug)]
pub struct DecodeRow<'a> {
    pub slot: i64,
    /// The sequence's last token, which is not in the cache yet, and its position.
    pub token: &'a [u32; 1],
    pub position: i64,
    /// The most tokens that may follow; at least 1.
    pub max_new_tokens: i64,
    /// Ids that end the sequence. The device looks for the first [`MAX_STOP_IDS`] of them.
    pub stop_ids: &'a [u32],
    pub sampling: SamplingInputs<'a>,
}

impl DecodeRow<'_> {
    /// Writes the inputs of its slot, whose number in its replica is `row`.
    pub(super) fn pack(&self, row: usize, inputs: &mut PackedInputs) {
        inputs.set(Field::Tokens, row, ids(self.token));
        inputs.set(Field::Positions, row, [self.position as i32]);
        inputs.set(Field::MaxNewTokens, row, [self.max_new_tokens as i32]);
        inputs.set(Field::StopIds, row, ids(self.stop_ids).take(MAX_STOP_IDS as usize));
        self.sampling.pack(row, inputs);
    }
}

/// A segment's place on the token axis of its replica, cut into pieces that attention takes.
pub(super) fn pieces(first_row: usize, segment: &Segment<'_>, local_slot: i64, max: i64) -> Vec<[i32; 4]> {
    let len = segment.tokens.len() as i64;
    let starts = (0..len).step_by(max as usize);
    let piece = |at: i64| {
        [first_row as i64 + at, local_slot, segment.start + at, max.min(len - at)].map(|number| number as i32)
    };
    starts.map(piece).collect()
}

/// Writes tokens and positions from row `row` on.
pub(super) fn pack_tokens(inputs: &mut PackedInputs, row: usize, segment: &Segment<'_>) {
    let positions: Range<i64> = segment.start..segment.start + segment.tokens.len() as i64;
    inputs.set(Field::Tokens, row, ids(segment.tokens));
    inputs.set(Field::Positions, row, positions.map(|position| position as i32));
}

fn ids(tokens: &[u32]) -> impl Iterator<Item = i32> {
    tokens.iter().map(|&id| id as i32)
}

/// What a step gives, in the order in which it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutput {
    None,
    Tokens(Vec<Token>),
    Scores(Vec<TokenScore>),
    /// `f32[vocab]` each.
    Logits(Vec<Vec<f32>>),
    /// What each layer takes and what the last one gives, before the final norm: `f32[layers + 1,
    /// tokens, hidden]`, of the first segment's tokens.
    Hidden(Vec<f32>),
}

/// A token that was chosen, or one of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprobs: Option<Logprobs>,
}

impl Token {
    /// Returns false if the logits were NaN or infinite, so that no token could be chosen.
    pub fn is_chosen(&self) -> bool {
        self.id != NO_TOKEN as u32
    }
}

/// Natural log-probabilities, of the model's own distribution (before temperature, penalties and
/// biases).
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The token's.
    pub own: f32,
    /// The most likely tokens', largest first; at most [`TOP_LOGPROBS`].
    pub top: Vec<(u32, f32)>,
}

/// The likelihood of a target, and the most likely token in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    pub logprobs: Logprobs,
    pub greedy: u32,
}

impl TokenScore {
    /// Returns false if the logits were NaN or infinite.
    pub fn is_number(&self) -> bool {
        self.greedy != NO_TOKEN as u32 && self.logprobs.own.is_finite()
    }
}

/// Unpacks a sampled row: the token, and its log-probabilities if `logprobs`.
pub(super) fn unpack_token(packed: &[i32], logprobs: bool) -> Token {
    let logprobs = (logprobs && packed.len() > 1).then(|| unpack_logprobs(&packed[1..]));
    Token { id: packed[0] as u32, logprobs }
}

/// Unpacks a scored row: the most likely token, then the target's log-probabilities.
pub(super) fn unpack_score(packed: &[i32]) -> TokenScore {
    TokenScore { greedy: packed[0] as u32, logprobs: unpack_logprobs(&packed[1..]) }
}

/// See [`crate::sampling::packed_logprobs`].
fn unpack_logprobs(packed: &[i32]) -> Logprobs {
    let float = |bits: i32| f32::from_bits(bits as u32);
    let (ids, values) = packed[1..].split_at((packed.len() - 1).min(TOP_LOGPROBS as usize));
    let top = ids.iter().zip(values).map(|(&id, &value)| (id as u32, float(value))).collect();
    Logprobs { own: float(packed[0]), top }
}
