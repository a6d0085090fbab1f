//! Compiled programs: what they take and give, running them, and their serialized form.

use std::fmt;

use super::{
    abi::{
        CStruct, ExecutableDestroy, ExecutableGetCompiledMemoryStats, ExecutableNumOutputs, ExecutableOptimizedProgram,
        ExecutableSerialize, ExecuteOptions, LoadedExecutableAddressableDevices, LoadedExecutableDestroy,
        LoadedExecutableExecute, LoadedExecutableGetExecutable, Padded, Program as CProgram, Ptr,
    },
    api::{Api, handles, string},
    buffer::Buffer,
    client::{Client, Device},
    element_type::ElementType,
    error::{Error, Result},
    event::Event,
};

/// Element type and dimensions of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    pub element_type: ElementType,
    pub dims: Vec<i64>,
}

impl TensorType {
    /// A type from its parts.
    pub fn new(element_type: ElementType, dims: impl Into<Vec<i64>>) -> Self {
        Self { element_type, dims: dims.into() }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product::<i64>() as usize
    }

    /// Size in host memory, row-major and dense.
    pub fn host_bytes(&self) -> usize {
        self.elements() * self.element_type.host_bits() / 8
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(ToString::to_string).collect();
        write!(f, "{}[{}]", format!("{:?}", self.element_type).to_lowercase(), dims.join(","))
    }
}

/// What a program takes and gives on each device. The C API does not tell the parameters of a compiled program, so the
/// one who emitted it does; every execution is checked against it.
#[derive(Clone, Debug, Default)]
pub struct Signature {
    /// Name and type of each parameter; the names are for error messages.
    pub parameters: Vec<(String, TensorType)>,
    pub outputs: Vec<TensorType>,
    /// Parameters whose memory an output reuses, if they are donated.
    pub aliased: Vec<usize>,
}

/// A program as the plugin takes it.
#[derive(Clone, Debug)]
pub struct Program<'a> {
    pub code: &'a [u8],
    /// `"hlo"` (a serialized HloModuleProto) or `"mlir"`.
    pub format: &'a str,
}

impl Program<'_> {
    pub(super) fn as_c(&self) -> CProgram {
        CProgram {
            code: self.code.as_ptr().cast_mut().cast(), // in/out in the C API; compile only reads it
            code_size: self.code.len(),
            format: self.format.as_ptr().cast(),
            format_size: self.format.len(),
            ..CProgram::zeroed()
        }
    }
}

/// An argument of an execution.
pub enum Arg<'a> {
    /// Read by the program and kept by the caller.
    Keep(&'a Buffer),
    /// Given to the program, which may reuse its memory for an output.
    Donate(Buffer),
}

impl Arg<'_> {
    fn buffer(&self) -> &Buffer {
        match self {
            Arg::Keep(buffer) => buffer,
            Arg::Donate(buffer) => buffer,
        }
    }
}

/// Memory that a compiled program needs on each device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompiledMemoryStats {
    pub generated_code: i64,
    pub arguments: i64,
    pub outputs: i64,
    /// Part of `outputs` that lives in donated arguments.
    pub alias: i64,
    pub temporaries: i64,
    /// 0 where the plugin does not tell.
    pub peak: i64,
}

/// An execution under way: its outputs, and an event per device.
pub struct Execution {
    outputs: Vec<Vec<Buffer>>,
    done: Vec<Event>,
}

impl Execution {
    /// Waits for all devices. Outputs are `[device][output]`.
    pub fn wait(self) -> Result<Vec<Vec<Buffer>>> {
        // Every event is awaited before an error is returned: arguments must outlive the work on all devices.
        let results: Vec<Result<()>> = self.done.into_iter().map(Event::wait).collect();
        results.into_iter().collect::<Result<()>>()?;
        Ok(self.outputs)
    }
}

/// The handle of a `PJRT_Executable`, which describes a program, loaded or not.
pub(super) struct Description {
    api: Api,
    ptr: Ptr,
}
// SAFETY: executables are immutable and thread-safe.
unsafe impl Send for Description {}
// SAFETY: as above.
unsafe impl Sync for Description {}

impl Description {
    pub(super) fn new(api: &Api, ptr: Ptr) -> Self {
        Self { api: api.clone(), ptr }
    }

    fn num_outputs(&self) -> Result<usize> {
        Ok(self.api.call(ExecutableNumOutputs { executable: self.ptr, ..CStruct::zeroed() })?.num_outputs)
    }

    pub(super) fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        let stats = self.api.call(ExecutableGetCompiledMemoryStats { executable: self.ptr, ..CStruct::zeroed() })?;
        Ok(CompiledMemoryStats {
            generated_code: stats.generated_code_size_in_bytes,
            arguments: stats.argument_size_in_bytes,
            outputs: stats.output_size_in_bytes,
            alias: stats.alias_size_in_bytes,
            temporaries: stats.temp_size_in_bytes,
            peak: stats.peak_memory_in_bytes,
        })
    }

    /// The program after the plugin's optimisations: (format, bytes).
    pub(super) fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        let mut program = Padded::new(CProgram::zeroed());
        // First call: the plugin tells the size; second call: it fills the memory.
        let ask = |program: &mut Padded<CProgram>| {
            let args = ExecutableOptimizedProgram { executable: self.ptr, ..CStruct::zeroed() };
            self.api.call(ExecutableOptimizedProgram { program: &raw mut program.value, ..args })
        };
        ask(&mut program)?;
        let mut code = vec![0u8; program.value.code_size];
        program.value.code = code.as_mut_ptr().cast();
        ask(&mut program)?;
        Ok((string(program.value.format, program.value.format_size), code))
    }

    pub(super) fn serialize(&self) -> Result<Vec<u8>> {
        let out = self.api.call(ExecutableSerialize { executable: self.ptr, ..CStruct::zeroed() })?;
        // SAFETY: the plugin returned this many bytes, alive until the deleter is called.
        let bytes = unsafe {
            std::slice::from_raw_parts(out.serialized_bytes.cast::<u8>(), out.serialized_bytes_size).to_vec()
        };
        if let Some(delete) = out.serialized_executable_deleter {
            // SAFETY: called once, with the object that it belongs to; the bytes were copied.
            unsafe { delete(out.serialized_executable) };
        }
        Ok(bytes)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        self.api.destroy(ExecutableDestroy { executable: self.ptr, ..CStruct::zeroed() });
    }
}

/// A program loaded on the devices it was compiled for.
pub struct Executable {
    client: Client,
    loaded: Ptr,
    description: Description,
    signature: Signature,
    devices: Vec<Device>,
}
// SAFETY: loaded executables are immutable and may be run from several threads.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

impl Executable {
    /// Takes ownership of a loaded executable and checks that it has the outputs that the signature tells.
    pub(super) fn new(client: &Client, loaded: Ptr, signature: Signature) -> Result<Self> {
        let api = client.api();
        let description =
            match api.call(LoadedExecutableGetExecutable { loaded_executable: loaded, ..CStruct::zeroed() }) {
                Ok(out) => Description::new(api, out.executable),
                Err(e) => {
                    api.destroy(LoadedExecutableDestroy { executable: loaded, ..CStruct::zeroed() });
                    return Err(e);
                }
            };
        let mut this = Self { client: client.clone(), loaded, description, signature, devices: Vec::new() };
        let out = api.call(LoadedExecutableAddressableDevices { executable: loaded, ..CStruct::zeroed() })?;
        this.devices = handles(out.addressable_devices, out.num_addressable_devices)
            .into_iter()
            .map(|device| Device::new(client, device))
            .collect();
        let (found, expected) = (this.description.num_outputs()?, this.signature.outputs.len());
        if found != expected {
            let message = format!("the compiled program has {found} outputs, its signature says {expected}");
            return Err(Error::Argument(message));
        }
        Ok(this)
    }

    /// What it takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The devices it runs on, in the order of the argument lists.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Memory needed on each device.
    pub fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        self.description.memory_stats()
    }

    /// The program after the plugin's optimisations: format (`"hlo_with_config"`, `"mlir"`...) and bytes.
    pub fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        self.description.optimized_program()
    }

    /// The executable in the plugin's own format, for [`Client::deserialize`] with the same plugin version.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        self.description.serialize()
    }

    /// Starts the program on all its devices. `args` is `[device][parameter]`, in the order of [`Self::devices`].
    ///
    /// Refused before the plugin sees them: a wrong number of devices or arguments, a wrong element type or dims, a
    /// buffer that was donated before, and a donation on one device that is none on another.
    pub fn execute(&self, args: Vec<Vec<Arg<'_>>>) -> Result<Execution> {
        self.check_args(&args)?;
        let api = self.client.api();
        let pointers: Vec<Vec<Ptr>> =
            args.iter().map(|list| list.iter().map(|arg| arg.buffer().ptr).collect()).collect();
        let lists: Vec<*const Ptr> = pointers.iter().map(|list| list.as_ptr()).collect();
        let kept = |&i: &usize| matches!(args[0][i], Arg::Keep(_));
        let not_donated: Vec<i64> = self.signature.aliased.iter().copied().filter(kept).map(|i| i as i64).collect();
        let options = Padded::new(ExecuteOptions {
            non_donatable_input_indices: not_donated.as_ptr(),
            num_non_donatable_input_indices: not_donated.len(),
            ..ExecuteOptions::zeroed()
        });
        let mut outputs = vec![vec![std::ptr::null_mut(); self.signature.outputs.len()]; args.len()];
        let output_lists: Vec<*mut Ptr> = outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut events = vec![std::ptr::null_mut(); args.len()];
        api.call(LoadedExecutableExecute {
            executable: self.loaded,
            options: &raw const options.value,
            argument_lists: lists.as_ptr(),
            num_devices: args.len(),
            num_args: self.signature.parameters.len(),
            output_lists: output_lists.as_ptr(),
            device_complete_events: events.as_mut_ptr(),
            ..CStruct::zeroed()
        })?;
        let wrap = |list: Vec<Ptr>| {
            let types = self.signature.outputs.iter().cloned();
            list.into_iter().zip(types).map(|(ptr, ty)| Buffer::new(&self.client, ptr, ty)).collect()
        };
        Ok(Execution {
            outputs: outputs.into_iter().map(wrap).collect(),
            done: events.into_iter().map(|event| Event::new(api, event)).collect(),
        })
    }

    fn check_args(&self, args: &[Vec<Arg<'_>>]) -> Result<()> {
        let refuse = |message: String| Err(Error::Argument(message));
        if args.len() != self.devices.len() {
            let (given, wanted) = (args.len(), self.devices.len());
            return refuse(format!("the program runs on {wanted} devices, but arguments for {given} were given"));
        }
        let parameters = &self.signature.parameters;
        for (device, list) in args.iter().enumerate() {
            if list.len() != parameters.len() {
                let (given, wanted) = (list.len(), parameters.len());
                return refuse(format!("device {device}: the program takes {wanted} arguments, {given} were given"));
            }
            for (i, (arg, (name, wanted))) in list.iter().zip(parameters).enumerate() {
                let given = arg.buffer().ty();
                if given != wanted {
                    return refuse(format!(
                        "device {device}: argument {i} ({name}) is {given}, the program takes {wanted}"
                    ));
                }
                if self.signature.aliased.contains(&i) {
                    if arg.buffer().is_deleted()? {
                        return refuse(format!(
                            "device {device}: argument {i} ({name}) was donated to an earlier call"
                        ));
                    }
                    if matches!(arg, Arg::Keep(_)) != matches!(args[0][i], Arg::Keep(_)) {
                        return refuse(format!("argument {i} ({name}) is donated on some devices and kept on others"));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        self.client.api().destroy(LoadedExecutableDestroy { executable: self.loaded, ..CStruct::zeroed() });
    }
}
