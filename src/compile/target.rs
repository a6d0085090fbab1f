//! Machines to compile for. They need not be here: libtpu compiles for a slice of TPUs on any x86
//! computer, and the CUDA plugin for an H100.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use prost::Message;

use super::signature::signature;
use crate::{
    device::{During, Error, Platform, PlatformRequest, Result, host_memory},
    download::Progress,
    hlo::{Module, proto},
    pjrt::{self, AotExecutable, Api, Client, CompileOptions, CompiledMemoryStats, Device, Program, Topology, Value},
    plugins::{self, Kind, LocatedPlugin},
};

/// A machine to compile for, as the user names it.
#[derive(Clone, Debug)]
pub struct TargetRequest<'a> {
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
pub struct CompileTarget {
    pub kind: Kind,
    /// Such as `v5e:2x2`.
    pub name: String,
    pub plugin: LocatedPlugin,
    pub api: Api,
    pub devices: usize,
    /// Bytes of memory of one device that programs can have, where the plugin tells.
    pub memory: Option<u64>,
    compiler: Compiler,
    /// Ids of the devices that programs are compiled for.
    ids: Vec<i32>,
}

/// The plugin's object that compiles.
enum Compiler {
    Topology(Topology),
    /// The CPU plugins compile for the computer that they are on only.
    Client(Client),
}

/// A program compiled for a [`CompileTarget`].
pub struct Compiled {
    name: String,
    executable: Executable,
    pub time: Duration,
}

enum Executable {
    Ahead(AotExecutable),
    Loaded(pjrt::Executable),
}

impl Compiled {
    /// Memory needed on each device.
    ///
    /// # Errors
    /// The plugin's.
    pub fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        let stats = match &self.executable {
            Executable::Ahead(it) => it.memory_stats(),
            Executable::Loaded(it) => it.memory_stats(),
        };
        stats.during(|| format!("asking what memory {} needs", self.name))
    }

    /// The program as the plugin has optimised it.
    ///
    /// # Errors
    /// The plugin's, or a format that is not known.
    pub fn optimized(&self) -> Result<proto::Module> {
        let doing = || format!("reading the optimized program {}", self.name);
        let optimized = match &self.executable {
            Executable::Ahead(it) => it.optimized_program(),
            Executable::Loaded(it) => it.optimized_program(),
        };
        let (format, bytes) = optimized.during(doing)?;
        let module =
            (format == "hlo_with_config").then(|| proto::ModuleWithConfig::decode(&bytes[..]).ok()?.module).flatten();
        module.ok_or_else(|| Error::Invalid(format!("{}: its format, {format}, is not known", doing())))
    }

    /// In the plugin's own format.
    ///
    /// # Errors
    /// The plugin's.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let bytes = match &self.executable {
            Executable::Ahead(it) => it.serialize(),
            Executable::Loaded(it) => it.serialize(),
        };
        bytes.during(|| format!("serializing {}", self.name))
    }
}

/// The NVIDIA H100's description, as XLA's own tools have it: the CUDA plugin compiles for it where
/// there is none.
const H100: &str = include_str!("h100_target_config.txtpb");
/// Its memory in bytes, as the description tells.
const H100_MEMORY: u64 = 84_942_979_072;

impl CompileTarget {
    /// Loads the plugin and asks it for the topology.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn open(request: &TargetRequest<'_>, progress: &mut dyn Progress) -> Result<Self> {
        match request.kind {
            Kind::Cpu => Self::this_one(request, progress),
            Kind::Tpu => Self::tpu(request),
            Kind::Cuda => Self::cuda(request),
        }
    }

    fn this_one(request: &TargetRequest<'_>, progress: &mut dyn Progress) -> Result<Self> {
        let platform = Platform::open(
            &PlatformRequest {
                kind: Some(Kind::Cpu),
                plugin: request.plugin.map(Path::to_owned),
                devices: request.devices,
                offline: request.offline,
                gpu_memory: None,
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
            ids: ids.during(doing)?,
            compiler: Compiler::Client(platform.client),
        })
    }

    fn tpu(request: &TargetRequest<'_>) -> Result<Self> {
        let Some(name) = request.topology else {
            let message = "which TPU slice? Name it with --topology, such as v5e:1x1, v5e:2x2 or v5e:2x4";
            return Err(Error::Invalid(message.into()));
        };
        let plugin = plugins::locate(Kind::Tpu, request.plugin)?;
        if plugins::tpu_chips().is_empty() {
            Api::prepare_for_absent_tpu();
        }
        let api = load(Kind::Tpu, &plugin)?;
        Self::slice(api, plugin, name, request.devices)
    }

    /// Another slice of TPUs, by the same plugin.
    ///
    /// # Errors
    /// The plugin's.
    pub fn with_topology(&self, name: &str, devices: usize) -> Result<Self> {
        Self::slice(self.api.clone(), self.plugin.clone(), name, devices)
    }

    fn slice(api: Api, plugin: LocatedPlugin, name: &str, devices: usize) -> Result<Self> {
        // Up to eight chips of v5e and v6e are one host; libtpu would think of hosts of four.
        let mut options = vec![];
        if let [a, b] = slice_shape(name)[..]
            && a * b <= 8
            && ["v5e:", "v6e:"].iter().any(|generation| name.starts_with(generation))
        {
            options.push(("chips_per_host_bounds".to_owned(), Value::Ints(vec![a, b, 1])));
        }
        let topology = Topology::new(&api, name, &options).during(|| {
            format!(
                "asking {} for the topology {name} (known ones are v5e:1x1, v5e:2x2, v5e:2x4, ...)",
                plugin.path.display()
            )
        })?;
        Self::described(Kind::Tpu, name.to_owned(), plugin, api, topology, devices)
    }

    fn cuda(request: &TargetRequest<'_>) -> Result<Self> {
        if request.devices > 1 && !plugins::System::default().nvidia_driver() {
            let message = "without a GPU the CUDA plugin compiles for one H100 only: it asks the devices how they are connected. \
                           Use --mesh 1x1, or run this where the GPUs are";
            return Err(Error::Invalid(message.into()));
        }
        let plugin = plugins::locate(Kind::Cuda, request.plugin)?;
        let api = load(Kind::Cuda, &plugin)?;
        let options = vec![
            ("target_config".to_owned(), Value::Str(H100.to_owned())),
            ("topology".to_owned(), Value::Str(format!("1x1x{}", request.devices))),
        ];
        let topology = Topology::new(&api, "", &options).during(|| "asking the CUDA plugin for an H100".into())?;
        let name = format!("{} H100", request.devices);
        let machine = Self::described(Kind::Cuda, name, plugin, api, topology, request.devices)?;
        Ok(Self { memory: machine.memory.or(Some(H100_MEMORY)), ..machine })
    }

    fn described(
        kind: Kind,
        name: String,
        plugin: LocatedPlugin,
        api: Api,
        topology: Topology,
        devices: usize,
    ) -> Result<Self> {
        let doing = || format!("reading the topology {name}");
        let found = topology.devices().during(doing)?.len();
        if found != devices {
            return Err(Error::Invalid(format!(
                "{name} has {found} chips, the mesh {devices}: use a --mesh of {found}, such as 1x{found}, or another --topology"
            )));
        }
        let memory = topology.attributes().during(doing)?.into_iter().find_map(|(name, value)| match value {
            Value::Int(bytes) if name == "device_memory_bytes_limit" => Some(bytes as u64),
            _ => None,
        });
        let ids = (0..devices as i32).collect();
        Ok(Self { kind, name, plugin, api, devices, memory, compiler: Compiler::Topology(topology), ids })
    }

    /// Compiles a program.
    ///
    /// # Errors
    /// The plugin's; [`Error::OutOfMemory`] if it finds that the program does not fit.
    pub fn compile(&self, module: &Module) -> Result<Compiled> {
        let started = Instant::now();
        let (code, mut options) = (module.encode(), self.options());
        if self.kind == Kind::Cuda {
            // There is no GPU to try variants of products on.
            options.flags.insert("xla_gpu_autotune_level".into(), Value::Int(0));
        }
        let program = Program { code: &code, format: "hlo" };
        let doing = || format!("compiling {} for {}", module.name(), self.name);
        let executable = match &self.compiler {
            Compiler::Topology(topology) => Executable::Ahead(topology.compile(&program, &options).during(doing)?),
            Compiler::Client(client) => {
                Executable::Loaded(client.compile(&program, &options, signature(module)).during(doing)?)
            }
        };
        Ok(Compiled { name: module.name().to_owned(), executable, time: started.elapsed() })
    }

    /// The platform's version, as the plugin words it.
    ///
    /// # Errors
    /// The plugin's.
    pub fn platform_version(&self) -> Result<String> {
        let version = match &self.compiler {
            Compiler::Topology(topology) => topology.platform_version(),
            Compiler::Client(client) => client.platform_version(),
        };
        version.during(|| "asking the plugin for its version".into())
    }

    /// The options that programs are compiled with.
    pub fn options(&self) -> CompileOptions {
        CompileOptions::replicas(self.ids.iter().copied())
    }
}

fn load(kind: Kind, plugin: &LocatedPlugin) -> Result<Api> {
    Api::load(&plugin.path)
        .during(|| format!("cannot open the {kind} plugin from {} ({})", plugin.source, plugin.path.display()))
}

/// The slice's number of chips, if its name tells.
pub fn slice_chips(topology: &str) -> Option<usize> {
    let shape = slice_shape(topology);
    (!shape.is_empty()).then(|| shape.iter().product::<i64>() as usize)
}

/// Chips of a slice in each direction: `[2, 4]` of `v5e:2x4`; empty if that cannot be told.
fn slice_shape(topology: &str) -> Vec<i64> {
    let (_, shape) = topology.split_once(':').unwrap_or_default();
    shape.split('x').map(str::parse).collect::<std::result::Result<_, _>>().unwrap_or_default()
}
