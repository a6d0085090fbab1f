//! Files of compiled programs: a magic, the full key, the payload's sha256, the payload (the
//! plugin's own serialized executable).

use std::{fs, path::Path};

use sha2::{Digest, Sha256};

use crate::{download::hex, pjrt::CompileOptions, whole_file::write_checked};

const MAGIC: &[u8; 8] = b"GPJRT\x00\x01\n";

/// The key of a program. `compiler` stands for all that the compiled program depends on besides
/// code and options.
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
pub(super) fn read_entry(path: &Path, key: &[u8; 32]) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(bytes) => entry_payload(&bytes, key).map(|payload| Some(payload.to_vec())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// Returns the payload of an entry's file, checked.
///
/// # Errors
/// The file is no entry, is that of another key, or is damaged.
pub fn entry_payload<'b>(bytes: &'b [u8], key: &[u8; 32]) -> Result<&'b [u8], String> {
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
    Ok(payload)
}

/// Writes an entry. A reader sees all of it or none.
pub(super) fn write_entry(path: &Path, key: &[u8; 32], payload: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().expect("entries are in a directory");
    fs::create_dir_all(dir)?;
    let digest = Sha256::digest(payload);
    let parts = [&MAGIC[..], key, &digest, payload];
    write_checked(path, |out| parts.iter().try_for_each(|part| out.write_all(part)))
}

/// The processor's feature flags: a CPU executable is machine code for them.
pub(super) fn cpu_features() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    [line("model name"), line("flags"), line("Features")].join(" ")
}
