//! What callers and the engine's thread know of each other.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    engine::{Answer, Engine, Likelihood, Refusal, Request, ScoreRequest, Stats},
    runtime::Token,
};

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Work {
    Generate(Box<Request>),
    Score(ScoreRequest),
}

impl Work {
    pub(super) fn prompt_tokens(&self) -> usize {
        match self {
            Self::Generate(request) => request.prompt.len(),
            Self::Score(request) => request.context.len() + request.continuations.iter().map(Vec::len).sum::<usize>(),
        }
    }

    pub(super) fn check(&self, cache_len: i64, vocab: i64) -> Result<(), Refusal> {
        match self {
            Self::Generate(request) => request.check(cache_len, vocab),
            Self::Score(request) => request.check(cache_len, vocab),
        }
    }
}

/// How much may wait for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    pub requests: usize,
    /// Tokens of all waiting prompts together.
    pub prompt_tokens: usize,
}

/// What waits for a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub requests: usize,
    pub prompt_tokens: usize,
}

/// What happened to a request, and when.
#[derive(Clone, Debug)]
pub struct Update {
    /// The end of the engine's step.
    pub at: Instant,
    pub happened: Happened,
}

/// What happened to a request.
#[derive(Clone, Debug)]
pub enum Happened {
    /// An answer has its slot; so many tokens of its prompt were in the cache.
    Started {
        index: usize,
        cached: usize,
    },
    /// More of an answer, as in [`crate::engine::Event::Tokens`].
    Tokens {
        index: usize,
        tokens: Vec<Token>,
        text: String,
    },
    Finished {
        index: usize,
        answer: Answer,
    },
    Scored(Vec<Likelihood>),
    /// There is nothing more.
    Failed(Failure),
}

/// Why a request that was taken has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the request was not finished within its deadline of {0:?}, waiting included; ask for less, or try later")]
    DeadlineExceeded(Duration),
    #[error("the server is shutting down; try again, on another server if there is one")]
    ShuttingDown,
    /// The step that it was in failed; others go on.
    #[error("{0}")]
    Step(String),
    /// The form that its answer is held to cannot be kept.
    #[error("{0}")]
    Constraint(String),
}

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "{} requests with {} prompt tokens wait already, at most {} with {} may; try again when some are finished",
        waiting.requests, waiting.prompt_tokens, limits.requests, limits.prompt_tokens
    )]
    QueueFull { waiting: Backlog, limits: QueueLimits },
    #[error("the model is still being loaded; try again when it is ready")]
    Loading,
    #[error("the server is shutting down; try again, on another server if there is one")]
    ShuttingDown,
    #[error("the model cannot run any more: {0}")]
    Lost(String),
}

/// How far the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Loading(LoadProgress),
    Ready,
    /// It cannot go on; the reason.
    Lost(String),
}

/// How far loading is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadProgress {
    pub weights_placed: bool,
    /// Programs that are compiled, of all that there will be; (0, 0) before they are counted.
    pub programs: (usize, usize),
}

/// The state of the engine after its last step.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceStats {
    pub engine: Stats,
    /// Requests that wait for a slot.
    pub waiting: Backlog,
    /// Answers and scored texts that have a slot.
    pub running: usize,
    pub slots: usize,
    /// Tokens of all slots in the cache, and those that fit.
    pub cached_tokens: usize,
    pub cache_capacity: usize,
    /// Engines that were made anew after one was lost.
    pub restarts: u64,
    /// Programs compiled or loaded since the engine was ready: a request waited for each.
    pub late_programs: u64,
}

impl ServiceStats {
    pub(super) fn of(engine: &Engine, waiting: Backlog, restarts: u64, programs_when_ready: usize) -> Self {
        let running = engine.load().1;
        let programs = engine.programs_made();
        Self {
            engine: engine.stats(),
            waiting,
            running,
            slots: engine.slots(),
            cached_tokens: engine.cached_tokens(),
            cache_capacity: engine.slots() * engine.cache_len() as usize,
            restarts,
            late_programs: (programs - programs_when_ready) as u64,
        }
    }
}

/// Shared by handles and the engine's thread.
pub(super) struct Shared {
    pub phase: watch::Sender<Phase>,
    pub is_draining: AtomicBool,
    limits: QueueLimits,
    backlog: Mutex<Backlog>,
    /// Requests that were taken and have not ended.
    unfinished: AtomicUsize,
    stats: Mutex<ServiceStats>,
    /// When the thread was last seen at work or idle.
    tick: Mutex<Instant>,
}

impl Shared {
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Loading(LoadProgress::default())),
            is_draining: AtomicBool::new(false),
            limits,
            backlog: Mutex::default(),
            unfinished: AtomicUsize::new(0),
            stats: Mutex::default(),
            tick: Mutex::new(Instant::now()),
        }
    }

    /// Takes room in the queue for requests that come together. Where nothing waits there is room
    /// for any number.
    ///
    /// # Errors
    /// There is none, or nothing is taken any more.
    pub fn enqueue(&self, requests: usize, prompt_tokens: usize) -> Result<(), ServiceError> {
        if self.is_draining.load(Ordering::SeqCst) {
            return Err(ServiceError::ShuttingDown);
        }
        let (mut waiting, limits) = (lock(&self.backlog), self.limits);
        let full = waiting.requests + requests > limits.requests
            || waiting.prompt_tokens + prompt_tokens > limits.prompt_tokens;
        if full && waiting.requests > 0 {
            return Err(ServiceError::QueueFull { waiting: *waiting, limits });
        }
        waiting.requests += requests;
        waiting.prompt_tokens += prompt_tokens;
        Ok(())
    }

    /// Gives room in the queue back.
    pub fn dequeue(&self, prompt_tokens: usize) {
        let mut waiting = lock(&self.backlog);
        waiting.requests -= 1;
        waiting.prompt_tokens -= prompt_tokens;
    }

    pub fn unfinished(&self) -> usize {
        self.unfinished.load(Ordering::SeqCst)
    }

    pub fn backlog(&self) -> Backlog {
        *lock(&self.backlog)
    }

    pub fn stats(&self) -> ServiceStats {
        ServiceStats { waiting: self.backlog(), ..*lock(&self.stats) }
    }

    pub fn set_stats(&self, stats: ServiceStats) {
        *lock(&self.stats) = stats;
        self.tick();
    }

    pub fn tick(&self) {
        *lock(&self.tick) = Instant::now();
    }

    pub fn last_tick(&self) -> Instant {
        *lock(&self.tick)
    }
}

/// Counts a request as long as it lives.
pub(super) struct Unfinished(Arc<Shared>);

impl Unfinished {
    pub fn new(shared: &Arc<Shared>) -> Self {
        shared.unfinished.fetch_add(1, Ordering::SeqCst);
        Self(shared.clone())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.unfinished.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Nothing that holds one of these locks can panic; if it did, the numbers would still be numbers.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
