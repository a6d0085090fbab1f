//! Installs plugins into the cache: download, check, unpack, rename.
//! `<cache>/plugins/<kind>/<version>-<sha256>/` holds the library and a manifest.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Kind, PluginError, Result,
    index::{Index, PipConfig},
    pinned::{PINNED, PinnedPlugin},
};
use crate::{
    cache_dir::cache_dir,
    download::{Progress, copy_hashed, hex},
};

/// The manifest of an installed plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PluginManifest {
    package: String,
    version: String,
    wheel_sha256: String,
    library: String,
    library_sha256: String,
}

/// A plugin in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledPlugin {
    pub kind: Kind,
    pub package: String,
    pub version: String,
    pub library: PathBuf,
    library_sha256: String,
}

fn plugins_dir(kind: Kind) -> Result<PathBuf> {
    Ok(cache_dir().ok_or(PluginError::NoCacheDir)?.join("plugins").join(kind.to_string()))
}

/// Returns the plugins of this kind in the cache, pinned ones first, in the order of [`PINNED`].
///
/// # Errors
/// There is no cache directory.
pub fn installed(kind: Kind) -> Result<Vec<InstalledPlugin>> {
    let dir = plugins_dir(kind)?;
    let Ok(entries) = fs::read_dir(&dir) else { return Ok(Vec::new()) };
    let whole = entries.flatten().filter(|entry| !is_temporary(&entry.file_name()));
    let mut found: Vec<InstalledPlugin> = whole.filter_map(|entry| read_installed(kind, &entry.path())).collect();
    let rank = |p: &InstalledPlugin| {
        let pinned = PINNED.iter().position(|q| q.package == p.package && q.version == p.version);
        (pinned.unwrap_or(usize::MAX), p.version.clone())
    };
    found.sort_by_key(rank);
    Ok(found)
}

fn read_installed(kind: Kind, dir: &Path) -> Option<InstalledPlugin> {
    let manifest: PluginManifest = serde_json::from_str(&fs::read_to_string(dir.join(MANIFEST)).ok()?).ok()?;
    let library = dir.join(&manifest.library);
    library.is_file().then_some(InstalledPlugin {
        kind,
        package: manifest.package,
        version: manifest.version,
        library,
        library_sha256: manifest.library_sha256,
    })
}

const MANIFEST: &str = "manifest.json";

/// How the names of wheels and directories begin that are not complete yet.
const TEMPORARY: &str = ".tmp";

fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
}

/// Compares the library's sha256 with the one that was computed when it was installed.
///
/// # Errors
/// It differs, or the library cannot be read.
pub fn verify(plugin: &InstalledPlugin) -> Result<()> {
    let wheel = |problem: io::Error| PluginError::Wheel { path: plugin.library.clone(), problem: problem.to_string() };
    let mut file = File::open(&plugin.library).map_err(wheel)?;
    let found = copy_with_sha256(&mut file, &mut io::sink(), |_| ()).map_err(wheel)?;
    check(&plugin.library.display().to_string(), &plugin.library_sha256, &found)
}

/// Installs pinned wheels.
pub struct Installer<'a> {
    pub offline: bool,
    pub progress: &'a mut dyn Progress,
}

impl Installer<'_> {
    /// Downloads and installs a pinned plugin, unless it is installed already.
    ///
    /// # Errors
    /// The installer is offline, the download fails or has another sha256, or the files cannot be
    /// written.
    pub fn install(&mut self, pinned: &PinnedPlugin) -> Result<InstalledPlugin> {
        let dir = plugins_dir(pinned.kind)?;
        // Two processes that need the same plugin: the second waits for the first, and finds it
        // installed.
        let _lock = lock(&dir)?;
        if let Some(plugin) = read_installed(pinned.kind, &target(&dir, pinned)) {
            return Ok(plugin);
        }
        let config = PipConfig::read();
        if self.offline || config.no_index {
            let PinnedPlugin { kind, package, version, .. } = *pinned;
            return Err(PluginError::Offline { kind, package, version });
        }
        let index = Index::new(&config)?;
        let wheel = self.fetch(&index, &dir, pinned.package, pinned.wheel, pinned.sha256)?;
        let staged = stage(pinned, wheel.path(), &dir)?;
        for library in pinned.libraries {
            let wheel = self.fetch(&index, &dir, library.package, library.wheel, library.sha256)?;
            unpack_all(wheel.path(), library.wheel, staged.path())?;
        }
        put(pinned, staged, &dir)
    }

    /// Downloads a wheel into `dir`, and checks its sha256.
    fn fetch(
        &mut self,
        index: &Index,
        dir: &Path,
        package: &str,
        wheel: &str,
        sha256: &str,
    ) -> Result<tempfile::NamedTempFile> {
        let url = index.find(package, wheel)?;
        let (length, mut body) = index.open(&url)?;
        self.progress.start(wheel, length.unwrap_or(0));
        let written = |cause| PluginError::Write { path: dir.to_owned(), cause };
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir).map_err(written)?;
        let result = copy_with_sha256(&mut body, file.as_file_mut(), |n| self.progress.advance(n));
        self.progress.finish();
        let found = result.map_err(|e| match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => written(e),
            _ => PluginError::Index { index: package.to_owned(), problem: format!("the download broke off ({e})") },
        })?;
        check(wheel, sha256, &found)?;
        Ok(file)
    }

    /// Installs a plugin from a wheel on this machine, which must be one of the pinned ones of this
    /// kind.
    ///
    /// # Errors
    /// The wheel is not pinned, needs others, or cannot be read, or the files cannot be written.
    pub fn install_file(&mut self, kind: Kind, wheel: &Path) -> Result<InstalledPlugin> {
        let unusable = |problem: String| PluginError::Wheel { path: wheel.to_owned(), problem };
        let mut file = File::open(wheel).map_err(|e| unusable(e.to_string()))?;
        let found = copy_with_sha256(&mut file, &mut io::sink(), |_| ()).map_err(|e| unusable(e.to_string()))?;
        let Some(pinned) = PINNED.iter().find(|p| p.kind == kind && p.sha256 == found) else {
            let known: Vec<&str> = PINNED.iter().filter(|p| p.kind == kind).map(|p| p.wheel).collect();
            return Err(unusable(format!(
                "its sha256 is {found}, which is none of the pinned {kind} wheels ({}). To use another \
                 plugin, unzip it and pass its .so with --plugin",
                known.join(", ")
            )));
        };
        if !pinned.libraries.is_empty() {
            return Err(unusable(format!(
                "it needs {} more wheels, which --from-file does not install: install it with pip in a Python environment \
                 (jax[cuda12] or jax[cuda13]) and activate that, where it is found",
                pinned.libraries.len()
            )));
        }
        let dir = plugins_dir(kind)?;
        let _lock = lock(&dir)?;
        put(pinned, stage(pinned, wheel, &dir)?, &dir)
    }
}

fn target(dir: &Path, pinned: &PinnedPlugin) -> PathBuf {
    dir.join(format!("{}-{}", pinned.version, &pinned.sha256[..16]))
}

/// Takes the lock of a directory, which is held until the result is dropped or the process ends.
/// Then nobody else writes there, so what installations left that were killed is removed. A file
/// system without locks is used without, and a warning says so.
fn lock(dir: &Path) -> Result<File> {
    let failed = |path: &Path, cause| PluginError::Write { path: path.to_owned(), cause };
    fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(|e| failed(&path, e))?;
    if let Err(cause) = file.lock() {
        tracing::warn!("{} cannot be locked ({cause}): let no other process install plugins", path.display());
    } else {
        remove_leftovers(dir);
    }
    Ok(file)
}

fn remove_leftovers(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for path in entries.filter(|entry| is_temporary(&entry.file_name())).map(|entry| entry.path()) {
        // If one stays, it only takes space.
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}

/// Unpacks the plugin into a temporary directory beside its final one.
fn stage(pinned: &PinnedPlugin, wheel: &Path, dir: &Path) -> Result<tempfile::TempDir> {
    let unusable = |problem: String| PluginError::Wheel { path: wheel.to_owned(), problem };
    let written = |cause| PluginError::Write { path: dir.to_owned(), cause };
    let mut archive = open_wheel(wheel)?;
    let mut member =
        archive.by_name(pinned.member).map_err(|e| unusable(format!("no {} in it ({e})", pinned.member)))?;
    let member_path = Path::new(pinned.member);
    // The plugin finds its libraries by paths relative to its own.
    let library = if pinned.libraries.is_empty() {
        Path::new(member_path.file_name().expect("members are files"))
    } else {
        member_path
    };
    let staged = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(dir).map_err(written)?;
    let path = staged.path().join(library);
    fs::create_dir_all(path.parent().expect("it is in the staging directory")).map_err(written)?;
    let mut out = File::create(path).map_err(written)?;
    let library_sha256 = copy_with_sha256(&mut member, &mut out, |_| ()).map_err(written)?;
    // Its hash is not checked again: a power cut must not leave a name without contents.
    out.sync_all().map_err(written)?;
    let manifest = PluginManifest {
        package: pinned.package.to_owned(),
        version: pinned.version.to_owned(),
        wheel_sha256: pinned.sha256.to_owned(),
        library: library.to_string_lossy().into_owned(),
        library_sha256,
    };
    let text = serde_json::to_string_pretty(&manifest).expect("JSON of strings");
    fs::write(staged.path().join(MANIFEST), text).map_err(written)?;
    Ok(staged)
}

fn open_wheel(wheel: &Path) -> Result<zip::ZipArchive<File>> {
    let unusable = |problem: String| PluginError::Wheel { path: wheel.to_owned(), problem };
    let file = File::open(wheel).map_err(|e| unusable(e.to_string()))?;
    zip::ZipArchive::new(file).map_err(|e| unusable(format!("it is not a wheel ({e})")))
}

/// Unpacks a wheel of libraries into the directory `to`, without headers and static libraries.
/// Errors call it `name`.
///
/// # Errors
/// The wheel is damaged or names files outside of `to`, or the files cannot be written.
pub fn unpack_all(wheel: &Path, name: &str, to: &Path) -> Result<()> {
    let unusable = |problem: String| PluginError::Wheel { path: name.into(), problem };
    let written = |cause| PluginError::Write { path: to.to_owned(), cause };
    let mut archive = open_wheel(wheel)?;
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).map_err(|e| unusable(e.to_string()))?;
        let path =
            member.enclosed_name().ok_or_else(|| unusable(format!("{:?} leaves its directory", member.name())))?;
        let is_header = path.components().any(|part| part.as_os_str() == "include");
        if !member.is_file() || is_header || path.extension().is_some_and(|e| e == "a") {
            continue;
        }
        let path = to.join(path);
        fs::create_dir_all(path.parent().expect("it is in the staging directory")).map_err(written)?;
        let mut out = File::create(&path).map_err(written)?;
        io::copy(&mut member, &mut out).map_err(written)?;
        if let Some(mode) = member.unix_mode() {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o755 | 0o644)).map_err(written)?;
        }
    }
    Ok(())
}

/// Renames the staged directory to its final place, so that other processes see all of it or
/// nothing.
fn put(pinned: &PinnedPlugin, staged: tempfile::TempDir, dir: &Path) -> Result<InstalledPlugin> {
    let written = |cause| PluginError::Write { path: dir.to_owned(), cause };
    fs::set_permissions(staged.path(), fs::Permissions::from_mode(0o755)).map_err(written)?;
    let place = target(dir, pinned);
    if place.exists() {
        fs::remove_dir_all(&place).map_err(written)?; // damaged, or incomplete; the lock is held
    }
    fs::rename(staged.keep(), &place).map_err(written)?;
    read_installed(pinned.kind, &place)
        .ok_or_else(|| PluginError::Wheel { path: place, problem: "it could not be read back".into() })
}

/// Copies everything. Returns its sha256, in hex.
fn copy_with_sha256(from: &mut impl Read, to: &mut impl Write, progress: impl FnMut(u64)) -> io::Result<String> {
    let mut hasher = Sha256::new();
    copy_hashed(from, to, &mut hasher, progress)?;
    Ok(hex(&hasher.finalize()))
}

fn check(what: &str, expected: &str, found: &str) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(PluginError::Checksum { what: what.to_owned(), expected: expected.to_owned(), found: found.to_owned() })
}
