//! Memory of the host, which is the devices' memory on CPU.

use super::error::{Error, Result};

/// Refuses an allocation of `bytes` that the machine has no memory for, before the kernel kills the
/// process for it.
///
/// # Errors
/// [`Error::OutOfMemory`], with what is needed and what there is.
pub fn require(bytes: u64, doing: impl FnOnce() -> String) -> Result<()> {
    match available() {
        Some(available) if bytes > available => {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let message = format!("it needs {:.1} GiB, {:.1} GiB are available", gib(bytes), gib(available));
            Err(Error::OutOfMemory { doing: doing(), message })
        }
        _ => Ok(()),
    }
}

/// Bytes that can be allocated without swapping, where the kernel tells.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
