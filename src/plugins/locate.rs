//! Finds a plugin that is on this machine.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Kind, PluginError, Result, install::installed, pinned::PINNED};

/// The place where a plugin was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginSource {
    /// `--plugin`
    Flag,
    /// An environment variable.
    Variable(&'static str),
    Cache,
    SitePackages,
    LoaderPath,
}

impl fmt::Display for PluginSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("--plugin"),
            Self::Variable(name) => f.write_str(name),
            Self::Cache => f.write_str("the plugin cache"),
            Self::SitePackages => f.write_str("a Python environment"),
            Self::LoaderPath => f.write_str("LD_LIBRARY_PATH"),
        }
    }
}

/// A plugin file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedPlugin {
    pub path: PathBuf,
    pub source: PluginSource,
}

/// Returns the plugin that the user chose by `--plugin` or else `PJRT_PLUGIN`, if any.
pub fn named(flag: Option<&Path>) -> Option<LocatedPlugin> {
    let by_flag = flag.map(|path| LocatedPlugin { path: path.to_owned(), source: PluginSource::Flag });
    by_flag.or_else(|| by_variable("PJRT_PLUGIN"))
}

fn by_variable(name: &'static str) -> Option<LocatedPlugin> {
    let path = env::var_os(name).filter(|value| !value.is_empty())?;
    Some(LocatedPlugin { path: path.into(), source: PluginSource::Variable(name) })
}

/// Finds the plugin of this kind, in the documented order. A path that the user chose is not
/// checked here: a mistake in it must be reported when the plugin is loaded, not hidden by the next
/// place.
///
/// # Errors
/// There is no such plugin. The message lists the places that were searched.
pub fn locate(kind: Kind, flag: Option<&Path>) -> Result<LocatedPlugin> {
    if let Some(found) = named(flag) {
        return Ok(found);
    }
    let mut tried = vec!["  PJRT_PLUGIN: not set".to_owned()];
    if kind == Kind::Tpu {
        if let Some(found) = by_variable("TPU_LIBRARY_PATH") {
            return Ok(found);
        }
        tried.push("  TPU_LIBRARY_PATH: not set".into());
    }
    match installed(kind) {
        Ok(plugins) => {
            if let Some(plugin) = plugins.first() {
                return Ok(LocatedPlugin { path: plugin.library.clone(), source: PluginSource::Cache });
            }
            tried.push("  the plugin cache: none of this kind".into());
        }
        Err(e) => tried.push(format!("  the plugin cache: {e}")),
    }
    let members: Vec<&str> = PINNED.iter().filter(|p| p.kind == kind).map(|p| p.member).collect();
    for dir in site_packages() {
        for member in &members {
            let path = dir.join(member);
            if path.is_file() {
                return Ok(LocatedPlugin { path, source: PluginSource::SitePackages });
            }
        }
        tried.push(format!("  {}: no {}", dir.display(), members.join(", no ")));
    }
    let directories = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    for dir in env::split_paths(&directories).filter(|dir| !dir.as_os_str().is_empty()) {
        for member in &members {
            let path = dir.join(Path::new(member).file_name().expect("members are files"));
            if path.is_file() {
                return Ok(LocatedPlugin { path, source: PluginSource::LoaderPath });
            }
        }
        tried.push(format!("  {}: none", dir.display()));
    }
    Err(PluginError::NotFound { kind, tried: tried.join("\n") })
}

/// Returns the site-packages directories of the active virtual environment, the conda environment,
/// and `python3`.
fn site_packages() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os) {
        let lib = Path::new(&root).join("lib");
        let versions = fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.path());
        let pythons = versions.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python3")));
        found.extend(pythons.map(|python| python.join("site-packages")));
    }
    // Asking python3 costs tens of milliseconds, and only happens where no plugin was found in the
    // places before.
    let script = "import site, sys; print('\\n'.join(site.getsitepackages() + [site.getusersitepackages()]))";
    if let Ok(output) = Command::new("python3").args(["-I", "-c", script]).output() {
        found.extend(String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from));
    }
    found.retain(|dir| dir.is_dir());
    found.dedup();
    found
}
