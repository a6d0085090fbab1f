//! A machine that need not be here: its topology, and compiling for it ahead of time.

use super::{
    abi::{
        CStruct, ClientTopologyDescription, CompileAot, DeviceDescriptionToString, Ptr, TopologyDescriptionAttributes,
        TopologyDescriptionCreate, TopologyDescriptionDestroy, TopologyDescriptionGetDeviceDescriptions,
        TopologyDescriptionPlatformName, TopologyDescriptionPlatformVersion,
    },
    api::{Api, Options, handles, named_values, read_named_values, string},
    client::Client,
    compile_options::CompileOptions,
    error::Result,
    program::{CompiledMemoryStats, Description, Program},
};

impl Client {
    /// The topology that this client's devices form.
    pub fn topology(&self) -> Result<Topology> {
        let out = self.api().call(ClientTopologyDescription { client: self.ptr(), ..CStruct::zeroed() })?;
        Ok(Topology { api: self.api().clone(), ptr: out.topology, client: Some(self.clone()) })
    }
}

/// A topology such as `v5e:2x2`.
pub struct Topology {
    api: Api,
    ptr: Ptr,
    /// The client whose topology this is, and who owns it then.
    client: Option<Client>,
}
// SAFETY: topology descriptions are immutable.
unsafe impl Send for Topology {}
// SAFETY: as above.
unsafe impl Sync for Topology {}

impl Topology {
    /// The topology of this name. Names and options are the plugin's: libtpu takes `v5e:2x2` and
    /// `chips_per_host_bounds=[2,2,1]`, CUDA takes `""` with `target_config` and `topology`.
    pub fn new(api: &Api, name: &str, options: &Options) -> Result<Self> {
        let values = named_values(options);
        let out = api.call(TopologyDescriptionCreate {
            topology_name: name.as_ptr().cast(),
            topology_name_size: name.len(),
            create_options: values.as_ptr(),
            num_options: values.len(),
            ..CStruct::zeroed()
        })?;
        Ok(Self { api: api.clone(), ptr: out.topology, client: None })
    }

    /// `tpu`, `cuda` or `cpu`.
    pub fn platform_name(&self) -> Result<String> {
        let out = self.api.call(TopologyDescriptionPlatformName { topology: self.ptr, ..CStruct::zeroed() })?;
        Ok(string(out.platform_name, out.platform_name_size))
    }

    /// The platform's version, as the plugin words it.
    pub fn platform_version(&self) -> Result<String> {
        let out = self.api.call(TopologyDescriptionPlatformVersion { topology: self.ptr, ..CStruct::zeroed() })?;
        Ok(string(out.platform_version, out.platform_version_size))
    }

    /// Attributes such as `device_memory_bytes_limit`.
    pub fn attributes(&self) -> Result<Options> {
        let out = self.api.call(TopologyDescriptionAttributes { topology: self.ptr, ..CStruct::zeroed() })?;
        Ok(read_named_values(out.attributes, out.num_attributes))
    }

    /// One line per device.
    pub fn devices(&self) -> Result<Vec<String>> {
        let args = TopologyDescriptionGetDeviceDescriptions { topology: self.ptr, ..CStruct::zeroed() };
        let out = self.api.call(args)?;
        let describe = |device_description| {
            let args = DeviceDescriptionToString { device_description, ..CStruct::zeroed() };
            self.api.call(args).map(|out| string(out.to_string, out.to_string_size))
        };
        handles(out.descriptions, out.num_descriptions).into_iter().map(describe).collect()
    }

    /// Compiles for this topology, with no device needed.
    pub fn compile(&self, program: &Program<'_>, options: &CompileOptions) -> Result<AotExecutable> {
        let (c_program, options) = (program.as_c(), options.encode());
        let out = self.api.call(CompileAot {
            topology: self.ptr,
            program: &raw const c_program,
            compile_options: options.as_ptr().cast(),
            compile_options_size: options.len(),
            ..CStruct::zeroed()
        })?;
        Ok(AotExecutable(Description::new(&self.api, out.executable)))
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if self.client.is_none() {
            self.api.destroy(TopologyDescriptionDestroy { topology: self.ptr, ..CStruct::zeroed() });
        }
    }
}

/// A program compiled ahead of time: it can be described and serialized, not run.
pub struct AotExecutable(Description);

impl AotExecutable {
    /// Memory needed on each device.
    pub fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        self.0.memory_stats()
    }

    /// The program after the plugin's optimisations: format and bytes.
    pub fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        self.0.optimized_program()
    }

    /// The executable in the plugin's own format.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        self.0.serialize()
    }
}
