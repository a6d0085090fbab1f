//! Machines to compile for. They need not be here: libtpu compiles for a slice of TPUs on any x86 computer, and the CUDA plugin
//! for an H100.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{
    error::{Error, Result, While},
    host_memory,
    platform::{Platform, PlatformRequest},
};
use crate::{
    download::Progress,
    gemma::ProgramSpec,
    hlo::Module,
    pjrt::{AotExecutable, Api, Client, CompileOptions, Device, Program, Topology, Value},
    plugins::{self, Found, Kind},
};

/// What to compile for.
#[derive(Clone, Debug)]
pub struct MachineRequest<'a> {
    pub kind: Kind,
    /// A plugin file, instead of searching for one.
    pub plugin: Option<&'a Path>,
    /// Of a TPU slice, its generation and shape: `v5e:2x4`.
    pub topology: Option<&'a str>,
    /// Devices needed.
    pub devices: usize,
    pub offline: bool,
}

/// A machine to compile for.
pub struct Machine {
    pub kind: Kind,
    /// Such as `v5e:2x2`.
    pub name: String,
    pub plugin: Found,
    pub api: Api,
    pub devices: usize,
    /// Bytes of memory of one device that programs can have, where the plugin tells.
    pub memory: Option<u64>,
    topology: Topology,
    /// Ids of the devices that programs are compiled for.
    ids: Vec<i32>,
    /// On CPU, whose topology it is.
    _client: Option<Client>,
}

/// A program compiled for a [`Machine`].
pub struct Compiled {
    pub executable: AotExecutable,
    pub time: Duration,
}

/// The NVIDIA H100's description, as XLA's own tools have it: the CUDA plugin compiles for it where there is none.
const H100: &str = include_str!("h100_target_config.txtpb");

impl Machine {
    /// Loads the plugin and asks it for the topology.
    pub fn open(request: &MachineRequest<'_>, progress: &mut dyn Progress) -> Result<Self> {
        match request.kind {
            Kind::Cpu => Self::this_one(request, progress),
            Kind::Tpu => Self::tpu(request),
            Kind::Cuda => Self::cuda(request),
        }
    }

    fn this_one(request: &MachineRequest<'_>, progress: &mut dyn Progress) -> Result<Self> {
        let platform = Platform::open(
            &PlatformRequest {
                kind: Some(Kind::Cpu),
                plugin: request.plugin.map(Path::to_owned),
                devices: request.devices,
                offline: request.offline,
            },
            progress,
        )?;
        let doing = || "reading the CPU's topology".to_owned();
        let ids = platform.devices(request.devices)?.iter().map(Device::id).collect::<crate::pjrt::Result<_>>();
        Ok(Self {
            kind: Kind::Cpu,
            name: "this computer".into(),
            plugin: platform.plugin,
            api: platform.client.api().clone(),
            devices: request.devices,
            // Virtual devices share the memory.
            memory: host_memory::available().map(|bytes| bytes / request.devices as u64),
            topology: platform.client.topology().during(doing)?,
            ids: ids.during(doing)?,
            _client: Some(platform.client),
        })
    }

    fn tpu(request: &MachineRequest<'_>) -> Result<Self> {
        let Some(name) = request.topology else {
            let message = "which TPU slice? Name it with --topology, such as v5e:1x1, v5e:2x2 or v5e:2x4";
            return Err(Error::Invalid(message.into()));
        };
        let plugin = plugins::locate(Kind::Tpu, request.plugin)?;
        if plugins::tpu_chips().is_empty() {
            Api::prepare_for_absent_tpu();
        }
        // Up to eight chips of v5e and v6e are one host; libtpu would think of hosts of four.
        let shape: Vec<i64> =
            name.split_once(':').map_or("", |(_, shape)| shape).split('x').filter_map(|d| d.parse().ok()).collect();
        let mut options = vec![];
        if let [a, b] = shape[..]
            && a * b <= 8
            && ["v5e:", "v6e:"].iter().any(|generation| name.starts_with(generation))
        {
            options.push(("chips_per_host_bounds".to_owned(), Value::Ints(vec![a, b, 1])));
        }
        Self::described(Kind::Tpu, name.to_owned(), plugin, request.devices, name, &options)
    }

    fn cuda(request: &MachineRequest<'_>) -> Result<Self> {
        let plugin = plugins::locate(Kind::Cuda, request.plugin)?;
        let options = vec![
            ("target_config".to_owned(), Value::Str(H100.to_owned())),
            ("topology".to_owned(), Value::Str(format!("1x1x{}", request.devices))),
        ];
        Self::described(Kind::Cuda, format!("{} H100", request.devices), plugin, request.devices, "", &options)
    }

    fn described(
        kind: Kind,
        name: String,
        plugin: Found,
        devices: usize,
        topology_name: &str,
        options: &crate::pjrt::Options,
    ) -> Result<Self> {
        let api = Api::load(&plugin.path)
            .during(|| format!("cannot open the {kind} plugin from {} ({})", plugin.source, plugin.path.display()))?;
        let doing = || format!("asking {} for the topology {name}", plugin.path.display());
        let topology = Topology::new(&api, topology_name, options).during(doing)?;
        let found = topology.devices().during(doing)?.len();
        if found < devices {
            return Err(Error::Invalid(format!(
                "the mesh needs {devices} devices, {name} has {found}; use a smaller --mesh or a larger --topology"
            )));
        }
        if found > devices {
            return Err(Error::Invalid(format!(
                "{name} has {found} chips, the mesh uses {devices}: use a --mesh of {found}, such as 1x{found}, or a smaller \
                 --topology"
            )));
        }
        let limit = topology.attributes().during(doing)?.into_iter().find_map(|(name, value)| match value {
            Value::Int(bytes) if name == "device_memory_bytes_limit" => Some(bytes as u64),
            _ => None,
        });
        Ok(Self {
            kind,
            name,
            plugin,
            api,
            devices,
            memory: limit,
            topology,
            ids: (0..devices as i32).collect(),
            _client: None,
        })
    }

    /// Compiles a program.
    pub fn compile(&self, spec: &ProgramSpec) -> Result<Compiled> {
        let name = spec.name();
        let module = spec.build().map_err(|cause| Error::Graph { program: name.clone(), cause })?;
        self.compile_module(&module)
    }

    /// Compiles a module.
    pub fn compile_module(&self, module: &Module) -> Result<Compiled> {
        let started = Instant::now();
        let code = module.encode();
        let executable = self
            .topology
            .compile(&Program { code: &code, format: "hlo" }, &self.options())
            .during(|| format!("compiling {} for {}", module.name(), self.name))?;
        Ok(Compiled { executable, time: started.elapsed() })
    }

    /// The options that programs are compiled with.
    pub fn options(&self) -> CompileOptions {
        CompileOptions::replicas(self.ids.iter().copied())
    }
}
