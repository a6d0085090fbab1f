//! What a deployment needs of a machine and how fast it could be there: from programs compiled for
//! it, which may be elsewhere.

use std::{sync::Arc, time::Duration};

use crate::{
    compile::CompileTarget,
    device::{Error, Result},
    gemma::{Cost, Head, ModelSpec, Program, ProgramSpec, SequencePart, parameters},
    hlo::Collective,
    pjrt::CompiledMemoryStats,
    plugins::Kind,
    sampling::Sampler,
};

/// A model, and the sequences that it is to run.
#[derive(Clone, Debug)]
pub struct Deployment {
    pub model: Arc<ModelSpec>,
    /// Sequences at a time, on each replica.
    pub slots: i64,
    /// Tokens of each.
    pub context: i64,
}

/// Tokens of the prompt chunk that is planned for.
const PROMPT: i64 = 512;

impl Deployment {
    fn spec(&self, program: Program) -> ProgramSpec {
        let (slots, cache_len, window) = (self.slots, self.context, self.context);
        ProgramSpec { model: self.model.clone(), program, slots, cache_len, window }
    }

    /// The program of a decode step that looks at all of the context.
    pub fn decode(&self) -> ProgramSpec {
        if self.model.lowering.batches_decode {
            return self.spec(Program::Decode { sampler: Sampler::TopK });
        }
        self.spec(Program::Step { tokens: self.slots, head: Head::Sample(Sampler::TopK) })
    }

    /// Tokens of the chunk that is planned for.
    pub fn prompt(&self) -> i64 {
        PROMPT.min(self.context)
    }

    /// The program of a step that prefills the chunk.
    pub fn prefill(&self) -> ProgramSpec {
        self.spec(Program::Step { tokens: PROMPT, head: Head::Sample(Sampler::TopK) })
    }

    /// Bytes of a device's weights.
    pub fn weight_bytes(&self) -> u64 {
        let ModelSpec { config, mesh, stored, .. } = &*self.model;
        let bits = |spec: &crate::gemma::tensors::TensorSpec| {
            spec.local_dims(config, *mesh).iter().product::<i64>() * stored.of(spec).bits() as i64
        };
        parameters(config, stored).iter().map(bits).sum::<i64>() as u64 / 8
    }

    /// Bytes of a device's KV cache.
    pub fn cache_bytes(&self) -> u64 {
        self.decode().cache_arrays().iter().map(|(_, shape)| shape.bytes()).sum::<i64>() as u64
    }
}

/// A program of a [`Plan`].
#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    pub memory: CompiledMemoryStats,
    pub cost: Cost,
    pub collectives: Vec<Collective>,
    pub compiled_in: Duration,
}

impl Step {
    /// Bytes of a device's memory while it runs.
    pub fn peak(&self) -> u64 {
        let CompiledMemoryStats { arguments, outputs, alias, temporaries, peak, .. } = self.memory;
        peak.max(arguments + outputs - alias + temporaries) as u64
    }

    /// The least time that a step takes: reading memory or computing, whichever takes longer, and
    /// then what devices send each other, around a ring in both directions.
    pub fn time(&self, rates: &Rates) -> StepTime {
        let one = |c: &Collective| {
            let hops = (c.devices - 1) as f64;
            let passes = if c.op == "all-reduce" { 2.0 } else { 1.0 };
            let share = hops / c.devices as f64 * c.bytes as f64;
            c.times as f64 * passes * (share / (2.0 * rates.link) + hops * HOP_SECONDS / 2.0)
        };
        StepTime {
            memory: self.cost.bytes / rates.memory,
            compute: self.cost.flops / rates.compute,
            links: self.collectives.iter().map(one).fold(0.0, |sum, seconds| sum + seconds),
        }
    }
}

/// Parts of a step's least time, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct StepTime {
    pub memory: f64,
    pub compute: f64,
    pub links: f64,
}

impl StepTime {
    /// All parts together: memory and compute hide each other, links do not.
    pub fn total(self) -> f64 {
        self.memory.max(self.compute) + self.links
    }
}

/// What a chip can do, per second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Floating-point operations with bf16.
    pub compute: f64,
    /// Bytes read from its memory.
    pub memory: f64,
    /// Bytes sent over one link in one direction.
    pub link: f64,
}

/// Assumed time from one chip to the next.
const HOP_SECONDS: f64 = 1e-6;

impl Rates {
    /// The makers' figures (Google's system architecture pages for TPUs, and "How to Scale Your
    /// Model" for their links; NVIDIA's data sheet for the H100 SXM), if there are some for this
    /// machine.
    pub fn of(target: &CompileTarget) -> Option<Self> {
        let rates = |compute, memory, link| Some(Self { compute, memory, link });
        match (target.kind, target.name.split(':').next()?) {
            (Kind::Tpu, "v5e") => rates(197e12, 819e9, 45e9),
            (Kind::Tpu, "v6e") => rates(918e12, 1640e9, 90e9),
            (Kind::Tpu, "v5p") => rates(459e12, 2765e9, 90e9),
            (Kind::Tpu, "v4") => rates(275e12, 1228e9, 45e9),
            (Kind::Cuda, _) => rates(989e12, 3350e9, 225e9),
            _ => None,
        }
    }
}

/// What a deployment needs of a machine.
#[derive(Clone, Debug)]
pub struct Plan {
    pub deployment: Deployment,
    /// Where it was compiled for.
    pub machine: String,
    /// Bytes of memory of one device, if the plugin tells.
    pub limit: Option<u64>,
    /// Prefill of a chunk and decode, unless the compiler found that they do not fit: then what it
    /// said.
    pub steps: std::result::Result<[Step; 2], String>,
}

impl Plan {
    /// Compiles the deployment's programs.
    ///
    /// # Errors
    /// A model that does not fit the mesh, or the plugin's. That memory is short is no error.
    pub fn new(target: &CompileTarget, deployment: &Deployment) -> Result<Self> {
        deployment.model.check()?;
        let (prompt, context) = (deployment.prompt(), deployment.context);
        let prefill = (deployment.prefill(), vec![SequencePart { start: context - prompt, tokens: prompt }]);
        let one = SequencePart { start: context - 1, tokens: 1 };
        let decode = (deployment.decode(), vec![one; deployment.slots as usize]);
        let step = |(spec, sequences): (ProgramSpec, Vec<SequencePart>)| -> Result<Step> {
            let module = spec.build().map_err(|cause| Error::Graph { program: spec.name(), cause })?;
            let compiled = target.compile(&module)?;
            Ok(Step {
                name: spec.name(),
                memory: compiled.memory_stats()?,
                cost: spec.cost(&sequences),
                collectives: module.collectives(),
                compiled_in: compiled.time,
            })
        };
        let steps = match step(decode).and_then(|decode| Ok([step(prefill)?, decode])) {
            Ok(steps) => Ok(steps),
            Err(Error::OutOfMemory { message, .. }) => Err(message),
            Err(other) => return Err(other),
        };
        Ok(Self { deployment: deployment.clone(), machine: target.name.clone(), limit: target.memory, steps })
    }

    /// Bytes that a device needs: the larger peak, and the other program's code.
    pub fn needed(&self) -> u64 {
        match &self.steps {
            Ok([prefill, decode]) => {
                let code = prefill.memory.generated_code.min(decode.memory.generated_code);
                prefill.peak().max(decode.peak()) + code as u64
            }
            Err(_) => self.deployment.weight_bytes() + self.deployment.cache_bytes(),
        }
    }

    /// Whether the machine has as much memory.
    pub fn fits(&self) -> bool {
        self.steps.is_ok() && self.limit.is_none_or(|limit| self.needed() <= limit)
    }
}
