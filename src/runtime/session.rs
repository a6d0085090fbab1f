//! Sequences under way: their keys and values on the devices, and the steps that extend them.

use std::{collections::HashSet, sync::Arc};

use super::{
    bridge::tensor_type,
    buckets::{self, MAX_PREFILL, batch_for, batch_of, bucket_for, chunks, window_for},
    error::{Error, Result, While},
    inputs::{Choice, Decode, Input},
    model::Model,
    programs::next_launch_id,
};
use crate::{
    gemma::{More, Output, Program, ProgramSpec, zeros},
    hlo::Shape,
    pjrt::{Arg, Buffer, Executable, TensorType},
    sampling::{Params, Sampler, TOP_LOGPROBS},
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

/// Tokens that extend a slot's sequence, in a step of prefill or scoring.
#[derive(Clone, Copy, Debug)]
pub struct Extend<'a> {
    pub slot: i64,
    /// How many tokens the slot has.
    pub start: i64,
    /// At most [`Session::MAX_CHUNK`] of them.
    pub tokens: &'a [u32],
}

impl Extend<'_> {
    /// In the place of a part that is not there.
    const NOTHING: Self = Self { slot: 0, start: 0, tokens: &[] };
}

/// A token that was chosen, or one of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprobs: Option<Logprobs>,
}

/// Natural log-probabilities, of the model's own distribution (before temperature, penalties and biases).
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The token's.
    pub own: f32,
    /// The most likely tokens', largest first; at most [`TOP_LOGPROBS`].
    pub top: Vec<(u32, f32)>,
}

/// Slots of a cache, each with one sequence of up to `cache_len` tokens. Each data row of the mesh has as many, numbered one row
/// after the other.
pub struct Session {
    model: Arc<Model>,
    /// Of each data row.
    slots: i64,
    cache_len: i64,
    decode_steps: i64,
    /// `[device][array]`; empty after a failed step, which takes the caches with it.
    caches: Vec<Vec<Buffer>>,
}

/// Longest chunk that is scored at once: f32 logits of 256k tokens take 1 MiB for each.
const MAX_SCORE: i64 = 128;

impl Session {
    /// The most tokens that a step of prefill takes of a sequence.
    pub const MAX_CHUNK: i64 = MAX_PREFILL;
    /// The most tokens that a step of scoring takes of a sequence.
    pub const MAX_SCORE: i64 = MAX_SCORE;

    /// Allocates caches for `slots` sequences of up to `cache_len` tokens in each data row, filled with zeros (attention multiplies
    /// what it masks by 0, so it must be finite).
    pub fn new(model: Arc<Model>, slots: i64, cache_len: i64) -> Result<Self> {
        let spec = model.spec(Program::Copy, slots, cache_len, cache_len);
        let types: Vec<TensorType> = spec.cache_arrays().iter().map(|(_, shape)| tensor_type(shape)).collect();
        let doing = || format!("allocating the KV cache of {slots} x {cache_len} tokens");
        let programs = &model.programs;
        let needed = types.iter().map(|ty| ty.host_bytes() as u64).sum::<u64>() * programs.devices.len() as u64;
        programs.require_memory(needed, doing)?;
        let caches = if spec.target.stacks_layers() {
            // A few large arrays, made where they are.
            let shapes: Vec<Shape> = spec.cache_arrays().into_iter().map(|(_, shape)| shape).collect();
            let allocate = programs.make(format!("allocate-{}", spec.name()), || zeros("allocate_cache", &shapes))?;
            allocate
                .execute(next_launch_id(), programs.devices.iter().map(|_| vec![]).collect())
                .during(doing)?
                .wait()
                .during(doing)?
        } else {
            let zeros = vec![0u8; types.iter().map(TensorType::host_bytes).max().unwrap_or_default()];
            let allocate = |device| -> Result<Vec<Buffer>> {
                let one = |ty: &TensorType| programs.client.upload(&zeros[..ty.host_bytes()], ty, device).during(doing);
                types.iter().map(one).collect()
            };
            programs.devices.iter().map(allocate).collect::<Result<_>>()?
        };
        Ok(Self { model, slots, cache_len, decode_steps: spec.decode_steps(), caches })
    }

    /// Slots of all data rows.
    pub fn slots(&self) -> i64 {
        self.slots * self.data_rows() as i64
    }

    /// Parts of the mesh that each hold the whole model, and run sequences of their own.
    pub fn data_rows(&self) -> usize {
        self.model.mesh().data
    }

    /// The data row that a slot belongs to.
    pub fn row_of(&self, slot: i64) -> usize {
        (slot / self.slots) as usize
    }

    /// Tokens that a slot can hold.
    pub fn cache_len(&self) -> i64 {
        self.cache_len
    }

    /// The most tokens that one dispatch decodes for a slot.
    pub fn decode_steps(&self) -> i64 {
        self.decode_steps
    }

    /// Makes the programs ready that it takes to extend a sequence of `start` tokens by `tokens`, and to begin decoding.
    pub fn prepare(&self, start: i64, tokens: i64, sampler: Sampler) -> Result<()> {
        let output = Output::Token(sampler);
        let chunks = chunks(start, tokens, self.cache_len, MAX_PREFILL);
        let last = chunks.len().saturating_sub(1);
        let of_chunk = |(i, chunk): (usize, buckets::Chunk)| {
            self.prefill_spec(
                chunk.start + chunk.bucket,
                1,
                chunk.bucket,
                if i == last { output } else { Output::Nothing },
            )
        };
        let mut specs: Vec<ProgramSpec> = chunks.into_iter().enumerate().map(of_chunk).collect();
        specs.push(self.decode_spec((start + tokens + 1).min(self.cache_len), output));
        self.model.prepare(specs)
    }

    fn spec(&self, program: Program, end: i64) -> ProgramSpec {
        self.model.spec(program, self.slots, self.cache_len, window_for(end, self.cache_len))
    }

    fn prefill_spec(&self, end: i64, batch: i64, bucket: i64, output: Output) -> ProgramSpec {
        self.spec(Program::Prefill { batch, bucket, output }, end)
    }

    fn decode_spec(&self, end: i64, output: Output) -> ProgramSpec {
        self.spec(Program::Decode { output }, end)
    }

    /// Extends the sequence of `slot`, which has `start` tokens, by `tokens`; returns the token that follows.
    pub fn prefill(&mut self, slot: i64, start: i64, tokens: &[u32], params: &Params) -> Result<u32> {
        let output = Output::Token(params.sampler());
        let out = self.prefill_all(slot, start, tokens, &Choice::plain(*params), output)?;
        Ok(read::<i32>(&out)?[0] as u32)
    }

    /// As [`Self::prefill`], but returns the logits `f32[vocab]` after the last token.
    pub fn prefill_logits(&mut self, slot: i64, start: i64, tokens: &[u32]) -> Result<Vec<f32>> {
        read(&self.prefill_all(slot, start, tokens, &Choice::plain(Params::GREEDY), Output::Logits)?)
    }

    fn prefill_all(
        &mut self,
        slot: i64,
        start: i64,
        tokens: &[u32],
        choice: &Choice<'_>,
        output: Output,
    ) -> Result<Buffer> {
        self.check_room(slot, start, tokens.len() as i64)?;
        let chunks = chunks(start, tokens.len() as i64, self.cache_len, MAX_PREFILL);
        let part = |chunk: &buckets::Chunk| {
            let from = (chunk.start - start) as usize;
            Extend { slot, start: chunk.start, tokens: &tokens[from..from + chunk.len as usize] }
        };
        let (last, others) =
            chunks.split_last().ok_or_else(|| Error::Invalid("there are no tokens to prefill".into()))?;
        for chunk in others {
            self.extend(&[(part(chunk), *choice)], Output::Nothing)?;
        }
        let mut outputs = self.extend(&[(part(last), *choice)], output)?;
        Ok(outputs.swap_remove(self.row_of(slot)).swap_remove(0))
    }

    /// One step of prefill, with at most one part for each slot; and how the token after it is chosen, if the output is one.
    /// Returns each data row's output, if there is one: what each of its parts gives, in their order.
    fn extend(&mut self, parts: &[(Extend<'_>, Choice<'_>)], output: Output) -> Result<Vec<Vec<Buffer>>> {
        let bucket = self.bucket(parts.iter().map(|(part, _)| part), MAX_PREFILL)?;
        check_once(parts.iter().map(|(part, _)| part.slot), "slot")?;
        let end = parts.iter().map(|(part, _)| part.start + bucket).max().unwrap_or(bucket);
        let of_row = |row: usize| parts.iter().filter(|(part, _)| self.row_of(part.slot) == row).count();
        let batch = batch_of((0..self.data_rows()).map(of_row).max().unwrap_or(1));
        let program = self.model.program(&self.prefill_spec(end, batch, bucket, output))?;
        let nothing = (Extend::NOTHING, Choice::plain(Params::GREEDY));
        let inputs = self.of_rows(
            parts,
            |(part, _)| part.slot,
            |row| {
                let (extends, choices): (Vec<Extend<'_>>, Vec<Choice<'_>>) =
                    filled(row, nothing, batch).into_iter().unzip();
                let mut inputs = self.chunk_inputs(&extends, bucket);
                inputs.extend(Choice::inputs(&choices, output, self.cache_len));
                inputs
            },
        );
        self.run(&program, &inputs, true)
    }

    /// What the first output of a step has for each part, `width` numbers each: in each data row they follow each other.
    fn of_parts<T: bytemuck::Pod>(
        &self,
        outputs: &[Vec<Buffer>],
        slots: impl Iterator<Item = i64>,
        width: usize,
    ) -> Result<Vec<Vec<T>>> {
        let rows: Vec<Vec<T>> = outputs.iter().map(|list| read(&list[0])).collect::<Result<_>>()?;
        let mut entries: Vec<_> = rows.iter().map(|row| row.chunks_exact(width)).collect();
        let mut next =
            |slot: i64| entries[self.row_of(slot)].next().expect("a row has as many entries as parts").to_vec();
        Ok(slots.map(&mut next).collect())
    }

    /// Extends sequences without asking what follows, as [`Self::cut`] has given their parts.
    pub fn extend_only(&mut self, parts: &[Extend<'_>]) -> Result<()> {
        let parts: Vec<_> = parts.iter().map(|&part| (part, Choice::plain(Params::GREEDY))).collect();
        self.extend(&parts, Output::Nothing).map(drop)
    }

    /// As [`Self::extend_only`]; returns the token that follows each.
    pub fn extend_and_choose(&mut self, parts: &[(Extend<'_>, Choice<'_>)]) -> Result<Vec<Token>> {
        let sampler = parts.iter().map(|(_, choice)| choice.sampler()).max().unwrap_or(Sampler::Greedy);
        let output = Output::Token(sampler);
        let outputs = self.extend(parts, output)?;
        let packed = self.of_parts(&outputs, parts.iter().map(|(part, _)| part.slot), output.width() as usize)?;
        Ok(packed.iter().zip(parts).map(|(packed, (_, choice))| unpack(packed, choice.detailed)).collect())
    }

    /// As [`Self::extend_only`]; returns the logits `f32[vocab]` after each.
    pub fn extend_and_tell(&mut self, parts: &[Extend<'_>]) -> Result<Vec<Vec<f32>>> {
        let with_choice: Vec<_> = parts.iter().map(|&part| (part, Choice::plain(Params::GREEDY))).collect();
        let outputs = self.extend(&with_choice, Output::Logits)?;
        self.of_parts(&outputs, parts.iter().map(|part| part.slot), self.model.config.vocab_size as usize)
    }

    /// One dispatch of up to `steps` tokens, with one entry for each slot; the tokens of each, the one that ends it included.
    pub fn decode_slots(&mut self, slots: &[Decode<'_>], steps: i64) -> Result<Vec<Vec<Token>>> {
        let steps = steps.min(self.decode_steps());
        let choices = slots.iter().filter(|slot| slot.left > 0).map(|slot| slot.choice.sampler());
        let output = Output::Token(choices.max().unwrap_or(Sampler::Greedy));
        let outputs = self.decode_output(slots, steps, output)?;
        let (own, width) = (self.slots as usize, output.width() as usize);
        let rows: Vec<Vec<i32>> = outputs.iter().map(read).collect::<Result<_>>()?;
        let of_slot = |(i, slot): (usize, &Decode<'_>)| {
            let packed = &rows[i / own];
            let entries = packed.chunks_exact(width).skip(i % own).step_by(own).take(steps as usize);
            entries.take_while(|entry| entry[0] >= 0).map(|entry| unpack(entry, slot.choice.detailed)).collect()
        };
        Ok(slots.iter().enumerate().map(of_slot).collect())
    }

    /// One step of the first slots: `tokens[i]` is put at position `positions[i]` of slot i; returns the tokens that follow.
    pub fn decode(&mut self, tokens: &[u32], positions: &[i64], params: &[Params]) -> Result<Vec<u32>> {
        let slots = self.one_step(tokens, positions, params)?;
        Ok(self.decode_slots(&slots, 1)?[..tokens.len()].iter().map(|tokens| tokens[0].id).collect())
    }

    /// As [`Self::decode`], but returns the logits `f32[slots of a data row, vocab]` of the first data row.
    pub fn decode_logits(&mut self, tokens: &[u32], positions: &[i64]) -> Result<Vec<f32>> {
        let slots = self.one_step(tokens, positions, &vec![Params::GREEDY; tokens.len()])?;
        read(&self.decode_output(&slots, 1, Output::Logits)?.swap_remove(0))
    }

    fn one_step(&self, tokens: &[u32], positions: &[i64], params: &[Params]) -> Result<Vec<Decode<'static>>> {
        let given = tokens.len();
        if [positions.len(), params.len()] != [given; 2] || given as i64 > self.slots() {
            let slots = self.slots();
            return Err(Error::Invalid(format!(
                "a decode step takes one token for each of {slots} slots, not {given}"
            )));
        }
        let given = tokens.iter().zip(positions).zip(params).map(|((&token, &position), &params)| {
            let choice = Choice::plain(params);
            Decode { token, position, left: 1, stop_ids: &[], choice }
        });
        Ok(given.chain(std::iter::repeat(Decode::resting(0))).take(self.slots() as usize).collect())
    }

    /// The output of each data row.
    fn decode_output(&mut self, slots: &[Decode<'_>], steps: i64, output: Output) -> Result<Vec<Buffer>> {
        if slots.len() as i64 != self.slots() {
            let message = format!("decoding takes all {} slots, not {}", self.slots(), slots.len());
            return Err(Error::Invalid(message));
        }
        for (i, slot) in slots.iter().enumerate() {
            self.check_room(i as i64, slot.position, slot.left.min(steps))?;
        }
        let end = slots.iter().map(|slot| slot.position + slot.left.min(steps)).max().expect("there is a slot");
        let program = self.model.program(&self.decode_spec(end, output))?;
        let of_row = |slots: &[Decode<'_>]| Decode::inputs(slots, steps, output, self.cache_len);
        let inputs: Vec<Vec<Input>> = slots.chunks_exact(self.slots as usize).map(of_row).collect();
        Ok(self.run(&program, &inputs, true)?.into_iter().map(|mut list| list.swap_remove(0)).collect())
    }

    /// Gives slot `to` what slot `from` holds, which is of the same data row.
    pub fn copy(&mut self, from: i64, to: i64) -> Result<()> {
        self.check_room(from, 0, 0)?;
        self.check_room(to, 0, 0)?;
        let (row, own) = (self.row_of(to), self.slots);
        if self.row_of(from) != row {
            return Err(Error::Invalid(format!("slots {from} and {to} are on different devices")));
        }
        let program = self.model.program(&self.spec(Program::Copy, self.cache_len))?;
        // Other rows give their first slot what it has.
        let pair = |i: usize| if i == row { [from % own, to % own] } else { [0, 0] };
        let inputs: Vec<Vec<Input>> = (0..self.data_rows()).map(|i| pair(i).map(Input::number).into()).collect();
        self.run(&program, &inputs, false).map(drop)
    }

    /// Likelihoods of the tokens that follow each of the given ones: `targets[i]` is what follows `parts[i]`, token by token. At most
    /// one part for each data row, of at most [`Self::MAX_SCORE`] tokens. `top`: whether the most likely tokens are told, too.
    /// Each target with the most likely token at its place.
    pub fn score_parts(&mut self, parts: &[(Extend<'_>, &[u32])], top: bool) -> Result<Vec<Vec<(Token, u32)>>> {
        let bucket = self.bucket(parts.iter().map(|(part, _)| part), MAX_SCORE)?;
        check_once(parts.iter().map(|(part, _)| self.row_of(part.slot) as i64), "data row")?;
        let outputs = self.score_step(parts, bucket, if top { More::Top } else { More::Nothing })?;
        let of_part = |(part, targets): &(Extend<'_>, &[u32])| -> Result<Vec<(Token, u32)>> {
            let out = &outputs[self.row_of(part.slot)];
            let (own, greedy) = (read::<f32>(&out[0])?, read::<i32>(&out[1])?);
            let most = if top { Some((read::<i32>(&out[2])?, read::<f32>(&out[3])?)) } else { None };
            let one = |(i, &id): (usize, &u32)| {
                let top = most.as_ref().map_or(vec![], |(ids, values)| {
                    let n = ids.len() / bucket as usize;
                    let pairs = ids[i * n..][..n].iter().zip(&values[i * n..][..n]);
                    pairs.map(|(&id, &value)| (id as u32, value)).collect()
                });
                (Token { id, logprobs: Some(Logprobs { own: own[i], top }) }, greedy[i] as u32)
            };
            Ok(targets.iter().enumerate().map(one).collect())
        };
        parts.iter().map(of_part).collect()
    }

    fn score_step(&mut self, parts: &[(Extend<'_>, &[u32])], bucket: i64, more: More) -> Result<Vec<Vec<Buffer>>> {
        let end = parts.iter().map(|(part, _)| part.start + bucket).max().unwrap_or(bucket);
        let program = self.model.program(&self.spec(Program::Score { bucket, more }, end))?;
        let inputs = self.of_rows(
            parts,
            |(part, _)| part.slot,
            |row| {
                let &(part, targets) = row.first().unwrap_or(&(Extend::NOTHING, &[]));
                let mut inputs = self.chunk_inputs(&[part], bucket);
                inputs.push(Input::tokens(&[targets], bucket));
                inputs
            },
        );
        self.run(&program, &inputs, true)
    }

    /// Likelihood of a whole text, in slot 0, which is overwritten.
    pub fn score(&mut self, tokens: &[u32], with_logits: bool) -> Result<Scored> {
        self.check_room(0, 0, tokens.len() as i64)?;
        let mut scored = Scored { logprobs: vec![], greedy: vec![], logits: with_logits.then(Vec::new) };
        for chunk in chunks(0, tokens.len() as i64, self.cache_len, MAX_SCORE) {
            let (from, len) = (chunk.start as usize, chunk.len as usize);
            let part = Extend { slot: 0, start: chunk.start, tokens: &tokens[from..from + len] };
            let targets = &tokens[from + 1..tokens.len().min(from + len + 1)];
            let more = if with_logits { More::Logits } else { More::Nothing };
            let outputs = self.score_step(&[(part, targets)], chunk.bucket, more)?.swap_remove(0);
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
        let program = self.model.program(&self.spec(Program::Trace { bucket: chunk.bucket }, chunk.bucket))?;
        let part = Extend { slot: 0, start: 0, tokens };
        let inputs = self.of_rows(
            &[part],
            |part| part.slot,
            |row| self.chunk_inputs(&filled(row, Extend::NOTHING, 1), chunk.bucket),
        );
        let all = read::<f32>(&self.run(&program, &inputs, true)?[0][0])?;
        let hidden = self.model.config.hidden_size as usize;
        let layers = all.chunks_exact(chunk.bucket as usize * hidden);
        Ok(layers.flat_map(|layer| &layer[..tokens.len() * hidden]).copied().collect())
    }

    /// What one step takes of these: of each data row the first, cut by a common bucket, and others that are whole in it, as long as
    /// the step takes hardly longer for them.
    pub fn cut<'a>(&self, rests: &[Extend<'a>], max: i64) -> Vec<Extend<'a>> {
        let mut in_row = vec![0; self.data_rows()];
        let (mut first, mut others) = (vec![], vec![]);
        for rest in rests {
            let seen: &mut i64 = &mut in_row[self.row_of(rest.slot)];
            (if *seen == 0 { &mut first } else { &mut others }).push(*rest);
            *seen = 1;
        }
        let lengths: Vec<(i64, i64)> = first.iter().map(|rest| (rest.start, rest.tokens.len() as i64)).collect();
        let bucket = bucket_for(&lengths, self.cache_len, max);
        for rest in &mut first {
            rest.tokens = &rest.tokens[..rest.tokens.len().min(bucket as usize)];
        }
        let most = batch_for(bucket, self.slots);
        others.retain(|rest| {
            let taken = &mut in_row[self.row_of(rest.slot)];
            let fits = rest.tokens.len() as i64 <= bucket && rest.start + bucket <= self.cache_len && *taken < most;
            *taken += i64::from(fits);
            fits
        });
        [first, others].concat()
    }

    /// The bucket that holds all parts.
    fn bucket<'p>(&self, parts: impl Iterator<Item = &'p Extend<'p>>, max: i64) -> Result<i64> {
        let mut lengths = Vec::new();
        for part in parts {
            self.check_room(part.slot, part.start, part.tokens.len() as i64)?;
            lengths.push((part.start, part.tokens.len() as i64));
        }
        let bucket = bucket_for(&lengths, self.cache_len, max);
        let longest = lengths.iter().map(|&(_, len)| len).max().unwrap_or(0);
        if longest == 0 || longest > bucket {
            let message = format!("a step takes 1 to {bucket} tokens of each sequence here, not {longest}");
            return Err(Error::Invalid(message));
        }
        Ok(bucket)
    }

    /// The inputs of each data row, by its parts among these.
    fn of_rows<P: Copy>(
        &self,
        parts: &[P],
        slot: impl Fn(&P) -> i64,
        inputs: impl Fn(&[P]) -> Vec<Input>,
    ) -> Vec<Vec<Input>> {
        let of_row = |row| parts.iter().copied().filter(|part| self.row_of(slot(part)) == row).collect::<Vec<P>>();
        (0..self.data_rows()).map(|row| inputs(&of_row(row))).collect()
    }

    /// The first inputs of a program for chunks.
    fn chunk_inputs(&self, parts: &[Extend<'_>], bucket: i64) -> Vec<Input> {
        let tokens: Vec<&[u32]> = parts.iter().map(|part| part.tokens).collect();
        vec![
            Input::tokens(&tokens, bucket),
            Input::numbers(parts.iter().map(|part| part.slot % self.slots)),
            Input::numbers(parts.iter().map(|part| part.start)),
            Input::numbers(parts.iter().map(|part| part.tokens.len() as i64)),
        ]
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

    /// Runs a program with the inputs of each data row, all weights if it takes them, and the caches, which it gives back updated.
    /// Returns its own outputs on the first device of each row.
    fn run(&mut self, program: &Executable, inputs: &[Vec<Input>], weights: bool) -> Result<Vec<Vec<Buffer>>> {
        let doing = || "running a step".to_owned();
        let (client, devices) = (&self.model.programs.client, &self.model.programs.devices);
        let of_row = self.model.mesh().model;
        let uploaded: Vec<Vec<Buffer>> = devices
            .iter()
            .enumerate()
            .map(|(i, device)| inputs[i / of_row].iter().map(|input| input.upload(client, device)).collect())
            .collect::<Result<_>>()?;
        let placed = if weights { &self.model.weights()?.buffers[..] } else { &[] };
        let caches = std::mem::take(&mut self.caches);
        let arrays = caches.first().map_or(0, Vec::len);
        let args = uploaded.iter().zip(caches).enumerate().map(|(i, (inputs, caches))| {
            let kept = inputs.iter().chain(placed.get(i).into_iter().flatten()).map(Arg::Keep);
            kept.chain(caches.into_iter().map(Arg::Donate)).collect()
        });
        let mut outputs =
            program.execute(next_launch_id(), args.collect()).and_then(|execution| execution.wait()).during(doing)?;
        let own = outputs[0].len() - arrays;
        self.caches = outputs.iter_mut().map(|list| list.split_off(own)).collect();
        Ok(outputs.into_iter().step_by(of_row).collect())
    }
}

fn check_once(places: impl Iterator<Item = i64>, what: &str) -> Result<()> {
    let mut seen = HashSet::new();
    let twice = |place: &i64| !seen.insert(*place);
    let mut places = places;
    match places.find(twice) {
        Some(place) => Err(Error::Invalid(format!("a step takes one part for each {what}, {what} {place} has two"))),
        None => Ok(()),
    }
}

/// Parts, and nothing in the place of those that lack to a batch.
fn filled<P: Copy>(parts: &[P], nothing: P, batch: i64) -> Vec<P> {
    parts.iter().copied().chain(std::iter::repeat(nothing)).take(batch as usize).collect()
}

/// From a program's packed result, see [`crate::sampling::details`].
fn unpack(packed: &[i32], detailed: bool) -> Token {
    let id = packed[0] as u32;
    let Some((&own, top)) = packed[1..].split_first().filter(|_| detailed) else { return Token { id, logprobs: None } };
    let float = |bits: i32| f32::from_bits(bits as u32);
    let (ids, values) = top.split_at(TOP_LOGPROBS as usize);
    let top = ids.iter().zip(values).map(|(&id, &value)| (id as u32, float(value))).collect();
    Token { id, logprobs: Some(Logprobs { own: float(own), top }) }
}

fn read<T: bytemuck::Pod>(buffer: &Buffer) -> Result<Vec<T>> {
    buffer.to_vec().during(|| "reading a step's result".into())
}
