//! A client of a plugin: its devices and memories, moving arrays to them, compiling programs for them.

use std::{ffi::c_int, fmt, sync::Arc};

use super::{
    abi::{
        CStruct, ClientAddressableDevices, ClientBufferFromHostBuffer, ClientCompile, ClientCreate,
        ClientCreateBuffersForAsyncHostToDevice, ClientDestroy, ClientPlatformName, ClientPlatformVersion,
        ClientTopologyDescription, DeviceAddressableMemories, DeviceDefaultMemory, DeviceDescriptionAttributes,
        DeviceDescriptionId, DeviceDescriptionKind, DeviceDescriptionToString, DeviceGetDescription,
        DeviceLocalHardwareId, DeviceMemoryStats, ExecutableDeserializeAndLoad, MemoryId, MemoryKind, Ptr,
        RetrieveBuffer, ShapeSpec, TransferData, TransferManagerDestroy,
    },
    api::{Api, Options, handles, named_values, read_named_values, string},
    buffer::Buffer,
    compile_options::CompileOptions,
    error::{Error, Result},
    event::Event,
    executable::{Executable, Program, Signature, TensorType},
    host::HostBytes,
    topology::Topology,
};

struct ClientInner {
    api: Api,
    ptr: Ptr,
}
// SAFETY: PJRT clients are thread-safe.
unsafe impl Send for ClientInner {}
// SAFETY: as above.
unsafe impl Sync for ClientInner {}

impl Drop for ClientInner {
    fn drop(&mut self) {
        self.api.destroy(ClientDestroy { client: self.ptr, ..ClientDestroy::zeroed() });
    }
}

/// A client: the devices of one platform in this process. Cheap to clone; everything made from it keeps it alive.
#[derive(Clone)]
pub struct Client(Arc<ClientInner>);

/// How long the plugin may read the host's memory in `BufferFromHostBuffer`.
#[derive(Clone, Copy)]
enum HostBufferSemantics {
    OnlyDuringCall = 0,
    UntilTransferCompletes = 1,
    ZeroCopy = 2,
}

impl Client {
    /// Creates a client. On the CPU plugin pass `cpu_device_count` (Int); the default there is 4 devices.
    pub fn new(api: &Api, options: &Options) -> Result<Self> {
        let values = named_values(options);
        let args =
            ClientCreate { create_options: values.as_ptr(), num_options: values.len(), ..ClientCreate::zeroed() };
        let out = api.call(args)?;
        Ok(Self(Arc::new(ClientInner { api: api.clone(), ptr: out.client })))
    }

    /// The plugin.
    pub fn api(&self) -> &Api {
        &self.0.api
    }

    /// `cpu`, `tpu` or `cuda`.
    pub fn platform_name(&self) -> Result<String> {
        let out = self.api().call(ClientPlatformName { client: self.0.ptr, ..CStruct::zeroed() })?;
        Ok(string(out.platform_name, out.platform_name_size))
    }

    /// The platform's version, as the plugin words it; plain `cpu` on the CPU plugins.
    pub fn platform_version(&self) -> Result<String> {
        let out = self.api().call(ClientPlatformVersion { client: self.0.ptr, ..CStruct::zeroed() })?;
        Ok(string(out.platform_version, out.platform_version_size))
    }

    /// The devices of this process, in the plugin's order.
    pub fn devices(&self) -> Result<Vec<Device>> {
        let out = self.api().call(ClientAddressableDevices { client: self.0.ptr, ..CStruct::zeroed() })?;
        let pointers = handles(out.addressable_devices, out.num_addressable_devices);
        Ok(pointers.into_iter().map(|ptr| Device::new(self, ptr)).collect())
    }

    /// The topology that this client's devices form.
    pub fn topology(&self) -> Result<Topology> {
        let out = self.api().call(ClientTopologyDescription { client: self.0.ptr, ..CStruct::zeroed() })?;
        Ok(Topology::of_client(self, out.topology))
    }

    /// Compiles and loads a program. The signature is what the program's author says of it (see [`Signature`]).
    pub fn compile(&self, program: &Program<'_>, options: &CompileOptions, signature: Signature) -> Result<Executable> {
        let (c_program, options) = (program.as_c(), options.encode());
        let out = self.api().call(ClientCompile {
            client: self.0.ptr,
            program: &raw const c_program,
            compile_options: options.as_ptr().cast(),
            compile_options_size: options.len(),
            ..CStruct::zeroed()
        })?;
        Executable::new(self, out.executable, signature)
    }

    /// Loads what [`Executable::serialize`] wrote, with the same plugin version on the same kind of machine.
    pub fn deserialize(&self, bytes: &[u8], signature: Signature) -> Result<Executable> {
        let out = self.api().call(ExecutableDeserializeAndLoad {
            client: self.0.ptr,
            serialized_executable: bytes.as_ptr().cast(),
            serialized_executable_size: bytes.len(),
            ..CStruct::zeroed()
        })?;
        Executable::new(self, out.loaded_executable, signature)
    }

    /// Copies a row-major array to `device`. `data` is not used after the call.
    pub fn upload(&self, data: &[u8], ty: &TensorType, device: &Device) -> Result<Buffer> {
        if data.len() != ty.host_bytes() {
            let message = format!("cannot upload {} bytes as {ty}, which has {}", data.len(), ty.host_bytes());
            return Err(Error::Argument(message));
        }
        let (buffer, done) = self.buffer_from_host(data, ty, None, device, HostBufferSemantics::OnlyDuringCall)?;
        done.wait()?;
        Ok(buffer)
    }

    /// Starts to copy an array to `device`. Of an array that is not row-major and dense, `strides` are the bytes from one
    /// element to the next in each dimension.
    pub fn start_upload(
        &self,
        data: HostBytes,
        ty: &TensorType,
        strides: Option<&[i64]>,
        device: &Device,
    ) -> Result<Upload> {
        let needed = strides.map_or(ty.host_bytes(), |strides| {
            let last = ty.dims.iter().zip(strides).map(|(dim, stride)| (dim - 1) * stride).sum::<i64>();
            if ty.elements() == 0 { 0 } else { last as usize + ty.element_type.host_bits() / 8 }
        });
        if data.bytes().len() != needed || strides.is_some_and(|s| s.len() != ty.dims.len() || s.iter().any(|&s| s < 0))
        {
            let message = format!("cannot upload {} bytes as {ty}, which has {needed}", data.bytes().len());
            return Err(Error::Argument(message));
        }
        let semantics = HostBufferSemantics::UntilTransferCompletes;
        let (buffer, done) = self.buffer_from_host(data.bytes(), ty, strides, device, semantics)?;
        Ok(Upload { buffer: Some(buffer), done: Some(done), _memory: data })
    }

    /// Like [`Self::upload`], for numbers.
    pub fn upload_slice<T: bytemuck::Pod>(&self, data: &[T], ty: &TensorType, device: &Device) -> Result<Buffer> {
        self.upload(bytemuck::cast_slice(data), ty, device)
    }

    /// Makes a buffer that borrows host memory for its whole life, where the plugin can (the CPU plugin, if the address is
    /// a multiple of 64; otherwise it copies). The memory is released when the plugin is done with it.
    pub fn borrow(&self, data: HostBytes, ty: &TensorType, device: &Device) -> Result<Buffer> {
        if data.bytes().len() != ty.host_bytes() {
            let message = format!("cannot borrow {} bytes as {ty}, which has {}", data.bytes().len(), ty.host_bytes());
            return Err(Error::Argument(message));
        }
        let (buffer, done) = self.buffer_from_host(data.bytes(), ty, None, device, HostBufferSemantics::ZeroCopy)?;
        // The event fires after the buffer is destroyed: waiting for it here would never return.
        done.drop_when_ready(data)?;
        Ok(buffer)
    }

    /// The caller has checked that the array of these strides lies in `data`.
    fn buffer_from_host(
        &self,
        data: &[u8],
        ty: &TensorType,
        strides: Option<&[i64]>,
        device: &Device,
        semantics: HostBufferSemantics,
    ) -> Result<(Buffer, Event)> {
        let out = self.api().call(ClientBufferFromHostBuffer {
            client: self.0.ptr,
            data: data.as_ptr().cast(),
            r#type: ty.element_type as c_int,
            dims: ty.dims.as_ptr(),
            num_dims: ty.dims.len(),
            byte_strides: strides.map_or(std::ptr::null(), <[i64]>::as_ptr),
            num_byte_strides: strides.map_or(0, <[i64]>::len),
            host_buffer_semantics: semantics as c_int,
            device: device.ptr,
            ..CStruct::zeroed()
        })?;
        Ok((Buffer::new(self, out.buffer, ty.clone()), Event::new(self.api(), out.done_with_host_buffer)))
    }

    /// Makes arrays on `device` that are filled piece by piece, see [`TransferManager`].
    pub fn transfer_manager(&self, types: &[TensorType], device: &Device) -> Result<TransferManager> {
        let spec = |ty: &TensorType| ShapeSpec {
            dims: ty.dims.as_ptr(),
            num_dims: ty.dims.len(),
            element_type: ty.element_type as c_int,
            ..ShapeSpec::zeroed()
        };
        let specs: Vec<ShapeSpec> = types.iter().map(spec).collect();
        let out = self.api().call(ClientCreateBuffersForAsyncHostToDevice {
            client: self.0.ptr,
            shape_specs: specs.as_ptr(),
            num_shape_specs: specs.len(),
            memory: device.default_memory()?.ptr,
            ..CStruct::zeroed()
        })?;
        Ok(TransferManager {
            client: self.clone(),
            ptr: out.transfer_manager,
            types: types.to_vec(),
            sent: vec![0; types.len()],
            pending: Vec::new(),
        })
    }
}

/// An array on its way to a device, with the memory that is read for it.
pub struct Upload {
    buffer: Option<Buffer>,
    done: Option<Event>,
    _memory: HostBytes,
}

impl Upload {
    /// Bytes of the array in host memory.
    pub fn host_bytes(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.ty().host_bytes())
    }

    /// Waits until the host's memory is no more needed. What is done with the buffer waits for the rest.
    pub fn wait(mut self) -> Result<Buffer> {
        self.done.take().map_or(Ok(()), Event::wait)?;
        Ok(self.buffer.take().expect("it is taken here only"))
    }
}

impl Drop for Upload {
    /// The memory must outlive the transfer.
    fn drop(&mut self) {
        let _ = self.done.take().map(Event::wait);
    }
}

/// Arrays on one device that are filled by asynchronous transfers of their parts.
pub struct TransferManager {
    client: Client,
    ptr: Ptr,
    types: Vec<TensorType>,
    /// Bytes sent so far of each array.
    sent: Vec<usize>,
    /// Transfers under way, with the memory that they read.
    pending: Vec<(Event, HostBytes)>,
}
// SAFETY: the handle is only used through `&mut self` or by value.
unsafe impl Send for TransferManager {}

impl TransferManager {
    /// Starts the transfer of the next part of array `index`; parts follow each other without gaps.
    pub fn send(&mut self, index: usize, part: HostBytes) -> Result<()> {
        let total = self.types[index].host_bytes();
        let offset = self.sent[index];
        let end = offset + part.bytes().len();
        if end > total || (part.bytes().is_empty() && total > 0) {
            let (len, ty) = (part.bytes().len(), &self.types[index]);
            return Err(Error::Argument(format!("cannot send {len} bytes at {offset} of {ty}, which has {total}")));
        }
        let out = self.client.api().call(TransferData {
            transfer_manager: self.ptr,
            buffer_index: index as c_int,
            data: part.bytes().as_ptr().cast(),
            offset: offset as i64,
            transfer_size: part.bytes().len() as i64,
            is_last_transfer: end == total,
            ..CStruct::zeroed()
        })?;
        self.sent[index] = end;
        self.pending.push((Event::new(self.client.api(), out.done_with_h2d_transfer), part));
        Ok(())
    }

    /// Waits for all transfers and returns the arrays. An array that was not sent whole is an error.
    pub fn finish(mut self) -> Result<Vec<Buffer>> {
        self.drain()?;
        for (ty, &sent) in self.types.iter().zip(&self.sent) {
            if sent != ty.host_bytes() {
                let total = ty.host_bytes();
                return Err(Error::Argument(format!("only {sent} of the {total} bytes of {ty} were sent")));
            }
        }
        let retrieve = |(index, ty): (usize, &TensorType)| {
            let args = RetrieveBuffer { transfer_manager: self.ptr, buffer_index: index as c_int, ..CStruct::zeroed() };
            Ok(Buffer::new(&self.client, self.client.api().call(args)?.buffer_out, ty.clone()))
        };
        self.types.iter().enumerate().map(retrieve).collect()
    }

    fn drain(&mut self) -> Result<()> {
        let results: Vec<Result<()>> = self.pending.drain(..).map(|(event, _memory)| event.wait()).collect();
        results.into_iter().collect()
    }
}

impl Drop for TransferManager {
    fn drop(&mut self) {
        let _ = self.drain(); // the memory of transfers under way must outlive them
        self.client.api().destroy(TransferManagerDestroy { transfer_manager: self.ptr, ..CStruct::zeroed() });
    }
}

/// A device of a client.
#[derive(Clone)]
pub struct Device {
    client: Client,
    ptr: Ptr,
}
// SAFETY: devices are owned by the client and immutable.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({:?})", self.id())
    }
}

impl Device {
    pub(super) fn new(client: &Client, ptr: Ptr) -> Self {
        Self { client: client.clone(), ptr }
    }

    fn description(&self) -> Result<Ptr> {
        let args = DeviceGetDescription { device: self.ptr, ..CStruct::zeroed() };
        Ok(self.client.api().call(args)?.device_description)
    }

    /// The id used in device assignments.
    pub fn id(&self) -> Result<i32> {
        let args = DeviceDescriptionId { device_description: self.description()?, ..CStruct::zeroed() };
        Ok(self.client.api().call(args)?.id)
    }

    /// Index of the device on this host.
    pub fn local_hardware_id(&self) -> Result<i32> {
        let args = DeviceLocalHardwareId { device: self.ptr, ..CStruct::zeroed() };
        Ok(self.client.api().call(args)?.local_hardware_id)
    }

    /// Kind, such as `TPU v5 lite` or `cpu`.
    pub fn kind(&self) -> Result<String> {
        let args = DeviceDescriptionKind { device_description: self.description()?, ..CStruct::zeroed() };
        let out = self.client.api().call(args)?;
        Ok(string(out.device_kind, out.device_kind_size))
    }

    /// The plugin's own one-line description.
    pub fn describe(&self) -> Result<String> {
        let args = DeviceDescriptionToString { device_description: self.description()?, ..CStruct::zeroed() };
        let out = self.client.api().call(args)?;
        Ok(string(out.to_string, out.to_string_size))
    }

    /// Attributes such as `coords` and `core_on_chip`.
    pub fn attributes(&self) -> Result<Options> {
        let args = DeviceDescriptionAttributes { device_description: self.description()?, ..CStruct::zeroed() };
        let out = self.client.api().call(args)?;
        Ok(read_named_values(out.attributes, out.num_attributes))
    }

    /// Memories that the device can use.
    pub fn memories(&self) -> Result<Vec<Memory>> {
        let args = DeviceAddressableMemories { device: self.ptr, ..CStruct::zeroed() };
        let out = self.client.api().call(args)?;
        let wrap = |ptr| Memory { client: self.client.clone(), ptr };
        Ok(handles(out.memories, out.num_memories).into_iter().map(wrap).collect())
    }

    /// The memory that arrays go to when nothing else is said.
    pub fn default_memory(&self) -> Result<Memory> {
        let out = self.client.api().call(DeviceDefaultMemory { device: self.ptr, ..CStruct::zeroed() })?;
        Ok(Memory { client: self.client.clone(), ptr: out.memory })
    }

    /// What the device's allocator tells of itself; an `Unimplemented` error on the CPU plugins.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        let out = self.client.api().call(DeviceMemoryStats { device: self.ptr, ..CStruct::zeroed() })?;
        Ok(MemoryStats {
            bytes_in_use: out.bytes_in_use,
            peak_bytes_in_use: out.peak_bytes_in_use_is_set.then_some(out.peak_bytes_in_use),
            bytes_limit: out.bytes_limit_is_set.then_some(out.bytes_limit),
        })
    }
}

/// A memory space of a device: `device`, `pinned_host`, ...
#[derive(Clone)]
pub struct Memory {
    client: Client,
    ptr: Ptr,
}
// SAFETY: memories are owned by the client and immutable.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// The memory's id.
    pub fn id(&self) -> Result<i32> {
        Ok(self.client.api().call(MemoryId { memory: self.ptr, ..CStruct::zeroed() })?.id)
    }

    /// Kind, such as `device` or `pinned_host`.
    pub fn kind(&self) -> Result<String> {
        let out = self.client.api().call(MemoryKind { memory: self.ptr, ..CStruct::zeroed() })?;
        Ok(string(out.kind, out.kind_size))
    }
}

/// A device allocator's figures, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryStats {
    pub bytes_in_use: i64,
    pub peak_bytes_in_use: Option<i64>,
    pub bytes_limit: Option<i64>,
}
