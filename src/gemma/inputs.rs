//! The inputs of a program besides weights and caches: one packed s32 array for each device. Its
//! layout is said once here, for the graph that takes it apart and for the host that fills it.

use super::program::{Head, Program, ProgramSpec};
use crate::{
    hlo::{DType, Graph, Op, Shape},
    kernel_abi::SEGMENT_FIELDS,
    sampling::{MAX_BIAS, ParamOps, PenaltyInputs, Sampler},
};

/// The most ids that end a slot's text on the device.
pub const MAX_STOP_IDS: i64 = 8;

/// A part of the packed inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Token ids and their positions.
    Tokens,
    Positions,
    /// Number of real tokens.
    TokenCount,
    /// See [`SEGMENT_FIELDS`].
    Segments,
    /// Rows of the token axis that the head is for, and their number.
    Rows,
    RowCount,
    /// The token whose log-probability is wanted at each row.
    Targets,
    /// Of each slot the most tokens that it may still have; 0 makes it idle.
    MaxNewTokens,
    /// Of each slot the ids that end it, padded with -1.
    StopIds,
    /// Decode steps to take.
    Steps,
    Temperature,
    TopK,
    TopP,
    MinP,
    Seed,
    RepetitionPenalty,
    PresencePenalty,
    FrequencyPenalty,
    /// Of each row its sequence's tokens, padded with -1, and how many of them are the prompt's.
    History,
    PromptLen,
    /// Of each row the tokens with a bias, padded with -1, and the biases.
    BiasTokens,
    Biases,
    /// Of each row the tokens that are allowed, as bits; see [`crate::sampling::allowed`].
    Mask,
    /// Slots to copy from and to.
    CopyFrom,
    CopyTo,
}

impl Field {
    fn dtype(self) -> DType {
        match self {
            Self::Temperature
            | Self::TopP
            | Self::MinP
            | Self::RepetitionPenalty
            | Self::PresencePenalty
            | Self::FrequencyPenalty
            | Self::Biases => DType::F32,
            Self::Seed => DType::U32,
            _ => DType::S32,
        }
    }

    /// What stands where the host writes nothing.
    fn padding(self) -> i32 {
        match self {
            Self::StopIds | Self::History | Self::BiasTokens | Self::Mask => -1,
            Self::RepetitionPenalty | Self::TopP => 1.0_f32.to_bits() as i32,
            _ => 0,
        }
    }
}

/// Where each field lies in a program's packed inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct InputLayout {
    /// Each with its first element and its dims.
    fields: Vec<(Field, usize, Vec<i64>)>,
    len: usize,
}

impl InputLayout {
    /// The layout of a program's inputs.
    pub fn of(spec: &ProgramSpec) -> Self {
        let slots = spec.slots;
        let mut layout = Self { fields: vec![], len: 0 };
        match spec.program {
            Program::Step { tokens, head } => {
                let rows = spec.head_rows();
                layout.push(Field::Tokens, &[tokens]);
                layout.push(Field::Positions, &[tokens]);
                layout.push(Field::TokenCount, &[]);
                layout.push(Field::Segments, &[spec.max_segments(), SEGMENT_FIELDS as i64]);
                if rows > 0 {
                    layout.push(Field::Rows, &[rows]);
                    layout.push(Field::RowCount, &[]);
                }
                match head {
                    Head::Sample(sampler) => layout.push_sampling(sampler, rows, spec),
                    Head::Logprobs { .. } => layout.push(Field::Targets, &[rows]),
                    Head::None | Head::Logits | Head::Hidden => {}
                }
            }
            Program::Decode { sampler } => {
                layout.push(Field::Tokens, &[slots]);
                layout.push(Field::Positions, &[slots]);
                layout.push(Field::MaxNewTokens, &[slots]);
                layout.push(Field::StopIds, &[slots, MAX_STOP_IDS]);
                layout.push(Field::Steps, &[]);
                layout.push_sampling(sampler, slots, spec);
            }
            Program::Copy => {
                layout.push(Field::CopyFrom, &[]);
                layout.push(Field::CopyTo, &[]);
            }
        }
        layout
    }

    fn push(&mut self, field: Field, dims: &[i64]) {
        self.fields.push((field, self.len, dims.to_vec()));
        self.len += dims.iter().product::<i64>() as usize;
    }

    fn push_sampling(&mut self, sampler: Sampler, rows: i64, spec: &ProgramSpec) {
        if sampler.takes_params() {
            for field in [Field::Temperature, Field::TopK, Field::TopP, Field::MinP] {
                self.push(field, &[rows]);
            }
            self.push(Field::Seed, &[rows, 2]);
        }
        if sampler.takes_penalties() {
            for field in [Field::RepetitionPenalty, Field::PresencePenalty, Field::FrequencyPenalty, Field::PromptLen] {
                self.push(field, &[rows]);
            }
            self.push(Field::History, &[rows, spec.cache_len]);
            self.push(Field::BiasTokens, &[rows, MAX_BIAS as i64]);
            self.push(Field::Biases, &[rows, MAX_BIAS as i64]);
        }
        if sampler.is_masked() {
            self.push(Field::Mask, &[rows, spec.model.vocab().mask_words()]);
        }
    }

    fn find(&self, field: Field) -> Option<&(Field, usize, Vec<i64>)> {
        self.fields.iter().find(|(found, ..)| *found == field)
    }

    /// Number of elements of the array.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Dimensions of a field, if the program takes it.
    pub fn dims(&self, field: Field) -> Option<&[i64]> {
        self.find(field).map(|(_, _, dims)| &dims[..])
    }
}

/// The packed inputs as a program's parameter.
pub(super) struct Inputs<'g> {
    packed: Op<'g>,
    layout: InputLayout,
}

impl<'g> Inputs<'g> {
    pub fn declare(graph: &'g Graph, spec: &ProgramSpec) -> Self {
        let layout = InputLayout::of(spec);
        Self { packed: graph.parameter("inputs", Shape::new(DType::S32, [layout.len as i64])), layout }
    }

    /// One field, in its type and shape.
    pub fn get(&self, field: Field) -> Op<'g> {
        let (_, start, dims) = self.layout.find(field).expect("a field of this program");
        let len = dims.iter().product::<i64>();
        let part = self.packed.slice_in_dim(0, *start as i64, *start as i64 + len).reshape(dims);
        if field.dtype() == DType::S32 { part } else { part.bitcast_convert(field.dtype()) }
    }

    pub fn params(&self) -> ParamOps<'g> {
        ParamOps {
            temperature: self.get(Field::Temperature),
            top_k: self.get(Field::TopK),
            top_p: self.get(Field::TopP),
            min_p: self.get(Field::MinP),
            seed: self.get(Field::Seed),
        }
    }

    pub fn penalties(&self) -> PenaltyInputs<'g> {
        PenaltyInputs {
            repetition: self.get(Field::RepetitionPenalty),
            presence: self.get(Field::PresencePenalty),
            frequency: self.get(Field::FrequencyPenalty),
            history: self.get(Field::History),
            prompt_len: self.get(Field::PromptLen),
            bias_tokens: self.get(Field::BiasTokens),
            biases: self.get(Field::Biases),
        }
    }
}

/// The packed inputs as the host fills them.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedInputs {
    layout: InputLayout,
    values: Vec<i32>,
}

impl PackedInputs {
    /// All fields padded.
    pub fn new(layout: InputLayout) -> Self {
        let mut values = vec![0; layout.len];
        for (field, start, dims) in &layout.fields {
            values[*start..start + dims.iter().product::<i64>() as usize].fill(field.padding());
        }
        Self { layout, values }
    }

    /// Writes the first elements of a field, from row `row` on where it has rows.
    ///
    /// # Panics
    /// If the program does not take the field, or they do not fit it.
    pub fn set(&mut self, field: Field, row: usize, values: impl IntoIterator<Item = i32>) {
        let (_, start, dims) = self.layout.find(field).expect("a field of this program");
        let width = dims.get(1..).map_or(1, |dims| dims.iter().product::<i64>() as usize);
        let (from, end) = (start + row * width, start + dims.iter().product::<i64>() as usize);
        let places = &mut self.values[from..end];
        for (i, value) in values.into_iter().enumerate() {
            places[i] = value;
        }
    }

    /// Dimensions of a field, if the program takes it.
    pub fn dims(&self, field: Field) -> Option<&[i64]> {
        self.layout.dims(field)
    }

    /// Whether the program takes a field.
    pub fn has(&self, field: Field) -> bool {
        self.layout.find(field).is_some()
    }

    /// The array.
    pub fn values(&self) -> &[i32] {
        &self.values
    }
}
