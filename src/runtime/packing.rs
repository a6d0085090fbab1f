//! Batches as packed inputs, and packed results as what was asked for.

use super::{
    batch::{
        BatchHead, DecodeRow, RowRef, SamplingInputs, StepBatch, StepOutput, Token, pack_tokens, pieces, unpack_score,
        unpack_token,
    },
    slots::SlotLayout,
};
use crate::{
    device::{During, Result},
    gemma::{Config, Field, Head, InputLayout, PackedInputs, ProgramSpec},
    pjrt::Buffer,
    sampling::Sampler,
};

/// How much a batch needs of its step: the most tokens, and the most rows to score, of a replica.
pub(super) struct BatchSize {
    pub tokens: i64,
    pub scored_rows: i64,
}

impl BatchSize {
    pub fn of(batch: &StepBatch<'_>, slots: SlotLayout) -> Self {
        let (mut tokens, mut scored) = (vec![0; slots.replicas], vec![0; slots.replicas]);
        for segment in &batch.segments {
            tokens[slots.replica_of(segment.slot)] += segment.tokens.len() as i64;
        }
        if matches!(batch.head, BatchHead::Logprobs { .. } | BatchHead::Logits(_)) {
            for row in batch.head.rows(&batch.segments) {
                scored[slots.replica_of(batch.segments[row.segment].slot)] += 1;
            }
        }
        let most = |counts: Vec<i64>| counts.into_iter().max().unwrap_or(0);
        Self { tokens: most(tokens), scored_rows: most(scored) }
    }
}

/// The program's head for a batch: the fastest sampler that does what all rows need.
pub(super) fn head_of(head: &BatchHead<'_>) -> Head {
    match head {
        BatchHead::None => Head::None,
        BatchHead::Sample(rows) => {
            Head::Sample(rows.iter().map(|(_, sampling)| sampling.sampler()).fold(Sampler::Greedy, Sampler::joined))
        }
        BatchHead::Logprobs { top, .. } => Head::Logprobs { top: *top },
        BatchHead::Logits(_) => Head::Logits,
        BatchHead::Hidden => Head::Hidden,
    }
}

/// A row's place in the results: its replica, and its number there.
pub(super) type Place = (usize, usize);

/// A batch as the inputs of a program, one array for each replica.
pub(super) struct PackedBatch {
    pub inputs: Vec<PackedInputs>,
    /// Of each row of the head.
    pub places: Vec<Place>,
}

impl PackedBatch {
    /// Packs a batch for a step that has room for it. Tokens of a replica follow each other on its
    /// axis, and so do the rows of its head.
    pub fn new(batch: &StepBatch<'_>, spec: &ProgramSpec, tokens: i64, slots: SlotLayout) -> Self {
        let mut inputs = vec![PackedInputs::new(InputLayout::of(spec)); slots.replicas];
        let (mut used, mut segments) = (vec![0; slots.replicas], vec![0; slots.replicas]);
        let mut first_rows = Vec::new();
        for segment in &batch.segments {
            let replica = slots.replica_of(segment.slot);
            let first = used[replica];
            pack_tokens(&mut inputs[replica], first, segment);
            for piece in pieces(first, segment, slots.local(segment.slot), spec.max_segment(tokens)) {
                inputs[replica].set(Field::Segments, segments[replica], piece);
                segments[replica] += 1;
            }
            first_rows.push(first);
            used[replica] += segment.tokens.len();
        }
        let mut head_rows = vec![0; slots.replicas];
        let mut places = Vec::new();
        for (i, RowRef { segment, token }) in batch.head.rows(&batch.segments).into_iter().enumerate() {
            let replica = slots.replica_of(batch.segments[segment].slot);
            let (inputs, at) = (&mut inputs[replica], head_rows[replica]);
            inputs.set(Field::Rows, at, [(first_rows[segment] + token) as i32]);
            match &batch.head {
                BatchHead::Sample(rows) => rows[i].1.pack(at, inputs),
                BatchHead::Logprobs { rows, .. } => inputs.set(Field::Targets, at, [rows[i].target as i32]),
                BatchHead::None | BatchHead::Logits(_) | BatchHead::Hidden => {}
            }
            places.push((replica, at));
            head_rows[replica] += 1;
        }
        for (replica, inputs) in inputs.iter_mut().enumerate() {
            inputs.set(Field::TokenCount, 0, [used[replica] as i32]);
            if inputs.has(Field::RowCount) {
                inputs.set(Field::RowCount, 0, [head_rows[replica] as i32]);
            }
        }
        Self { inputs, places }
    }
}

/// Reads the outputs of a step, one for each replica.
pub(super) fn unpack(
    batch: &StepBatch<'_>,
    places: &[Place],
    outputs: &[Option<Buffer>],
    config: &Config,
    slots: SlotLayout,
) -> Result<StepOutput> {
    Ok(match &batch.head {
        BatchHead::None => StepOutput::None,
        BatchHead::Sample(rows) => {
            let packed = Records::<i32>::read(outputs)?;
            let token = |((_, sampling), &place): (&(usize, SamplingInputs<'_>), &Place)| {
                unpack_token(packed.get(place), sampling.logprobs)
            };
            StepOutput::Tokens(rows.iter().zip(places).map(token).collect())
        }
        BatchHead::Logprobs { .. } => {
            let packed = Records::<i32>::read(outputs)?;
            StepOutput::Scores(places.iter().map(|&place| unpack_score(packed.get(place))).collect())
        }
        BatchHead::Logits(_) => {
            let logits = Records::<f32>::read(outputs)?;
            StepOutput::Logits(places.iter().map(|&place| logits.get(place).to_vec()).collect())
        }
        BatchHead::Hidden => {
            let all: Vec<f32> = read(&outputs[slots.replica_of(batch.segments[0].slot)])?;
            let of_layer = all.chunks_exact(all.len() / (config.num_hidden_layers as usize + 1));
            let len = batch.segments[0].tokens.len() * config.hidden_size as usize;
            StepOutput::Hidden(of_layer.flat_map(|layer| &layer[..len]).copied().collect())
        }
    })
}

/// Packs the rows of a dispatch of decoding, whose slots are in their own places.
pub(super) fn pack_decode(
    rows: &[DecodeRow<'_>],
    steps: i64,
    spec: &ProgramSpec,
    slots: SlotLayout,
) -> Vec<PackedInputs> {
    let mut inputs = vec![PackedInputs::new(InputLayout::of(spec)); slots.replicas];
    inputs.iter_mut().for_each(|inputs| inputs.set(Field::Steps, 0, [steps as i32]));
    for row in rows {
        row.pack(slots.local(row.slot) as usize, &mut inputs[slots.replica_of(row.slot)]);
    }
    inputs
}

/// Reads the tokens of each row's slot from `s32[steps, slots, width]`, up to the one that ended
/// it.
pub(super) fn unpack_decode(
    rows: &[DecodeRow<'_>],
    steps: i64,
    outputs: &[Option<Buffer>],
    slots: SlotLayout,
) -> Result<Vec<Vec<Token>>> {
    let packed = Records::<i32>::read(outputs)?;
    let tokens_of = |row: &DecodeRow<'_>| {
        let (replica, slot) = (slots.replica_of(row.slot), slots.local(row.slot));
        let entries = (0..steps).map(|step| packed.get((replica, (step * slots.per_replica + slot) as usize)));
        let tokens = entries.take_while(|entry| entry[0] >= 0);
        tokens.map(|entry| unpack_token(entry, row.sampling.logprobs)).collect()
    };
    Ok(rows.iter().map(tokens_of).collect())
}

/// Each replica's output, in records of its last dimension.
struct Records<T> {
    values: Vec<Vec<T>>,
    width: usize,
}

impl<T: bytemuck::Pod> Records<T> {
    fn read(outputs: &[Option<Buffer>]) -> Result<Self> {
        let width = outputs.iter().flatten().find_map(|buffer| buffer.ty().dims.last().copied()).unwrap_or(1);
        Ok(Self { values: outputs.iter().map(read).collect::<Result<_>>()?, width: width as usize })
    }

    fn get(&self, (replica, record): Place) -> &[T] {
        &self.values[replica][record * self.width..][..self.width]
    }
}

fn read<T: bytemuck::Pod>(buffer: &Option<Buffer>) -> Result<Vec<T>> {
    let buffer = buffer.as_ref().expect("the program has an output");
    buffer.to_vec().during(|| "reading a step's result".into())
}
