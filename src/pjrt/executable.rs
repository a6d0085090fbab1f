//! Programs loaded on devices: compiles or deserializes them, and runs them.

use super::{
    abi::{
        CStruct, ClientCompile, ExecutableDeserializeAndLoad, ExecuteOptions, LoadedExecutableAddressableDevices,
        LoadedExecutableDestroy, LoadedExecutableExecute, LoadedExecutableGetExecutable, Padded, Ptr,
    },
    api::handles,
    buffer::Buffer,
    client::Client,
    compile_options::CompileOptions,
    device::Device,
    error::{Error, Result},
    event::Event,
    exit::leave_without_handlers_of_plugins,
    program::{CompiledMemoryStats, Description, Program, Signature},
};

impl Client {
    /// Compiles a program and loads it. The signature is the caller's description of it: see
    /// [`Signature`].
    ///
    /// # Errors
    /// The plugin refuses the program, or it has another number of outputs than the signature.
    pub fn compile(&self, program: &Program<'_>, options: &CompileOptions, signature: Signature) -> Result<Executable> {
        let (c_program, options) = (program.as_c(), options.encode());
        let out = self.api().call(ClientCompile {
            client: self.ptr(),
            program: &raw const c_program,
            compile_options: options.as_ptr().cast(),
            compile_options_size: options.len(),
            ..CStruct::zeroed()
        })?;
        Executable::new(self, out.executable, signature)
    }

    /// Loads a program that [`Executable::serialize`] wrote, by the same plugin version on the same
    /// kind of machine.
    ///
    /// # Errors
    /// The plugin refuses the bytes, or the program has another number of outputs than the
    /// signature.
    pub fn deserialize(&self, bytes: &[u8], signature: Signature) -> Result<Executable> {
        let out = self.api().call(ExecutableDeserializeAndLoad {
            client: self.ptr(),
            serialized_executable: bytes.as_ptr().cast(),
            serialized_executable_size: bytes.len(),
            ..CStruct::zeroed()
        })?;
        Executable::new(self, out.loaded_executable, signature)
    }
}

/// An argument of an execution.
pub enum Arg<'a> {
    /// The program reads the buffer, and the caller keeps it.
    Keep(&'a Buffer),
    /// The program takes the buffer, and may reuse its memory for an output.
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

/// A running execution: its outputs, and an event for each device.
pub struct Execution {
    outputs: Vec<Vec<Buffer>>,
    done: Vec<Event>,
}

impl Execution {
    /// Waits for all devices. Returns the outputs, `[device][output]`.
    ///
    /// # Errors
    /// The execution failed on a device.
    pub fn wait(self) -> Result<Vec<Vec<Buffer>>> {
        // All events are awaited before an error is returned, since arguments must outlive the work
        // on all devices.
        let results: Vec<Result<()>> = self.done.into_iter().map(Event::wait).collect();
        results.into_iter().collect::<Result<()>>()?;
        Ok(self.outputs)
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
    /// Takes ownership of a loaded executable, and checks that it has as many outputs as its
    /// signature.
    fn new(client: &Client, loaded: Ptr, signature: Signature) -> Result<Self> {
        leave_without_handlers_of_plugins(); // the compiler has registered its own by now
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

    /// Returns the parameters and outputs.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Returns the devices that the program runs on, in the order of the argument lists.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Returns the memory that the program needs on each device.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        self.description.memory_stats()
    }

    /// Returns the program after the plugin's optimisations: format (`"hlo_with_config"`, `"mlir"`,
    /// ...) and bytes.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        self.description.optimized_program()
    }

    /// Returns the executable in the plugin's own format, for [`Client::deserialize`] by the same
    /// plugin version.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        self.description.serialize()
    }

    /// Starts the program on all its devices. `args` is `[device][parameter]`, in the order of
    /// [`Self::devices`].
    ///
    /// `launch_id` counts the executions of this process: 1, 2, 3, and so on. Where a program spans
    /// several hosts, the plugin compares the ids, and so notices hosts that launch in different
    /// orders. 0 turns that off.
    ///
    /// # Errors
    /// Refuses, before the plugin sees them, a wrong number of devices or arguments, a wrong
    /// element type or dims, a buffer that was donated before, and an argument that is donated on
    /// some devices only. Otherwise returns the plugin's own error.
    pub fn execute(&self, launch_id: i32, args: Vec<Vec<Arg<'_>>>) -> Result<Execution> {
        self.check_args(&args)?;
        let api = self.client.api();
        let pointers: Vec<Vec<Ptr>> =
            args.iter().map(|list| list.iter().map(|arg| arg.buffer().ptr()).collect()).collect();
        let lists: Vec<*const Ptr> = pointers.iter().map(|list| list.as_ptr()).collect();
        let kept = |&i: &usize| matches!(args[0][i], Arg::Keep(_));
        let not_donated: Vec<i64> = self.signature.aliased.iter().copied().filter(kept).map(|i| i as i64).collect();
        let options = Padded::new(ExecuteOptions {
            launch_id,
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
