//! Bundles of programs that were compiled ahead of time, to be carried to the machine that runs
//! them: a directory with a manifest and the programs in the plugin's own format.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    entries::{cpu_features, entry_name, key, read_entry, write_entry},
    target::CompileTarget,
};
use crate::{
    device::{During, Error, Platform, Result},
    download::hex,
    gemma::ModelSpec,
    hlo::Module,
    pjrt::{Client, CompileOptions},
    plugins::Kind,
    whole_file::write_whole,
};

const MANIFEST: &str = "manifest.json";
const FORMAT: u32 = 1;

/// The machine, the plugin and the model that a bundle is for.
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

/// Tells a plugin's programs from another's.
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
    ///
    /// # Errors
    /// Why the directory is no bundle that can be used.
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

    /// Checks that the bundle was compiled by this platform's plugin.
    ///
    /// # Errors
    /// The two plugins, if they differ.
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

    /// Compiles these programs of a model and writes them. `on_program` is told of each, and how
    /// many there are.
    ///
    /// # Errors
    /// The plugin's, or that the directory cannot be written.
    pub fn write(
        dir: &Path,
        target: &CompileTarget,
        model: &ModelSpec,
        (slots, context): (i64, i64),
        modules: &[Module],
        on_program: &mut dyn FnMut(&str, usize, usize),
    ) -> Result<Self> {
        let cannot_write = |cause: std::io::Error| Error::Invalid(format!("cannot write {}: {cause}", dir.display()));
        fs::create_dir_all(dir).map_err(cannot_write)?;
        let plugin = plugin_name(target.kind, target.api.version(), &target.platform_version()?);
        let mut programs = Vec::new();
        for (i, module) in modules.iter().enumerate() {
            on_program(module.name(), i, modules.len());
            let key = key(&plugin, &module.encode(), &target.options());
            let name = entry_name(module.name(), &key);
            let path = dir.join(&name);
            // A bundle that was interrupted is completed.
            if !matches!(read_entry(&path, &key), Ok(Some(_))) {
                write_entry(&path, &key, &target.compile(module)?.serialize()?).map_err(cannot_write)?;
            }
            programs.push(name);
        }
        let manifest = Manifest {
            format: FORMAT,
            platform: target.kind.to_string(),
            machine: target.name.clone(),
            plugin,
            mesh: model.mesh.to_string(),
            activations: model.compute.to_string(),
            kv: model.kv.to_string(),
            weights: model.stored.matrices.to_string(),
            slots,
            context,
            programs,
        };
        let text = serde_json::to_string_pretty(&manifest).expect("strings and numbers");
        write_whole(&dir.join(MANIFEST), |out| writeln!(out, "{text}")).map_err(cannot_write)?;
        Ok(Self { dir: dir.to_owned(), manifest })
    }

    /// Bytes of all its files.
    pub fn size(&self) -> u64 {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }
}
