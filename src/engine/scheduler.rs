//! What the next step does. Pure: no model, no device, no clock; a schedule follows from the slots,
//! the queue and the limits alone.
//!
//! A sequence is a list of tokens that are to be in the cache. Prefill, decoding and scoring differ
//! in what is wanted after which of them only: a running answer is a sequence of which one token is
//! not in the cache yet.
//!
//! 1. Waiting sequences are put in free slots, first come, first served, where the longest common
//!    beginning is cached. One that shares a long beginning with a sequence that is being computed
//!    waits for it, and lets others pass.
//! 2. Answers under way each take one token.
//! 3. Other sequences take what is left of the step, the oldest first.

/// What a session can do in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub slots_per_replica: usize,
    /// Tokens of each replica.
    pub step_tokens: usize,
    /// Rows of each replica whose log-probabilities one step can give.
    pub scored_rows: usize,
}

/// What the scheduler knows of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct SequenceView<'a> {
    /// Sequences are served in this order.
    pub order: u64,
    /// Only sequences of the same salt share what is in the cache.
    pub salt: u64,
    /// All tokens that are to be in the cache.
    pub tokens: &'a [u32],
    /// Positions of the tokens whose successors' log-probabilities are wanted, in ascending order;
    /// several successors of one token are several entries.
    pub scored: &'a [usize],
    /// Whether a token is sampled after the last one.
    pub samples: bool,
}

/// What the scheduler knows of a slot.
#[derive(Clone, Copy, Debug)]
pub struct SlotView<'a> {
    /// Tokens whose keys and values are in the cache.
    pub cached: &'a [u32],
    /// The salt of the sequence that put them there.
    pub salt: u64,
    /// When the slot was last freed: of free slots that hold nothing of use, the one freed first is
    /// taken.
    pub freed: u64,
    pub sequence: Option<SequenceView<'a>>,
}

/// A waiting sequence gets a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Index in the queue.
    pub queued: usize,
    pub slot: usize,
    /// How many of its tokens are in the cache.
    pub cached: usize,
    /// The slot that has them, if it is another one of the same replica.
    pub copy_from: Option<usize>,
}

/// Tokens of a slot's sequence that the step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledSegment {
    pub slot: usize,
    pub tokens: usize,
}

/// What is computed after the tokens of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Tokens after the sequences that come to their end.
    Sample,
    /// Log-probabilities of the rows that are to be scored.
    Score,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub admissions: Vec<Admission>,
    pub kind: StepKind,
    /// At most one for each slot, none empty.
    pub segments: Vec<ScheduledSegment>,
}

/// A sequence waits for one that is being computed if that saves more tokens than this; fewer are
/// computed again.
const WORTH_WAITING: usize = 32;

impl SequenceView<'_> {
    /// How many tokens can be taken from the cache: at least one is computed, and all that are
    /// scored.
    fn reusable(&self) -> usize {
        let last = self.tokens.len().saturating_sub(1);
        self.scored.first().map_or(last, |&first| first.min(last))
    }

    /// Where rows begin that are not scored yet, if `cached` tokens are done.
    fn next_scored(&self, cached: usize) -> Option<usize> {
        self.scored.get(self.scored.partition_point(|&position| position < cached)).copied()
    }

    /// How many tokens can be in the cache after a step of this kind.
    fn end(&self, cached: usize, kind: StepKind) -> usize {
        match (kind, self.next_scored(cached)) {
            // What is to be scored later is not computed now.
            (StepKind::Sample, Some(next)) => next,
            (StepKind::Sample, None) => self.tokens.len(),
            // The last token of a sequence that goes on is left to a step that samples.
            (StepKind::Score, _) => self.tokens.len() - usize::from(self.samples),
        }
    }

    /// Rows to score among tokens `from..to`.
    fn rows(&self, from: usize, to: usize) -> usize {
        self.scored.partition_point(|&p| p < to) - self.scored.partition_point(|&p| p < from)
    }

    /// Whether it is an answer under way, or a prompt of which one token is left.
    fn is_decoding(&self, cached: usize) -> bool {
        self.samples && cached + 1 == self.tokens.len() && self.next_scored(cached).is_none()
    }
}

/// The next step for these slots, of all replicas one after the other, and this queue. Where
/// sampling and scoring are both wanted, steps alternate: `previous` is the last step's kind.
pub fn schedule(
    slots: &[SlotView<'_>],
    queue: &[SequenceView<'_>],
    limits: Limits,
    previous: Option<StepKind>,
) -> Schedule {
    let mut slots = slots.to_vec();
    let admissions = admit(&mut slots, queue, limits);
    let wanted = |kind: StepKind| {
        slots.iter().any(|slot| {
            let cached = slot.cached.len();
            let Some(sequence) = &slot.sequence else { return false };
            let is_scoring = sequence.next_scored(cached).is_some();
            sequence.end(cached, kind) > cached && is_scoring == (kind == StepKind::Score)
        })
    };
    let kind = match (wanted(StepKind::Sample), wanted(StepKind::Score)) {
        (true, true) if previous == Some(StepKind::Score) => StepKind::Sample,
        (_, true) => StepKind::Score,
        (_, false) => StepKind::Sample,
    };
    Schedule { admissions, kind, segments: pack(&slots, limits, kind) }
}

/// Puts waiting sequences in free slots.
fn admit<'a>(slots: &mut [SlotView<'a>], queue: &[SequenceView<'a>], limits: Limits) -> Vec<Admission> {
    let mut admissions = Vec::new();
    for (queued, sequence) in queue.iter().enumerate() {
        let Some(admission) = place(slots, queued, sequence, limits) else { break };
        let replica = replica_slots(admission.slot, limits);
        let computing = slots[replica].iter().filter_map(|slot| {
            slot.sequence
                .filter(|other| slot.cached.len() < other.tokens.len() && !other.is_decoding(slot.cached.len()))
        });
        let same_salt = computing.filter(|other| other.salt == sequence.salt);
        let shared = same_salt.map(|other| common_prefix(other.tokens, sequence.tokens)).max().unwrap_or(0);
        if shared.min(sequence.reusable()) > admission.cached + WORTH_WAITING {
            continue; // what it shares is being computed
        }
        let slot = &mut slots[admission.slot];
        slot.cached = &sequence.tokens[..admission.cached];
        slot.salt = sequence.salt;
        slot.sequence = Some(*sequence);
        admissions.push(admission);
    }
    admissions
}

/// The slots of the replica that a slot belongs to.
fn replica_slots(slot: usize, limits: Limits) -> std::ops::Range<usize> {
    let first = slot / limits.slots_per_replica * limits.slots_per_replica;
    first..first + limits.slots_per_replica
}

/// The free slot for a sequence, and what of it is cached. Copying a slot costs about as much as
/// reading it once; computing even a short prompt costs more than that, so the longest common
/// beginning wins wherever it is.
fn place(slots: &[SlotView<'_>], queued: usize, sequence: &SequenceView<'_>, limits: Limits) -> Option<Admission> {
    let common = |slot: usize| match &slots[slot] {
        SlotView { salt, .. } if *salt != sequence.salt => 0,
        SlotView { cached, .. } => common_prefix(cached, sequence.tokens).min(sequence.reusable()),
    };
    let free = (0..slots.len()).filter(|&slot| slots[slot].sequence.is_none());
    let places = free.map(|slot| {
        let own = common(slot);
        let best = replica_slots(slot, limits).max_by_key(|&other| (common(other), other == slot)).unwrap_or(slot);
        let cached = common(best);
        Admission { queued, slot, cached, copy_from: (cached > own).then_some(best) }
    });
    // Prefers no copy, then a slot whose replica is least busy, then one whose content is least
    // lost.
    let busy = |slot: usize| replica_slots(slot, limits).filter(|&other| slots[other].sequence.is_some()).count();
    places.min_by_key(|place| {
        let lost = slots[place.slot].cached.len() - common(place.slot);
        (
            std::cmp::Reverse(place.cached),
            place.copy_from.is_some(),
            busy(place.slot),
            (lost > 0, slots[place.slot].freed),
        )
    })
}

/// Fills a step: answers under way first, then other sequences in their order.
fn pack(slots: &[SlotView<'_>], limits: Limits, kind: StepKind) -> Vec<ScheduledSegment> {
    let replicas = slots.len().div_ceil(limits.slots_per_replica.max(1));
    let mut tokens_left = vec![limits.step_tokens; replicas];
    let mut rows_left = vec![limits.scored_rows; replicas];
    let mut running: Vec<(usize, &SlotView<'_>, SequenceView<'_>)> =
        slots.iter().enumerate().filter_map(|(i, slot)| Some((i, slot, slot.sequence?))).collect();
    running.sort_by_key(|(_, slot, sequence)| (!sequence.is_decoding(slot.cached.len()), sequence.order));
    let mut segments = Vec::new();
    for (i, slot, sequence) in running {
        let (replica, cached) = (i / limits.slots_per_replica, slot.cached.len());
        let mut end = sequence.end(cached, kind).max(cached).min(cached + tokens_left[replica]);
        if kind == StepKind::Score && sequence.rows(cached, end) > rows_left[replica] {
            // Up to the position whose rows do not all fit.
            let first_out = sequence.scored.partition_point(|&p| p < cached) + rows_left[replica];
            end = sequence.scored[first_out];
        }
        if end > cached {
            segments.push(ScheduledSegment { slot: i, tokens: end - cached });
            tokens_left[replica] -= end - cached;
            rows_left[replica] -= if kind == StepKind::Score { sequence.rows(cached, end) } else { 0 };
        }
    }
    segments
}

/// How many tokens both begin with.
pub fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(slots_per_replica: usize) -> Limits {
        Limits { slots_per_replica, step_tokens: 512, scored_rows: 128 }
    }

    fn prompt(order: u64, tokens: &[u32]) -> SequenceView<'_> {
        SequenceView { order, salt: 0, tokens, scored: &[], samples: true }
    }

    fn slots<'a>(cached: &[&'a [u32]], busy: &[usize]) -> Vec<SlotView<'a>> {
        let slot = |(i, &cached): (usize, &&'a [u32])| {
            let sequence = busy.contains(&i).then(|| prompt(0, cached));
            SlotView { cached, salt: 0, freed: 0, sequence }
        };
        cached.iter().enumerate().map(slot).collect()
    }

    fn placed(slots: &[SlotView<'_>], per_replica: usize, tokens: &[u32]) -> Option<(usize, usize, Option<usize>)> {
        let admission = place(slots, 0, &prompt(1, tokens), limits(per_replica))?;
        Some((admission.slot, admission.cached, admission.copy_from))
    }

    #[test]
    fn the_longest_common_beginning_wins() {
        let all: [&[u32]; 3] = [&[1, 2], &[1, 2, 3, 4], &[]];
        assert_eq!(placed(&slots(&all, &[]), 3, &[1, 2, 3, 9]), Some((1, 3, None)));
        // One token is always left to compute.
        assert_eq!(placed(&slots(&all, &[]), 3, &[1, 2, 3, 4]), Some((1, 3, None)));
        // The one that has it is busy: its content is copied, to a slot that loses nothing.
        assert_eq!(placed(&slots(&all, &[1]), 3, &[1, 2, 3, 9]), Some((0, 3, Some(1))));
        assert_eq!(placed(&slots(&all, &[0, 1]), 3, &[1, 2, 3, 9]), Some((2, 3, Some(1))));
        assert_eq!(placed(&slots(&all, &[0, 1, 2]), 3, &[1]), None);
    }

    #[test]
    fn nothing_is_copied_to_other_replicas() {
        let all: [&[u32]; 4] = [&[1, 2, 3], &[], &[], &[]];
        assert_eq!(placed(&slots(&all, &[0]), 2, &[1, 2, 3, 9]), Some((1, 3, Some(0))));
        assert_eq!(placed(&slots(&all, &[0, 1]), 2, &[1, 2, 3, 9]), Some((2, 0, None)));
    }

    #[test]
    fn other_salts_share_nothing() {
        let all: [&[u32]; 2] = [&[1, 2, 3], &[]];
        let mut slots = slots(&all, &[]);
        slots[0].salt = 7;
        // The slot that holds nothing loses nothing.
        assert_eq!(placed(&slots, 2, &[1, 2, 3, 9]), Some((1, 0, None)));
        let mine = SequenceView { salt: 7, ..prompt(1, &[1, 2, 3, 9]) };
        assert_eq!(place(&slots, 0, &mine, limits(2)).unwrap().cached, 3);
    }

    #[test]
    fn the_slot_that_was_freed_first_is_taken_first() {
        let mut slots = slots(&[&[5], &[6], &[7]], &[]);
        for (slot, freed) in [(1, 1), (0, 2), (2, 3)] {
            slots[slot].freed = freed;
        }
        assert_eq!(placed(&slots, 3, &[1]), Some((1, 0, None)));
    }

    #[test]
    fn sequences_are_spread_over_replicas() {
        assert_eq!(placed(&slots(&[&[][..]; 4], &[0]), 2, &[1]), Some((2, 0, None)));
    }

    /// A 4000-token prompt among seven running answers: each of them has a token in every step, and
    /// the prompt all the rest.
    #[test]
    fn a_long_prompt_does_not_hold_answers_up() {
        let answer: Vec<u32> = (0..50).collect();
        let long: Vec<u32> = (0..4000).collect();
        let running =
            |i: u64| SlotView { cached: &answer[..49], salt: 0, freed: 0, sequence: Some(prompt(i, &answer)) };
        let mut slots: Vec<SlotView<'_>> = (0..7).map(running).collect();
        slots.push(SlotView { cached: &[], salt: 0, freed: 0, sequence: Some(prompt(7, &long)) });
        let mut steps = 0;
        while slots[7].cached.len() < long.len() {
            let schedule = schedule(&slots, &[], limits(8), Some(StepKind::Sample));
            for (i, segment) in schedule.segments[..7].iter().enumerate() {
                assert_eq!(*segment, ScheduledSegment { slot: i, tokens: 1 });
            }
            let tokens = slots[7].cached.len() + schedule.segments[7].tokens;
            slots[7].cached = &long[..tokens];
            steps += 1;
        }
        assert_eq!(steps, 4000_usize.div_ceil(512 - 7));
    }

    #[test]
    fn one_that_waits_for_a_shared_beginning_lets_others_pass() {
        let context: Vec<u32> = (0..100).collect();
        let (a, b) = ([&context[..], &[200]].concat(), [&context[..], &[201]].concat());
        let other = vec![7; 10];
        let queue = [prompt(0, &a), prompt(1, &b), prompt(2, &other)];
        let empty = [SlotView { cached: &[], salt: 0, freed: 0, sequence: None }; 4];
        let first = schedule(&empty, &queue, limits(4), None);
        assert_eq!(first.admissions.iter().map(|a| a.queued).collect::<Vec<_>>(), [0, 2]);
        // When it is there, it is copied.
        let mut slots = empty;
        slots[0] = SlotView { cached: &a, salt: 0, freed: 0, sequence: Some(prompt(0, &a)) };
        let then = schedule(&slots, &[prompt(1, &b)], limits(4), None);
        assert_eq!(then.admissions, [Admission { queued: 0, slot: 1, cached: 100, copy_from: Some(0) }]);
    }

    /// Rows to score are cut where a step has no room for more, never inside a position.
    #[test]
    fn scored_rows_keep_their_limit() {
        let tokens: Vec<u32> = (0..300).collect();
        let scored: Vec<usize> = (0..299).collect();
        let sequence = SequenceView { order: 0, salt: 0, tokens: &tokens, scored: &scored, samples: true };
        let slots = [SlotView { cached: &[], salt: 0, freed: 0, sequence: Some(sequence) }];
        let first = schedule(&slots, &[], limits(1), None);
        assert_eq!(
            (first.kind, &first.segments[..]),
            (StepKind::Score, &[ScheduledSegment { slot: 0, tokens: 128 }][..])
        );
        let slots = [SlotView { cached: &tokens[..299], ..slots[0] }];
        let last = schedule(&slots, &[], limits(1), None);
        assert_eq!((last.kind, &last.segments[..]), (StepKind::Sample, &[ScheduledSegment { slot: 0, tokens: 1 }][..]));
    }

    /// A sequence of the simulation below.
    #[derive(Clone, Debug)]
    struct Job {
        prompt: Vec<u32>,
        scored: Vec<usize>,
        /// Tokens to generate; 0 is scoring alone.
        answer: usize,
        arrives: usize,
        salt: u64,
    }

    fn job() -> impl Strategy<Value = Job> {
        let kind =
            prop_oneof![Just((0, true)), (1_usize..20).prop_map(|n| (n, false)), (1_usize..20).prop_map(|n| (n, true))];
        (prop::collection::vec(0_u32..3, 1..90), kind, 0_usize..30, 0.0..1.0_f64, 0_u64..2).prop_map(
            |(prompt, (answer, scores), arrives, from, salt)| {
                let end = prompt.len() - usize::from(answer > 0);
                let first = (end as f64 * from) as usize;
                let scored: Vec<usize> = if scores { (first..end).collect() } else { vec![] };
                // What is neither scored nor continued would have nothing to do.
                let answer = if scored.is_empty() { answer.max(1) } else { answer };
                Job { prompt, scored, answer, arrives, salt }
            },
        )
    }

    struct Running {
        job: usize,
        tokens: Vec<u32>,
        scored: usize,
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Jobs of all kinds arrive over time. Every step keeps the limits; answers under way move
        /// in every step that samples, and at least in every second one; free slots are filled if
        /// somebody can use them; every row is scored exactly once; and everybody is finished in a
        /// bounded number of steps.
        #[test]
        fn every_sequence_is_served_within_the_limits(
            jobs in prop::collection::vec(job(), 1..24),
            per_replica in 1_usize..5, replicas in 1_usize..3, step_tokens in 8_usize..64, scored_rows in 1_usize..32,
        ) {
            let step_tokens = step_tokens.max(per_replica);
            let limits = Limits { slots_per_replica: per_replica, step_tokens, scored_rows };
            let count = per_replica * replicas;
            let mut caches: Vec<(Vec<u32>, u64)> = vec![(vec![], 0); count];
            let mut salts = vec![0; count];
            let mut running: Vec<Option<Running>> = (0..count).map(|_| None).collect();
            let mut queue: Vec<usize> = Vec::new();
            let mut idle_answers = vec![0; jobs.len()];
            let (mut finished, mut step, mut previous) = (0, 0, None);
            while finished < jobs.len() {
                queue.extend((0..jobs.len()).filter(|&i| jobs[i].arrives == step));
                let view = |job: usize, tokens| SequenceView {
                    order: job as u64,
                    salt: jobs[job].salt,
                    tokens,
                    scored: &jobs[job].scored,
                    samples: jobs[job].answer > 0,
                };
                let waiting: Vec<SequenceView<'_>> = queue.iter().map(|&job| view(job, &jobs[job].prompt)).collect();
                let slots: Vec<SlotView<'_>> = running.iter().zip(caches.iter().zip(&salts)).map(|(running, ((cached, freed), &salt))| SlotView {
                    cached,
                    salt,
                    freed: *freed,
                    sequence: running.as_ref().map(|r| view(r.job, &r.tokens)),
                }).collect();
                let plan = schedule(&slots, &waiting, limits, previous);
                let busy = running.iter().flatten().count() + plan.admissions.len();
                let is_decoding: Vec<bool> = slots.iter().map(|slot| {
                    slot.sequence.is_some_and(|sequence| sequence.is_decoding(slot.cached.len()))
                }).collect();
                // Nobody waits for a free slot, unless for what somebody computes now.
                prop_assert!(busy == count || plan.admissions.len() == waiting.len() || busy > 0);

                let taken: Vec<usize> = plan.admissions.iter().map(|a| queue[a.queued]).collect();
                for (admission, &job) in plan.admissions.iter().zip(&taken) {
                    prop_assert!(running[admission.slot].is_none());
                    if let Some(from) = admission.copy_from {
                        prop_assert_eq!(from / per_replica, admission.slot / per_replica);
                        let cached = caches[from].0.clone();
                        caches[admission.slot].0 = cached;
                        salts[admission.slot] = salts[from];
                    }
                    prop_assert!(admission.cached == 0 || salts[admission.slot] == jobs[job].salt);
                    salts[admission.slot] = jobs[job].salt;
                    let cached = &mut caches[admission.slot].0;
                    cached.truncate(admission.cached);
                    prop_assert_eq!(&cached[..], &jobs[job].prompt[..admission.cached]);
                    let scored = jobs[job].scored.partition_point(|&p| p < admission.cached);
                    prop_assert_eq!(scored, 0, "a row was taken from the cache");
                    running[admission.slot] = Some(Running { job, tokens: jobs[job].prompt.clone(), scored });
                }
                queue.retain(|job| !taken.contains(job));

                let mut used = vec![(0, 0); replicas];
                for segment in &plan.segments {
                    prop_assert!(segment.tokens > 0);
                    let slot = segment.slot;
                    let run = running[slot].as_mut().expect("only running sequences are scheduled");
                    let job = &jobs[run.job];
                    let start = caches[slot].0.len();
                    let end = start + segment.tokens;
                    prop_assert!(end <= run.tokens.len());
                    let rows = job.scored.iter().filter(|&&p| start <= p && p < end).count();
                    used[slot / per_replica].0 += segment.tokens;
                    let tokens = run.tokens[start..end].to_vec();
                    caches[slot].0.extend(tokens);
                    match plan.kind {
                        StepKind::Score => {
                            used[slot / per_replica].1 += rows;
                            run.scored += rows;
                        }
                        StepKind::Sample => prop_assert_eq!(rows, 0, "a row was computed without its score"),
                    }
                    let at_end = end == run.tokens.len();
                    if at_end && job.answer > 0 {
                        prop_assert_eq!(plan.kind, StepKind::Sample);
                        run.tokens.push(9);
                    }
                    let is_done = at_end && run.tokens.len() - job.prompt.len() >= job.answer;
                    if is_done {
                        prop_assert_eq!(run.scored, job.scored.len());
                        running[slot] = None;
                        caches[slot].1 = step as u64 + 1;
                        finished += 1;
                    }
                }
                for (tokens, rows) in used {
                    prop_assert!(tokens <= step_tokens && rows <= scored_rows);
                }
                for (slot, decoding) in is_decoding.into_iter().enumerate().filter(|(_, decoding)| *decoding) {
                    let job = slots_job(&running, slot);
                    let moved = plan.segments.iter().any(|segment| segment.slot == slot);
                    prop_assert!(decoding && (moved || plan.kind == StepKind::Score));
                    if let Some(job) = job {
                        idle_answers[job] = if moved { 0 } else { idle_answers[job] + 1 };
                        prop_assert!(idle_answers[job] <= 1, "an answer waits for two steps");
                    }
                }
                prop_assert!(!plan.segments.is_empty() || (queue.is_empty() && running.iter().all(Option::is_none)));
                previous = Some(plan.kind);
                step += 1;
                prop_assert!(step < 30 + jobs.len() * 250, "somebody starves");
            }
        }
    }

    fn slots_job(running: &[Option<Running>], slot: usize) -> Option<usize> {
        running[slot].as_ref().map(|running| running.job)
    }
}
