//! Many requests on one model: continuous batching over the slots of a session.
//!
//! ```text
//! submit ─► queue ─► slot ─► steps: one token of every answer, chunks of prompts ─► free
//!           scheduler          │
//!   (first come, first served; stop ids and lengths are watched on the device,
//!    what a slot has cached of stop strings here; a slot is refilled at once
//!    a prompt is not computed)
//! ```
//!
//! [`Engine::step`] asks the scheduler for the next batch, runs it, and returns what came of it.
//! Nothing runs between steps: the caller's loop is the engine's thread ([`drive`] is that loop). A
//! step that fails ends the requests that were in it; the engine goes on.
//!
//! Sampling depends on a request's own seed and on positions alone, never on the slot or on the
//! others.

mod conversation;
mod drive;
mod error;
mod request;
mod scheduler;
mod scoring;
mod sequence;
#[cfg(feature = "serve")]
pub mod service;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

pub use conversation::{Conversation, Turn};
pub use drive::{Driven, Workload, drive};
pub use error::Refusal;
pub use request::{Answer, Event, FinishReason, Likelihood, Request, RequestId, ScoreRequest, Stop};
use scheduler::{Limits, Schedule, SlotView, StepKind, schedule};
use scoring::ScoreInProgress;
use sequence::{AnswerError, Sequence};

use crate::{
    constraint::{Grammar, Grammars},
    runtime::{
        BatchHead, DecodeRow, Error, Model, Result, RowRef, ScoredRow, Segment, Session, StepBatch, StepOutput, Token,
    },
    tokenizer::Tokenizer,
};

/// What an engine has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tokens of prompts and scored texts that were computed, and that were found in the cache.
    pub prefilled: u64,
    pub cached: u64,
    pub generated: u64,
    /// Dispatches of a mixed batch, and steps of decoding alone.
    pub mixed_steps: u64,
    pub decode_steps: u64,
    /// Tokens that steps of decoding alone gave, and that they could have given with all slots
    /// busy.
    pub decoded: u64,
    pub decodable: u64,
}

/// Runs requests in the slots of a session.
pub struct Engine {
    session: Session,
    tokenizer: Arc<Tokenizer>,
    grammars: Arc<Grammars>,
    vocab: i64,
    queue: VecDeque<Sequence>,
    /// The most answers that may wait.
    max_queue: usize,
    slots: Vec<Slot>,
    scores: HashMap<RequestId, ScoreInProgress>,
    previous: Option<StepKind>,
    next_id: u64,
    next_order: u64,
    /// Counts slots that were freed.
    clock: u64,
    is_shutting_down: bool,
    stats: Stats,
}

/// A slot: what it holds, and whose it is.
#[derive(Default)]
struct Slot {
    /// Tokens whose keys and values are in the cache; what follows them there is garbage.
    cached: Vec<u32>,
    salt: u64,
    freed: u64,
    sequence: Option<Sequence>,
}

impl Engine {
    /// An engine with so many slots of `cache_len` tokens in each replica of the model's mesh.
    ///
    /// # Errors
    /// [`crate::runtime::Error::OutOfMemory`] if the cache does not fit.
    pub fn new(model: Arc<Model>, tokenizer: Arc<Tokenizer>, slots: i64, cache_len: i64) -> Result<Self> {
        let vocab = model.config().vocab_size;
        let session = Session::new(model, slots, cache_len)?;
        let slots = std::iter::repeat_with(Slot::default).take(session.slots() as usize).collect();
        Ok(Self {
            session,
            grammars: Arc::new(Grammars::new(tokenizer.clone())),
            tokenizer,
            vocab,
            queue: VecDeque::new(),
            max_queue: usize::MAX,
            slots,
            scores: HashMap::new(),
            previous: None,
            next_id: 0,
            next_order: 0,
            clock: 0,
            is_shutting_down: false,
            stats: Stats::default(),
        })
    }

    /// Refuses requests while more answers than this wait for a slot.
    pub fn limit_queue(&mut self, most: usize) {
        self.max_queue = most;
    }

    /// Compiles constraints with what others prepared for the same tokenizer.
    pub fn use_grammars(&mut self, grammars: Arc<Grammars>) {
        self.grammars = grammars;
    }

    /// Refuses all further requests; those that were taken are finished.
    pub fn shut_down(&mut self) {
        self.is_shutting_down = true;
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Tokens that a slot can hold.
    pub fn cache_len(&self) -> i64 {
        self.session.cache_len()
    }

    /// Slots of all replicas.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Programs compiled or loaded so far, for whatever runs this model.
    pub fn programs_made(&self) -> usize {
        let report = self.session.model().compile_report();
        report.compiled + report.cached
    }

    /// Tokens in the cache, of all slots.
    pub fn cached_tokens(&self) -> usize {
        self.slots.iter().map(|slot| slot.cached.len()).sum()
    }

    /// Sequences that wait for a slot, and that have one.
    pub fn load(&self) -> (usize, usize) {
        (self.queue.len(), self.slots.iter().filter(|slot| slot.sequence.is_some()).count())
    }

    /// Whether there is nothing left to do.
    pub fn is_idle(&self) -> bool {
        self.load() == (0, 0)
    }

    fn limits(&self) -> Limits {
        Limits {
            slots_per_replica: self.session.slots_per_replica() as usize,
            step_tokens: self.session.max_step_tokens() as usize,
            scored_rows: self.session.max_scored_rows() as usize,
        }
    }

    /// Makes the programs ready that this request takes alone, side by side.
    ///
    /// # Errors
    /// A request that would be refused, or the plugin's error while compiling.
    pub fn prepare(&self, request: &Request) -> Result<()> {
        let invalid = |refusal: Refusal| Error::Invalid(refusal.to_string());
        request.check(self.cache_len(), self.vocab).map_err(invalid)?;
        let grammar = self.grammar(request).map_err(invalid)?;
        let request = Arc::new(request.clone());
        let sequence = Sequence::answer(RequestId(0), (0, 0), &request, grammar.as_ref(), &self.tokenizer);
        let slots: Vec<SlotView<'_>> = self.slots.iter().map(Slot::view).collect();
        let first = schedule(&slots, &[sequence.view()], self.limits(), None);
        let cached = first.admissions.first().map_or(0, |admission| admission.cached);
        let tokens = request.prompt.len() - cached;
        self.session.prepare(cached as i64, tokens as i64, sequence.sampling().sampler())
    }

    fn new_request(&mut self, sequences: usize) -> std::result::Result<RequestId, Refusal> {
        if self.is_shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        let waiting = self.queue.len();
        if waiting + sequences > self.max_queue {
            return Err(Refusal::QueueFull { waiting, most: self.max_queue });
        }
        self.next_id += 1;
        Ok(RequestId(self.next_id - 1))
    }

    fn next_order(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order
    }

    /// Compiles what a request's answers are held to.
    fn grammar(&self, request: &Request) -> std::result::Result<Option<Grammar>, Refusal> {
        Ok(request.constraint.as_ref().map(|constraint| self.grammars.compile(constraint)).transpose()?)
    }

    /// Queues a request for answers. An answer is cut where its slot ends.
    ///
    /// # Errors
    /// Why it is refused; the engine is as before.
    pub fn submit(&mut self, mut request: Request) -> std::result::Result<RequestId, Refusal> {
        request.check(self.cache_len(), self.vocab)?;
        // Control tokens are no text in which their names could be found.
        request.stop_ids.extend(request.stop.iter().filter_map(|stop| self.tokenizer.control_token(stop)));
        let grammar = self.grammar(&request)?;
        request.stop_ids.extend(grammar.iter().flat_map(Grammar::end_ids));
        let id = self.new_request(request.n)?;
        let request = Arc::new(request);
        for index in 0..request.n {
            let order = self.next_order();
            let sequence = Sequence::answer(id, (order, index), &request, grammar.as_ref(), &self.tokenizer);
            self.queue.push_back(sequence);
        }
        Ok(id)
    }

    /// Queues a request for likelihoods.
    ///
    /// # Errors
    /// Why it is refused; the engine is as before.
    pub fn submit_score(&mut self, request: &ScoreRequest) -> std::result::Result<RequestId, Refusal> {
        request.check(self.cache_len(), self.vocab)?;
        let id = self.new_request(1)?;
        let max_rows = self.limits().scored_rows;
        let mut order = self.next_order;
        let next = || {
            order += 1;
            order
        };
        self.queue.extend(scoring::sequences(id, request, max_rows, next));
        self.next_order = order;
        self.scores.insert(id, ScoreInProgress::new(request));
        Ok(id)
    }

    /// Gives a request up, in whatever phase it is; it has no more events.
    pub fn cancel(&mut self, id: RequestId) {
        self.queue.retain(|sequence| sequence.id != id);
        self.scores.remove(&id);
        for slot in 0..self.slots.len() {
            if self.slots[slot].sequence.as_ref().is_some_and(|sequence| sequence.id == id) {
                self.free(slot);
            }
        }
    }

    /// Runs the next step: admits what fits, and extends sequences by what the scheduler chooses.
    ///
    /// # Errors
    /// The engine cannot go on: the weights could not be loaded, or the caches could not be
    /// allocated anew after a step that failed. A step that fails is no error here, but
    /// [`Event::Failed`] of each request that was under way.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let slots: Vec<SlotView<'_>> = self.slots.iter().map(Slot::view).collect();
        let queue: Vec<_> = self.queue.iter().map(Sequence::view).collect();
        let next = schedule(&slots, &queue, self.limits(), self.previous);
        let mut events = Vec::new();
        let ran = self.admit(&next, &mut events).and_then(|()| self.run(&next, &mut events));
        if let Err(error) = ran {
            if self.session.model().placement().is_err() {
                return Err(error);
            }
            self.fail(&error.to_string(), &mut events);
            self.session.reset()?;
        }
        self.previous = Some(next.kind);
        Ok(events)
    }

    /// Puts waiting sequences in their slots, with what is cached of them.
    fn admit(&mut self, next: &Schedule, events: &mut Vec<Event>) -> Result<()> {
        // From the last one on, so that indices stay what they were.
        let mut admitted = Vec::new();
        for admission in next.admissions.iter().rev() {
            let sequence = self.queue.remove(admission.queued).expect("the scheduler saw it");
            admitted.push((admission, sequence));
        }
        let mut copied = Ok(());
        for (admission, mut sequence) in admitted.into_iter().rev() {
            if let Some(from) = admission.copy_from
                && copied.is_ok()
            {
                copied = self.session.copy(from as i64, admission.slot as i64);
            }
            self.stats.cached += admission.cached as u64;
            sequence.cached = admission.cached;
            let index = sequence.answer.as_ref().map_or(0, |answer| answer.index);
            events.push(Event::Started { id: sequence.id, index, cached: sequence.cached });
            let slot = &mut self.slots[admission.slot];
            slot.cached = sequence.tokens[..admission.cached].to_vec();
            slot.salt = sequence.salt;
            slot.sequence = Some(sequence);
        }
        copied
    }

    /// Runs the batch, and hands out what it gives.
    fn run(&mut self, next: &Schedule, events: &mut Vec<Event>) -> Result<()> {
        let parts = next.segments.iter().map(|segment| self.part(segment.slot, segment.tokens)).collect();
        let parts = self.with_masks(parts, events);
        if parts.is_empty() {
            return Ok(());
        }
        if next.kind == StepKind::Sample && parts.iter().all(|part| part.is_decoding) {
            return self.decode(&parts, events);
        }
        self.stats.mixed_steps += 1;
        self.stats.prefilled +=
            parts.iter().filter(|part| !part.is_decoding).map(|part| (part.end - part.start) as u64).sum::<u64>();
        let slots = &self.slots;
        let sequences: Vec<&Sequence> = parts.iter().map(|part| sequence_of(slots, part.slot)).collect();
        let mut segments = Vec::new();
        for (part, sequence) in parts.iter().zip(&sequences) {
            let tokens = &sequence.tokens[part.start..part.end];
            segments.push(Segment { slot: part.slot as i64, start: part.start as i64, tokens });
        }
        match next.kind {
            StepKind::Sample => {
                let ending = |(i, part): (usize, &Part)| part.samples.then(|| (i, sequences[i].sampling()));
                let rows: Vec<_> = parts.iter().enumerate().filter_map(ending).collect();
                let head = if rows.is_empty() { BatchHead::None } else { BatchHead::Sample(rows) };
                let output = self.session.step(&StepBatch { segments, head });
                let tokens = match output? {
                    StepOutput::Tokens(tokens) => tokens,
                    _ => vec![],
                };
                let mut tokens = tokens.into_iter();
                for part in &parts {
                    self.extend(part);
                    if part.samples {
                        let token = tokens.next().expect("a token for each row");
                        self.receive(part.slot, vec![token], events);
                    } else {
                        self.finish_scored(part, events);
                    }
                }
            }
            StepKind::Score => {
                let top = sequences.iter().any(|sequence| sequence.answer.is_some());
                let mut rows = Vec::new();
                let mut targets = Vec::new();
                for (i, (part, sequence)) in parts.iter().zip(&sequences).enumerate() {
                    for (position, target) in sequence.targets_of(part.start, part.end) {
                        let row = RowRef { segment: i, token: position - part.start };
                        rows.push(ScoredRow { row, target: target.token });
                        targets.push((part.slot, sequence.id, target));
                    }
                }
                let head = BatchHead::Logprobs { rows, top };
                let StepOutput::Scores(scores) = self.session.step(&StepBatch { segments, head })? else {
                    unreachable!("the head scores")
                };
                let mut failed = BTreeMap::new();
                for ((slot, id, target), score) in targets.into_iter().zip(scores) {
                    if !score.is_number() {
                        failed.insert(id, slot);
                    } else if let Some(progress) = self.scores.get_mut(&id) {
                        if let Some(likelihoods) = progress.receive(target, &score) {
                            self.scores.remove(&id);
                            events.push(Event::Scored { id, likelihoods });
                        }
                    } else if let Some(sequence) = &mut self.slots[slot].sequence {
                        sequence.receive_prompt_score(target, score);
                    }
                }
                for part in &parts {
                    self.extend(part);
                }
                for (id, slot) in failed {
                    self.fail_not_numbers(id, slot, events);
                }
                for part in &parts {
                    self.finish_scored(part, events);
                }
            }
        }
        Ok(())
    }

    /// Computes the masks of answers that are held to a form. A request without a token that it may
    /// go on with ends, and its parts are left out.
    fn with_masks(&mut self, mut parts: Vec<Part>, events: &mut Vec<Event>) -> Vec<Part> {
        for part in parts.iter().filter(|part| part.samples) {
            // Another answer to the same request may have failed just now.
            let Some(sequence) = &mut self.slots[part.slot].sequence else { continue };
            let id = sequence.id;
            if let Err(error) = sequence.compute_mask() {
                self.cancel(id);
                events.push(Event::Failed { id, error: error.to_string(), by_request: true });
            }
        }
        parts.retain(|part| self.slots[part.slot].sequence.is_some());
        parts
    }

    /// What a segment of the schedule means for its sequence.
    fn part(&self, slot: usize, tokens: usize) -> Part {
        let (start, sequence) = (self.slots[slot].cached.len(), sequence_of(&self.slots, slot));
        let end = start + tokens;
        let samples = sequence.samples() && end == sequence.tokens.len();
        let prompt = sequence.answer.as_ref().map_or(usize::MAX, |answer| answer.request.prompt.len());
        Part { slot, start, end, samples, is_decoding: samples && start >= prompt }
    }

    /// The part's tokens are in the cache now.
    fn extend(&mut self, part: &Part) {
        let slot = &mut self.slots[part.slot];
        if let Some(sequence) = &slot.sequence {
            slot.cached.extend_from_slice(&sequence.tokens[part.start..part.end]);
        }
    }

    /// One dispatch of answers alone, of several steps where the device takes them.
    fn decode(&mut self, parts: &[Part], events: &mut Vec<Event>) -> Result<()> {
        let cache_len = self.cache_len() as usize;
        let slots = &self.slots;
        let row = |part: &Part| {
            let sequence = sequence_of(slots, part.slot);
            let answer = sequence.answer.as_ref().expect("it is decoding");
            DecodeRow {
                slot: part.slot as i64,
                token: std::array::from_ref(&sequence.tokens[part.start]),
                position: part.start as i64,
                max_new_tokens: sequence.max_new_tokens(cache_len),
                stop_ids: &answer.request.stop_ids,
                sampling: sequence.sampling(),
            }
        };
        let rows: Vec<DecodeRow<'_>> = parts.iter().map(row).collect();
        // Where others wait, slots that end should be free at once.
        let soonest = rows.iter().map(|row| row.max_new_tokens).min().unwrap_or(1);
        let is_waiting = !self.queue.is_empty();
        let steps = if is_waiting { soonest } else { i64::MAX }.min(self.session.decode_steps());
        let decoded = self.session.decode(&rows, steps)?;
        let taken = decoded.iter().map(Vec::len).max().unwrap_or(0);
        self.stats.decode_steps += taken as u64;
        self.stats.decodable += (taken * self.slots.len()) as u64;
        self.stats.decoded += decoded.iter().map(Vec::len).sum::<usize>() as u64;
        for (part, tokens) in parts.iter().zip(decoded) {
            self.extend(part);
            self.receive(part.slot, tokens, events);
        }
        Ok(())
    }

    /// Adds tokens to a slot's answer, up to what ends it. All but the last one are in the cache
    /// then.
    fn receive(&mut self, slot: usize, tokens: Vec<Token>, events: &mut Vec<Event>) {
        // Another answer to the same request may have failed in this step.
        if self.slots[slot].sequence.is_none() {
            return;
        }
        if !tokens.iter().all(Token::is_chosen) {
            let (id, held) = (sequence_of(&self.slots, slot).id, &mut self.slots[slot]);
            held.cached.extend(tokens.iter().take_while(|token| token.is_chosen()).map(|token| token.id));
            return self.fail_not_numbers(id, slot, events);
        }
        let cache_len = self.cache_len() as usize;
        let held = &mut self.slots[slot];
        let sequence = held.sequence.as_mut().expect("it was sampled");
        let id = sequence.id;
        let index = sequence.answer.as_ref().map_or(0, |answer| answer.index);
        let in_cache = tokens.len() - 1;
        self.stats.generated += tokens.len() as u64;
        let before = sequence.tokens.len();
        match sequence.receive(tokens, cache_len) {
            Ok(progress) => {
                let known = sequence.tokens.len() - before;
                held.cached.extend_from_slice(&sequence.tokens[before..before + known.min(in_cache)]);
                events.push(Event::Tokens { id, index, tokens: progress.tokens, text: progress.text });
                if let Some(reason) = progress.finish_reason {
                    self.finish(slot, reason, events);
                }
            }
            Err(error) => {
                self.cancel(id);
                let by_request = matches!(error, AnswerError::Constraint(_));
                events.push(Event::Failed { id, error: error.to_string(), by_request });
            }
        }
    }

    /// Ends a sequence whose rows are all scored, if nothing is sampled after them.
    fn finish_scored(&mut self, part: &Part, events: &mut Vec<Event>) {
        let Some(sequence) = &self.slots[part.slot].sequence else { return };
        let last = sequence.scored.last().map_or(sequence.tokens.len(), |&position| position + 1);
        if sequence.samples() || part.end < last {
            return;
        }
        if sequence.answer.is_some() {
            self.finish(part.slot, FinishReason::Length, events);
        } else {
            self.free(part.slot);
        }
    }

    fn finish(&mut self, slot: usize, finish_reason: FinishReason, events: &mut Vec<Event>) {
        let Some(Sequence { id, answer: Some(answer), cached, .. }) = self.free(slot) else { return };
        let index = answer.index;
        events.push(Event::Finished { id, index, answer: answer.finish(finish_reason, cached) });
    }

    /// Takes the sequence out; what the slot holds stays, for others to use.
    fn free(&mut self, slot: usize) -> Option<Sequence> {
        self.clock += 1;
        self.slots[slot].freed = self.clock;
        self.slots[slot].sequence.take()
    }

    /// Ends a request whose logits are not numbers. What its slot holds is of no use to others.
    fn fail_not_numbers(&mut self, id: RequestId, slot: usize, events: &mut Vec<Event>) {
        let tokens = std::mem::take(&mut self.slots[slot].cached);
        let error = self.session.not_numbers(slot as i64, 0, &tokens).to_string();
        self.cancel(id);
        events.push(Event::Failed { id, error, by_request: false });
    }

    /// Ends all requests that have a slot: a step that failed takes the caches with it.
    fn fail(&mut self, error: &str, events: &mut Vec<Event>) {
        let running = self.slots.iter().filter_map(|slot| Some(slot.sequence.as_ref()?.id));
        for id in running.collect::<BTreeSet<_>>() {
            self.cancel(id);
            events.push(Event::Failed { id, error: error.to_owned(), by_request: false });
        }
        for slot in &mut self.slots {
            slot.cached.clear();
        }
    }
}

fn sequence_of(slots: &[Slot], slot: usize) -> &Sequence {
    slots[slot].sequence.as_ref().expect("scheduled slots have sequences")
}

/// A sequence's part of a step.
#[derive(Clone, Copy, Debug)]
struct Part {
    slot: usize,
    /// Its tokens.
    start: usize,
    end: usize,
    /// Whether a token is sampled after them.
    samples: bool,
    /// Whether it is an answer under way.
    is_decoding: bool,
}

impl Slot {
    fn view(&self) -> SlotView<'_> {
        let sequence = self.sequence.as_ref().map(Sequence::view);
        SlotView { cached: &self.cached, salt: self.salt, freed: self.freed, sequence }
    }
}
