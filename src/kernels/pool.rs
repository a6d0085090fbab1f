//! The thread pool that kernels share.
//!
//! A kernel cuts its work into chunks; the calling thread and the workers take them one by one.
//! Nobody waits for a worker that the system does not schedule: a worker takes part in a job only
//! if it arrives before the chunks are used up. After a job a worker spins for a short while,
//! because the next kernel of a layer comes soon, and then parks.
//!
//! One job runs at a time. A caller that finds the pool busy (with another device's program) does
//! its work alone.

use std::{
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Rounds of `spin_loop` before a worker parks: some 50 µs, the length of the operations between
/// two kernels.
const SPINS: u32 = 2000;

// The state: the number of workers inside, whether the pool is open to them, and the job's number.
const INSIDE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const JOB: u64 = 1 << 17;

/// Threads that work on one job at a time.
pub struct Pool {
    shared: Arc<SharedState>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose job runs.
    caller: Mutex<()>,
}

struct SharedState {
    state: AtomicU64,
    /// Valid while the pool is open or somebody is inside.
    job: UnsafeCell<*const Job>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only by the one caller, while the pool is closed and empty. It is read
// only by workers that entered after the pool was opened; `state` orders the two. The job itself
// may be shared.
unsafe impl Sync for SharedState {}
// SAFETY: as above; nothing in it is bound to a thread.
unsafe impl Send for SharedState {}

struct Job {
    work: *const (dyn Fn(usize) + Sync),
    chunks: usize,
    next: AtomicUsize,
    panicked: AtomicBool,
}

impl Pool {
    /// Starts a pool of `threads` threads, the caller among them.
    pub fn new(threads: usize) -> Self {
        let shared =
            SharedState { state: AtomicU64::new(0), job: UnsafeCell::new(ptr::null()), stop: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        let start = |number: usize| {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("kernels-{number}"));
            thread.spawn(move || shared.serve())
        };
        // If the system refuses threads, kernels are slower, but work.
        let workers = (1..threads).map_while(|number| start(number).ok()).collect();
        Self { shared, workers, caller: Mutex::new(()) }
    }

    /// Returns the number of threads, the caller among them.
    pub fn threads(&self) -> usize {
        1 + self.workers.len()
    }

    /// Runs `work(0)` to `work(chunks - 1)`, each once, on this thread and the workers.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run(&self, chunks: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime is erased, and no worker is in the job when this function
        // returns.
        let work = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        let job = Job { work, chunks, next: AtomicUsize::new(0), panicked: AtomicBool::new(false) };
        let caller = match self.caller.try_lock() {
            _ if chunks < 2 || self.workers.is_empty() => None,
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if caller.is_some() {
            self.shared.open(&job);
            self.workers.iter().for_each(|worker| worker.thread().unpark());
            job.help();
            self.shared.close();
        } else {
            job.help();
        }
        drop(caller);
        assert!(!job.panicked.load(Ordering::Relaxed), "a part of a kernel panicked");
    }

    /// Cuts `data` into chunks of `size` elements, of which the last may have fewer, and calls
    /// `work` once with each chunk's number and elements, on this thread and the workers.
    ///
    /// # Panics
    /// If `work` does, or `size` is 0.
    pub fn run_chunks<T: Send>(&self, data: &mut [T], size: usize, work: &(dyn Fn(usize, &mut [T]) + Sync)) {
        /// The first element.
        struct First<T>(*mut T);
        // SAFETY: a pointer to elements that may be sent, of which each thread gets disjoint
        // ranges.
        unsafe impl<T: Send> Sync for First<T> {}

        let (first, len) = (First(data.as_mut_ptr()), data.len());
        self.run(len.div_ceil(size), &|chunk| {
            let first = &first;
            let (from, to) = (chunk * size, len.min((chunk + 1) * size));
            // SAFETY: inside `data`, which stays borrowed; every chunk is run once, and no two
            // overlap.
            let elements = unsafe { std::slice::from_raw_parts_mut(first.0.add(from), to - from) };
            work(chunk, elements);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

impl Job {
    /// Takes chunks until there are none.
    fn help(&self) {
        // SAFETY: `Pool::run` keeps the closure until all have left the job.
        let work = unsafe { &*self.work };
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if chunk >= self.chunks {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| work(chunk))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl SharedState {
    /// Offers a job to the workers.
    fn open(&self, job: &Job) {
        // SAFETY: the pool is closed and empty: nobody reads the pointer.
        unsafe { *self.job.get() = job };
        let last = self.state.load(Ordering::Relaxed);
        self.state.store((last | OPEN) + JOB, Ordering::Release);
    }

    /// Closes the job to further workers, and waits for those inside to leave.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut rounds = 0_u32;
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            rounds += 1;
            if rounds.is_multiple_of(SPINS) { thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    /// Enters the job if there is one with another number than `known`, and returns its number.
    fn enter(&self, known: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Relaxed);
        let number = state / JOB;
        let entered = state & OPEN != 0
            && number != known
            && self.state.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        entered.then_some(number)
    }

    /// Runs a worker until the pool is dropped.
    fn serve(&self) {
        let (mut known, mut spins) = (0, 0);
        while !self.stop.load(Ordering::Acquire) {
            if let Some(number) = self.enter(known) {
                // SAFETY: this worker is inside, so the job is alive.
                unsafe { &**self.job.get() }.help();
                self.state.fetch_sub(1, Ordering::Release);
                (known, spins) = (number, 0);
            } else if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                // Whoever opens the pool unparks afterwards, so a job that came in between is not
                // slept through.
                thread::park();
                spins = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_done_once_whatever_the_threads() {
        for threads in [1, 2, 3, 64] {
            let pool = Pool::new(threads);
            for chunks in [0, 1, 2, 7, 1000] {
                for _ in 0..20 {
                    let done: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(chunks, &|chunk| {
                        done[chunk].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{threads} threads, {chunks} chunks");
                }
            }
        }
    }

    #[test]
    fn chunks_of_an_array_are_each_given_once() {
        let pool = Pool::new(3);
        for (len, size) in [(0, 4), (3, 4), (4, 4), (1001, 7)] {
            let mut numbers = vec![0; len];
            pool.run_chunks(&mut numbers, size, &|chunk, part| {
                part.iter_mut().enumerate().for_each(|(i, x)| *x += chunk * size + i + 1);
            });
            assert!(numbers.iter().enumerate().all(|(i, &x)| x == i + 1), "{len} in chunks of {size}");
        }
    }

    /// Jobs begin and end as fast as they can, with their data on the callers' stacks. A worker
    /// that stayed in a job after its end, or took a chunk twice, would write into another job's
    /// data.
    #[test]
    fn jobs_of_several_callers_keep_to_their_own_data() {
        for (threads, callers) in [(2, 1), (2, 2), (3, 4), (8, 3)] {
            let pool = Pool::new(threads);
            thread::scope(|scope| {
                for caller in 1..=callers {
                    let pool = &pool;
                    scope.spawn(move || {
                        for job in 0..5000_usize {
                            let mut sums = [0_usize; 16];
                            let (chunks, size) = (2 + job * 7 % 15, 1 + job % 2);
                            let used = &mut sums[..chunks.min(16)];
                            pool.run_chunks(used, size, &|chunk, part| {
                                part.iter_mut().enumerate().for_each(|(i, x)| *x += (chunk * size + i + job) * caller);
                            });
                            // Some workers park in between.
                            if job % 1000 == 0 {
                                thread::sleep(std::time::Duration::from_millis(1));
                            }
                            let right = |i: usize| if i < chunks { (i + job) * caller } else { 0 };
                            assert!(
                                sums.iter().enumerate().all(|(i, &x)| x == right(i)),
                                "{job} of {caller}: {sums:?}"
                            );
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_pool_is_dropped_whatever_its_workers_do() {
        for spins in 0..300_u32 {
            let pool = Pool::new(3);
            let total = AtomicUsize::new(0);
            pool.run(8, &|_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
            // Workers have not begun yet, spin or are parked.
            (0..spins * 50).for_each(|_| std::hint::spin_loop());
            drop(pool);
            assert_eq!(total.into_inner(), 8);
        }
    }

    #[test]
    fn a_panic_in_a_chunk_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, &|chunk| assert!(chunk != 5, "unlucky"))));
        assert!(result.is_err());
        let total = AtomicUsize::new(0);
        pool.run(10, &|_| {
            total.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(total.into_inner(), 10);
    }
}
