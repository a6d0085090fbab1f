//! The callers' side.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    task::{Context, Poll},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc as channel, watch};

use super::{
    state::{LoadProgress, Phase, QueueLimits, ServiceError, ServiceStats, Shared, Unfinished, Update, Work},
    worker::{Command, Job, MakeEngine, Worker},
};

/// A request, whose it is, and how long it may take.
#[derive(Clone, Debug)]
pub struct Submission {
    pub work: Work,
    /// Requests of different keys share the engine fairly.
    pub key: Arc<str>,
    /// The longest time until its end, waiting included.
    pub timeout: Option<Duration>,
}

/// A handle to the engine's thread. The thread ends when all handles are gone.
#[derive(Clone)]
pub struct Service {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    next_ticket: Arc<AtomicU64>,
    sizes: Sizes,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// Sizes against which requests are checked before they are queued.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    cache_len: i64,
    vocab: i64,
}

impl Service {
    /// Starts the engine's thread. It calls `load`, which may take minutes, and which returns how
    /// to make an engine, of slots of `cache_len` tokens for a vocabulary of `vocab`.
    pub fn start(
        load: impl FnOnce(&(dyn Fn(LoadProgress) + Sync)) -> Result<MakeEngine, String> + Send + 'static,
        (cache_len, vocab): (i64, i64),
        limits: QueueLimits,
    ) -> Self {
        let (commands, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::new(limits));
        let of_thread = shared.clone();
        let thread = thread::Builder::new().name("engine".into());
        let thread = thread.spawn(move || Worker::run(inbox, &of_thread, load)).expect("the system gives a thread");
        Self {
            commands,
            shared,
            next_ticket: Arc::default(),
            sizes: Sizes { cache_len, vocab },
            thread: Arc::new(Mutex::new(Some(thread))),
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// It can never be run, there is no room for it, or nothing is taken now.
    pub fn submit(&self, submission: Submission) -> Result<Updates, ServiceError> {
        let Submission { work, key, timeout } = submission;
        Ok(self.submit_all(vec![work], &key, timeout)?.remove(0))
    }

    /// Queues requests that come together, all or none.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_all(
        &self,
        works: Vec<Work>,
        key: &Arc<str>,
        timeout: Option<Duration>,
    ) -> Result<Vec<Updates>, ServiceError> {
        match &*self.shared.phase.borrow() {
            Phase::Loading(_) => return Err(ServiceError::Loading),
            Phase::Lost(reason) => return Err(ServiceError::Lost(reason.clone())),
            Phase::Ready => {}
        }
        works.iter().try_for_each(|work| work.check(self.sizes.cache_len, self.sizes.vocab))?;
        self.shared.enqueue(works.len(), works.iter().map(Work::prompt_tokens).sum())?;
        let submitted = Instant::now();
        let deadline = timeout.and_then(|timeout| Some((submitted.checked_add(timeout)?, timeout)));
        let submit = |work: Work| {
            let prompt_tokens = work.prompt_tokens();
            let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
            let (sender, receiver) = channel::unbounded_channel();
            let unfinished = Unfinished::new(&self.shared);
            let job = Job { ticket, work, key: key.clone(), deadline, updates: sender, _unfinished: unfinished };
            if self.commands.send(Command::Submit(Box::new(job))).is_err() {
                // The thread has ended: the channel of updates is closed, too.
                self.shared.dequeue(prompt_tokens);
            }
            Updates { receiver, ticket, submitted, commands: self.commands.clone() }
        };
        Ok(works.into_iter().map(submit).collect())
    }

    /// Returns the state after the engine's last step.
    pub fn stats(&self) -> ServiceStats {
        self.shared.stats()
    }

    /// Returns the number of requests that were taken and have not ended.
    pub fn unfinished(&self) -> usize {
        self.shared.unfinished()
    }

    /// Returns how far the engine is, now and later.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// Returns how long the engine's thread has been in one step, or in loading.
    pub fn since_last_step(&self) -> Duration {
        self.shared.last_tick().elapsed()
    }

    /// Returns the number of tokens that a slot holds.
    pub fn context(&self) -> usize {
        self.sizes.cache_len as usize
    }

    /// Takes no more requests; those that were taken go on.
    pub fn drain(&self) {
        self.shared.is_draining.store(true, Ordering::SeqCst);
    }

    /// Returns whether requests are refused because the end is near.
    pub fn is_draining(&self) -> bool {
        self.shared.is_draining.load(Ordering::SeqCst)
    }

    /// Ends all requests and the thread, and waits for it: nothing may run inside a plugin when the
    /// process ends.
    pub fn stop(&self) {
        self.drain();
        let _ = self.commands.send(Command::Stop);
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// What happens to a request. Dropping it cancels the request.
pub struct Updates {
    receiver: channel::UnboundedReceiver<Update>,
    ticket: u64,
    /// When it was queued.
    pub submitted: Instant,
    commands: mpsc::Sender<Command>,
}

impl Updates {
    /// Waits for the next update; `None` if there are no more.
    pub async fn next(&mut self) -> Option<Update> {
        self.receiver.recv().await
    }

    /// As [`Self::next`], as a poll.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Update>> {
        self.receiver.poll_recv(context)
    }

    /// As [`Self::next`], outside of asynchronous code.
    pub fn blocking_next(&mut self) -> Option<Update> {
        self.receiver.blocking_recv()
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        // The thread may be gone, and the request with it.
        let _ = self.commands.send(Command::Cancel(self.ticket));
    }
}
