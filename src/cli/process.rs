//! This process's memory, and sizes for people to read.

/// Resident memory in bytes, from /proc/self/status.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessMemory {
    /// The largest so far, mapped files included.
    pub peak: u64,
    /// Now, without mapped files: the memory that this program allocated.
    pub anonymous: u64,
}

impl ProcessMemory {
    /// Reads the current figures.
    pub fn now() -> Self {
        let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        Self { peak: kib("VmHWM:") * 1024, anonymous: kib("RssAnon:") * 1024 }
    }
}

/// Formats a size for people: `4.67 GiB`.
pub fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        b if b >= 1024f64.powi(3) => format!("{:.2} GiB", b / 1024f64.powi(3)),
        b if b >= 1024f64.powi(2) => format!("{:.1} MiB", b / 1024f64.powi(2)),
        b if b >= 1024.0 => format!("{:.1} KiB", b / 1024.0),
        b => format!("{b} B"),
    }
}
