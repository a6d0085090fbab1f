//! Sequences under way: their keys and values on the devices, and the steps that extend them.

use std::sync::Arc;

use super::{
    bridge::tensor_type,
    buckets::{self, MAX_PREFILL, chunks, window_for},
    error::{Error, Result, While},
    model::Model,
};
use crate::{
    gemma::{Output, Program, ProgramSpec, zeros},
    hlo::Shape,
    pjrt::{Arg, Buffer, ElementType, Executable, TensorType},
    sampling::{Params, Sampler},
};

/// Likelihood of a text's tokens, given those before them.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Natural log-probability of each token after the first.
    pub logprobs: Vec<f32>,
    /// The most likely token at each of those places.
    pub greedy: Vec<u32>,
    /// Logits after each token, the last one included: `f32 [tokens, vocab]`, if asked for.
    pub logits: Option<Vec<f32>>,
}

/// Slots of one cache. Every slot holds one sequence of up to `cache_len` tokens.
pub struct Session {
    model: Arc<Model>,
    slots: i64,
    cache_len: i64,
    /// `[device][array]`; empty after a failed step, which takes the caches with it.
    caches: Vec<Vec<Buffer>>,
}

/// An input of a program, the same on every device.
enum Input<'a> {
    S32(&'a [i32], Vec<i64>),
    F32(&'a [f32], Vec<i64>),
    U32(&'a [u32], Vec<i64>),
}

/// Longest chunk that is scored at once: f32 logits of 256k tokens take 1 MiB for each.
const MAX_SCORE: i64 = 128;

impl Session {
    /// Allocates caches for `slots` sequences of up to `cache_len` tokens, filled with zeros (attention multiplies what it
    /// masks by 0, so it must be finite).
    pub fn new(model: Arc<Model>, slots: i64, cache_len: i64) -> Result<Self> {
        let spec = model.spec(Program::Decode { output: Output::Token(Sampler::Greedy) }, slots, cache_len, cache_len);
        let types: Vec<TensorType> = spec.cache_arrays().iter().map(|(_, shape)| tensor_type(shape)).collect();
        let doing = || format!("allocating the KV cache of {slots} x {cache_len} tokens");
        let programs = &model.programs;
        let needed = types.iter().map(|ty| ty.host_bytes() as u64).sum::<u64>() * programs.devices.len() as u64;
        programs.require_memory(needed, doing)?;
        let caches = if spec.target.stacks_layers() {
            // A few large arrays, made where they are.
            let shapes: Vec<Shape> = spec.cache_arrays().into_iter().map(|(_, shape)| shape).collect();
            let allocate = programs.make(format!("allocate-{}", spec.name()), || zeros("allocate_cache", &shapes))?;
            allocate.execute(programs.devices.iter().map(|_| vec![]).collect()).during(doing)?.wait().during(doing)?
        } else {
            let zeros = vec![0u8; types.iter().map(TensorType::host_bytes).max().unwrap_or_default()];
            let allocate = |device| -> Result<Vec<Buffer>> {
                let one = |ty: &TensorType| programs.client.upload(&zeros[..ty.host_bytes()], ty, device).during(doing);
                types.iter().map(one).collect()
            };
            programs.devices.iter().map(allocate).collect::<Result<_>>()?
        };
        Ok(Self { model, slots, cache_len, caches })
    }

    /// Tokens that a slot can hold.
    pub fn cache_len(&self) -> i64 {
        self.cache_len
    }

    /// Makes the programs ready that it takes to extend a sequence of `start` tokens by `tokens`, and to begin decoding.
    pub fn prepare(&self, start: i64, tokens: i64, sampler: Sampler) -> Result<()> {
        let output = Output::Token(sampler);
        let chunks = chunks(start, tokens, self.cache_len, MAX_PREFILL);
        let mut specs: Vec<ProgramSpec> = chunks.into_iter().map(|chunk| self.prefill_spec(chunk, output)).collect();
        specs.push(self.decode_spec((start + tokens + 1).min(self.cache_len), output));
        self.model.prepare(specs)
    }

    fn prefill_spec(&self, chunk: buckets::Chunk, output: Output) -> ProgramSpec {
        let window = window_for(chunk.start + chunk.bucket, self.cache_len);
        self.model.spec(Program::Prefill { bucket: chunk.bucket, output }, self.slots, self.cache_len, window)
    }

    fn decode_spec(&self, end: i64, output: Output) -> ProgramSpec {
        let window = window_for(end, self.cache_len);
        self.model.spec(Program::Decode { output }, self.slots, self.cache_len, window)
    }

    /// Extends the sequence of `slot`, which has `start` tokens, by `tokens`; returns the token that follows.
    pub fn prefill(&mut self, slot: i64, start: i64, tokens: &[u32], params: &Params) -> Result<u32> {
        let out = self.prefill_output(slot, start, tokens, params, Output::Token(params.sampler()))?;
        Ok(read::<i32>(&out)?[0] as u32)
    }

    /// As [`Self::prefill`], but returns the logits `f32[vocab]` after the last token.
    pub fn prefill_logits(&mut self, slot: i64, start: i64, tokens: &[u32]) -> Result<Vec<f32>> {
        let out = self.prefill_output(slot, start, tokens, &Params::GREEDY, Output::Logits)?;
        read(&out)
    }

    fn prefill_output(
        &mut self,
        slot: i64,
        start: i64,
        tokens: &[u32],
        params: &Params,
        output: Output,
    ) -> Result<Buffer> {
        self.check_room(slot, start, tokens.len() as i64)?;
        let mut result = None;
        for chunk in chunks(start, tokens.len() as i64, self.cache_len, MAX_PREFILL) {
            let program = self.model.program(&self.prefill_spec(chunk, output))?;
            let from = (chunk.start - start) as usize;
            let ids = padded(&tokens[from..from + chunk.len as usize], chunk.bucket);
            let (slot, first, last) = ([slot as i32], [chunk.start as i32], [chunk.len as i32 - 1]);
            let mut inputs = vec![
                Input::S32(&ids, vec![chunk.bucket]),
                Input::S32(&slot, vec![]),
                Input::S32(&first, vec![]),
                Input::S32(&last, vec![]),
            ];
            let sampling = SamplingInputs::new(&[*params]);
            sampling.push(output, &mut inputs);
            result = self.run(&program, &inputs)?.into_iter().next();
        }
        result.ok_or_else(|| Error::Invalid("there are no tokens to prefill".into()))
    }

    /// One step for every slot: `tokens[i]` is put at position `positions[i]` of slot i; returns the tokens that follow.
    pub fn decode(&mut self, tokens: &[u32], positions: &[i64], params: &[Params]) -> Result<Vec<u32>> {
        let sampler = params.iter().map(Params::sampler).max().unwrap_or(Sampler::Greedy);
        let out = self.decode_output(tokens, positions, params, Output::Token(sampler))?;
        Ok(read::<i32>(&out)?.into_iter().map(|id| id as u32).collect())
    }

    /// As [`Self::decode`], but returns the logits `f32[slots, vocab]`.
    pub fn decode_logits(&mut self, tokens: &[u32], positions: &[i64]) -> Result<Vec<f32>> {
        let params = vec![Params::GREEDY; tokens.len()];
        read(&self.decode_output(tokens, positions, &params, Output::Logits)?)
    }

    fn decode_output(
        &mut self,
        tokens: &[u32],
        positions: &[i64],
        params: &[Params],
        output: Output,
    ) -> Result<Buffer> {
        if [tokens.len(), positions.len(), params.len()] != [self.slots as usize; 3] {
            let given = tokens.len();
            return Err(Error::Invalid(format!(
                "a decode step takes one token for each of {} slots, not {given}",
                self.slots
            )));
        }
        for (slot, &position) in positions.iter().enumerate() {
            self.check_room(slot as i64, position, 1)?;
        }
        let end = positions.iter().max().expect("there is a slot") + 1;
        let program = self.model.program(&self.decode_spec(end, output))?;
        let ids = padded(tokens, self.slots);
        let positions: Vec<i32> = positions.iter().map(|&p| p as i32).collect();
        let mut inputs = vec![Input::S32(&ids, vec![self.slots]), Input::S32(&positions, vec![self.slots])];
        let sampling = SamplingInputs::new(params);
        sampling.push(output, &mut inputs);
        Ok(self.run(&program, &inputs)?.swap_remove(0))
    }

    /// Likelihood of a whole text, in slot 0, which is overwritten.
    pub fn score(&mut self, tokens: &[u32], with_logits: bool) -> Result<Scored> {
        self.check_room(0, 0, tokens.len() as i64)?;
        let mut scored = Scored { logprobs: vec![], greedy: vec![], logits: with_logits.then(Vec::new) };
        for chunk in chunks(0, tokens.len() as i64, self.cache_len, MAX_SCORE) {
            let program = Program::Score { bucket: chunk.bucket, logits: with_logits };
            let window = window_for(chunk.start + chunk.bucket, self.cache_len);
            let program = self.model.program(&self.model.spec(program, self.slots, self.cache_len, window))?;
            let (from, len) = (chunk.start as usize, chunk.len as usize);
            let ids = padded(&tokens[from..from + len], chunk.bucket);
            let next = padded(&tokens[from + 1..tokens.len().min(from + len + 1)], chunk.bucket);
            let (slot, start) = ([0], [chunk.start as i32]);
            let outputs = self.run(
                &program,
                &[
                    Input::S32(&ids, vec![chunk.bucket]),
                    Input::S32(&slot, vec![]),
                    Input::S32(&start, vec![]),
                    Input::S32(&next, vec![chunk.bucket]),
                ],
            )?;
            scored.logprobs.extend(&read::<f32>(&outputs[0])?[..len]);
            scored.greedy.extend(read::<i32>(&outputs[1])?[..len].iter().map(|&id| id as u32));
            if let Some(logits) = &mut scored.logits {
                let vocab = self.model.config.vocab_size as usize;
                logits.extend(&read::<f32>(&outputs[2])?[..len * vocab]);
            }
        }
        // What follows the last token is not in the text.
        scored.logprobs.pop();
        scored.greedy.pop();
        Ok(scored)
    }

    /// What each layer takes, and what the last one gives, before the final norm: `f32 [layers + 1, tokens, hidden]`. In slot 0,
    /// which is overwritten; for looking inside the model. The tokens must fit one chunk.
    pub fn trace(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.check_room(0, 0, tokens.len() as i64)?;
        let [chunk] = chunks(0, tokens.len() as i64, self.cache_len, MAX_PREFILL)[..] else {
            return Err(Error::Invalid(format!("a trace takes 1 to {MAX_PREFILL} tokens, not {}", tokens.len())));
        };
        let window = window_for(chunk.bucket, self.cache_len);
        let program = Program::Trace { bucket: chunk.bucket };
        let program = self.model.program(&self.model.spec(program, self.slots, self.cache_len, window))?;
        let ids = padded(tokens, chunk.bucket);
        let inputs = [Input::S32(&ids, vec![chunk.bucket]), Input::S32(&[0], vec![]), Input::S32(&[0], vec![])];
        let all = read::<f32>(&self.run(&program, &inputs)?[0])?;
        let hidden = self.model.config.hidden_size as usize;
        let layers = all.chunks_exact(chunk.bucket as usize * hidden);
        Ok(layers.flat_map(|layer| &layer[..tokens.len() * hidden]).copied().collect())
    }

    fn check_room(&self, slot: i64, start: i64, tokens: i64) -> Result<()> {
        if slot < 0 || slot >= self.slots {
            return Err(Error::Invalid(format!("there is no slot {slot}, the session has {}", self.slots)));
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

    /// Runs a program with these inputs, all weights, and the caches, which it gives back updated. Returns its own outputs on
    /// the first device.
    fn run(&mut self, program: &Executable, inputs: &[Input<'_>]) -> Result<Vec<Buffer>> {
        let doing = || "running a step".to_owned();
        let mut uploaded: Vec<Vec<Buffer>> = Vec::new();
        for device in &self.model.programs.devices {
            let upload = |input: &Input<'_>| {
                let client = &self.model.programs.client;
                match input {
                    Input::S32(v, dims) => {
                        client.upload_slice(v, &TensorType::new(ElementType::S32, dims.as_slice()), device)
                    }
                    Input::F32(v, dims) => {
                        client.upload_slice(v, &TensorType::new(ElementType::F32, dims.as_slice()), device)
                    }
                    Input::U32(v, dims) => {
                        client.upload_slice(v, &TensorType::new(ElementType::U32, dims.as_slice()), device)
                    }
                }
            };
            uploaded.push(inputs.iter().map(upload).collect::<crate::pjrt::Result<_>>().during(doing)?);
        }
        let weights = &self.model.weights()?.buffers;
        let caches = std::mem::take(&mut self.caches);
        let arrays = caches.first().map_or(0, Vec::len);
        let args = uploaded.iter().zip(weights).zip(caches).map(|((inputs, weights), caches)| {
            let kept = inputs.iter().chain(weights).map(Arg::Keep);
            kept.chain(caches.into_iter().map(Arg::Donate)).collect()
        });
        let mut outputs = program.execute(args.collect()).and_then(|execution| execution.wait()).during(doing)?;
        let own = outputs[0].len() - arrays;
        self.caches = outputs.iter_mut().map(|list| list.split_off(own)).collect();
        Ok(outputs.swap_remove(0))
    }
}

/// Parameters of all rows, as the sampler's inputs.
struct SamplingInputs {
    temperature: Vec<f32>,
    top_k: Vec<i32>,
    top_p: Vec<f32>,
    seed: Vec<u32>,
}

impl SamplingInputs {
    fn new(params: &[Params]) -> Self {
        Self {
            temperature: params.iter().map(|p| p.temperature).collect(),
            top_k: params.iter().map(|p| p.top_k).collect(),
            top_p: params.iter().map(|p| p.top_p).collect(),
            seed: params.iter().flat_map(|p| [p.seed as u32, (p.seed >> 32) as u32]).collect(),
        }
    }

    fn push<'a>(&'a self, output: Output, inputs: &mut Vec<Input<'a>>) {
        if matches!(output, Output::Token(Sampler::TopK | Sampler::Stochastic)) {
            let rows = self.top_k.len() as i64;
            inputs.push(Input::F32(&self.temperature, vec![rows]));
            inputs.push(Input::S32(&self.top_k, vec![rows]));
            inputs.push(Input::F32(&self.top_p, vec![rows]));
            inputs.push(Input::U32(&self.seed, vec![rows, 2]));
        }
    }
}

/// Token ids as a program takes them, padded with `<pad>` (0).
fn padded(tokens: &[u32], len: i64) -> Vec<i32> {
    let ids = tokens.iter().map(|&id| id as i32);
    ids.chain(std::iter::repeat(0)).take(len as usize).collect()
}

fn read<T: bytemuck::Pod>(buffer: &Buffer) -> Result<Vec<T>> {
    buffer.to_vec().during(|| "reading a step's result".into())
}
