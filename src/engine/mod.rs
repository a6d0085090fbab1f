//! Many requests on one model: continuous batching over the slots of a session.
//!
//! ```text
//! submit ──► queue ──► slot: prefill, a chunk at a time ──► decode, with all other slots ──► free
//!            (first come, first served)     │                        │
//!                       the longest common beginning is        stop ids and lengths are watched on the device,
//!                       found in any slot, not computed        stop strings here; the slot is refilled at once
//! ```
//!
//! [`Engine::step`] admits what fits, prefills a chunk for each data row of the mesh, or several short prompts together, runs one
//! dispatch of decoding, and returns what came of them. So prompts keep running answers waiting for one chunk at most. Nothing runs
//! between steps: the caller's loop is the engine's thread.
//!
//! Sampling depends on a request's own seed and on positions alone, never on the slot or on the others.

mod conversation;
mod request;
mod slots;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

pub use conversation::{Conversation, Turn};
pub use request::{Answer, Event, FinishReason, Request, RequestId};
use slots::{Slot, Slots, common_prefix};

use crate::{
    runtime::{Choice, Decode, Error, Extend, Model, Result, Session, Token},
    sampling::{Adjust, Params},
    tokenizer::{Detokenizer, StopStrings, Tokenizer},
};

/// What an engine has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tokens of prompts that were computed, and that were found in the cache.
    pub prefilled: u64,
    pub cached: u64,
    pub generated: u64,
    /// Dispatches of prefill and of decoding.
    pub prefill_steps: u64,
    pub decode_steps: u64,
    /// Of the tokens that dispatches of decoding could have given, those that they gave.
    pub decoded: u64,
    pub decodable: u64,
}

/// A sequence is shared with one that is being computed only if it is longer than this: a short one is computed again.
const WORTH_WAITING: usize = 32;

/// A step of prefill reads all weights, however short it is: between two dispatches of decoding it counts as so many tokens at least.
const LEAST_PREFILL: i64 = 64;

/// Runs requests in the slots of a session.
pub struct Engine<'t> {
    session: Session,
    tokenizer: &'t Tokenizer,
    vocab: i64,
    queue: VecDeque<Sequence<'t>>,
    slots: Slots<Sequence<'t>>,
    next_id: u64,
    stats: Stats,
}

/// One answer under way.
struct Sequence<'t> {
    id: RequestId,
    index: usize,
    request: Arc<Request>,
    params: Params,
    /// Prompt and answer.
    tokens: Vec<u32>,
    answer: Vec<Token>,
    /// The prompt's tokens after the first, as far as they are scored, if they are wanted.
    prompt: Option<Vec<Token>>,
    cached: usize,
    detokenizer: Detokenizer<'t>,
    stop: StopStrings,
    text: String,
}

impl Sequence<'_> {
    fn is_prefilling(&self) -> bool {
        self.answer.is_empty()
    }

    /// The prompt's log-probabilities are wanted, and not all there.
    fn is_scoring(&self) -> bool {
        self.prompt.as_ref().is_some_and(|scored| scored.len() + 1 < self.request.prompt.len())
    }

    /// What is not prefilled yet, or not scored, of a slot that holds so many tokens. The last token's likelihood is known when the
    /// one before it is scored.
    fn rest(&self, slot: usize, held: usize) -> Extend<'_> {
        let end = self.request.prompt.len() - usize::from(self.is_scoring());
        Extend { slot: slot as i64, start: held as i64, tokens: &self.tokens[held..end] }
    }

    /// The tokens that follow each of a part's.
    fn targets(&self, part: &Extend<'_>) -> &[u32] {
        &self.tokens[part.start as usize + 1..][..part.tokens.len()]
    }

    fn choice(&self) -> Choice<'_> {
        let request = &*self.request;
        Choice {
            params: self.params,
            adjust: request.adjust,
            bias: &request.logit_bias,
            detailed: request.logprobs.is_some(),
            tokens: if request.adjust == Adjust::NONE { &[] } else { &self.tokens },
            prompt: request.prompt.len(),
        }
    }

    /// A token with as many of the most likely ones as were asked for.
    fn told(&self, mut token: Token) -> Token {
        if let Some(logprobs) = &mut token.logprobs {
            logprobs.top.truncate(self.request.logprobs.unwrap_or_default());
        }
        token
    }
}

/// What a step of prefill gives a sequence.
enum Given {
    Nothing,
    /// The likelihoods of the prompt's next tokens.
    Scored(Vec<Token>),
    /// The answer's first token.
    Chosen(Token),
}

/// What the sequences that are not prefilled yet have left, the first ones first: of those that are to be scored the first of each
/// data row, or all others, by what the first one is. And whether they are to be scored.
fn coming<'s>(slots: &'s Slots<Sequence<'_>>, session: &Session) -> (Vec<Extend<'s>>, bool) {
    let prefilling = |held: &'s Slot<_>| held.sequence.as_ref().filter(|s: &&Sequence<'_>| s.is_prefilling());
    let mut found: Vec<_> =
        slots.iter().filter_map(|(slot, held)| Some((slot, held.held.len(), prefilling(held)?))).collect();
    found.sort_unstable_by_key(|(_, _, s)| (s.id, s.index));
    let is_scoring = found.first().is_some_and(|(_, _, s)| s.is_scoring());
    let mut rows = BTreeSet::new();
    found.retain(|(slot, _, s)| {
        s.is_scoring() == is_scoring && (!is_scoring || rows.insert(session.row_of(*slot as i64)))
    });
    (found.into_iter().map(|(slot, held, s)| s.rest(slot, held)).collect(), is_scoring)
}

impl<'t> Engine<'t> {
    /// An engine with so many slots of `cache_len` tokens in each data row of the model's mesh.
    pub fn new(model: Arc<Model>, tokenizer: &'t Tokenizer, slots: i64, cache_len: i64) -> Result<Self> {
        let vocab = model.config().vocab_size;
        let session = Session::new(model, slots, cache_len)?;
        let all = Slots::new(session.slots() as usize, slots as usize);
        Ok(Self { session, tokenizer, vocab, queue: VecDeque::new(), slots: all, next_id: 0, stats: Stats::default() })
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Tokens that a slot can hold.
    pub fn cache_len(&self) -> i64 {
        self.session.cache_len()
    }

    /// Slots of all data rows.
    pub fn slots(&self) -> usize {
        self.session.slots() as usize
    }

    /// Tokens in the cache, of all slots.
    pub fn held(&self) -> usize {
        self.slots.iter().map(|(_, slot)| slot.held.len()).sum()
    }

    /// Answers that wait for a slot, and that have one.
    pub fn load(&self) -> (usize, usize) {
        let busy = self.slots.iter().filter(|(_, slot)| slot.sequence.is_some()).count();
        (self.queue.len(), busy)
    }

    /// Whether there is nothing left to do.
    pub fn is_idle(&self) -> bool {
        self.load() == (0, 0)
    }

    /// Makes the programs ready that this request takes alone, side by side.
    pub fn prepare(&self, request: &Request) -> Result<()> {
        request.check(self.cache_len(), self.vocab).map_err(Error::Invalid)?;
        let choice = Choice { bias: &request.logit_bias, adjust: request.adjust, ..Choice::plain(request.params) };
        let choice = Choice { detailed: request.logprobs.is_some(), ..choice };
        let cached = self.slots.place(&request.prompt).map_or(0, |place| place.cached);
        self.session.prepare(cached as i64, (request.prompt.len() - cached) as i64, choice.sampler())
    }

    /// Queues a request. An answer is cut where its slot ends.
    ///
    /// # Errors
    /// What is wrong with the request; the engine is as before.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        request.check(self.cache_len(), self.vocab).map_err(Error::Invalid)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let request = Arc::new(request);
        for index in 0..request.n {
            let wants_prompt = request.echo && request.logprobs.is_some();
            self.queue.push_back(Sequence {
                id,
                index,
                params: Params { seed: request.params.seed.wrapping_add(index as u64), ..request.params },
                tokens: request.prompt.clone(),
                answer: vec![],
                prompt: wants_prompt.then(Vec::new),
                cached: 0,
                detokenizer: self.tokenizer.stream(),
                stop: StopStrings::new(request.stop.clone()),
                text: String::new(),
                request: request.clone(),
            });
        }
        Ok(id)
    }

    /// Gives a request up; its answers that are not finished have no more events.
    pub fn cancel(&mut self, id: RequestId) {
        self.queue.retain(|sequence| sequence.id != id);
        for slot in 0..self.slots() {
            if self.slots.get(slot).sequence.as_ref().is_some_and(|sequence| sequence.id == id) {
                self.free(slot);
            }
        }
    }

    /// Admits what fits, prefills up to a chunk's tokens, of several sequences if they are short, and runs a dispatch of decoding.
    ///
    /// # Errors
    /// A step that failed takes the cache with it: the engine cannot go on, and what was under way is lost.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let mut room = Session::MAX_CHUNK;
        loop {
            self.admit()?;
            match self.prefill(room, &mut events)? {
                0 => break,
                taken => room -= taken.max(LEAST_PREFILL),
            }
        }
        self.decode(&mut events)?;
        Ok(events)
    }

    /// Puts waiting sequences in free slots, in their order.
    fn admit(&mut self) -> Result<()> {
        while let Some(next) = self.queue.front() {
            let Some(place) = self.slots.place(&next.tokens) else { return Ok(()) };
            let row = self.session.row_of(place.slot as i64);
            let coming = self.slots.iter().filter(|&(slot, _)| self.session.row_of(slot as i64) == row);
            let coming = coming.filter_map(|(_, slot)| slot.sequence.as_ref().filter(|s| s.is_prefilling()));
            let shared = coming.map(|other| common_prefix(&other.tokens, &next.tokens)).max().unwrap_or(0);
            if shared.min(next.tokens.len() - 1) > place.cached + WORTH_WAITING && next.prompt.is_none() {
                return Ok(()); // what it shares is computed now
            }
            let mut sequence = self.queue.pop_front().expect("there is one");
            // Scores are those of the whole prompt.
            let (cached, copy_from) =
                if sequence.prompt.is_some() { (0, None) } else { (place.cached, place.copy_from) };
            if let Some(from) = copy_from {
                self.session.copy(from as i64, place.slot as i64)?;
            }
            self.stats.cached += cached as u64;
            sequence.cached = cached;
            let slot = self.slots.get_mut(place.slot);
            slot.held = sequence.tokens[..cached].to_vec();
            slot.sequence = Some(sequence);
        }
        Ok(())
    }

    /// One step for sequences that are not prefilled yet: a chunk of each data row's first one, and others that are short. How many
    /// tokens a data row has in it at most, or 0 if there are none, or no room for them.
    fn prefill(&mut self, room: i64, events: &mut Vec<Event>) -> Result<i64> {
        let (rests, is_scoring) = coming(&self.slots, &self.session);
        let parts = self.session.cut(&rests, if is_scoring { Session::MAX_SCORE } else { Session::MAX_CHUNK });
        let mut taken = vec![0; self.session.data_rows()];
        for part in &parts {
            taken[self.session.row_of(part.slot)] += part.tokens.len() as i64;
        }
        let taken = taken.into_iter().max().unwrap_or(0);
        if taken == 0 || taken > room {
            return Ok(0);
        }
        let of = |part: &Extend<'_>| -> &Sequence<'t> {
            self.slots.get(part.slot as usize).sequence.as_ref().expect("the part is its own")
        };
        let ends = |part: &Extend<'_>| part.start as usize + part.tokens.len() == of(part).request.prompt.len();
        let given: Vec<Given> = if is_scoring {
            let targets: Vec<_> = parts.iter().map(|part| (*part, of(part).targets(part))).collect();
            let scored = self.session.score_parts(&targets, true)?;
            let tokens = scored.into_iter().map(|list| list.into_iter().map(|(token, _)| token).collect());
            tokens.map(Given::Scored).collect()
        } else if parts.iter().any(ends) {
            let choices: Vec<_> = parts.iter().map(|part| (*part, of(part).choice())).collect();
            let chosen = self.session.extend_and_choose(&choices)?;
            let given = |(token, part)| if ends(part) { Given::Chosen(token) } else { Given::Nothing };
            chosen.into_iter().zip(&parts).map(given).collect()
        } else {
            self.session.extend_only(&parts)?;
            parts.iter().map(|_| Given::Nothing).collect()
        };
        self.stats.prefill_steps += 1;
        let lengths: Vec<(usize, usize)> = parts.iter().map(|part| (part.slot as usize, part.tokens.len())).collect();
        for ((slot, tokens), given) in lengths.into_iter().zip(given) {
            self.prefilled(slot, tokens, given, events)?;
        }
        Ok(taken)
    }

    /// A slot has so many tokens more of its prompt, and was given something with them.
    fn prefilled(&mut self, slot: usize, tokens: usize, given: Given, events: &mut Vec<Event>) -> Result<()> {
        self.stats.prefilled += tokens as u64;
        let held = self.slots.get_mut(slot);
        let sequence = held.sequence.as_mut().expect("it was prefilled");
        let start = held.held.len();
        held.held.extend_from_slice(&sequence.tokens[start..start + tokens]);
        if let Given::Scored(tokens) = &given {
            let told: Vec<Token> = tokens.iter().map(|token| sequence.told(token.clone())).collect();
            sequence.prompt.get_or_insert_default().extend(told);
        }
        if sequence.request.max_tokens == 0 && !sequence.is_scoring() {
            self.finish(slot, FinishReason::Length, events);
        } else if let Given::Chosen(token) = given {
            self.receive(slot, vec![token], events)?;
        }
        Ok(())
    }

    /// One dispatch for all slots whose prompts are prefilled.
    fn decode(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let cache_len = self.cache_len();
        let mut running = BTreeSet::new();
        let mut waits = !self.queue.is_empty();
        let rows: Vec<Decode<'_>> = self
            .slots
            .iter()
            .map(|(slot, held)| {
                let position = held.held.len() as i64;
                let Some(sequence) = &held.sequence else { return Decode::resting(position.min(cache_len - 1)) };
                if sequence.is_prefilling() {
                    waits = true;
                    return Decode::resting(position);
                }
                running.insert(slot);
                let left = (sequence.request.max_tokens - sequence.answer.len()) as i64;
                Decode {
                    token: *sequence.tokens.last().expect("prompts are not empty"),
                    position,
                    left: left.min(cache_len - position),
                    stop_ids: &sequence.request.stop_ids,
                    choice: sequence.choice(),
                }
            })
            .collect();
        if running.is_empty() {
            return Ok(());
        }
        // Where others wait, slots that end should be free at once.
        let soonest = rows.iter().filter(|row| row.left > 0).map(|row| row.left).min().unwrap_or(1);
        let is_prefilling =
            rows.iter().zip(self.slots.iter()).any(|(row, (_, s))| row.left == 0 && s.sequence.is_some());
        let steps = match (is_prefilling, waits) {
            (true, _) => 1,
            (false, true) => soonest.min(self.session.decode_steps()),
            (false, false) => self.session.decode_steps(),
        };
        let decoded = self.session.decode_slots(&rows, steps)?;
        let taken = decoded.iter().map(Vec::len).max().unwrap_or(0);
        self.stats.decode_steps += taken as u64;
        self.stats.decodable += (taken * decoded.len()) as u64;
        self.stats.decoded += decoded.iter().map(Vec::len).sum::<usize>() as u64;
        for (slot, tokens) in decoded.into_iter().enumerate().filter(|(slot, _)| running.contains(slot)) {
            self.receive(slot, tokens, events)?;
        }
        Ok(())
    }

    /// Adds tokens to a slot's answer, up to what ends it. All but the last one are in the cache then.
    fn receive(&mut self, slot: usize, tokens: Vec<Token>, events: &mut Vec<Event>) -> Result<()> {
        let cache_len = self.cache_len() as usize;
        let held = self.slots.get_mut(slot);
        let sequence = held.sequence.as_mut().expect("it was decoded");
        let mut shown = String::new();
        let mut new = Vec::new();
        let (mut ended, mut by_string) = (None, false);
        for token in tokens {
            if held.held.len() < sequence.tokens.len() {
                held.held.push(*sequence.tokens.last().expect("there is one")); // what the step took
            }
            self.stats.generated += 1;
            if sequence.request.stop_ids.contains(&token.id) {
                ended = Some(FinishReason::Stop);
                break;
            }
            let piece = sequence.detokenizer.push(token.id)?;
            let (piece, is_stopped) = sequence.stop.push(&piece);
            shown.push_str(&piece);
            sequence.tokens.push(token.id);
            let token = sequence.told(token);
            new.push(token.clone());
            sequence.answer.push(token);
            if is_stopped {
                ended = Some(FinishReason::Stop);
                by_string = true;
                break;
            }
            if sequence.answer.len() >= sequence.request.max_tokens || held.held.len() >= cache_len {
                ended = Some(FinishReason::Length);
                break;
            }
        }
        if ended.is_some() && !by_string {
            let rest = sequence.detokenizer.finish()?;
            shown.push_str(&sequence.stop.push(&rest).0);
            shown.push_str(&sequence.stop.take_held());
        }
        sequence.text.push_str(&shown);
        events.push(Event::Tokens { id: sequence.id, index: sequence.index, tokens: new, text: shown });
        if let Some(reason) = ended {
            self.finish(slot, reason, events);
        }
        Ok(())
    }

    fn finish(&mut self, slot: usize, finish_reason: FinishReason, events: &mut Vec<Event>) {
        let Some(sequence) = self.free(slot) else { return };
        let Sequence { id, index, answer: tokens, text, prompt, cached, .. } = sequence;
        events.push(Event::Finished { id, index, answer: Answer { tokens, text, finish_reason, prompt, cached } });
    }

    /// What the slot holds stays for others; its last position is given up, where resting slots write.
    fn free(&mut self, slot: usize) -> Option<Sequence<'t>> {
        let most = self.cache_len() as usize - 1;
        self.slots.get_mut(slot).held.truncate(most);
        self.slots.free(slot)
    }
}
