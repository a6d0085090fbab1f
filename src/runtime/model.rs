//! A loaded model: weights on devices, and its programs.

use std::sync::Arc;

use super::{
    buckets::{step_sizes, windows},
    loader::{OnProgress, PendingWeights, PlacedWeights, WeightLoader},
    placement::{self, Placement, StoredModel},
};
use crate::{
    checkpoint::Checkpoint,
    compile::{Bundle, CompileReport, DiskCache, Programs},
    device::{DeviceGrid, Error, Platform, Result},
    gemma::{Config, Head, Lowering, ModelSpec, Program, ProgramSpec, zeros},
    hlo::{DType, Mesh, Module, Shape},
    pjrt::Executable,
    sampling::Sampler,
};

/// How a model is to be run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// How programs are lowered; see [`crate::compile::lowering`] for what a platform wants. The
    /// CPU can run a TPU's programs, too.
    pub lowering: Lowering,
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
    spec: Arc<ModelSpec>,
    weights: PendingWeights,
    programs: Arc<Programs>,
}

impl Model {
    /// Checks the checkpoint against the config, and places its weights on the mesh's devices: on
    /// accelerators in the background, so that programs can be compiled meanwhile. `on_progress` is
    /// told of copied bytes.
    ///
    /// # Errors
    /// A checkpoint, mesh or bundle that does not fit, or too little memory.
    pub fn load(
        platform: &Platform,
        checkpoint: &Checkpoint,
        config: Config,
        options: RunOptions,
        on_progress: OnProgress,
    ) -> Result<Self> {
        let RunOptions { lowering, mesh, compute, kv, bundle } = options;
        bundle.as_ref().map_or(Ok(()), |bundle| bundle.check(platform))?;
        config.check_mesh(mesh)?;
        let StoredModel { config, types: stored, tensors: pairs } = placement::select(checkpoint, &config)?;
        let mut spec = ModelSpec { config, mesh, lowering, compute, kv, stored };
        spec.check()?;
        spec.stored.unaligned = placement::takes_unaligned(&spec, &pairs);
        let grid = DeviceGrid::new(platform, mesh)?;
        let programs = Arc::new(Programs::new(platform, grid, DiskCache::new(platform, bundle)));
        let spec = Arc::new(spec);
        let weights = if lowering.stacks_layers {
            PendingWeights::load(WeightLoader::new(programs.clone(), spec.clone(), &pairs)?, on_progress)
        } else {
            let placed = placement::place(&programs.client, &programs.grid, &spec, &pairs)?;
            if placed.placement.unaligned > 0 {
                tracing::info!(
                    "{:.2} GiB of weights are not aligned to 64 bytes in their files, and were copied instead of mapped",
                    placed.placement.unaligned as f64 / f64::from(1 << 30)
                );
            }
            PendingWeights::placed(placed)
        };
        Ok(Self { spec, weights, programs })
    }

    /// The model, and how it is run.
    pub fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.spec.config
    }

    /// The devices that it is placed on.
    pub fn mesh(&self) -> Mesh {
        self.spec.mesh
    }

    /// The weights, once they are there.
    pub(super) fn weights(&self) -> Result<&PlacedWeights> {
        self.weights.get()
    }

    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// How the weights were placed; waits until they are.
    ///
    /// # Errors
    /// Those of loading.
    pub fn placement(&self) -> Result<Placement> {
        Ok(self.weights()?.placement)
    }

    /// Programs made ready so far.
    pub fn compile_report(&self) -> CompileReport {
        self.programs.report()
    }

    /// All that determines this program's graph.
    pub fn program_spec(&self, program: Program, slots: i64, cache_len: i64, window: i64) -> ProgramSpec {
        ProgramSpec { model: self.spec.clone(), program, slots, cache_len, window }
    }

    /// The compiled program: from memory, from the disk cache, or compiled now.
    ///
    /// # Errors
    /// The plugin's, while compiling.
    pub fn program(&self, spec: &ProgramSpec) -> Result<Arc<Executable>> {
        self.programs.get(spec)
    }

    /// Makes all programs ready that sessions of so many slots of `context` tokens can need, on
    /// `threads` threads. `on_progress` is told how many of how many are ready.
    ///
    /// # Errors
    /// The plugin's, while compiling.
    pub fn prepare_all(
        &self,
        (slots, context): (i64, i64),
        threads: usize,
        on_progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<()> {
        self.programs.prepare_all(
            session_programs(&self.spec, (slots, context), &Sampler::ALL, true),
            threads,
            on_progress,
        )
    }

    /// Makes several programs ready, side by side.
    ///
    /// # Errors
    /// The plugin's, while compiling.
    pub fn prepare(&self, specs: Vec<ProgramSpec>) -> Result<()> {
        self.programs.prepare(specs)
    }
}

/// The programs that sessions of this shape run: steps with these heads, decoding with their
/// samplers, and copying slots.
fn session_programs(
    model: &Arc<ModelSpec>,
    (slots, context): (i64, i64),
    samplers: &[Sampler],
    scores: bool,
) -> Vec<ProgramSpec> {
    let spec = |program, window| ProgramSpec { model: model.clone(), program, slots, cache_len: context, window };
    let sizes = step_sizes(model.lowering, slots);
    let mut specs = vec![spec(Program::Copy, context)];
    let mut heads: Vec<Head> = samplers.iter().map(|&sampler| Head::Sample(sampler)).collect();
    if scores {
        heads.extend([Head::Logprobs { top: false }, Head::Logprobs { top: true }]);
    }
    for &tokens in &sizes {
        specs.extend(heads.iter().map(|&head| spec(Program::Step { tokens, head }, context)));
    }
    // All but the last step of a long prompt.
    let tokens = *sizes.last().expect("there are sizes");
    specs.push(spec(Program::Step { tokens, head: Head::None }, context));
    if model.lowering.batches_decode {
        for &sampler in samplers {
            specs.extend(windows(context).map(|window| spec(Program::Decode { sampler }, window)));
        }
    }
    specs
}

/// All programs that running a model takes with sessions of this shape: those that they run, and
/// placing weights and caches.
///
/// # Errors
/// A graph that cannot be built: a defect of this crate.
pub fn session_modules(
    model: &Arc<ModelSpec>,
    shape: (i64, i64),
    samplers: &[Sampler],
    scores: bool,
) -> Result<Vec<Module>> {
    let specs = session_programs(model, shape, samplers, scores);
    let built = |name: String, module: std::result::Result<Module, crate::hlo::HloError>| {
        module.map_err(|cause| Error::Graph { program: name, cause })
    };
    let mut modules = Vec::new();
    for spec in &specs {
        modules.push(built(spec.name(), spec.build())?);
    }
    if model.lowering.stacks_layers {
        let shapes = |named: Vec<(String, Shape)>| named.into_iter().map(|(_, shape)| shape).collect::<Vec<_>>();
        let mut allocate = |name: &str, shapes: &[Shape]| -> Result<()> {
            modules.push(built(name.to_owned(), zeros(name, shapes))?);
            Ok(())
        };
        allocate("allocate_weights", &shapes(model.stacked_weights()))?;
        allocate("allocate_cache", &shapes(specs[0].cache_arrays()))?;
        modules.push(built("put_layer".into(), model.put_layer())?);
    }
    Ok(modules)
}
