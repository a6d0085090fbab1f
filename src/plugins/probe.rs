//! Finds this machine's accelerators from files alone, without loading a plugin.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// PCI vendor id of Google, and the device ids of TPU chips.
const GOOGLE: &str = "0x1ae0";
const CHIPS: [(&str, &str); 4] = [("0x005e", "v4"), ("0x0062", "v5p"), ("0x0063", "v5e"), ("0x006f", "v6e")];

/// A computer, as the files below its root directory describe it.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

/// A device file of a TPU chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFile {
    pub path: PathBuf,
    /// Why this user cannot open the file for reading and writing; `None` if they can.
    pub refused: Option<String>,
    /// Other processes that have it open: process id and name. Only root sees those of other users.
    pub holders: Vec<(u32, String)>,
}

impl System {
    /// Returns the computer whose root directory is this one.
    pub fn under(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Reads a file, given by its absolute path. Returns an empty text if it cannot be read.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).map(|text| text.trim().to_owned()).unwrap_or_default()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns the generation of each TPU chip on the PCI bus. libtpu is only loaded where there
    /// are chips: elsewhere it can spend minutes looking for Google's metadata server.
    pub fn tpu_chips(&self) -> Vec<&'static str> {
        const PCI: &str = "/sys/bus/pci/devices";
        let Ok(entries) = fs::read_dir(self.path(PCI)) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let google = names.filter(|name| self.read(&format!("{PCI}/{name}/vendor")) == GOOGLE);
        google
            .filter_map(|name| {
                let device = self.read(&format!("{PCI}/{name}/device"));
                CHIPS.iter().find(|(id, _)| *id == device).map(|(_, generation)| *generation)
            })
            .collect()
    }

    /// Returns whether an NVIDIA driver is loaded.
    pub fn nvidia_driver(&self) -> bool {
        self.path("/dev/nvidiactl").exists() || self.path("/proc/driver/nvidia/version").exists()
    }

    /// Returns the device files of the TPU chips: /dev/accel0 and so on, or /dev/vfio/0 with newer
    /// drivers.
    pub fn tpu_device_files(&self) -> Vec<DeviceFile> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let list = |dir: &str, prefix: &str| -> Vec<PathBuf> {
            let entries = fs::read_dir(self.path(dir)).into_iter().flatten().flatten();
            let named =
                entries.filter(|e| e.file_name().to_str().and_then(|n| n.strip_prefix(prefix)).is_some_and(is_number));
            named.map(|entry| entry.path()).collect()
        };
        let mut paths = [list("/dev", "accel"), list("/dev/vfio", "")].concat();
        paths.sort();
        let holders = self.holders(&paths);
        let describe = |(path, holders): (PathBuf, Vec<(u32, String)>)| {
            let refused = fs::OpenOptions::new().read(true).write(true).open(&path).err();
            // A chip in use may be busy for others. The process that uses it says more than that.
            let refused = refused.filter(|_| holders.is_empty()).map(|e| e.to_string());
            DeviceFile { path, refused, holders }
        };
        paths.into_iter().zip(holders).map(describe).collect()
    }

    /// Returns for each path the other processes that have it open.
    fn holders(&self, paths: &[PathBuf]) -> Vec<Vec<(u32, String)>> {
        let mut holders = vec![Vec::new(); paths.len()];
        if paths.is_empty() {
            return holders;
        }
        let entries = fs::read_dir(self.path("/proc")).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids.filter(|&pid| pid != std::process::id()) {
            let fds = fs::read_dir(self.path(&format!("/proc/{pid}/fd"))).into_iter().flatten().flatten();
            let open: Vec<PathBuf> = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
            for (path, holders) in paths.iter().zip(&mut holders) {
                if open.contains(path) {
                    holders.push((pid, self.read(&format!("/proc/{pid}/comm"))));
                }
            }
        }
        holders
    }

    /// Returns why the TPU cannot be used, and what to do; `None` if it can. Does not load libtpu,
    /// which could hang or abort.
    pub fn tpu_problem(&self) -> Option<String> {
        if self.tpu_chips().is_empty() {
            return Some("no TPU chip on the PCI bus. Use --platform cpu, or run this on a machine with a TPU".into());
        }
        let files = self.tpu_device_files();
        if files.is_empty() {
            return Some(
                "there are TPU chips, but no device files for them (/dev/accel0, /dev/vfio/0): the driver is not loaded, or a \
                 container was started without them. Add --privileged, or --device for each"
                    .into(),
            );
        }
        for DeviceFile { path, refused, holders } in &files {
            let path = path.display();
            if let Some((pid, name)) = holders.first() {
                return Some(format!(
                    "the TPU is in use by process {pid} ({name}), which has {path} open. Wait for it, or end it: kill {pid}"
                ));
            }
            if let Some(reason) = refused {
                return Some(format!(
                    "{path} cannot be opened ({reason}). Add this user to the group that owns it (ls -l {path}), or use sudo"
                ));
            }
        }
        None
    }
}

/// Returns the TPU chips of this computer, as [`System::tpu_chips`] does.
pub fn tpu_chips() -> Vec<&'static str> {
    System::default().tpu_chips()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn with_chip() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, vendor, device) in [
            ("0000:00:04.0", "0x1ae0\n", "0x0063\n"), // a v5e chip
            ("0000:00:05.0", "0x1ae0\n", "0x001f\n"), // Google's, no TPU (an NVMe disk)
            ("0000:00:06.0", "0x8086\n", "0x0063\n"), // not Google's
        ] {
            put(dir.path(), &format!("sys/bus/pci/devices/{name}/vendor"), vendor);
            put(dir.path(), &format!("sys/bus/pci/devices/{name}/device"), device);
        }
        dir
    }

    #[test]
    fn finds_chips_by_vendor_and_device() {
        assert_eq!(System::under(with_chip().path()).tpu_chips(), ["v5e"]);
        assert_eq!(System::under(Path::new("/nonexistent")).tpu_chips(), [""; 0]);
    }

    #[test]
    fn tells_why_a_tpu_cannot_be_used() {
        let dir = with_chip();
        let system = System::under(dir.path());
        let problem = || system.tpu_problem().unwrap_or_default();
        assert!(problem().contains("no device files"), "{}", problem());
        put(dir.path(), "dev/vfio/0", "");
        put(dir.path(), "dev/vfio/vfio", "");
        assert_eq!(system.tpu_problem(), None);
        // Another process has it open.
        let fd = dir.path().join("proc/4321/fd");
        fs::create_dir_all(&fd).unwrap();
        put(dir.path(), "proc/4321/comm", "python3\n");
        symlink(dir.path().join("dev/vfio/0"), fd.join("7")).unwrap();
        assert!(problem().contains("process 4321 (python3)"), "{}", problem());
        fs::remove_dir_all(&fd).unwrap();
        // A directory cannot be opened for writing, whoever asks.
        fs::remove_file(dir.path().join("dev/vfio/0")).unwrap();
        fs::create_dir(dir.path().join("dev/vfio/0")).unwrap();
        assert!(problem().contains("cannot be opened"), "{}", problem());
        assert!(System::under(Path::new("/nonexistent")).tpu_problem().unwrap().contains("no TPU chip"));
    }
}
