//! Bundles of programs that were compiled ahead of time, to be carried to the machine that runs them: a directory with a manifest
//! and the programs in the plugin's own format.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    buckets::{MAX_PREFILL, batches, buckets, window_for, windows},
    error::{Error, Result, While},
    machine::Machine,
    plan::Setup,
    platform::Platform,
    program_cache::{cpu_features, entry_name, key, read_entry, write_entry},
};
use crate::{
    download::hex,
    gemma::{Output, Program, ProgramSpec, put_layer, stacked, zeros},
    hlo::{Module, Shape},
    pjrt::{Client, CompileOptions},
    plugins::Kind,
    sampling::Sampler,
};

const MANIFEST: &str = "manifest.json";
const FORMAT: u32 = 1;

/// What a bundle is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// `tpu`, `cuda` or `cpu`.
    pub platform: String,
    /// The machine that it was compiled for, such as `v5e:2x2`.
    pub machine: String,
    /// The plugin that compiled it: its API's version, and what it says of itself.
    pub plugin: String,
    pub mesh: String,
    pub activations: String,
    pub kv: String,
    pub weights: String,
    pub slots: i64,
    pub context: i64,
    /// Files, by program.
    pub programs: Vec<String>,
}

/// A bundle that fits the platform it was opened for.
#[derive(Clone, Debug)]
pub struct Bundle {
    dir: PathBuf,
    pub manifest: Manifest,
}

/// What tells a plugin's programs from another's.
fn plugin_name(kind: Kind, (major, minor): (i32, i32), platform_version: &str) -> String {
    let version = platform_version.split_whitespace().collect::<Vec<_>>().join(" ");
    let name = format!("{kind} plugin, PJRT {major}.{minor}, {version}");
    if kind == Kind::Cpu {
        // Its programs are machine code for this processor.
        let features = hex(&Sha256::digest(cpu_features())[..4]);
        return format!("{name}, processor {features}");
    }
    name
}

/// The plugin of an open client.
fn plugin_of(platform: &Platform) -> Result<String> {
    let client: &Client = &platform.client;
    let version = client.platform_version().during(|| "asking the plugin for its version".into())?;
    Ok(plugin_name(platform.kind, client.api().version(), &version))
}

impl Bundle {
    /// Reads the manifest.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let unusable = |problem: String| {
            Error::Invalid(format!(
                "{} is no bundle that can be used: {problem}. Make one with: gemma-pjrt compile --out DIR",
                dir.display()
            ))
        };
        let text = fs::read_to_string(&path).map_err(|e| unusable(format!("{MANIFEST}: {e}")))?;
        let manifest: Manifest = serde_json::from_str(&text).map_err(|e| unusable(format!("{MANIFEST}: {e}")))?;
        if manifest.format != FORMAT {
            return Err(unusable(format!("its format is {}, this program's {FORMAT}", manifest.format)));
        }
        Ok(Self { dir: dir.to_owned(), manifest })
    }

    /// Says why the bundle's programs cannot run on this platform, if they cannot.
    pub fn check(&self, platform: &Platform) -> Result<()> {
        let plugin = plugin_of(platform)?;
        if self.manifest.plugin == plugin {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "the bundle {} was compiled by another plugin:\n  {}\nthis one is\n  {plugin}\nCompile it again with this plugin \
             (gemma-pjrt compile), or install the one that it was compiled by",
            self.dir.display(),
            self.manifest.plugin
        )))
    }

    /// The program as the plugin wrote it, if it is in the bundle.
    pub(super) fn get(
        &self,
        name: &str,
        code: &[u8],
        options: &CompileOptions,
    ) -> std::result::Result<Option<Vec<u8>>, String> {
        let key = key(&self.manifest.plugin, code, options);
        read_entry(&self.dir.join(entry_name(name, &key)), &key)
    }

    /// Compiles all programs that running this setup takes, with these samplers, and writes them. `on_program` is told of each, and
    /// how many there are.
    pub fn write(
        dir: &Path,
        machine: &Machine,
        setup: &Setup,
        samplers: &[Sampler],
        on_program: &mut dyn FnMut(&str, usize, usize),
    ) -> Result<Self> {
        let cannot_write = |cause: std::io::Error| Error::Invalid(format!("cannot write {}: {cause}", dir.display()));
        fs::create_dir_all(dir).map_err(cannot_write)?;
        let plugin = plugin_name(machine.kind, machine.api.version(), &machine.platform_version()?);
        let modules = modules(setup, samplers)?;
        let mut programs = Vec::new();
        for (i, module) in modules.iter().enumerate() {
            on_program(module.name(), i, modules.len());
            let key = key(&plugin, &module.encode(), &machine.options());
            let name = entry_name(module.name(), &key);
            let path = dir.join(&name);
            // A bundle that was interrupted is completed.
            if !matches!(read_entry(&path, &key), Ok(Some(_))) {
                write_entry(&path, &key, &machine.compile(module)?.serialize()?).map_err(cannot_write)?;
            }
            programs.push(name);
        }
        let manifest = Manifest {
            format: FORMAT,
            platform: machine.kind.to_string(),
            machine: machine.name.clone(),
            plugin,
            mesh: setup.mesh.to_string(),
            activations: setup.compute.to_string(),
            kv: setup.kv.to_string(),
            weights: setup.stored.matrices.to_string(),
            slots: setup.slots,
            context: setup.context,
            programs,
        };
        let text = serde_json::to_string_pretty(&manifest).expect("strings and numbers");
        fs::write(dir.join(MANIFEST), text + "\n").map_err(cannot_write)?;
        Ok(Self { dir: dir.to_owned(), manifest })
    }

    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }
}

/// All programs of a session, and those that place weights and allocate the cache.
fn modules(setup: &Setup, samplers: &[Sampler]) -> Result<Vec<Module>> {
    let mut all = Vec::new();
    let Setup { config, target, mesh, stored, context, .. } = setup;
    let built = |name: &str, module| {
        let name = name.to_owned();
        std::result::Result::map_err(module, |cause| Error::Graph { program: name, cause })
    };
    let mut add = |spec: ProgramSpec| -> Result<()> {
        all.push(built(&spec.name(), spec.build())?);
        Ok(())
    };
    let mut names: Vec<(Program, i64)> = Vec::new();
    for &sampler in samplers {
        let output = Output::Token(sampler);
        names.extend(windows(*context).map(|window| (Program::Decode { output }, window)));
        for bucket in buckets(*context, MAX_PREFILL) {
            let windows = windows(*context).filter(|&window| window >= window_for(bucket, *context));
            names.extend(windows.flat_map(|window| {
                batches(bucket, setup.slots).map(move |batch| (Program::Prefill { batch, bucket, output }, window))
            }));
        }
    }
    // All but the last chunk of a long prompt.
    let part = Program::Prefill { batch: 1, bucket: MAX_PREFILL, output: Output::Nothing };
    let windows = windows(*context).filter(|&window| window >= MAX_PREFILL && *context > MAX_PREFILL);
    names.extend(windows.map(|window| (part, window)));
    for (program, window) in names {
        let window = if target.has_windows() { window } else { *context };
        let spec = ProgramSpec { window, ..setup.spec(program) };
        add(spec)?;
    }
    if target.stacks_layers() {
        let shapes = |named: Vec<(String, Shape)>| named.into_iter().map(|(_, shape)| shape).collect::<Vec<_>>();
        let weights = shapes(stacked(*target, config, *mesh, stored));
        all.push(built("allocate_weights", zeros("allocate_weights", &weights))?);
        all.push(built("put_layer", put_layer(*target, config, *mesh, stored))?);
        let cache = shapes(setup.spec(Program::Decode { output: Output::Logits }).cache_arrays());
        all.push(built("allocate_cache", zeros("allocate_cache", &cache))?);
    }
    all.sort_by(|a, b| a.name().cmp(b.name()));
    all.dedup_by(|a, b| a.name() == b.name());
    Ok(all)
}
