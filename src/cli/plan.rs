//! `plan`: the memory that a model needs on a machine, and how fast it could run there. The machine
//! need not be this one.

use std::{io::Write, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    Outcome,
    hlo::{WeightType, config},
    model_args::{ComputeType, KvType, PlatformArgs, PlatformName, kv_dtype},
    note,
    process::size,
    progress::DownloadProgress,
};
use crate::{
    checkpoint::Checkpoint,
    compile::{CompileTarget, TargetRequest, lowering, slice_chips},
    gemma::{Config, ModelSpec, StoredTypes},
    hlo::{DType, Mesh},
    kernels,
    plan::{Alternative, Deployment, Plan, Rates, Step, alternatives, search},
    plugins::Kind,
    runtime::{StoredModel, select},
};

/// A machine, and how to run a model on it.
#[derive(Debug, clap::Args)]
pub struct MachineArgs {
    /// A preset (tiny, gemma-1.1-2b, gemma-1.1-7b), a config.json, or a directory with a checkpoint
    #[arg(long, short, value_name = "MODEL", default_value = "gemma-1.1-7b")]
    model: String,
    #[command(flatten)]
    platform: PlatformArgs,
    /// The TPU slice, such as v5e:1x1, v5e:2x2 or v5e:2x4
    #[arg(long, value_name = "TOPOLOGY")]
    topology: Option<String>,
    /// Devices: DATAxMODEL [default: one model over all chips]
    #[arg(long, value_name = "DxM")]
    mesh: Option<Mesh>,
    /// Type of the stored matrices [default: as in the checkpoint, else bf16]
    #[arg(long, value_enum)]
    weights: Option<WeightType>,
    /// Type of activations
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: ComputeType,
    /// Type of the KV cache [default: as activations]
    #[arg(long, value_enum)]
    kv: Option<KvType>,
    /// Tokens of each sequence, prompt and answer together
    #[arg(long, value_name = "TOKENS", default_value = "1024", value_parser = clap::value_parser!(i64).range(16..=1048576))]
    context: i64,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// Sequences that run at the same time
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(i64).range(1..=1024))]
    slots: i64,
    /// Find the largest number of slots for each context length instead
    #[arg(long)]
    search: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let (deployment, target) = (args.machine.deployment(args.slots)?, args.machine.open()?);
    let rates = Rates::of(&target).unwrap_or_else(measured);
    let mut trying = |what: &str| note(&format!("trying {what}..."));
    let mut out = std::io::stdout().lock();
    if args.search {
        let plans = search(&target, &deployment, &mut trying)?;
        if args.json {
            writeln!(out, "{}", Value::from_iter(plans.iter().map(|plan| plan_json(plan, &rates))))?;
        } else {
            write_search(&mut out, &plans, &rates)?;
        }
        return Ok(if plans.is_empty() { Outcome::DoesNotFit } else { Outcome::Done });
    }
    let plan = Plan::new(&target, &deployment)?;
    let others = if plan.fits() { vec![] } else { alternatives(&target, &deployment, &mut trying)? };
    if args.json {
        let mut object = plan_json(&plan, &rates);
        let other = |a: &Alternative| json!({"change": a.change, "plan": plan_json(&a.plan, &rates)});
        object["alternatives"] = others.iter().map(other).collect();
        writeln!(out, "{object}")?;
    } else {
        write_plan(&mut out, &plan, &rates)?;
        write_verdict(&mut out, &plan, &others)?;
    }
    Ok(if plan.fits() { Outcome::Done } else { Outcome::DoesNotFit })
}

impl MachineArgs {
    fn kind(&self) -> Kind {
        match self.platform.platform {
            PlatformName::Cpu => Kind::Cpu,
            PlatformName::Cuda => Kind::Cuda,
            PlatformName::Tpu => Kind::Tpu,
            PlatformName::Auto => self.topology.as_ref().map_or(Kind::Cpu, |_| Kind::Tpu),
        }
    }

    fn mesh(&self) -> Result<Mesh> {
        let chips =
            |name: &String| slice_chips(name).with_context(|| format!("{name:?} is not a TPU slice, such as v5e:2x2"));
        let chips = self.topology.as_ref().map(chips).transpose()?;
        Ok(self.mesh.unwrap_or(Mesh { data: 1, model: chips.unwrap_or(1) }))
    }

    /// Returns the model, with this number of slots.
    ///
    /// # Errors
    /// The model cannot be read, or does not fit the mesh or the context.
    pub fn deployment(&self, slots: i64) -> Result<Deployment> {
        let config = config(&self.model)?;
        let mesh = self.mesh()?;
        config.check_mesh(mesh)?;
        let trained = config.max_position_embeddings;
        if self.context > trained {
            bail!("--context {} is more than the {trained} tokens that this model was trained for", self.context);
        }
        let (config, stored) = stored_in(Path::new(&self.model), config)?;
        let stored = self.weights.map_or(stored, WeightType::types);
        let model = ModelSpec {
            config,
            mesh,
            lowering: lowering(self.kind(), kernels::are_fast()),
            compute: self.dtype.dtype(),
            kv: kv_dtype(self.kv, self.dtype),
            stored,
        };
        Ok(Deployment { model: model.into(), slots, context: self.context })
    }

    /// Opens the machine through its plugin.
    ///
    /// # Errors
    /// The plugin is missing, or does not know the machine.
    pub fn open(&self) -> Result<CompileTarget> {
        let request = TargetRequest {
            kind: self.kind(),
            plugin: self.platform.plugin.as_deref(),
            topology: self.topology.as_deref(),
            devices: self.mesh()?.devices(),
            offline: self.platform.offline,
        };
        Ok(CompileTarget::open(&request, &mut DownloadProgress::of_plugin())?)
    }
}

/// Returns the config as the weights in this directory settle it, and their types: bf16 if there
/// are none.
fn stored_in(dir: &Path, config: Config) -> Result<(Config, StoredTypes)> {
    let has_weights = dir.is_dir()
        && std::fs::read_dir(dir)?.flatten().any(|entry| entry.path().extension().is_some_and(|e| e == "safetensors"));
    if !has_weights {
        return Ok((config, StoredTypes::uniform(DType::BF16)));
    }
    let checkpoint = Checkpoint::open(dir)?;
    let StoredModel { config, types, .. } = select(&checkpoint, &config)?;
    Ok((config, types))
}

/// Measures this computer's rates.
fn measured() -> Rates {
    let context = kernels::ExecContext::whole();
    let block = vec![1_u8; 256 << 20];
    let memory = kernels::probe::read_bandwidth(context, &[&block]);
    // Virtual devices send each other arrays through memory.
    Rates { compute: kernels::probe::peak_flops(context, true), memory, link: memory }
}

fn write_plan(out: &mut impl Write, plan: &Plan, rates: &Rates) -> Result<()> {
    let Deployment { model, slots, context } = &plan.deployment;
    let ModelSpec { mesh, stored, kv, config, .. } = &**model;
    let parameters = crate::gemma::tensors::num_parameters(config) as f64 / 1e9;
    writeln!(
        out,
        "{parameters:.1} B parameters, weights {}, cache {kv}, on {}, mesh {mesh}: {slots} slots of {context} tokens",
        stored.matrices, plan.machine
    )?;
    let Ok(steps) = &plan.steps else { return Ok(()) };
    let [prefill, decode] = steps;
    writeln!(out, "\n| per chip | prefill of {} | decode |\n|---|---:|---:|", plan.deployment.prompt())?;
    let mut row = |name: &str, value: &dyn Fn(&Step) -> String| {
        writeln!(out, "| {name} | {} | {} |", value(prefill), value(decode))
    };
    row("weights", &|_| size(plan.deployment.weight_bytes()))?;
    row("KV cache", &|_| size(plan.deployment.cache_bytes()))?;
    row("arguments, as laid out", &|s| size(s.memory.arguments as u64))?;
    row("of which reused by outputs", &|s| size(s.memory.alias as u64))?;
    row("temporaries", &|s| size(s.memory.temporaries as u64))?;
    row("code", &|s| size(s.memory.generated_code as u64))?;
    row("peak", &|s| size(s.peak()))?;
    row("compiled in", &|s| format!("{:.1} s", s.compiled_in.as_secs_f64()))?;
    row("collectives", &|s| {
        let count: i64 = s.collectives.iter().map(|c| c.times).sum();
        let bytes: i64 = s.collectives.iter().map(|c| c.times * c.bytes).sum();
        format!("{count} of {} in all", size(bytes as u64))
    })?;
    row("time to read memory", &|s| milliseconds(s.time(rates).memory))?;
    row("time to compute", &|s| milliseconds(s.time(rates).compute))?;
    row("time of collectives", &|s| milliseconds(s.time(rates).links))?;
    row("least time", &|s| milliseconds(s.time(rates).total()))?;
    let Rates { compute, memory, link } = rates;
    writeln!(
        out,
        "\nAt best {:.0} tok/s of decoding with all slots full of {context} tokens, and {:.0} ms from a prompt's last {} tokens to \
         the first token.\nLeast time = max(bytes / {:.0} GB/s, operations / {:.0} T/s) + collectives around a ring of {:.0} GB/s \
         links, 1 µs a hop.",
        decode_rate(plan, decode, rates),
        prefill.time(rates).total() * 1e3,
        plan.deployment.prompt(),
        memory / 1e9,
        compute / 1e12,
        link / 1e9
    )?;
    Ok(())
}

fn decode_rate(plan: &Plan, decode: &Step, rates: &Rates) -> f64 {
    (plan.deployment.slots * plan.deployment.model.mesh.data as i64) as f64 / decode.time(rates).total()
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}

fn write_verdict(out: &mut impl Write, plan: &Plan, others: &[Alternative]) -> Result<()> {
    let needed = size(plan.needed());
    let Some(limit) = plan.limit else {
        writeln!(out, "\n{needed} for each device; the plugin does not report how much there is.")?;
        return Ok(());
    };
    if plan.fits() {
        writeln!(out, "\nFits: {needed} of {}, {} are left.", size(limit), size(limit - plan.needed()))?;
        return Ok(());
    }
    let at_least = if plan.steps.is_ok() { "" } else { "at least " };
    writeln!(out, "\nDoes not fit: {at_least}{needed} for each chip, {} are there.", size(limit))?;
    if others.is_empty() {
        writeln!(out, "Nothing near it was found that does.")?;
        return Ok(());
    }
    writeln!(out, "What fits, everything else as it is:")?;
    for Alternative { change, plan } in others {
        writeln!(out, "  {change}: {} of {}", size(plan.needed()), size(plan.limit.unwrap_or_default()))?;
    }
    Ok(())
}

fn write_search(out: &mut impl Write, plans: &[Plan], rates: &Rates) -> Result<()> {
    writeln!(
        out,
        "| context | most slots | memory of each chip | left | at best, tok/s |\n|---:|---:|---:|---:|---:|"
    )?;
    for plan in plans {
        let Ok([_, decode]) = &plan.steps else { continue };
        writeln!(
            out,
            "| {} | {} | {} | {} | {:.0} |",
            plan.deployment.context,
            plan.deployment.slots,
            size(plan.needed()),
            size(plan.limit.unwrap_or_default().saturating_sub(plan.needed())),
            decode_rate(plan, decode, rates)
        )?;
    }
    if plans.is_empty() {
        writeln!(out, "\nNot even one slot of the shortest context fits.")?;
    }
    Ok(())
}

fn plan_json(plan: &Plan, rates: &Rates) -> Value {
    let Deployment { model, slots, context } = &plan.deployment;
    let ModelSpec { mesh, stored, kv, compute, .. } = &**model;
    let step = |step: &Step| {
        let time = step.time(rates);
        json!({
            "program": step.name,
            "arguments_bytes": step.memory.arguments,
            "alias_bytes": step.memory.alias,
            "temporaries_bytes": step.memory.temporaries,
            "code_bytes": step.memory.generated_code,
            "peak_bytes": step.peak(),
            "compile_seconds": step.compiled_in.as_secs_f64(),
            "collectives": step.collectives.iter().map(|c| {
                json!({"op": c.op, "bytes": c.bytes, "devices": c.devices, "times": c.times})
            }).collect::<Vec<_>>(),
            "memory_seconds": time.memory,
            "compute_seconds": time.compute,
            "collective_seconds": time.links,
            "least_seconds": time.total(),
        })
    };
    let mut object = json!({
        "machine": plan.machine,
        "mesh": mesh.to_string(),
        "weights": stored.matrices.to_string(),
        "activations": compute.to_string(),
        "kv": kv.to_string(),
        "slots": slots,
        "context": context,
        "weight_bytes": plan.deployment.weight_bytes(),
        "cache_bytes": plan.deployment.cache_bytes(),
        "needed_bytes": plan.needed(),
        "limit_bytes": plan.limit,
        "fits": plan.fits(),
    });
    match &plan.steps {
        Ok([prefill, decode]) => {
            object["prefill"] = step(prefill);
            object["decode"] = step(decode);
            object["decode_tokens_per_second"] = decode_rate(plan, decode, rates).into();
        }
        Err(message) => object["compiler_says"] = message.as_str().into(),
    }
    object
}
