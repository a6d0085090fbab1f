//! What a model needs of a machine and how fast it could be there: from programs compiled for it, which may be elsewhere.

use std::time::Duration;

use super::{
    error::{Error, Result},
    machine::{Machine, slice_shape},
};
use crate::{
    gemma::{
        Config, Cost, Extension, Output, Program, ProgramSpec, Target,
        weights::{StoredTypes, parameters},
    },
    hlo::{Collective, DType, Mesh},
    pjrt::CompiledMemoryStats,
    plugins::Kind,
    sampling::Sampler,
};

/// A model, and how it is to be run.
#[derive(Clone, Debug)]
pub struct Setup {
    pub config: Config,
    pub target: Target,
    pub mesh: Mesh,
    pub compute: DType,
    pub kv: DType,
    pub stored: StoredTypes,
    /// Sequences at a time, on each data row of the mesh.
    pub slots: i64,
    /// Tokens of each.
    pub context: i64,
}

/// Tokens of the prompt chunk that is planned for.
const PROMPT: i64 = 512;

impl Setup {
    /// A program that looks at all of the context.
    pub fn spec(&self, program: Program) -> ProgramSpec {
        ProgramSpec {
            program,
            target: self.target,
            config: self.config.clone(),
            mesh: self.mesh,
            compute: self.compute,
            kv: self.kv,
            stored: self.stored.clone(),
            slots: self.slots,
            cache_len: self.context,
            window: self.context,
        }
    }

    fn decode(&self) -> ProgramSpec {
        self.spec(Program::Decode { output: Output::Token(Sampler::TopK) })
    }

    /// Tokens of the chunk that is planned for.
    pub fn prompt(&self) -> i64 {
        PROMPT.min(1 << self.context.ilog2())
    }

    fn prefill(&self) -> ProgramSpec {
        self.spec(Program::Prefill { batch: 1, bucket: self.prompt(), output: Output::Token(Sampler::TopK) })
    }

    /// Bytes of a device's weights.
    pub fn weight_bytes(&self) -> u64 {
        let bits = |spec: &crate::gemma::weights::TensorSpec| {
            spec.local_dims(&self.config, self.mesh).iter().product::<i64>() * self.stored.of(&spec.name).bits() as i64
        };
        parameters(&self.config, &self.stored).iter().map(bits).sum::<i64>() as u64 / 8
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

    /// The least time that a step takes: reading memory or computing, whichever takes longer, and then what devices send each
    /// other, around a ring in both directions.
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
    /// The makers' figures (Google's system architecture pages for TPUs, and "How to Scale Your Model" for their links; NVIDIA's data
    /// sheet for the H100 SXM), if there are some for this machine.
    pub fn of(machine: &Machine) -> Option<Self> {
        let rates = |compute, memory, link| Some(Self { compute, memory, link });
        match (machine.kind, machine.name.split(':').next()?) {
            (Kind::Tpu, "v5e") => rates(197e12, 819e9, 45e9),
            (Kind::Tpu, "v6e") => rates(918e12, 1640e9, 90e9),
            (Kind::Tpu, "v5p") => rates(459e12, 2765e9, 90e9),
            (Kind::Tpu, "v4") => rates(275e12, 1228e9, 45e9),
            (Kind::Cuda, _) => rates(989e12, 3350e9, 225e9),
            _ => None,
        }
    }
}

/// What a setup needs on a machine.
#[derive(Clone, Debug)]
pub struct Plan {
    pub setup: Setup,
    /// Where it was compiled for.
    pub machine: String,
    /// Bytes of memory of one device, if the plugin tells.
    pub limit: Option<u64>,
    /// Prefill of a chunk and decode, unless the compiler found that they do not fit: then what it said.
    pub steps: std::result::Result<[Step; 2], String>,
}

impl Plan {
    /// Compiles the setup's programs.
    pub fn new(machine: &Machine, setup: &Setup) -> Result<Self> {
        setup.config.check_mesh(setup.mesh)?;
        setup.stored.check(setup.target, &setup.config, setup.mesh)?;
        let prompt = setup.prompt();
        let prefill = (setup.prefill(), vec![Extension { start: setup.context - prompt, tokens: prompt }]);
        let decode = (setup.decode(), vec![Extension { start: setup.context - 1, tokens: 1 }; setup.slots as usize]);
        let step = |(spec, sequences): (ProgramSpec, Vec<Extension>)| -> Result<Step> {
            let module = spec.build().map_err(|cause| Error::Graph { program: spec.name(), cause })?;
            let compiled = machine.compile(&module)?;
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
        Ok(Self { setup: setup.clone(), machine: machine.name.clone(), limit: machine.memory, steps })
    }

    /// Bytes that a device needs: the larger peak, and the other program's code.
    pub fn needed(&self) -> u64 {
        match &self.steps {
            Ok([prefill, decode]) => {
                let code = prefill.memory.generated_code.min(decode.memory.generated_code);
                prefill.peak().max(decode.peak()) + code as u64
            }
            Err(_) => self.setup.weight_bytes() + self.setup.cache_bytes(),
        }
    }

    pub fn fits(&self) -> bool {
        self.steps.is_ok() && self.limit.is_none_or(|limit| self.needed() <= limit)
    }
}

/// A setup that fits, and what was changed for it.
pub struct Alternative {
    pub change: String,
    pub plan: Plan,
}

/// The nearest setups that fit, one for each thing that can be changed, each of them compiled.
pub fn alternatives(machine: &Machine, setup: &Setup, on_try: &mut dyn FnMut(&str)) -> Result<Vec<Alternative>> {
    let mut found = Vec::new();
    let mut first = |ways: Vec<(String, Option<String>, Setup)>| -> Result<()> {
        for (change, topology, setup) in ways {
            let possible = setup.config.check_mesh(setup.mesh).is_ok()
                && setup.stored.check(setup.target, &setup.config, setup.mesh).is_ok()
                && machine.memory.is_none_or(|limit| setup.weight_bytes() + setup.cache_bytes() < limit);
            if !possible {
                continue;
            }
            on_try(&change);
            let other = topology.map(|name| machine.with_topology(&name, setup.mesh.devices())).transpose()?;
            let plan = Plan::new(other.as_ref().unwrap_or(machine), &setup)?;
            if plan.fits() {
                found.push(Alternative { change, plan });
                break;
            }
        }
        Ok(())
    };
    let norms = setup.stored.norms;
    let smaller = [("int8", DType::S8, StoredTypes::int8(norms)), ("int4", DType::S4, StoredTypes::int4(norms))];
    let fewer_bits = smaller.into_iter().filter(|(_, dtype, _)| dtype.bits() < setup.stored.matrices.bits());
    first(
        fewer_bits
            .map(|(name, _, stored)| (format!("--weights {name}"), None, Setup { stored, ..setup.clone() }))
            .collect(),
    )?;
    let generation = machine.name.split(':').next().unwrap_or_default();
    if ["v5e", "v6e"].contains(&generation) {
        // Of those that Google Cloud lends.
        let shapes = [(2, 2), (2, 4), (4, 4)].into_iter().filter(|(a, b)| a * b > machine.devices);
        let larger = shapes.map(|(a, b)| {
            let (name, mesh) = (format!("{generation}:{a}x{b}"), Mesh { model: a * b / setup.mesh.data, ..setup.mesh });
            (format!("--topology {name} --mesh {mesh}"), Some(name), Setup { mesh, ..setup.clone() })
        });
        first(larger.collect())?;
    }
    if setup.kv != DType::S8 {
        first(vec![("--kv int8".into(), None, Setup { kv: DType::S8, ..setup.clone() })])?;
    }
    let halves = |from: i64, least: i64| {
        std::iter::successors(Some(from / 2), |n| Some(n / 2)).take_while(move |&n| n >= least).collect::<Vec<_>>()
    };
    let slots = halves(setup.slots, 1).into_iter();
    first(slots.map(|slots| (format!("--slots {slots}"), None, Setup { slots, ..setup.clone() })).collect())?;
    let contexts = halves(setup.context, 256).into_iter();
    first(
        contexts.map(|context| (format!("--context {context}"), None, Setup { context, ..setup.clone() })).collect(),
    )?;
    Ok(found)
}

/// For each context length in powers of two, the most slots that fit, compiled.
pub fn search(machine: &Machine, setup: &Setup, on_try: &mut dyn FnMut(&str)) -> Result<Vec<Plan>> {
    let limit =
        machine.memory.ok_or_else(|| Error::Invalid("the plugin does not tell how much memory a device has".into()))?;
    let mut found = Vec::new();
    let mut context = 512;
    while context <= setup.config.max_position_embeddings {
        let one = Setup { slots: 1, context, ..setup.clone() };
        let room = limit.saturating_sub(one.weight_bytes());
        let mut slots = round_slots((room / one.cache_bytes()) as i64);
        while slots > 0 {
            on_try(&format!("--context {context} --slots {slots}"));
            let plan = Plan::new(machine, &Setup { slots, ..one.clone() })?;
            if plan.fits() {
                found.push(plan);
                break;
            }
            slots = round_slots(slots - 1);
        }
        context *= 2;
    }
    Ok(found)
}

/// At most so many slots: a multiple of 8, or below that any number; no more than 256.
fn round_slots(slots: i64) -> i64 {
    match slots.min(256) {
        few @ ..8 => few,
        many => many / 8 * 8,
    }
}

/// The slice's number of chips, if its name tells.
pub fn slice_chips(topology: &str) -> Option<usize> {
    let shape = slice_shape(topology);
    (!shape.is_empty()).then(|| shape.iter().product::<i64>() as usize)
}
