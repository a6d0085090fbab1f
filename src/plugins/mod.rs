//! PJRT plugins as files: which ones are pinned, where they are found, how they are installed and
//! verified.
//!
//! A plugin is a shared library inside a Python wheel. It is searched in this order: `--plugin`,
//! `PJRT_PLUGIN`, `TPU_LIBRARY_PATH` (tpu), our own cache, the site-packages of an active Python
//! environment, the loader's search path. The CPU plugin, which everybody can run, is installed on
//! first use from the Python package index that pip is configured for; no Python is needed for
//! that.

mod index;
mod install;
mod locate;
mod pinned;
mod probe;

pub use index::files_of_page;
pub use install::{InstalledPlugin, Installer, installed, unpack_all, verify};
pub use locate::{LocatedPlugin, PluginSource, locate, named};
pub use pinned::{PINNED, PinnedPlugin, pinned_for};
pub use probe::{DeviceFile, System, tpu_chips};

use std::{fmt, path::PathBuf, str::FromStr};

/// The platform that a plugin drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Cpu,
    Tpu,
    Cuda,
}

impl Kind {
    /// All platforms, the preferred one first.
    pub const ALL: [Self; 3] = [Self::Tpu, Self::Cuda, Self::Cpu];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cpu => "cpu",
            Self::Tpu => "tpu",
            Self::Cuda => "cuda",
        })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no platform; use cpu, tpu or cuda"))
    }
}

/// An error of finding or installing a plugin. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("no {kind} plugin was found. Tried:\n{tried}\nInstall one with: gemma-pjrt plugins install {kind}")]
    NotFound { kind: Kind, tried: String },
    #[error(
        "the {kind} plugin is not installed and this run is offline (--offline or PIP_NO_INDEX). On a machine with network:\n  \
         pip download --no-deps {package}=={version}\nthen here:\n  \
         gemma-pjrt plugins install {kind} --from-file WHEEL"
    )]
    Offline { kind: Kind, package: &'static str, version: &'static str },
    #[error(
        "the Python package index {index} cannot be used: {problem}. Check the network and pip's index-url (PIP_INDEX_URL, \
         pip.conf), or fetch the wheel elsewhere and use --from-file"
    )]
    Index { index: String, problem: String },
    #[error(
        "{what} has sha256 {found}, expected {expected}: the download is damaged or is not the file that was pinned. \
         Nothing was installed; try again, or check the index that pip is configured for"
    )]
    Checksum { what: String, expected: String, found: String },
    #[error("{path} cannot be used as a plugin wheel: {problem}")]
    Wheel { path: PathBuf, problem: String },
    #[error("cannot write {path}: {cause}. Free some space, or set XDG_CACHE_HOME to a directory that can be written")]
    Write { path: PathBuf, cause: std::io::Error },
    #[error("there is no place to keep plugins: set HOME or XDG_CACHE_HOME")]
    NoCacheDir,
}

pub type Result<T> = std::result::Result<T, PluginError>;
