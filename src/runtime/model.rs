//! A loaded model: weights on devices, and its programs, compiled when they are first needed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    bridge,
    error::{Error, Result},
    platform::Platform,
    program_cache::{Origin, ProgramCache},
    weights::{self, Placement},
};
use crate::{
    checkpoint::Checkpoint,
    gemma::{Config, Program, ProgramSpec, Target, weights::StoredTypes},
    hlo::{DType, Mesh},
    pjrt::{Buffer, Client, CompileOptions, Device, Executable},
};

/// How a model is to be run.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    pub mesh: Mesh,
    /// Type of activations: BF16 or F32.
    pub compute: DType,
    /// Type of keys and values in the cache: that of activations, or S8.
    pub kv: DType,
    /// On CPU: products and attention by `crate::kernels`, not by XLA. See [`crate::kernels::are_fast`].
    pub kernels: bool,
}

/// Programs made ready so far, and how long was waited for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompileReport {
    pub compiled: usize,
    pub cached: usize,
    pub time: Duration,
}

/// A model on devices.
pub struct Model {
    pub(super) config: Config,
    pub(super) options: ModelOptions,
    pub(super) target: Target,
    stored: StoredTypes,
    pub(super) client: Client,
    pub(super) devices: Vec<Device>,
    /// `[device][tensor]`, in the order of [`tensors`].
    pub(super) weights: Vec<Vec<Buffer>>,
    placement: Placement,
    cache: ProgramCache,
    programs: Mutex<HashMap<String, Arc<Executable>>>,
    report: Mutex<CompileReport>,
}

impl Model {
    /// Checks the checkpoint against the config, and places its weights on the mesh's devices.
    pub fn load(
        platform: &Platform,
        checkpoint: &Checkpoint,
        config: Config,
        options: ModelOptions,
        warn: fn(&str),
    ) -> Result<Self> {
        config.check_mesh(options.mesh)?;
        let (mut stored, pairs) = weights::select(checkpoint, &config)?;
        stored.check(&config, options.mesh)?;
        let devices = platform.devices(options.mesh.devices())?;
        let target = bridge::target(platform.kind, options.kernels);
        stored.shifted = weights::are_shifted(target, &stored, &pairs);
        let (weights, placement) =
            weights::place(&platform.client, target, &devices, &config, options.mesh, &stored, &pairs)?;
        if placement.unaligned > 0 {
            warn(&format!(
                "note: {:.2} GiB of weights are not aligned to 64 bytes in their files, and were copied instead of mapped",
                placement.unaligned as f64 / f64::from(1 << 30)
            ));
        }
        Ok(Self {
            config,
            options,
            target,
            stored,
            client: platform.client.clone(),
            devices,
            weights,
            placement,
            cache: ProgramCache::new(platform, warn),
            programs: Mutex::default(),
            report: Mutex::default(),
        })
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The devices that it is placed on.
    pub fn mesh(&self) -> Mesh {
        self.options.mesh
    }

    /// How the weights were placed.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Programs made ready so far.
    pub fn compile_report(&self) -> CompileReport {
        *self.report.lock().expect("no panic while held")
    }

    /// All that determines this program's graph.
    pub fn spec(&self, program: Program, slots: i64, cache_len: i64, window: i64) -> ProgramSpec {
        ProgramSpec {
            program,
            target: self.target,
            config: self.config.clone(),
            mesh: self.options.mesh,
            compute: self.options.compute,
            kv: self.options.kv,
            stored: self.stored.clone(),
            slots,
            cache_len,
            window: if self.target.has_windows() { window } else { cache_len },
        }
    }

    /// The compiled program: from memory, from the disk cache, or compiled now.
    pub fn program(&self, spec: &ProgramSpec) -> Result<Arc<Executable>> {
        let name = spec.name();
        let known = self.programs.lock().expect("no panic while held").get(&name).cloned();
        known.map_or_else(|| self.waited_for(|| self.make(spec, name)), Ok)
    }

    /// Makes several programs ready, side by side.
    pub fn prepare(&self, mut specs: Vec<ProgramSpec>) -> Result<()> {
        specs.dedup();
        let known = self.programs.lock().expect("no panic while held");
        specs.retain(|spec| !known.contains_key(&spec.name()));
        drop(known);
        self.waited_for(|| {
            std::thread::scope(|scope| {
                let make = |spec| scope.spawn(move || self.make(spec, spec.name()).map(drop));
                let threads: Vec<_> = specs.iter().map(make).collect();
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

    fn make(&self, spec: &ProgramSpec, name: String) -> Result<Arc<Executable>> {
        let module = spec.build().map_err(|cause| Error::Graph { program: name.clone(), cause })?;
        let ids: std::result::Result<Vec<i32>, _> = self.devices.iter().map(Device::id).collect();
        let ids = ids.map_err(|cause| Error::Pjrt { doing: "reading device ids".into(), cause })?;
        let (executable, origin) = self.cache.get(&self.client, &module, &CompileOptions::replicas(ids))?;
        let mut report = self.report.lock().expect("no panic while held");
        match origin {
            Origin::Compiled => report.compiled += 1,
            Origin::Cache => report.cached += 1,
        }
        drop(report);
        let mut programs = self.programs.lock().expect("no panic while held");
        Ok(programs.entry(name).or_insert(Arc::new(executable)).clone())
    }
}
