//! Sequences under way: their keys and values on the devices, and the steps that extend them.

use std::sync::Arc;

use super::{
    batch::{
        BatchHead, DecodeRow, RowRef, Segment, StepBatch, StepOutput, Token, pack_tokens, pieces, unpack_score,
        unpack_token,
    },
    buckets::{MAX_STEP_TOKENS, step_sizes, window_for},
    model::Model,
};
use crate::{
    compile::tensor_type,
    device::{During, Error, Result},
    gemma::{Field, Head, InputLayout, PackedInputs, Program, ProgramSpec, zeros},
    hlo::Shape,
    pjrt::{Arg, Buffer, ElementType, TensorType},
    sampling::Sampler,
};

/// Slots of a KV cache, each with one sequence of up to `cache_len` tokens. Each replica of the mesh has as many, numbered one
/// replica after the other.
pub struct Session {
    model: Arc<Model>,
    /// Of each replica.
    slots: i64,
    cache_len: i64,
    /// Token counts of steps.
    sizes: Vec<i64>,
    /// `[device][array]`; empty after a failed step, which takes the caches with it.
    caches: Vec<Vec<Buffer>>,
}

impl Session {
    /// Allocates caches for `slots` sequences of up to `cache_len` tokens in each replica.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if they do not fit.
    pub fn new(model: Arc<Model>, slots: i64, cache_len: i64) -> Result<Self> {
        let sizes = step_sizes(model.spec().lowering, slots);
        let mut session = Self { model, slots, cache_len, sizes, caches: vec![] };
        session.reset()?;
        Ok(session)
    }

    /// Allocates the caches anew, filled with zeros (attention multiplies what it masks by 0, so it must be finite).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if they do not fit.
    pub fn reset(&mut self) -> Result<()> {
        self.caches.clear();
        let spec = self.spec(Program::Copy, self.cache_len);
        let shapes: Vec<Shape> = spec.cache_arrays().into_iter().map(|(_, shape)| shape).collect();
        let types: Vec<TensorType> = shapes.iter().map(tensor_type).collect();
        let doing = || format!("allocating the KV cache of {} x {} tokens", self.slots, self.cache_len);
        let programs = self.model.programs();
        let devices = programs.grid.local().count();
        let needed = types.iter().map(|ty| ty.host_bytes() as u64).sum::<u64>() * devices as u64;
        programs.require_memory(needed, doing)?;
        self.caches = if spec.model.lowering.stacks_layers {
            // A few large arrays, made where they are.
            let allocate = programs.make(format!("allocate-{}", spec.name()), || zeros("allocate_cache", &shapes))?;
            programs.execute(&allocate, (0..devices).map(|_| vec![]).collect(), doing)?
        } else {
            let zeros = vec![0u8; types.iter().map(TensorType::host_bytes).max().unwrap_or_default()];
            let mut caches = Vec::new();
            for (_, device) in programs.grid.local() {
                let upload = |ty: &TensorType| programs.client.upload(&zeros[..ty.host_bytes()], ty, device);
                caches.push(types.iter().map(upload).collect::<crate::pjrt::Result<_>>().during(doing)?);
            }
            caches
        };
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Slots of all replicas.
    pub fn slots(&self) -> i64 {
        self.slots * self.replicas() as i64
    }

    /// Slots of each replica.
    pub fn slots_per_replica(&self) -> i64 {
        self.slots
    }

    /// Parts of the mesh that each hold the whole model, and run sequences of their own.
    pub fn replicas(&self) -> usize {
        self.model.spec().mesh.data
    }

    /// The replica that a slot belongs to.
    pub fn replica_of(&self, slot: i64) -> usize {
        (slot / self.slots) as usize
    }

    /// Tokens that a slot can hold.
    pub fn cache_len(&self) -> i64 {
        self.cache_len
    }

    /// The most tokens of each replica in one step.
    pub fn max_step_tokens(&self) -> i64 {
        *self.sizes.last().unwrap_or(&MAX_STEP_TOKENS)
    }

    /// The most rows of each replica that one step scores.
    pub fn max_scored_rows(&self) -> i64 {
        self.step_spec(self.max_step_tokens(), Head::Logits).head_rows()
    }

    /// The most tokens that one dispatch decodes for a slot.
    pub fn decode_steps(&self) -> i64 {
        self.model.spec().decode_steps()
    }

    /// Makes the programs ready that it takes to extend a sequence of `start` tokens by `tokens`, and to begin decoding.
    ///
    /// # Errors
    /// The plugin's, while compiling.
    pub fn prepare(&self, start: i64, tokens: i64, sampler: Sampler) -> Result<()> {
        let max = self.max_step_tokens();
        let (whole, rest) = (tokens / max, tokens % max);
        let last = if rest == 0 { max } else { rest };
        let mut specs = vec![self.step_spec(self.size_for(last, 0)?, Head::Sample(sampler))];
        if whole > i64::from(rest == 0) {
            specs.push(self.step_spec(max, Head::None));
        }
        specs.push(self.decode_spec((start + tokens + 1).min(self.cache_len), sampler));
        self.model.prepare(specs)
    }

    fn spec(&self, program: Program, window: i64) -> ProgramSpec {
        self.model.program_spec(program, self.slots, self.cache_len, window)
    }

    fn step_spec(&self, tokens: i64, head: Head) -> ProgramSpec {
        self.spec(Program::Step { tokens, head }, self.cache_len)
    }

    /// The program that decodes sequences of up to `end` tokens.
    fn decode_spec(&self, end: i64, sampler: Sampler) -> ProgramSpec {
        if self.model.spec().lowering.batches_decode {
            return self.spec(Program::Decode { sampler }, window_for(end, self.cache_len));
        }
        self.step_spec(self.slots, Head::Sample(sampler))
    }

    /// The smallest step with room for so many tokens and rows of a replica.
    fn size_for(&self, tokens: i64, scored_rows: i64) -> Result<i64> {
        let rows = |size: i64| self.step_spec(size, Head::Logits).head_rows();
        let fits = |&&size: &&i64| size >= tokens && rows(size) >= scored_rows;
        self.sizes.iter().find(fits).copied().ok_or_else(|| {
            Error::Invalid(format!(
                "a step takes up to {} tokens of each replica and scores up to {} rows, not {tokens} and {scored_rows}",
                self.max_step_tokens(),
                self.max_scored_rows()
            ))
        })
    }

    /// Runs one pass over a batch.
    ///
    /// # Errors
    /// A batch that does not fit the session leaves it as it was. A step that failed takes the caches with it:
    /// [`Self::reset`] makes new ones.
    pub fn step(&mut self, batch: &StepBatch<'_>) -> Result<StepOutput> {
        self.check(batch)?;
        let rows = batch.head.rows(&batch.segments);
        let row_replicas: Vec<usize> =
            rows.iter().map(|row| self.replica_of(batch.segments[row.segment].slot)).collect();
        let (mut tokens, mut scored) = (vec![0; self.replicas()], vec![0; self.replicas()]);
        for segment in &batch.segments {
            tokens[self.replica_of(segment.slot)] += segment.tokens.len() as i64;
        }
        if matches!(batch.head, BatchHead::Logprobs { .. } | BatchHead::Logits(_)) {
            row_replicas.iter().for_each(|&replica| scored[replica] += 1);
        }
        let most = |counts: &[i64]| counts.iter().copied().max().unwrap_or(0);
        let size = self.size_for(most(&tokens), most(&scored))?;
        let spec = self.step_spec(size, head_of(&batch.head));

        // Tokens of each replica follow each other on its axis; rows of the head follow each other, too.
        let mut inputs = vec![PackedInputs::new(InputLayout::of(&spec)); self.replicas()];
        let mut first_rows = Vec::new();
        let (mut used, mut segments) = (vec![0; self.replicas()], vec![0; self.replicas()]);
        for segment in &batch.segments {
            let replica = self.replica_of(segment.slot);
            let first = used[replica];
            pack_tokens(&mut inputs[replica], first, segment);
            for piece in pieces(first, segment, segment.slot % self.slots, spec.max_segment(size)) {
                inputs[replica].set(Field::Segments, segments[replica], piece);
                segments[replica] += 1;
            }
            first_rows.push(first);
            used[replica] += segment.tokens.len();
        }
        let mut head_rows = vec![0; self.replicas()];
        let mut places = Vec::new();
        for (i, (row, &replica)) in rows.iter().zip(&row_replicas).enumerate() {
            let (inputs, at) = (&mut inputs[replica], head_rows[replica]);
            places.push((replica, at));
            inputs.set(Field::Rows, at, [(first_rows[row.segment] + row.token) as i32]);
            match &batch.head {
                BatchHead::Sample(rows) => rows[i].1.pack(at, inputs),
                BatchHead::Logprobs { rows, .. } => inputs.set(Field::Targets, at, [rows[i].target as i32]),
                BatchHead::None | BatchHead::Logits(_) | BatchHead::Hidden => {}
            }
            head_rows[replica] += 1;
        }
        for (replica, inputs) in inputs.iter_mut().enumerate() {
            inputs.set(Field::TokenCount, 0, [used[replica] as i32]);
            if inputs.has(Field::RowCount) {
                inputs.set(Field::RowCount, 0, [head_rows[replica] as i32]);
            }
        }
        let outputs = self.run(&spec, &inputs)?;
        self.unpack(&batch.head, &outputs, places.into_iter(), used[0])
    }

    /// Reads each replica's output; `places` are the replica of each row of the head, and its number there.
    fn unpack(
        &self,
        head: &BatchHead<'_>,
        outputs: &[Option<Buffer>],
        places: impl Iterator<Item = (usize, usize)>,
        tokens: usize,
    ) -> Result<StepOutput> {
        Ok(match head {
            BatchHead::None => StepOutput::None,
            BatchHead::Sample(rows) => {
                let packed = Records::<i32>::read(outputs)?;
                let token = |((_, sampling), place): (&(usize, super::SamplingInputs<'_>), _)| {
                    unpack_token(packed.get(place), sampling.logprobs)
                };
                StepOutput::Tokens(rows.iter().zip(places).map(token).collect())
            }
            BatchHead::Logprobs { .. } => {
                let packed = Records::<i32>::read(outputs)?;
                StepOutput::Scores(places.map(|place| unpack_score(packed.get(place))).collect())
            }
            BatchHead::Logits(_) => {
                let logits = Records::<f32>::read(outputs)?;
                StepOutput::Logits(places.map(|place| logits.get(place).to_vec()).collect())
            }
            BatchHead::Hidden => {
                let hidden = self.model.spec().config.hidden_size as usize;
                let all: Vec<f32> = read(&outputs[0])?;
                let layers = self.model.spec().config.num_hidden_layers as usize + 1;
                let of_layer = all.chunks_exact(all.len() / layers);
                StepOutput::Hidden(of_layer.flat_map(|layer| &layer[..tokens * hidden]).copied().collect())
            }
        })
    }

    /// One dispatch of up to `steps` tokens of each row's slot; the tokens of each, the one that ends it included.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn decode(&mut self, rows: &[DecodeRow<'_>], steps: i64) -> Result<Vec<Vec<Token>>> {
        let sampler = rows.iter().map(|row| row.sampling.sampler()).max().unwrap_or(Sampler::Greedy);
        if !self.model.spec().lowering.batches_decode {
            let segments =
                rows.iter().map(|row| Segment { slot: row.slot, start: row.position, tokens: row.token }).collect();
            let head = BatchHead::Sample(rows.iter().enumerate().map(|(i, row)| (i, row.sampling)).collect());
            let StepOutput::Tokens(tokens) = self.step(&StepBatch { segments, head })? else {
                unreachable!("the head samples")
            };
            return Ok(tokens.into_iter().map(|token| vec![token]).collect());
        }
        let steps = steps.min(self.decode_steps());
        for row in rows {
            self.check_room(row.slot, row.position, row.max_new_tokens.min(steps))?;
        }
        let end = rows.iter().map(|row| row.position + row.max_new_tokens.min(steps)).max().unwrap_or(1);
        let spec = self.decode_spec(end, sampler);
        let mut inputs = vec![PackedInputs::new(InputLayout::of(&spec)); self.replicas()];
        for inputs in &mut inputs {
            inputs.set(Field::Steps, 0, [steps as i32]);
        }
        for row in rows {
            row.pack((row.slot % self.slots) as usize, &mut inputs[self.replica_of(row.slot)]);
        }
        // [steps, slots, width]
        let packed = Records::<i32>::of_width(&self.run(&spec, &inputs)?, sampler.width() as usize)?;
        let tokens_of = |row: &DecodeRow<'_>| {
            let (replica, slot) = (self.replica_of(row.slot), (row.slot % self.slots) as usize);
            let entry = |step: i64| packed.get((replica, step as usize * self.slots as usize + slot));
            let entries = (0..steps).map(entry).take_while(|entry| entry[0] >= 0);
            entries.map(|entry| unpack_token(entry, row.sampling.logprobs)).collect()
        };
        Ok(rows.iter().map(tokens_of).collect())
    }

    /// Copies all that slot `from` holds to slot `to` of the same replica.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn copy(&mut self, from: i64, to: i64) -> Result<()> {
        self.check_room(from, 0, 0)?;
        self.check_room(to, 0, 0)?;
        let replica = self.replica_of(to);
        if self.replica_of(from) != replica {
            return Err(Error::Invalid(format!("slots {from} and {to} are on different devices")));
        }
        let spec = self.spec(Program::Copy, self.cache_len);
        // In other replicas slot 0 is copied to itself.
        let mut inputs = vec![PackedInputs::new(InputLayout::of(&spec)); self.replicas()];
        inputs[replica].set(Field::CopyFrom, 0, [(from % self.slots) as i32]);
        inputs[replica].set(Field::CopyTo, 0, [(to % self.slots) as i32]);
        self.run(&spec, &inputs).map(drop)
    }

    fn check(&self, batch: &StepBatch<'_>) -> Result<()> {
        let mut seen = vec![false; self.slots() as usize];
        for segment in &batch.segments {
            self.check_room(segment.slot, segment.start, segment.tokens.len() as i64)?;
            if segment.tokens.is_empty() {
                return Err(Error::Invalid(format!("slot {} has no tokens in this step", segment.slot)));
            }
            if std::mem::replace(&mut seen[segment.slot as usize], true) {
                return Err(Error::Invalid(format!("slot {} is in this step twice", segment.slot)));
            }
        }
        let outside = |row: &RowRef| row.segment >= batch.segments.len();
        let sampled_outside = matches!(&batch.head, BatchHead::Sample(rows) if rows.iter().any(|row| row.0 >= batch.segments.len()));
        if batch.segments.is_empty() || sampled_outside {
            return Err(Error::Invalid("a step takes at least one segment, and samples after its own only".into()));
        }
        let rows = batch.head.rows(&batch.segments);
        match rows.iter().find(|row| outside(row) || row.token >= batch.segments[row.segment].tokens.len()) {
            Some(row) => Err(Error::Invalid(format!("a step has no token {} in segment {}", row.token, row.segment))),
            None => Ok(()),
        }
    }

    fn check_room(&self, slot: i64, start: i64, tokens: i64) -> Result<()> {
        if slot < 0 || slot >= self.slots() {
            return Err(Error::Invalid(format!("there is no slot {slot}, the session has {}", self.slots())));
        }
        if start < 0 || start + tokens > self.cache_len {
            let cache_len = self.cache_len;
            return Err(Error::Invalid(format!(
                "{tokens} tokens from position {start} on do not fit a cache of {cache_len}; use a longer --context"
            )));
        }
        if self.caches.is_empty() {
            return Err(Error::Invalid(
                "an earlier step failed and took the caches with it; start a new session".into(),
            ));
        }
        Ok(())
    }

    /// Runs a program with the inputs of each replica, the weights if it takes them, and the caches, which it gives back updated.
    /// Returns its own output on the first device of each replica.
    fn run(&mut self, spec: &ProgramSpec, inputs: &[PackedInputs]) -> Result<Vec<Option<Buffer>>> {
        let program = self.model.program(spec)?;
        let programs = self.model.programs();
        let ty = TensorType::new(ElementType::S32, [inputs[0].values().len() as i64]);
        let mut uploaded = Vec::new();
        for (rank, device) in programs.grid.local() {
            let packed = inputs[programs.grid.replica(rank)].values();
            let upload = programs.client.upload_slice(packed, &ty, device);
            uploaded.push(upload.during(|| "uploading a step's inputs".into())?);
        }
        let placed = if spec.takes_weights() { &self.model.weights()?.buffers[..] } else { &[] };
        let caches = std::mem::take(&mut self.caches);
        let arrays = caches.first().map_or(0, Vec::len);
        let mut args = Vec::new();
        for (i, (inputs, caches)) in uploaded.iter().zip(caches).enumerate() {
            let kept = std::iter::once(inputs).chain(placed.get(i).into_iter().flatten()).map(Arg::Keep);
            args.push(kept.chain(caches.into_iter().map(Arg::Donate)).collect());
        }
        let mut outputs = programs.execute(&program, args, || format!("running {}", spec.name()))?;
        let own = outputs[0].len() - arrays;
        self.caches = outputs.iter_mut().map(|list| list.split_off(own)).collect();
        let ranks = programs.grid.local().map(|(rank, _)| rank);
        let firsts = ranks.zip(outputs).filter(|(rank, _)| programs.grid.tp_rank(*rank) == 0);
        Ok(firsts.map(|(_, list)| list.into_iter().next()).collect())
    }
}

/// The program's head for a batch: the slowest sampler that a row needs.
fn head_of(head: &BatchHead<'_>) -> Head {
    match head {
        BatchHead::None => Head::None,
        BatchHead::Sample(rows) => {
            Head::Sample(rows.iter().map(|(_, sampling)| sampling.sampler()).max().unwrap_or(Sampler::Greedy))
        }
        BatchHead::Logprobs { top, .. } => Head::Logprobs { top: *top },
        BatchHead::Logits(_) => Head::Logits,
        BatchHead::Hidden => Head::Hidden,
    }
}

/// Each replica's output, in records of one width.
struct Records<T> {
    values: Vec<Vec<T>>,
    width: usize,
}

impl<T: bytemuck::Pod> Records<T> {
    /// The last dimension of the output is a record.
    fn read(outputs: &[Option<Buffer>]) -> Result<Self> {
        let width = outputs.iter().flatten().find_map(|buffer| buffer.ty().dims.last().copied()).unwrap_or(1);
        Self::of_width(outputs, width as usize)
    }

    fn of_width(outputs: &[Option<Buffer>], width: usize) -> Result<Self> {
        Ok(Self { values: outputs.iter().map(read).collect::<Result<_>>()?, width })
    }

    fn get(&self, (replica, record): (usize, usize)) -> &[T] {
        &self.values[replica][record * self.width..][..self.width]
    }
}

fn read<T: bytemuck::Pod>(buffer: &Option<Buffer>) -> Result<Vec<T>> {
    let buffer = buffer.as_ref().expect("the program has an output");
    buffer.to_vec().during(|| "reading a step's result".into())
}
