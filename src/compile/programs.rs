//! The programs of a model on its devices: compiled when they are first needed, or loaded from the
//! disk cache.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::disk_cache::{DiskCache, Origin};
use crate::{
    device::{DeviceGrid, During, Error, Platform, Result, host_memory},
    gemma::ProgramSpec,
    hlo::{HloError, Module},
    pjrt::{Arg, Buffer, Client, CompileOptions, Executable},
    plugins::Kind,
};

/// Programs made ready so far, and how long was waited for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompileReport {
    pub compiled: usize,
    pub cached: usize,
    pub time: Duration,
}

/// Programs on the devices of a grid.
pub struct Programs {
    pub client: Client,
    pub grid: DeviceGrid,
    /// Whether their memory is the host's.
    on_host: bool,
    options: CompileOptions,
    cache: DiskCache,
    made: Mutex<HashMap<String, Arc<Executable>>>,
    report: Mutex<CompileReport>,
}

impl Programs {
    /// Programs for the devices of this grid.
    pub fn new(platform: &Platform, grid: DeviceGrid, cache: DiskCache) -> Self {
        Self {
            client: platform.client.clone(),
            options: CompileOptions::replicas(grid.ids()),
            grid,
            on_host: platform.kind == Kind::Cpu,
            cache,
            made: Mutex::default(),
            report: Mutex::default(),
        }
    }

    /// Runs a program with the arguments of each local device; waits for its results,
    /// `[device][output]`.
    ///
    /// # Errors
    /// The plugin's; donated arguments are lost then.
    pub fn execute(
        &self,
        program: &Executable,
        args: Vec<Vec<Arg<'_>>>,
        doing: impl Fn() -> String,
    ) -> Result<Vec<Vec<Buffer>>> {
        program.execute(next_launch_id(), args).and_then(|execution| execution.wait()).during(doing)
    }

    /// Refuses to allocate what the host has no memory for. Devices with memory of their own say
    /// themselves when it is full.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn require_memory(&self, bytes: u64, doing: impl FnOnce() -> String) -> Result<()> {
        if self.on_host { host_memory::require(bytes, doing) } else { Ok(()) }
    }

    /// Programs made ready so far.
    pub fn report(&self) -> CompileReport {
        *self.report.lock().expect("no panic while held")
    }

    /// The compiled program: from memory, from the disk cache, or compiled now.
    ///
    /// # Errors
    /// The plugin's, or a graph that cannot be built.
    pub fn get(&self, spec: &ProgramSpec) -> Result<Arc<Executable>> {
        let name = spec.name();
        let known = self.made.lock().expect("no panic while held").get(&name).cloned();
        known.map_or_else(|| self.waited_for(|| self.make(name, || spec.build())), Ok)
    }

    /// Makes several programs ready, side by side.
    ///
    /// # Errors
    /// The first one's.
    pub fn prepare(&self, mut specs: Vec<ProgramSpec>) -> Result<()> {
        specs.dedup();
        let known = self.made.lock().expect("no panic while held");
        specs.retain(|spec| !known.contains_key(&spec.name()));
        drop(known);
        self.waited_for(|| {
            std::thread::scope(|scope| {
                let make = |spec: ProgramSpec| scope.spawn(move || self.make(spec.name(), || spec.build()).map(drop));
                let threads: Vec<_> = specs.into_iter().map(make).collect();
                threads.into_iter().try_for_each(|thread| thread.join().expect("compiling does not panic"))
            })
        })
    }

    /// Makes many programs ready, on so many threads. `on_progress` is told how many of how many
    /// are.
    ///
    /// # Errors
    /// The first one's.
    pub fn prepare_all(
        &self,
        specs: Vec<ProgramSpec>,
        threads: usize,
        on_progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<()> {
        let total = specs.len();
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let make = || -> Result<()> {
            while let Some(spec) = specs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let made = self.get(spec);
                if made.is_err() {
                    next.store(total, Ordering::Relaxed); // the others need not begin more
                }
                made?;
                on_progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
            }
            Ok(())
        };
        on_progress(0, total);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(make)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("compiling does not panic"))
        })
    }

    /// Adds the time of making programs to the report.
    fn waited_for<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let made = make();
        self.report.lock().expect("no panic while held").time += started.elapsed();
        made
    }

    /// Makes a program of this name, which tells all that it depends on besides the model.
    ///
    /// # Errors
    /// The plugin's, or a graph that cannot be built.
    pub fn make(
        &self,
        name: String,
        build: impl FnOnce() -> std::result::Result<Module, HloError>,
    ) -> Result<Arc<Executable>> {
        let module = build().map_err(|cause| Error::Graph { program: name.clone(), cause })?;
        let (executable, origin) = self.cache.get(&self.client, &module, &self.options)?;
        let mut report = self.report.lock().expect("no panic while held");
        match origin {
            Origin::Compiled => report.compiled += 1,
            Origin::Cache | Origin::Bundle => report.cached += 1,
        }
        drop(report);
        let mut made = self.made.lock().expect("no panic while held");
        Ok(made.entry(name).or_insert(Arc::new(executable)).clone())
    }
}

/// Returns the id of this process's next execution: 1, 2, 3, and so on, and 1 again after the last
/// `i32`. Processes that run one program together tell their executions apart by it.
fn next_launch_id() -> i32 {
    static LAUNCHES: AtomicU32 = AtomicU32::new(0);
    (LAUNCHES.fetch_add(1, Ordering::Relaxed) % i32::MAX as u32) as i32 + 1
}
