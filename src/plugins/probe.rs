//! What accelerators this machine has, told from files alone: no plugin is loaded for it.

use std::{fs, path::Path};

/// PCI vendor id of Google, and the device ids of TPU chips.
const GOOGLE: &str = "0x1ae0";
const CHIPS: [(&str, &str); 4] = [("0x005e", "v4"), ("0x0062", "v5p"), ("0x0063", "v5e"), ("0x006f", "v6e")];

/// Generations of the TPU chips on the PCI bus, one entry per chip. libtpu is only asked where there are some: elsewhere it
/// can spend minutes looking for Google's metadata server.
pub fn tpu_chips() -> Vec<&'static str> {
    chips_under(Path::new("/sys/bus/pci/devices"))
}

fn chips_under(devices: &Path) -> Vec<&'static str> {
    let read = |path: std::path::PathBuf| fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
    let Ok(entries) = fs::read_dir(devices) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| read(entry.path().join("vendor")) == GOOGLE)
        .filter_map(|entry| {
            let device = read(entry.path().join("device"));
            CHIPS.iter().find(|(id, _)| *id == device).map(|(_, generation)| *generation)
        })
        .collect()
}

/// Whether an NVIDIA driver is loaded.
pub fn nvidia_driver() -> bool {
    Path::new("/dev/nvidiactl").exists() || Path::new("/proc/driver/nvidia/version").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_chips_by_vendor_and_device() {
        let dir = tempfile::tempdir().unwrap();
        for (name, vendor, device) in [
            ("0000:00:04.0", "0x1ae0\n", "0x0063\n"), // a v5e chip
            ("0000:00:05.0", "0x1ae0\n", "0x001f\n"), // Google's, no TPU (an NVMe disk)
            ("0000:00:06.0", "0x8086\n", "0x0063\n"), // not Google's
        ] {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("vendor"), vendor).unwrap();
            fs::write(path.join("device"), device).unwrap();
        }
        assert_eq!(chips_under(dir.path()), ["v5e"]);
        assert_eq!(chips_under(Path::new("/nonexistent")), [""; 0]);
    }
}
