//! Memory of the host, which is the devices' memory on CPU.

use std::path::{Component, Path, PathBuf};

use super::error::{Error, Result};
use crate::plugins::System;

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

/// Bytes that can be allocated without swapping and within the control group's limit, where the
/// kernel tells.
pub fn available() -> Option<u64> {
    let system = System::default();
    let text = system.read("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.split_whitespace().next()?.parse::<u64>().ok()? * 1024;
    Some(control_group(&system).map_or(machine, |group| machine.min(group.available)))
}

/// The memory that a control group (of a container, a batch job, a systemd unit) may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlGroup {
    /// The group's directory.
    pub path: PathBuf,
    /// The most bytes.
    pub limit: u64,
    /// Bytes that are left, with those of the page cache that can be reclaimed.
    pub available: u64,
}

/// The files of a version of control groups that tell the limit, the usage, and in `memory.stat`
/// the reclaimable part of it.
struct Version {
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}

const V1: Version =
    Version { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", reclaimable: "total_inactive_file" };
const V2: Version = Version { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };

/// Version 1 writes the largest number of pages where there is no limit.
const UNLIMITED: u64 = 1 << 60;

/// Returns the control group with the least memory left, among this process's own and those above
/// it. `None` if none has a limit.
pub fn control_group(system: &System) -> Option<ControlGroup> {
    let groups = system.read("/proc/self/cgroup");
    let mounts = system.read("/proc/self/mountinfo");
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        let is_v2 = controllers.is_empty();
        if !is_v2 && !controllers.split(',').any(|name| name == "memory") {
            return None;
        }
        let (mount, own) = directory(&mounts, is_v2, group)?;
        let version = if is_v2 { V2 } else { V1 };
        let chain = own.ancestors().take_while(|dir| dir.starts_with(&mount));
        chain.filter_map(|dir| limit(system, dir, &version)).min_by_key(|group| group.available)
    });
    limits.min_by_key(|group| group.available)
}

/// Returns the directory where control groups are mounted, and the one of this group below it.
fn directory(mounts: &str, is_v2: bool, group: &str) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, mount) = (place.next()?, Path::new(place.next()?));
        let mut kind = kind.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
        let is_it =
            if is_v2 { kind == "cgroup2" } else { kind == "cgroup" && options.split(',').any(|o| o == "memory") };
        if !is_it {
            return None;
        }
        // In a container, the mount may begin at the container's own group.
        let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
        let is_below = !below.as_os_str().is_empty() && !below.components().any(|part| part == Component::ParentDir);
        Some((mount.to_owned(), if is_below { mount.join(below) } else { mount.to_owned() }))
    })
}

/// Returns the limit of one group, if it has one.
fn limit(system: &System, dir: &Path, version: &Version) -> Option<ControlGroup> {
    let read = |file: &str| system.read(&dir.join(file).to_string_lossy());
    let limit = read(version.limit).parse::<u64>().ok().filter(|&limit| limit < UNLIMITED)?;
    let usage: u64 = read(version.usage).parse().ok()?;
    let stat = read("memory.stat");
    let reclaimable = stat.lines().find_map(|line| line.strip_prefix(version.reclaimable)?.trim().parse().ok());
    let used = usage.saturating_sub(reclaimable.unwrap_or(0));
    Some(ControlGroup { path: dir.to_owned(), limit, available: limit.saturating_sub(used) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn found(files: &[(&str, &str)]) -> Option<(String, u64, u64)> {
        let group = control_group(&System::under(machine(files).path()))?;
        Some((group.path.display().to_string(), group.limit, group.available))
    }

    #[test]
    fn version_2_has_the_tightest_limit_of_the_path() {
        let mut files = vec![
            ("proc/self/cgroup", "0::/jobs/7\n"),
            ("proc/self/mountinfo", "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"),
            ("sys/fs/cgroup/jobs/7/memory.max", "max\n"),
            ("sys/fs/cgroup/jobs/7/memory.current", "500\n"),
            ("sys/fs/cgroup/jobs/memory.max", "1000\n"),
            ("sys/fs/cgroup/jobs/memory.current", "900\n"),
            ("sys/fs/cgroup/jobs/memory.stat", "anon 100\ninactive_file 700\nactive_file 100\n"),
        ];
        assert_eq!(found(&files), Some(("/sys/fs/cgroup/jobs".into(), 1000, 800)), "page cache can be reclaimed");
        files[2].1 = "600\n";
        assert_eq!(found(&files), Some(("/sys/fs/cgroup/jobs/7".into(), 600, 100)));
    }

    #[test]
    fn version_1_is_read_from_a_container() {
        let mut files = vec![
            ("proc/self/cgroup", "5:cpu:/docker/ab\n4:memory:/docker/ab\n0::/docker/ab\n"),
            (
                "proc/self/mountinfo",
                "40 30 0:30 /docker/ab /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n\
                 41 30 0:31 /docker/ab /sys/fs/cgroup/memory ro master:1 - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "400\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
        ];
        assert_eq!(found(&files), Some(("/sys/fs/cgroup/memory".into(), 1000, 700)));
        files[2].1 = "9223372036854771712\n";
        assert_eq!(found(&files), None, "no limit");
        assert_eq!(found(&[]), None);
    }
}
