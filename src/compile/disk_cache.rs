//! Compiled programs on disk: no program is compiled twice on one machine.
//!
//! An entry is `<cache>/programs/<program>-<key>.pjrt`, see `entries`. The key covers all that
//! could make it wrong to load: the HLO, the compile options, the plugin file, and on CPU the
//! processor's features. Anything unreadable is ignored with a warning and written anew.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    bundle::Bundle,
    entries::{cpu_features, entry_name, key, read_entry, write_entry},
    signature::signature,
};
use crate::{
    cache_dir::cache_dir,
    device::{During, Platform, Result},
    hlo::Module,
    pjrt::{Client, CompileOptions, Executable, Program},
};

/// Where a program came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Compiled,
    Cache,
    Bundle,
}

/// The cache for one client.
pub struct DiskCache {
    dir: Option<PathBuf>,
    /// What every key starts with: plugin and processor.
    prefix: String,
    bundle: Option<Bundle>,
}

impl DiskCache {
    /// The cache under [`cache_dir`]. Each entry that could not be used or written is a warning.
    pub fn new(platform: &Platform, bundle: Option<Bundle>) -> Self {
        let (major, minor) = platform.client.api().version();
        let plugin = plugin_identity(&platform.plugin.path);
        let processor = if platform.kind == crate::plugins::Kind::Cpu { cpu_features() } else { String::new() };
        let prefix = format!("{} {major}.{minor} {plugin} {processor}", platform.kind);
        Self { dir: cache_dir().map(|dir| dir.join("programs")), prefix, bundle }
    }

    /// The module, loaded from the cache or compiled and put there.
    ///
    /// # Errors
    /// The plugin's, while compiling or loading from a bundle.
    pub fn get(&self, client: &Client, module: &Module, options: &CompileOptions) -> Result<(Executable, Origin)> {
        let code = module.encode();
        if let Some(bundle) = &self.bundle {
            match bundle.get(module.name(), &code, options) {
                Ok(None) => tracing::info!("{} is not in the bundle", module.name()),
                Err(problem) => ignored(Path::new(module.name()), &problem),
                Ok(Some(payload)) => {
                    let loaded = client.deserialize(&payload, signature(module));
                    return Ok((
                        loaded.during(|| format!("loading {} from the bundle", module.name()))?,
                        Origin::Bundle,
                    ));
                }
            }
        }
        let key = key(&self.prefix, &code, options);
        let path = self.dir.as_ref().map(|dir| dir.join(entry_name(module.name(), &key)));
        if let Some(path) = &path {
            match read_entry(path, &key) {
                Ok(None) => {}
                Err(problem) => ignored(path, &problem),
                Ok(Some(payload)) => match client.deserialize(&payload, signature(module)) {
                    Ok(executable) => return Ok((executable, Origin::Cache)),
                    Err(e) => ignored(path, &e.to_string()),
                },
            }
        }
        let program = Program { code: &code, format: "hlo" };
        let executable = client
            .compile(&program, options, signature(module))
            .during(|| format!("compiling the program {}", module.name()))?;
        if let Some(path) = &path {
            let written = executable
                .serialize()
                .map_err(|e| e.to_string())
                .and_then(|payload| write_entry(path, &key, &payload).map_err(|e| e.to_string()));
            if let Err(problem) = written {
                tracing::warn!(
                    "the compiled program could not be kept in {} ({problem}); the next run compiles it again",
                    path.display()
                );
            }
        }
        Ok((executable, Origin::Compiled))
    }
}

/// Says that an entry could not be used.
fn ignored(path: &Path, problem: &str) {
    let line = problem.lines().next().unwrap_or_default();
    tracing::warn!("ignoring the cached program {} ({line}); compiling it anew", path.display());
}

/// Tells one plugin file from another: by the sha256 that its installer wrote down, else by size
/// and time of change.
fn plugin_identity(path: &Path) -> String {
    let manifest = path.with_file_name("manifest.json");
    let json = fs::read_to_string(manifest).ok().and_then(|t| serde_json::from_str::<serde_json::Value>(&t).ok());
    if let Some(sha256) = json.as_ref().and_then(|json| json["library_sha256"].as_str()) {
        return sha256.to_owned();
    }
    let Ok(meta) = fs::metadata(path) else { return path.display().to_string() };
    let changed = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    format!("{} {:?}", meta.len(), changed)
}
