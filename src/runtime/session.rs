//! Sequences under way: their keys and values on the devices, and the steps that extend them.

use std::sync::Arc;

use super::{
    batch::{BatchHead, DecodeRow, Segment, StepBatch, StepOutput, Token},
    buckets::{MAX_STEP_TOKENS, step_sizes, window_for},
    model::Model,
    packing::{BatchSize, PackedBatch, head_of, pack_decode, unpack, unpack_decode},
    slots::SlotLayout,
};
use crate::{
    compile::tensor_type,
    device::{During, Error, Result},
    gemma::{Field, Head, InputLayout, PackedInputs, Program, ProgramSpec, zeros},
    hlo::Shape,
    pjrt::{Arg, Buffer, ElementType, TensorType},
    sampling::Sampler,
};

/// Slots of a KV cache, each with one sequence of up to `cache_len` tokens. Each replica of the
/// mesh has as many, numbered one replica after the other.
pub struct Session {
    model: Arc<Model>,
    layout: SlotLayout,
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
        let layout = SlotLayout { per_replica: slots, replicas: model.mesh().data, cache_len };
        let mut session = Self { model, layout, sizes, caches: vec![] };
        session.reset()?;
        Ok(session)
    }

    /// Allocates the caches anew, filled with zeros (attention multiplies what it masks by 0, so it
    /// must be finite).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if they do not fit.
    pub fn reset(&mut self) -> Result<()> {
        self.caches.clear();
        let spec = self.spec(Program::Copy);
        let shapes: Vec<Shape> = spec.cache_arrays().into_iter().map(|(_, shape)| shape).collect();
        let types: Vec<TensorType> = shapes.iter().map(tensor_type).collect();
        let SlotLayout { per_replica, cache_len, .. } = self.layout;
        let doing = || format!("allocating the KV cache of {per_replica} x {cache_len} tokens");
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
        self.layout.total()
    }

    /// Slots of each replica.
    pub fn slots_per_replica(&self) -> i64 {
        self.layout.per_replica
    }

    /// Tokens that a slot can hold.
    pub fn cache_len(&self) -> i64 {
        self.layout.cache_len
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
        self.model.spec().decode_steps(Sampler::Greedy)
    }

    /// Makes the programs ready that it takes to extend a sequence of `start` tokens by `tokens`,
    /// and to begin decoding.
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
        specs.push(self.decode_spec((start + tokens + 1).min(self.cache_len()), sampler));
        self.model.prepare(specs)
    }

    fn spec(&self, program: Program) -> ProgramSpec {
        self.model.program_spec(program, self.layout.per_replica, self.cache_len(), self.cache_len())
    }

    fn step_spec(&self, tokens: i64, head: Head) -> ProgramSpec {
        self.spec(Program::Step { tokens, head })
    }

    /// The program that decodes sequences of up to `end` tokens.
    fn decode_spec(&self, end: i64, sampler: Sampler) -> ProgramSpec {
        if self.model.spec().lowering.batches_decode {
            let window = window_for(end, self.cache_len());
            return ProgramSpec { window, ..self.spec(Program::Decode { sampler }) };
        }
        self.step_spec(self.layout.per_replica, Head::Sample(sampler))
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
    /// A batch that does not fit the session leaves it as it was. A step that failed takes the
    /// caches with it: [`Self::reset`] makes new ones.
    pub fn step(&mut self, batch: &StepBatch<'_>) -> Result<StepOutput> {
        self.layout.check(batch)?;
        let BatchSize { tokens, scored_rows } = BatchSize::of(batch, self.layout);
        let size = self.size_for(tokens, scored_rows)?;
        let spec = self.step_spec(size, head_of(&batch.head));
        let packed = PackedBatch::new(batch, &spec, size, self.layout);
        let outputs = self.run(&spec, &packed.inputs)?;
        unpack(batch, &packed.places, &outputs, self.model.config(), self.layout)
    }

    /// One dispatch of up to `steps` tokens of each row's slot; the tokens of each, the one that
    /// ends it included. Of a row with a mask it is one token, and so of all.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn decode(&mut self, rows: &[DecodeRow<'_>], steps: i64) -> Result<Vec<Vec<Token>>> {
        if !self.model.spec().lowering.batches_decode {
            let segments =
                rows.iter().map(|row| Segment { slot: row.slot, start: row.position, tokens: row.token }).collect();
            let head = BatchHead::Sample(rows.iter().enumerate().map(|(i, row)| (i, row.sampling)).collect());
            let StepOutput::Tokens(tokens) = self.step(&StepBatch { segments, head })? else {
                unreachable!("the head samples")
            };
            return Ok(tokens.into_iter().map(|token| vec![token]).collect());
        }
        let sampler = rows.iter().map(|row| row.sampling.sampler()).fold(Sampler::Greedy, Sampler::joined);
        let steps = steps.min(self.model.spec().decode_steps(sampler));
        for row in rows {
            self.layout.check_room(row.slot, row.position, row.max_new_tokens.min(steps))?;
        }
        let end = rows.iter().map(|row| row.position + row.max_new_tokens.min(steps)).max().unwrap_or(1);
        let spec = self.decode_spec(end, sampler);
        let outputs = self.run(&spec, &pack_decode(rows, steps, &spec, self.layout))?;
        unpack_decode(rows, steps, &outputs, self.layout)
    }

    /// Copies all that slot `from` holds to slot `to` of the same replica.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn copy(&mut self, from: i64, to: i64) -> Result<()> {
        self.layout.check_room(from, 0, 0)?;
        self.layout.check_room(to, 0, 0)?;
        let replica = self.layout.replica_of(to);
        if self.layout.replica_of(from) != replica {
            return Err(Error::Invalid(format!("slots {from} and {to} are on different devices")));
        }
        let spec = self.spec(Program::Copy);
        // In other replicas slot 0 is copied to itself.
        let mut inputs = vec![PackedInputs::new(InputLayout::of(&spec)); self.layout.replicas];
        inputs[replica].set(Field::CopyFrom, 0, [self.layout.local(from) as i32]);
        inputs[replica].set(Field::CopyTo, 0, [self.layout.local(to) as i32]);
        self.run(&spec, &inputs).map(drop)
    }

    /// Runs a program with the inputs of each replica, the weights if it takes them, and the
    /// caches, which it gives back updated. Returns its own output on the first device of each
    /// replica.
    fn run(&mut self, spec: &ProgramSpec, inputs: &[PackedInputs]) -> Result<Vec<Option<Buffer>>> {
        if self.caches.is_empty() {
            let message = "an earlier step failed and took the caches with it; start a new session";
            return Err(Error::Invalid(message.into()));
        }
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
