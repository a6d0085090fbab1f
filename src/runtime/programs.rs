//! The programs of a model on its devices: compiled when they are first needed, or loaded from the disk cache.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    error::{Error, Result, While},
    host_memory,
    platform::Platform,
    program_cache::{Origin, ProgramCache},
};
use crate::{
    gemma::ProgramSpec,
    hlo::{HloError, Module},
    pjrt::{Client, CompileOptions, Device, Executable},
    plugins::Kind,
};

/// Returns the id of this process's next execution: 1, 2, 3, and so on, and 1 again after the last `i32`.
pub(super) fn next_launch_id() -> i32 {
    static LAUNCHES: AtomicU32 = AtomicU32::new(0);
    (LAUNCHES.fetch_add(1, Ordering::Relaxed) % i32::MAX as u32) as i32 + 1
}

/// Programs made ready so far, and how long was waited for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompileReport {
    pub compiled: usize,
    pub cached: usize,
    pub time: Duration,
}

/// Programs on these devices.
pub(super) struct Programs {
    pub client: Client,
    pub devices: Vec<Device>,
    /// Whether their memory is the host's.
    on_host: bool,
    options: CompileOptions,
    cache: ProgramCache,
    made: Mutex<HashMap<String, Arc<Executable>>>,
    report: Mutex<CompileReport>,
}

impl Programs {
    pub fn new(platform: &Platform, devices: Vec<Device>, cache: ProgramCache) -> Result<Self> {
        let ids: std::result::Result<Vec<i32>, _> = devices.iter().map(Device::id).collect();
        Ok(Self {
            client: platform.client.clone(),
            options: CompileOptions::replicas(ids.during(|| "reading device ids".into())?),
            devices,
            on_host: platform.kind == Kind::Cpu,
            cache,
            made: Mutex::default(),
            report: Mutex::default(),
        })
    }

    /// Refuses to allocate what the host has no memory for. Devices with memory of their own say themselves when it is full.
    pub fn require_memory(&self, bytes: u64, doing: impl FnOnce() -> String) -> Result<()> {
        if self.on_host { host_memory::require(bytes, doing) } else { Ok(()) }
    }

    pub fn report(&self) -> CompileReport {
        *self.report.lock().expect("no panic while held")
    }

    /// The compiled program: from memory, from the disk cache, or compiled now.
    pub fn get(&self, spec: &ProgramSpec) -> Result<Arc<Executable>> {
        let name = spec.name();
        let known = self.made.lock().expect("no panic while held").get(&name).cloned();
        known.map_or_else(|| self.waited_for(|| self.make(name, || spec.build())), Ok)
    }

    /// Makes several programs ready, side by side.
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

    /// Adds the time of making programs to the report.
    fn waited_for<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let made = make();
        self.report.lock().expect("no panic while held").time += started.elapsed();
        made
    }

    /// Makes a program of this name, which tells all that it depends on besides the model.
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
