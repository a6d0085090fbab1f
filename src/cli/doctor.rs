//! `doctor`: checks what this computer has for running models. Each problem comes with a remedy.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::json;

use super::{Outcome, process::size};
use crate::{
    cache_dir::cache_dir,
    device::host_memory,
    kernels,
    plugins::{DeviceFile, Kind, System, installed, locate},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    Warn,
    Fail,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The result of one check.
#[derive(Debug)]
struct Check {
    what: &'static str,
    status: Status,
    found: String,
    /// The remedy; `None` if all is well.
    remedy: Option<String>,
}

fn ok(what: &'static str, found: impl Into<String>) -> Check {
    Check { what, status: Status::Ok, found: found.into(), remedy: None }
}

fn warn(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, status: Status::Warn, found: found.into(), remedy: Some(remedy.into()) }
}

fn fail(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, status: Status::Fail, found: found.into(), remedy: Some(remedy.into()) }
}

pub fn run(args: &Args) -> Result<Outcome> {
    let system = System::default();
    let mut lines = vec![processor(&system), memory(&system), threads()];
    lines.extend(tpu(&system));
    lines.extend(nvidia(&system));
    lines.extend(variables(|name| std::env::var(name).ok(), !system.tpu_chips().is_empty()));
    lines.extend(cache());
    lines.push(token());
    let mut kinds = vec![Kind::Cpu];
    kinds.extend(system.tpu_problem().is_none().then_some(Kind::Tpu));
    kinds.extend(system.nvidia_driver().then_some(Kind::Cuda));
    lines.extend(kinds.into_iter().map(platform));

    let mut out = std::io::stdout().lock();
    if args.json {
        let line = |l: &Check| json!({"what": l.what, "state": l.status.name(), "found": l.found, "remedy": l.remedy});
        writeln!(out, "{}", json!({"checks": lines.iter().map(line).collect::<Vec<_>>()}))?;
    } else {
        for Check { what, status, found, remedy } in &lines {
            writeln!(out, "{:<5}{what:<18} {found}", status.name())?;
            if let Some(remedy) = remedy {
                writeln!(out, "{:<23} -> {remedy}", "")?;
            }
        }
    }
    Ok(if lines.iter().any(|line| line.status == Status::Fail) { Outcome::ChecksFailed } else { Outcome::Done })
}

fn processor(system: &System) -> Check {
    let text = system.read("/proc/cpuinfo");
    let field =
        |name: &str| text.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_once(':')).map(|(_, v)| v.trim());
    let flags = field("flags").unwrap_or_default();
    let known = ["avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"];
    let has: Vec<&str> = known.into_iter().filter(|flag| flags.split(' ').any(|f| f == *flag)).collect();
    let kernel = kernels::Isa::best();
    let found =
        format!("{} ({}); kernels for {}", field("model name").unwrap_or("unknown"), has.join(" "), kernel.name());
    if kernels::are_fast() {
        return ok("processor", found);
    }
    warn("processor", found, "without AVX2, models run on XLA's own operations, which is slow")
}

fn memory(system: &System) -> Check {
    let text = system.read("/proc/meminfo");
    let bytes = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let (total, mut available) = (bytes("MemTotal:"), bytes("MemAvailable:"));
    let mut found = format!("{} of {} available", size(available), size(total));
    if let Some(group) = host_memory::control_group(system) {
        let (limit, left) = (size(group.limit), size(group.available));
        found += &format!("; the control group {} allows {limit}, of which {left} are available", group.path.display());
        available = available.min(group.available);
    }
    if available < 2 << 30 {
        return warn(
            "memory",
            found,
            "the demo model runs; the 2B needs about 6 GiB in bf16, 3 GiB with --weights int8",
        );
    }
    ok("memory", found)
}

fn threads() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    ok("threads", format!("{cores} for the CPU kernels (--threads)"))
}

fn tpu(system: &System) -> Vec<Check> {
    let chips = system.tpu_chips();
    let plugin = match locate(Kind::Tpu, None) {
        Ok(found) => {
            let version = installed(Kind::Tpu).ok().and_then(|list| list.into_iter().find(|p| p.library == found.path));
            let version = version.map_or(String::new(), |p| format!(" {}", p.version));
            ok("libtpu", format!("{}{version} (from {})", found.path.display(), found.source))
        }
        Err(_) if chips.is_empty() => {
            ok("libtpu", "not installed; plan and compile for TPUs need it: gemma-pjrt plugins install tpu")
        }
        Err(_) => fail("libtpu", "not found", "gemma-pjrt plugins install tpu"),
    };
    if chips.is_empty() {
        return vec![ok("TPU", "no chip on the PCI bus"), plugin];
    }
    let mut lines = vec![ok("TPU", format!("{} chips: {}", chips.len(), chips.join(", "))), plugin];
    let files = system.tpu_device_files();
    if files.is_empty() {
        lines.push(fail("device files", "none", system.tpu_problem().unwrap_or_default()));
    }
    for DeviceFile { path, refused, holders } in &files {
        let path = path.display();
        lines.push(match (holders.first(), refused) {
            (Some((pid, name)), _) => fail(
                "device files",
                format!("{path} is open in process {pid} ({name})"),
                format!("wait for it, or kill {pid}"),
            ),
            (None, Some(reason)) => fail(
                "device files",
                format!("{path}: {reason}"),
                "add this user to the group that owns it, or use sudo",
            ),
            (None, None) => ok("device files", format!("{path} can be opened")),
        });
    }
    if Path::new("/tmp/libtpu_lockfile").exists() && files.iter().all(|file| file.holders.is_empty()) {
        let remedy = "if no other process uses the TPU: sudo rm /tmp/libtpu_lockfile";
        lines.push(warn("lock file", "/tmp/libtpu_lockfile is there", remedy));
    }
    lines.push(metadata_server());
    let pages = system.read("/sys/kernel/mm/transparent_hugepage/enabled");
    lines.push(if pages.contains("[always]") {
        ok("huge pages", "always")
    } else {
        let remedy = "transfers to the chips get faster with: sudo sh -c 'echo always > /sys/kernel/mm/transparent_hugepage/enabled'";
        warn("huge pages", pages, remedy)
    });
    let limits = system.read("/proc/self/limits");
    let locked = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap_or_default();
    lines.push(if locked.contains("unlimited") {
        ok("locked memory", "unlimited")
    } else {
        let limit = locked.split_whitespace().nth(3).unwrap_or("unknown").to_owned();
        warn(
            "locked memory",
            format!("at most {limit} bytes"),
            "ulimit -l unlimited (LimitMEMLOCK=infinity in a systemd unit)",
        )
    });
    lines
}

/// Checks Google's metadata server, which libtpu asks about the machine. libtpu waits for minutes
/// if it is not there.
fn metadata_server() -> Check {
    const WHAT: &str = "metadata server";
    if std::env::var_os("TPU_SKIP_MDS_QUERY").is_some() {
        return ok(WHAT, "not asked: TPU_SKIP_MDS_QUERY is set");
    }
    let address = SocketAddr::from(([169, 254, 169, 254], 80));
    match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
        Ok(_) => ok(WHAT, "reachable"),
        Err(e) => fail(
            WHAT,
            format!("not reachable ({e}): libtpu would wait for it for minutes"),
            "off Google Cloud: export TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_ID=0 \
             TPU_WORKER_HOSTNAMES=localhost",
        ),
    }
}

fn nvidia(system: &System) -> Vec<Check> {
    if !system.nvidia_driver() {
        return vec![ok("NVIDIA driver", "none loaded")];
    }
    let version = system.read("/proc/driver/nvidia/version");
    let driver = ok("NVIDIA driver", version.lines().next().unwrap_or("loaded").to_owned());
    let plugin = match locate(Kind::Cuda, None) {
        Ok(found) => ok("CUDA plugin", format!("{} (from {})", found.path.display(), found.source)),
        Err(_) => fail("CUDA plugin", "not found", "gemma-pjrt plugins install cuda"),
    };
    vec![driver, plugin]
}

/// Checks environment variables that change the program's behaviour.
fn variables(get: impl Fn(&str) -> Option<String>, has_tpu: bool) -> Vec<Check> {
    const WHAT: &str = "environment";
    let names = [
        "PJRT_PLUGIN",
        "TPU_LIBRARY_PATH",
        "TPU_SKIP_MDS_QUERY",
        "TPU_VISIBLE_CHIPS",
        "TPU_CHIPS_PER_PROCESS_BOUNDS",
        "TPU_PROCESS_BOUNDS",
        "TPU_ACCELERATOR_TYPE",
        "TPU_WORKER_ID",
        "TPU_WORKER_HOSTNAMES",
        "LIBTPU_INIT_ARGS",
        "XLA_FLAGS",
        "CUDA_VISIBLE_DEVICES",
        "XDG_CACHE_HOME",
        "HF_HOME",
        "PIP_INDEX_URL",
    ];
    let set: Vec<(&str, String)> = names.into_iter().filter_map(|name| Some((name, get(name)?))).collect();
    let mut lines: Vec<Check> = Vec::new();
    for (name, value) in &set {
        let found = if *name == "PIP_INDEX_URL" { (*name).to_owned() } else { format!("{name}={value}") };
        lines.push(match *name {
            "PJRT_PLUGIN" | "TPU_LIBRARY_PATH" if !Path::new(value).is_file() => {
                fail(WHAT, format!("{found}: there is no such file"), format!("unset {name}, or name the plugin's .so"))
            }
            "TPU_SKIP_MDS_QUERY" if has_tpu => {
                let remedy =
                    "on a Cloud TPU VM unset it: libtpu learns from the metadata server how chips are connected";
                warn(WHAT, found, remedy)
            }
            "XLA_FLAGS" => {
                warn(WHAT, found, "plugins read it, and flags that they do not know are refused: unset XLA_FLAGS")
            }
            _ => ok(WHAT, found),
        });
    }
    if lines.is_empty() {
        lines.push(ok(WHAT, "no variable that matters is set"));
    }
    lines
}

fn cache() -> Vec<Check> {
    const WHAT: &str = "cache";
    let Some(dir) = cache_dir() else {
        return vec![fail(WHAT, "no place for it", "set HOME or XDG_CACHE_HOME")];
    };
    let path = dir.display().to_string();
    if let Err(e) = std::fs::create_dir_all(&dir).and_then(|()| tempfile::tempfile_in(&dir).map(drop)) {
        return vec![fail(
            WHAT,
            format!("{path} cannot be written: {e}"),
            "set XDG_CACHE_HOME to a directory that can be",
        )];
    }
    let free = rustix::fs::statvfs(&dir).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
    let found = format!("{path}, {} free", size(free));
    vec![if free < 2 << 30 {
        warn(
            WHAT,
            found,
            "plugins take up to 0.5 GiB each, models more: free some space, or set XDG_CACHE_HOME and HF_HOME",
        )
    } else {
        ok(WHAT, found)
    }]
}

fn token() -> Check {
    if crate::hub::has_token() {
        return ok("Hugging Face", "a token is there");
    }
    let found = "no token: Gemma's weights cannot be downloaded";
    warn(
        "Hugging Face",
        found,
        "accept Gemma's license on its page, then export HF_TOKEN=hf_... or run huggingface-cli login",
    )
}

/// The most time that a plugin may take to open its devices.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(90);

/// Opens the platform in a process of its own, since a plugin may hang or abort.
fn platform(kind: Kind) -> Check {
    let what = match kind {
        Kind::Cpu => "CPU devices",
        Kind::Tpu => "TPU devices",
        Kind::Cuda => "CUDA devices",
    };
    if kind == Kind::Cpu && locate(kind, None).is_err() {
        return ok(what, "no plugin yet: the first run installs it");
    }
    let program = std::env::current_exe().unwrap_or_else(|_| "gemma-pjrt".into());
    let kind_name = kind.to_string();
    let child = Command::new(program)
        .args(["devices", "--offline", "--json", "--platform", &kind_name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => {
            return fail(
                what,
                format!("a process could not be started: {e}"),
                "check the limits of this shell: ulimit -a",
            );
        }
    };
    let started = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if started.elapsed() > DEVICE_TIMEOUT {
            let _ = child.kill();
            let _ = child.wait();
            let remedy = format!("see where it hangs: gemma-pjrt devices --verbose --platform {kind_name}");
            return fail(what, format!("the plugin did not answer within {} s", DEVICE_TIMEOUT.as_secs()), remedy);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let Ok(output) = child.wait_with_output() else {
        return fail(what, "the process that listed them was lost", "try again");
    };
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if let (true, Some(devices)) = (output.status.success(), found["devices"].as_array()) {
        let kind = devices.first().and_then(|device| device["kind"].as_str()).unwrap_or("unknown");
        let api = found["pjrt_api"].as_str().unwrap_or("?");
        return ok(
            what,
            format!("{} of kind {kind}, PJRT {api}, opened in {:.1} s", devices.len(), started.elapsed().as_secs_f64()),
        );
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = stderr.lines().find(|line| line.starts_with("error:")).or(stderr.lines().last()).unwrap_or_default();
    fail(
        what,
        format!("{} ({line})", output.status),
        format!("gemma-pjrt devices --verbose --platform {kind_name} shows more"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_lead_astray_are_told() {
        let get = |name: &str| match name {
            "PJRT_PLUGIN" => Some("/nonexistent.so".to_owned()),
            "TPU_SKIP_MDS_QUERY" => Some("1".into()),
            "XLA_FLAGS" => Some("--xla_nonsense".into()),
            _ => None,
        };
        let states = |has_tpu| variables(get, has_tpu).iter().map(|line| line.status).collect::<Vec<_>>();
        assert_eq!(states(true), [Status::Fail, Status::Warn, Status::Warn]);
        assert_eq!(states(false), [Status::Fail, Status::Ok, Status::Warn]);
        assert_eq!(variables(|_| None, true)[0].status, Status::Ok);
    }

    #[test]
    fn a_tpu_without_device_files_fails() {
        let dir = tempfile::tempdir().unwrap();
        let chip = dir.path().join("sys/bus/pci/devices/0000:00:04.0");
        std::fs::create_dir_all(&chip).unwrap();
        std::fs::write(chip.join("vendor"), "0x1ae0\n").unwrap();
        std::fs::write(chip.join("device"), "0x0063\n").unwrap();
        let lines = tpu(&System::under(dir.path()));
        let of = |what: &str| lines.iter().find(|line| line.what == what).map(|line| line.status);
        assert_eq!(of("TPU"), Some(Status::Ok));
        assert_eq!(of("device files"), Some(Status::Fail));
        assert_eq!(of("locked memory"), Some(Status::Warn));
        assert!(lines.iter().filter(|line| line.status != Status::Ok).all(|line| line.remedy.is_some()));
    }
}
