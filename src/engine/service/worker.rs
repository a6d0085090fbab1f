//! The engine's thread.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use super::{
    fair::FairQueue,
    state::{Failure, Happened, LoadProgress, Phase, ServiceStats, Shared, Unfinished, Update, Work},
};
use crate::{
    engine::{Engine, Event, RequestId},
    runtime::Error,
    shield::panic_message,
};

/// Makes an engine, with empty caches.
pub type MakeEngine = Box<dyn FnMut() -> Result<Engine, Error> + Send>;

/// What callers tell the thread.
pub(super) enum Command {
    Submit(Box<Job>),
    Cancel(u64),
    Stop,
}

/// A request that was taken.
pub(super) struct Job {
    pub ticket: u64,
    pub work: Work,
    pub key: Arc<str>,
    /// When it ends at the latest, and how long after its arrival that is.
    pub deadline: Option<(Instant, Duration)>,
    pub updates: UnboundedSender<Update>,
    pub _unfinished: Unfinished,
}

/// A request that the engine has.
struct Running {
    ticket: u64,
    key: Arc<str>,
    deadline: Option<(Instant, Duration)>,
    updates: UnboundedSender<Update>,
    /// Tokens of the prompt while it waits for its first slot.
    waiting_tokens: Option<usize>,
    /// Answers that are not finished.
    remaining: usize,
    _unfinished: Unfinished,
}

/// The state of the thread.
pub(super) struct Worker<'s> {
    shared: &'s Shared,
    inbox: Receiver<Command>,
    engine: Engine,
    make: MakeEngine,
    waiting: FairQueue<Job>,
    running: HashMap<RequestId, Running>,
    restarts: u64,
    programs_when_ready: usize,
}

/// How the thread goes on.
enum Next {
    Continue,
    /// With a new engine: the old one cannot go on, for this reason.
    Restart(String),
    End,
}

impl<'s> Worker<'s> {
    /// Loads, and serves until it is told to stop, all handles are gone, or the engine is lost.
    pub fn run(
        inbox: Receiver<Command>,
        shared: &'s Shared,
        load: impl FnOnce(&(dyn Fn(LoadProgress) + Sync)) -> Result<MakeEngine, String>,
    ) {
        let on_progress = |progress: LoadProgress| {
            shared.tick();
            shared.phase.send_replace(Phase::Loading(progress));
        };
        let loaded = shielded(|| {
            let mut make = load(&on_progress)?;
            make().map(|engine| (make, engine)).map_err(|e| e.to_string())
        });
        let (make, engine) = match loaded.and_then(|loaded| loaded) {
            Ok(loaded) => loaded,
            Err(reason) => {
                shared.phase.send_replace(Phase::Lost(reason));
                return;
            }
        };
        let programs_when_ready = engine.programs_made();
        let (waiting, running) = (FairQueue::new(), HashMap::new());
        let mut worker = Worker { shared, inbox, engine, make, waiting, running, restarts: 0, programs_when_ready };
        worker.report();
        shared.phase.send_replace(Phase::Ready);
        loop {
            match worker.turn() {
                Next::Continue => {}
                Next::Restart(reason) => match worker.restarted(&reason) {
                    Some(restarted) => worker = restarted,
                    None => return,
                },
                Next::End => break,
            }
        }
        worker.fail_running(&Failure::ShuttingDown);
        worker.fail_waiting(&Failure::ShuttingDown);
        worker.report();
    }

    /// Takes commands, and runs a step.
    fn turn(&mut self) -> Next {
        if let Next::End = self.take_commands() {
            return Next::End;
        }
        self.end_late_requests();
        self.submit_waiting();
        if self.engine.is_idle() {
            self.report();
            return Next::Continue;
        }
        let (engine, before) = (&mut self.engine, Instant::now());
        let stepped = shielded(|| engine.step().map_err(|e| e.to_string()));
        match stepped.and_then(|events| events) {
            Ok(events) => {
                let after = Instant::now();
                for event in events {
                    // Slots are given at the beginning of a step, tokens come at its end.
                    let at = if matches!(event, Event::Started { .. }) { before } else { after };
                    self.pass_on(event, at);
                }
                self.report();
                Next::Continue
            }
            Err(reason) => Next::Restart(reason),
        }
    }

    /// Takes all commands that are there; waits for one if there is nothing to do.
    fn take_commands(&mut self) -> Next {
        let mut is_idle = self.engine.is_idle() && self.waiting.is_empty();
        loop {
            let command = if is_idle {
                // Idle is alive, too.
                match self.inbox.recv_timeout(Duration::from_secs(1)) {
                    Err(RecvTimeoutError::Timeout) => {
                        self.shared.tick();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return Next::End,
                    Ok(command) => command,
                }
            } else {
                match self.inbox.try_recv() {
                    Err(TryRecvError::Empty) => return Next::Continue,
                    Err(TryRecvError::Disconnected) => return Next::End,
                    Ok(command) => command,
                }
            };
            is_idle = false;
            match command {
                Command::Submit(job) => {
                    let key = job.key.clone();
                    self.waiting.push(&key, *job);
                }
                Command::Cancel(ticket) => self.cancel(ticket),
                Command::Stop => return Next::End,
            }
        }
    }

    /// Forgets a request. What its slot has cached stays.
    fn cancel(&mut self, ticket: u64) {
        for job in self.waiting.take_unless(|job| job.ticket != ticket) {
            self.shared.dequeue(job.work.prompt_tokens());
        }
        let id = self.running.iter().find(|(_, running)| running.ticket == ticket).map(|(id, _)| *id);
        if let Some(id) = id {
            self.engine.cancel(id);
            self.forget(id);
        }
    }

    fn forget(&mut self, id: RequestId) -> Option<Running> {
        let running = self.running.remove(&id)?;
        if let Some(tokens) = running.waiting_tokens {
            self.shared.dequeue(tokens);
        }
        Some(running)
    }

    fn end_late_requests(&mut self) {
        let now = Instant::now();
        let is_late = |deadline: &Option<(Instant, Duration)>| deadline.is_some_and(|(at, _)| at <= now);
        for job in self.waiting.take_unless(|job| !is_late(&job.deadline)) {
            self.shared.dequeue(job.work.prompt_tokens());
            let timeout = job.deadline.map_or(Duration::ZERO, |(_, timeout)| timeout);
            send(&job.updates, now, Happened::Failed(Failure::DeadlineExceeded(timeout)));
        }
        let late = self.running.iter().filter(|(_, running)| is_late(&running.deadline)).map(|(id, _)| *id);
        for id in late.collect::<Vec<_>>() {
            self.engine.cancel(id);
            let Some(running) = self.forget(id) else { continue };
            let timeout = running.deadline.map_or(Duration::ZERO, |(_, timeout)| timeout);
            send(&running.updates, now, Happened::Failed(Failure::DeadlineExceeded(timeout)));
        }
    }

    /// Gives the engine as many requests as one batch takes: what waits longer waits in the fair
    /// queue.
    fn submit_waiting(&mut self) {
        while self.engine.load().0 < self.engine.slots() {
            let Some(Job { ticket, work, key, deadline, updates, _unfinished }) = self.waiting.pop() else { return };
            let prompt_tokens = work.prompt_tokens();
            let (submitted, answers) = match work {
                Work::Generate(request) => {
                    let n = request.n;
                    (self.engine.submit(*request), n)
                }
                Work::Score(request) => (self.engine.submit_score(&request), 1),
            };
            self.waiting.charge(&key, prompt_tokens as u64);
            match submitted {
                Ok(id) => {
                    let waiting_tokens = Some(prompt_tokens);
                    let remaining = answers;
                    let running = Running { ticket, key, deadline, updates, waiting_tokens, remaining, _unfinished };
                    self.running.insert(id, running);
                }
                Err(refusal) => {
                    // The handle checked the same before.
                    self.shared.dequeue(prompt_tokens);
                    send(&updates, Instant::now(), Happened::Failed(Failure::Step(refusal.to_string())));
                }
            }
        }
    }

    /// Passes an event on to whose it is.
    fn pass_on(&mut self, event: Event, at: Instant) {
        let id = event.id();
        let Some(running) = self.running.get_mut(&id) else { return };
        let was_waiting = running.waiting_tokens.take();
        if let Some(tokens) = was_waiting {
            self.shared.dequeue(tokens);
        }
        let (happened, is_end) = match event {
            // The sequences of a scored text share their beginning, which the first one tells.
            Event::Started { index: 0, .. } if was_waiting.is_none() => return,
            Event::Started { index, cached, .. } => (Happened::Started { index, cached }, false),
            Event::Tokens { index, tokens, text, .. } => {
                self.waiting.charge(&running.key, tokens.len() as u64);
                (Happened::Tokens { index, tokens, text }, false)
            }
            Event::Finished { index, answer, .. } => {
                running.remaining -= 1;
                (Happened::Finished { index, answer }, running.remaining == 0)
            }
            Event::Scored { likelihoods, .. } => (Happened::Scored(likelihoods), true),
            Event::Failed { error, by_request: true, .. } => (Happened::Failed(Failure::Constraint(error)), true),
            Event::Failed { error, .. } => (Happened::Failed(Failure::Step(error)), true),
        };
        send(&running.updates, at, happened);
        if is_end {
            self.forget(id);
        }
    }

    /// Goes on with a new engine, or not at all.
    fn restarted(mut self, reason: &str) -> Option<Self> {
        tracing::warn!("the engine failed and is started again: {reason}");
        self.fail_running(&Failure::Step(reason.to_owned()));
        let Self { shared, inbox, engine, mut make, mut waiting, running, restarts, programs_when_ready } = self;
        drop(engine); // its caches make room for the new ones
        match shielded(|| make().map_err(|e| e.to_string())).and_then(|engine| engine) {
            Ok(engine) => {
                let restarts = restarts + 1;
                let worker = Self { shared, inbox, engine, make, waiting, running, restarts, programs_when_ready };
                worker.report();
                Some(worker)
            }
            Err(again) => {
                let lost = format!("{reason}; and starting again failed: {again}");
                shared.phase.send_replace(Phase::Lost(lost.clone()));
                fail_waiting(shared, &inbox, &mut waiting, &Failure::Step(lost));
                None
            }
        }
    }

    /// Ends the requests that the engine has.
    fn fail_running(&mut self, failure: &Failure) {
        let now = Instant::now();
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            if let Some(running) = self.forget(id) {
                send(&running.updates, now, Happened::Failed(failure.clone()));
            }
        }
    }

    fn fail_waiting(&mut self, failure: &Failure) {
        fail_waiting(self.shared, &self.inbox, &mut self.waiting, failure);
    }

    fn report(&self) {
        let waiting = self.shared.backlog();
        self.shared.set_stats(ServiceStats::of(&self.engine, waiting, self.restarts, self.programs_when_ready));
    }
}

/// Ends the requests that the engine does not have yet.
fn fail_waiting(shared: &Shared, inbox: &Receiver<Command>, waiting: &mut FairQueue<Job>, failure: &Failure) {
    let unseen = inbox.try_iter().filter_map(|command| match command {
        Command::Submit(job) => Some(*job),
        Command::Cancel(_) | Command::Stop => None,
    });
    for job in waiting.take_unless(|_| false).into_iter().chain(unseen) {
        shared.dequeue(job.work.prompt_tokens());
        send(&job.updates, Instant::now(), Happened::Failed(failure.clone()));
    }
}

/// Runs a part of the engine's work. A panic in it is an error.
fn shielded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    let result = catch_unwind(AssertUnwindSafe(run));
    result.map_err(|panic| format!("a defect of this program ({}); please report it", panic_message(&*panic)))
}

/// Sends an update. Nobody may be waiting for it any more: the cancellation is on its way then.
fn send(updates: &UnboundedSender<Update>, at: Instant, happened: Happened) {
    let _ = updates.send(Update { at, happened });
}
