//! Choosing a platform: which plugin, and a client with enough devices.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use super::error::{During, Error, Result};
use crate::{
    download::Progress,
    kernels,
    pjrt::{Api, Client, Device, Value},
    plugins::{self, Installer, Kind, LocatedPlugin, PluginError, PluginSource, System},
};

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct PlatformRequest {
    /// `None` means the best that is there: tpu, cuda, cpu.
    pub kind: Option<Kind>,
    /// A plugin file, instead of searching for one.
    pub plugin: Option<PathBuf>,
    /// Devices needed.
    pub devices: usize,
    /// Whether a missing CPU plugin may not be downloaded.
    pub offline: bool,
    /// On CUDA, the share of a GPU's memory to take at the start; 0 takes it as it is needed.
    pub gpu_memory: Option<f32>,
}

/// An open platform.
pub struct Platform {
    pub kind: Kind,
    pub plugin: LocatedPlugin,
    pub client: Client,
    /// One line for the user: what was chosen, and why others were not.
    pub summary: String,
    /// How long it took to open it.
    pub opened_in: Duration,
}

impl Platform {
    /// Finds the plugin (the CPU plugin is installed if there is none), loads it, and creates a
    /// client.
    ///
    /// # Errors
    /// Why there is no such platform here, and what to do.
    pub fn open(request: &PlatformRequest, progress: &mut dyn Progress) -> Result<Self> {
        let named = plugins::named(request.plugin.as_deref());
        if let Some(kind) = request.kind.or_else(|| named.map(|plugin| kind_by_name(&plugin.path))) {
            refuse_absent(kind)?;
            return Self::open_kind(kind, request, progress, &[]);
        }
        let mut skipped = Vec::new();
        for kind in [Kind::Tpu, Kind::Cuda] {
            match refuse_absent(kind).and_then(|()| Self::open_kind(kind, request, progress, &skipped)) {
                Ok(platform) => return Ok(platform),
                Err(error) => skipped.push(format!("{kind}: {}", first_sentence(&error))),
            }
        }
        Self::open_kind(Kind::Cpu, request, progress, &skipped)
    }

    fn open_kind(
        kind: Kind,
        request: &PlatformRequest,
        progress: &mut dyn Progress,
        skipped: &[String],
    ) -> Result<Self> {
        let started = Instant::now();
        let plugin = match plugins::locate(kind, request.plugin.as_deref()) {
            Err(PluginError::NotFound { .. }) if kind == Kind::Cpu => {
                let pinned = plugins::pinned_for(kind, None).expect("a CPU plugin is pinned");
                let installed = Installer { offline: request.offline, progress }.install(pinned)?;
                LocatedPlugin { path: installed.library, source: PluginSource::Cache }
            }
            found => found?,
        };
        let doing = || format!("cannot open the {kind} plugin from {} ({})", plugin.source, plugin.path.display());
        let api = Api::load(&plugin.path).during(doing)?;
        let options = match kind {
            Kind::Cpu => vec![("cpu_device_count".to_owned(), Value::Int(request.devices as i64))],
            // As XLA's GPU client names them.
            Kind::Cuda => match request.gpu_memory {
                None => vec![],
                Some(0.0) => vec![("preallocate".to_owned(), Value::Bool(false))],
                Some(share) => vec![
                    ("preallocate".to_owned(), Value::Bool(true)),
                    ("memory_fraction".to_owned(), Value::Float(share)),
                ],
            },
            Kind::Tpu => vec![],
        };
        if kind == Kind::Cpu {
            kernels::register(&api).during(doing)?;
        }
        let client = Client::new(&api, &options).during(doing)?;
        let platform = client.platform_name().during(doing)?;
        if platform != kind.to_string() {
            return Err(Error::Invalid(format!(
                "{} (from {}) is a plugin for {platform}, not for {kind}; name another one, or use --platform {platform}",
                plugin.path.display(),
                plugin.source
            )));
        }
        let found = client.devices().during(doing)?.len();
        if found < request.devices {
            return Err(Error::Invalid(format!(
                "the mesh needs {} devices, this machine has {found} {kind} devices; use a smaller --mesh",
                request.devices
            )));
        }
        let (major, minor) = api.version();
        let mut summary = format!("platform {kind} (PJRT {major}.{minor}, from {})", plugin.source);
        if !skipped.is_empty() {
            summary += &format!("; not {}", skipped.join(", not "));
        }
        Ok(Self { kind, plugin, client, summary, opened_in: started.elapsed() })
    }

    /// The first `count` devices.
    ///
    /// # Errors
    /// The plugin's.
    pub fn devices(&self, count: usize) -> Result<Vec<Device>> {
        let mut devices = self.client.devices().during(|| "listing devices".into())?;
        devices.truncate(count);
        Ok(devices)
    }
}

/// Says no before a plugin is loaded that would look for hardware in vain.
fn refuse_absent(kind: Kind) -> Result<()> {
    let system = System::default();
    let problem = match kind {
        Kind::Tpu => system.tpu_problem(),
        Kind::Cuda if !system.nvidia_driver() => {
            Some("no NVIDIA driver is loaded. Use --platform cpu, or run this on a machine with a GPU".into())
        }
        Kind::Cuda | Kind::Cpu => None,
    };
    problem.map_or(Ok(()), |problem| Err(Error::Invalid(problem)))
}

/// The platform of a plugin that the user named, guessed from the file's name; checked when it is
/// open.
fn kind_by_name(path: &std::path::Path) -> Kind {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if name.contains("tpu") {
        Kind::Tpu
    } else if name.contains("cuda") {
        Kind::Cuda
    } else {
        Kind::Cpu
    }
}

fn first_sentence(error: &Error) -> String {
    let text = error.to_string();
    text.split(". ").next().unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}
