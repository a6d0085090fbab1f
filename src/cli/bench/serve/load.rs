//! The two ways to load a server: closed loop and open loop.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::sleep_until};

use super::{
    answer::Record,
    metrics::{Level, Load, Sample},
    random::Random,
};

/// When a level ends: no further requests are sent after either.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub requests: Option<usize>,
    pub duration: Option<Duration>,
}

impl Extent {
    fn includes(self, index: usize, elapsed: Duration) -> bool {
        self.requests.is_none_or(|requests| index < requests) && self.duration.is_none_or(|duration| elapsed < duration)
    }
}

/// Sends requests until the level's end or `stop`, and waits for the answers, except after `stop`.
/// `send` sends the request of an index.
pub(super) async fn run<F, Answering>(
    load: Load,
    extent: Extent,
    seed: u64,
    send: F,
    stop: impl Future<Output = ()>,
) -> Level
where
    F: Fn(usize) -> Answering + Clone + Send + 'static,
    Answering: Future<Output = Record> + Send + 'static,
{
    let samples = Arc::new(Mutex::new(Vec::new()));
    let started = Instant::now();
    // Dropping the tasks ends their requests.
    let mut tasks = JoinSet::new();
    let work = async {
        match load {
            Load::Users(users) => closed_loop(users, extent, started, &send, &samples, &mut tasks),
            Load::Rate(rate) => open_loop(rate, extent, seed, started, &send, &samples, &mut tasks).await,
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    };
    tokio::select! {
        () = work => (),
        () = stop => (),
    }
    drop(tasks);
    let samples = std::mem::take(&mut *lock(&samples));
    Level { load, started, samples }
}

fn closed_loop<F, Answering>(
    users: u32,
    extent: Extent,
    started: Instant,
    send: &F,
    samples: &Arc<Mutex<Vec<Sample>>>,
    tasks: &mut JoinSet<()>,
) where
    F: Fn(usize) -> Answering + Clone + Send + 'static,
    Answering: Future<Output = Record> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    for _ in 0..users {
        let (send, samples, next) = (send.clone(), samples.clone(), next.clone());
        tasks.spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if !extent.includes(index, started.elapsed()) {
                    break;
                }
                let record = send(index).await;
                lock(&samples).push(Sample { due: record.sent, record });
            }
        });
    }
}

async fn open_loop<F, Answering>(
    rate: f64,
    extent: Extent,
    seed: u64,
    started: Instant,
    send: &F,
    samples: &Arc<Mutex<Vec<Sample>>>,
    tasks: &mut JoinSet<()>,
) where
    F: Fn(usize) -> Answering + Clone + Send + 'static,
    Answering: Future<Output = Record> + Send + 'static,
{
    // A stream of its own: the prompts' are those of (seed, index).
    let mut random = Random::new(!seed, 0);
    let mut after = Duration::ZERO;
    for index in 0.. {
        // Times are added up from the start, so that late ones do not move those that follow.
        after += Duration::try_from_secs_f64(random.exponential(rate)).unwrap_or(Duration::MAX / 4);
        if !extent.includes(index, after) {
            break;
        }
        let due = started + after;
        sleep_until(due.into()).await;
        let (send, samples) = (send.clone(), samples.clone());
        tasks.spawn(async move {
            let record = send(index).await;
            lock(&samples).push(Sample { due, record });
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
