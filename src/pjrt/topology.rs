//! Topologies of machines, also of absent ones, and compiling ahead of time for them.

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
    /// Returns the topology of this client's devices.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn topology(&self) -> Result<Topology> {
        let out = self.api().call(ClientTopologyDescription { client: self.ptr(), ..CStruct::zeroed() })?;
        Ok(Topology { api: self.api().clone(), ptr: out.topology, client: Some(self.clone()) })
    }
}

/// A topology such as `v5e:2x2`.
pub struct Topology {
    api: Api,
    ptr: Ptr,
    /// The client that owns the topology, if it is a client's.
    client: Option<Client>,
}
// SAFETY: topology descriptions are immutable.
unsafe impl Send for Topology {}
// SAFETY: as above.
unsafe impl Sync for Topology {}

impl Topology {
    /// Returns the topology of a name. Names and options depend on the plugin: libtpu takes
    /// `v5e:2x2` and `chips_per_host_bounds=[2,2,1]`, CUDA takes `""` with `target_config` and
    /// `topology`.
    ///
    /// # Errors
    /// The plugin does not know the name or the options.
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

    /// Returns the platform: `tpu`, `cuda` or `cpu`.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn platform_name(&self) -> Result<String> {
        let out = self.api.call(TopologyDescriptionPlatformName { topology: self.ptr, ..CStruct::zeroed() })?;
        Ok(string(out.platform_name, out.platform_name_size))
    }

    /// Returns the platform's version, in the plugin's own format.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn platform_version(&self) -> Result<String> {
        let out = self.api.call(TopologyDescriptionPlatformVersion { topology: self.ptr, ..CStruct::zeroed() })?;
        Ok(string(out.platform_version, out.platform_version_size))
    }

    /// Returns the attributes, such as `device_memory_bytes_limit`.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn attributes(&self) -> Result<Options> {
        let out = self.api.call(TopologyDescriptionAttributes { topology: self.ptr, ..CStruct::zeroed() })?;
        Ok(read_named_values(out.attributes, out.num_attributes))
    }

    /// Returns a one-line description of each device.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn devices(&self) -> Result<Vec<String>> {
        let args = TopologyDescriptionGetDeviceDescriptions { topology: self.ptr, ..CStruct::zeroed() };
        let out = self.api.call(args)?;
        let describe = |device_description| {
            let args = DeviceDescriptionToString { device_description, ..CStruct::zeroed() };
            self.api.call(args).map(|out| string(out.to_string, out.to_string_size))
        };
        handles(out.descriptions, out.num_descriptions).into_iter().map(describe).collect()
    }

    /// Compiles a program for this topology, without a device.
    ///
    /// # Errors
    /// The plugin refuses the program.
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

/// A program compiled ahead of time. It can be described and serialized, but not run.
pub struct AotExecutable(Description);

impl AotExecutable {
    /// Returns the memory that the program needs on each device.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        self.0.memory_stats()
    }

    /// Returns the program after the plugin's optimisations: format and bytes.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        self.0.optimized_program()
    }

    /// Returns the executable in the plugin's own format.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        self.0.serialize()
    }
}
