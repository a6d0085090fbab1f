//! Compiled programs on disk: no program is compiled twice on one machine.
//!
//! An entry is `<cache>/programs/<program>-<key>.pjrt`: a magic, the full key, the payload's sha256, the payload (the plugin's
//! own serialized executable). The key covers all that could make it wrong to load: the HLO, the compile options, the plugin
//! file, and on CPU the processor's features. Anything unreadable is ignored with a warning and written anew.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    bridge::signature,
    bundle::Bundle,
    error::{Result, While},
    platform::Platform,
};
use crate::{
    cache_dir::cache_dir,
    download::hex,
    hlo::Module,
    pjrt::{Client, CompileOptions, Executable, Program},
};

const MAGIC: &[u8; 8] = b"GPJRT\x00\x01\n";

/// Where a program came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Compiled,
    Cache,
    Bundle,
}

/// The cache for one client.
pub struct ProgramCache {
    dir: Option<PathBuf>,
    /// What every key starts with: plugin and processor.
    prefix: String,
    bundle: Option<Bundle>,
    warn: fn(&str),
}

impl ProgramCache {
    /// The cache under [`cache_dir`]. `warn` gets one line for each entry that could not be used or written.
    pub fn new(platform: &Platform, bundle: Option<Bundle>, warn: fn(&str)) -> Self {
        let (major, minor) = platform.client.api().version();
        let plugin = plugin_identity(&platform.plugin.path);
        let processor = if platform.kind == crate::plugins::Kind::Cpu { cpu_features() } else { String::new() };
        let prefix = format!("{} {major}.{minor} {plugin} {processor}", platform.kind);
        Self { dir: cache_dir().map(|dir| dir.join("programs")), prefix, bundle, warn }
    }

    /// The module, loaded from the cache or compiled and put there.
    pub fn get(&self, client: &Client, module: &Module, options: &CompileOptions) -> Result<(Executable, Origin)> {
        let code = module.encode();
        if let Some(bundle) = &self.bundle {
            match bundle.get(module.name(), &code, options) {
                Ok(None) => (self.warn)(&format!("note: {} is not in the bundle", module.name())),
                Err(problem) => self.warn(Path::new(module.name()), &problem),
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
                Err(problem) => self.warn(path, &problem),
                Ok(Some(payload)) => match client.deserialize(&payload, signature(module)) {
                    Ok(executable) => return Ok((executable, Origin::Cache)),
                    Err(e) => self.warn(path, &e.to_string()),
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
                (self.warn)(&format!(
                    "warning: the compiled program could not be kept in {} ({problem}); the next run compiles it again",
                    path.display()
                ));
            }
        }
        Ok((executable, Origin::Compiled))
    }

    fn warn(&self, path: &Path, problem: &str) {
        let line = problem.lines().next().unwrap_or_default();
        (self.warn)(&format!("warning: ignoring the cached program {} ({line}); compiling it anew", path.display()));
    }
}

/// What an entry is found by; `compiler` stands for all that the result depends on besides the program.
pub(super) fn key(compiler: &str, code: &[u8], options: &CompileOptions) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in [compiler.as_bytes(), &options.encode(), code] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// An entry's file.
pub(super) fn entry_name(program: &str, key: &[u8; 32]) -> String {
    format!("{program}-{}.pjrt", hex(&key[..8]))
}

/// The payload of an entry, `None` if there is no such file.
pub(super) fn read_entry(path: &Path, key: &[u8; 32]) -> std::result::Result<Option<Vec<u8>>, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let header = MAGIC.len() + 64;
    if bytes.len() < header || &bytes[..MAGIC.len()] != MAGIC {
        return Err("it is not a program of this version".into());
    }
    if bytes[MAGIC.len()..][..32] != key[..] {
        return Err("it belongs to another program".into());
    }
    let payload = &bytes[header..];
    if bytes[MAGIC.len() + 32..][..32] != Sha256::digest(payload)[..] {
        return Err("its checksum does not match: it is damaged".into());
    }
    Ok(Some(payload.to_vec()))
}

/// Writes beside the place and renames: a reader sees all of an entry or none.
pub(super) fn write_entry(path: &Path, key: &[u8; 32], payload: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().expect("entries are in a directory");
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    for part in [&MAGIC[..], key, &Sha256::digest(payload), payload] {
        file.write_all(part)?;
    }
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// What tells one plugin file from another: the sha256 that its installer wrote down, else size and time of change.
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

/// The processor's feature flags: a CPU executable is machine code for them.
pub(super) fn cpu_features() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    [line("model name"), line("flags"), line("Features")].join(" ")
}
