//! What a step takes besides weights and caches, as arrays.

use super::error::{Result, While};
use crate::{
    gemma::{Output, STOP_IDS},
    pjrt::{Buffer, Client, Device, ElementType, TensorType},
    sampling::{Adjust, MAX_BIAS, Params, Sampler},
};

/// An input of a program, with its dims.
pub(super) enum Input {
    S32(Vec<i32>, Vec<i64>),
    F32(Vec<f32>, Vec<i64>),
    U32(Vec<u32>, Vec<i64>),
}

impl Input {
    pub fn number(value: i64) -> Self {
        Self::S32(vec![value as i32], vec![])
    }

    /// One for each row.
    pub fn numbers(values: impl Iterator<Item = i64>) -> Self {
        let values: Vec<i32> = values.map(|value| value as i32).collect();
        let dims = vec![values.len() as i64];
        Self::S32(values, dims)
    }

    /// Token ids of each row, padded with `<pad>` (0).
    pub fn tokens(rows: &[&[u32]], len: i64) -> Self {
        Self::S32(rows.iter().flat_map(|tokens| padded(tokens, len, 0)).collect(), vec![rows.len() as i64, len])
    }

    fn floats(values: impl Iterator<Item = f32>) -> Self {
        let values: Vec<f32> = values.collect();
        let dims = vec![values.len() as i64];
        Self::F32(values, dims)
    }

    pub fn upload(&self, client: &Client, device: &Device) -> Result<Buffer> {
        let ty = |element: ElementType, dims: &[i64]| TensorType::new(element, dims);
        let uploaded = match self {
            Self::S32(v, dims) => client.upload_slice(v, &ty(ElementType::S32, dims), device),
            Self::F32(v, dims) => client.upload_slice(v, &ty(ElementType::F32, dims), device),
            Self::U32(v, dims) => client.upload_slice(v, &ty(ElementType::U32, dims), device),
        };
        uploaded.during(|| "uploading a step's inputs".into())
    }
}

fn padded(tokens: &[u32], len: i64, with: i32) -> Vec<i32> {
    tokens.iter().map(|&id| id as i32).chain(std::iter::repeat(with)).take(len as usize).collect()
}

/// How a sequence's next token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    pub params: Params,
    pub adjust: Adjust,
    /// What is added to the logits of these tokens; at most [`MAX_BIAS`] of them.
    pub bias: &'a [(u32, f32)],
    /// Whether log-probabilities are wanted.
    pub detailed: bool,
    /// The sequence so far, and how much of it is the prompt: for penalties. May be empty where there are none.
    pub tokens: &'a [u32],
    pub prompt: usize,
}

impl Choice<'_> {
    /// By these parameters alone.
    pub fn plain(params: Params) -> Self {
        Self { params, adjust: Adjust::NONE, bias: &[], detailed: false, tokens: &[], prompt: 0 }
    }

    /// The program variant that it needs.
    pub fn sampler(&self) -> Sampler {
        if self.detailed {
            Sampler::Detailed
        } else if self.adjust != Adjust::NONE || !self.bias.is_empty() {
            Sampler::Adjusted
        } else {
            self.params.sampler()
        }
    }

    /// The sampler's inputs, of all rows of a program.
    pub(super) fn inputs(rows: &[Self], output: Output, cache_len: i64) -> Vec<Input> {
        let Output::Token(sampler) = output else { return vec![] };
        let mut inputs = Vec::new();
        let n = rows.len() as i64;
        if sampler > Sampler::Greedy {
            let of = |f: fn(&Params) -> f32| Input::floats(rows.iter().map(move |row| f(&row.params)));
            let seeds = rows.iter().flat_map(|row| [row.params.seed as u32, (row.params.seed >> 32) as u32]).collect();
            inputs.push(of(|p| p.temperature));
            inputs.push(Input::numbers(rows.iter().map(|row| i64::from(row.params.top_k))));
            inputs.push(of(|p| p.top_p));
            inputs.push(of(|p| p.min_p));
            inputs.push(Input::U32(seeds, vec![n, 2]));
        }
        if sampler >= Sampler::Adjusted {
            let of = |f: fn(&Adjust) -> f32| Input::floats(rows.iter().map(move |row| f(&row.adjust)));
            inputs.extend([of(|a| a.repetition), of(|a| a.presence), of(|a| a.frequency)]);
            let history = rows.iter().flat_map(|row| padded(row.tokens, cache_len, -1)).collect();
            inputs.push(Input::S32(history, vec![n, cache_len]));
            inputs.push(Input::numbers(rows.iter().map(|row| row.prompt as i64)));
            let biased = rows.iter().flat_map(|row| {
                let ids: Vec<u32> = row.bias.iter().map(|&(id, _)| id).collect();
                padded(&ids, MAX_BIAS as i64, -1)
            });
            inputs.push(Input::S32(biased.collect(), vec![n, MAX_BIAS as i64]));
            let biases = rows
                .iter()
                .flat_map(|row| row.bias.iter().map(|&(_, bias)| bias).chain(std::iter::repeat(0.0)).take(MAX_BIAS));
            inputs.push(Input::F32(biases.collect(), vec![n, MAX_BIAS as i64]));
        }
        inputs
    }
}

/// What a slot does in a dispatch of decoding.
#[derive(Clone, Copy, Debug)]
pub struct Decode<'a> {
    /// The sequence's last token, which is not in the cache yet, and its position.
    pub token: u32,
    pub position: i64,
    /// The most tokens that may follow; 0 lets the slot rest.
    pub left: i64,
    /// Ids that end the sequence. The device looks for [`STOP_IDS`] of them.
    pub stop_ids: &'a [u32],
    pub choice: Choice<'a>,
}

impl Decode<'_> {
    /// A slot that rests, with so many tokens in the cache.
    pub fn resting(position: i64) -> Self {
        Self { token: 0, position, left: 0, stop_ids: &[], choice: Choice::plain(Params::GREEDY) }
    }

    /// A program's own inputs, of all its slots.
    pub(super) fn inputs(slots: &[Self], steps: i64, output: Output, cache_len: i64) -> Vec<Input> {
        let n = slots.len() as i64;
        let stops = slots.iter().flat_map(|slot| padded(slot.stop_ids, STOP_IDS, -1)).collect();
        let choices: Vec<Choice<'_>> = slots.iter().map(|slot| slot.choice).collect();
        let mut inputs = vec![
            Input::numbers(slots.iter().map(|slot| i64::from(slot.token))),
            Input::numbers(slots.iter().map(|slot| slot.position)),
        ];
        if output != Output::Logits {
            inputs.push(Input::numbers(slots.iter().map(|slot| slot.left)));
            inputs.push(Input::S32(stops, vec![n, STOP_IDS]));
            inputs.push(Input::number(steps));
        }
        inputs.extend(Choice::inputs(&choices, output, cache_len));
        inputs
    }
}
