//! A loaded model: weights on devices, and its programs.

use std::sync::Arc;

use super::{
    bundle::Bundle,
    error::Result,
    loading::{Job, OnProgress, Placed, Weights},
    platform::Platform,
    program_cache::ProgramCache,
    programs::{CompileReport, Programs},
    weights::{self, Placement},
};
use crate::{
    checkpoint::Checkpoint,
    gemma::{Config, Program, ProgramSpec, Target, weights::StoredTypes},
    hlo::{DType, Mesh},
    pjrt::Executable,
};

/// How a model is to be run.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// What programs are emitted for; see [`super::target`] for what a platform wants. The CPU can run programs for a TPU, too.
    pub target: Target,
    pub mesh: Mesh,
    /// Type of activations: BF16 or F32.
    pub compute: DType,
    /// Type of keys and values in the cache: that of activations, or S8.
    pub kv: DType,
    /// Programs that were compiled ahead of time.
    pub bundle: Option<Bundle>,
}

/// A model on devices.
pub struct Model {
    pub(super) config: Config,
    pub(super) options: ModelOptions,
    stored: StoredTypes,
    weights: Weights,
    pub(super) programs: Arc<Programs>,
}

impl Model {
    /// Checks the checkpoint against the config, and places its weights on the mesh's devices: on accelerators in the background,
    /// so that programs can be compiled meanwhile. `on_progress` is told of copied bytes.
    pub fn load(
        platform: &Platform,
        checkpoint: &Checkpoint,
        config: Config,
        options: ModelOptions,
        warn: fn(&str),
        on_progress: OnProgress,
    ) -> Result<Self> {
        let ModelOptions { target, mesh, .. } = options;
        options.bundle.as_ref().map_or(Ok(()), |bundle| bundle.check(platform))?;
        config.check_mesh(mesh)?;
        let (mut stored, pairs) = weights::select(checkpoint, &config)?;
        stored.check(target, &config, mesh)?;
        let devices = platform.devices(mesh.devices())?;
        stored.shifted = weights::are_shifted(target, &stored, &pairs);
        let programs =
            Arc::new(Programs::new(platform, devices, ProgramCache::new(platform, options.bundle.clone(), warn))?);
        let weights = if target.stacks_layers() {
            let job = Job::new(programs.clone(), target, config.clone(), mesh, stored.clone(), &pairs)?;
            Weights::load(job, on_progress)
        } else {
            let (client, devices) = (&programs.client, &programs.devices);
            let (buffers, placement) = weights::place(client, target, devices, &config, mesh, &stored, &pairs)?;
            if placement.unaligned > 0 {
                warn(&format!(
                    "note: {:.2} GiB of weights are not aligned to 64 bytes in their files, and were copied instead of mapped",
                    placement.unaligned as f64 / f64::from(1 << 30)
                ));
            }
            Weights::placed(buffers, placement)
        };
        Ok(Self { config, options, stored, weights, programs })
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The devices that it is placed on.
    pub fn mesh(&self) -> Mesh {
        self.options.mesh
    }

    /// The weights, once they are there.
    pub(super) fn weights(&self) -> Result<&Placed> {
        self.weights.get()
    }

    /// How the weights were placed; waits until they are.
    pub fn placement(&self) -> Result<Placement> {
        Ok(self.weights()?.placement)
    }

    /// Programs made ready so far.
    pub fn compile_report(&self) -> CompileReport {
        self.programs.report()
    }

    /// All that determines this program's graph.
    pub fn spec(&self, program: Program, slots: i64, cache_len: i64, window: i64) -> ProgramSpec {
        let ModelOptions { target, mesh, compute, kv, .. } = self.options;
        ProgramSpec {
            program,
            target,
            config: self.config.clone(),
            mesh,
            compute,
            kv,
            stored: self.stored.clone(),
            slots,
            cache_len,
            window: if target.has_windows() { window } else { cache_len },
        }
    }

    /// The compiled program: from memory, from the disk cache, or compiled now.
    pub fn program(&self, spec: &ProgramSpec) -> Result<Arc<Executable>> {
        self.programs.get(spec)
    }

    /// Makes several programs ready, side by side.
    pub fn prepare(&self, specs: Vec<ProgramSpec>) -> Result<()> {
        self.programs.prepare(specs)
    }
}
