//! A client's devices and their memories.

use std::fmt;

use super::{
    abi::{
        CStruct, ClientAddressableDevices, ClientDevices, ClientProcessIndex, DeviceAddressableMemories,
        DeviceDefaultMemory, DeviceDescriptionAttributes, DeviceDescriptionId, DeviceDescriptionKind,
        DeviceDescriptionProcessIndex, DeviceDescriptionToString, DeviceGetDescription, DeviceLocalHardwareId,
        DeviceMemoryStats, MemoryId, MemoryKind, Ptr,
    },
    api::{Options, handles, read_named_values, string},
    client::Client,
    error::Result,
};

impl Client {
    /// Returns the index of this process among those that share the devices.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn process_index(&self) -> Result<i32> {
        Ok(self.api().call(ClientProcessIndex { client: self.ptr(), ..CStruct::zeroed() })?.process_index)
    }

    /// Returns the devices of all processes, in the plugin's order.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn all_devices(&self) -> Result<Vec<Device>> {
        let out = self.api().call(ClientDevices { client: self.ptr(), ..CStruct::zeroed() })?;
        Ok(handles(out.devices, out.num_devices).into_iter().map(|ptr| Device::new(self, ptr)).collect())
    }

    /// Returns the devices of this process, in the plugin's order.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn devices(&self) -> Result<Vec<Device>> {
        let out = self.api().call(ClientAddressableDevices { client: self.ptr(), ..CStruct::zeroed() })?;
        let pointers = handles(out.addressable_devices, out.num_addressable_devices);
        Ok(pointers.into_iter().map(|ptr| Device::new(self, ptr)).collect())
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

    pub(super) fn ptr(&self) -> Ptr {
        self.ptr
    }

    fn description(&self) -> Result<Ptr> {
        let args = DeviceGetDescription { device: self.ptr, ..CStruct::zeroed() };
        Ok(self.client.api().call(args)?.device_description)
    }

    /// Returns the id that device assignments use.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn id(&self) -> Result<i32> {
        let args = DeviceDescriptionId { device_description: self.description()?, ..CStruct::zeroed() };
        Ok(self.client.api().call(args)?.id)
    }

    /// Returns the index of the process that drives the device.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn process_index(&self) -> Result<i32> {
        let args = DeviceDescriptionProcessIndex { device_description: self.description()?, ..CStruct::zeroed() };
        Ok(self.client.api().call(args)?.process_index)
    }

    /// Returns the index of the device on this host.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn local_hardware_id(&self) -> Result<i32> {
        let args = DeviceLocalHardwareId { device: self.ptr, ..CStruct::zeroed() };
        Ok(self.client.api().call(args)?.local_hardware_id)
    }

    /// Returns the kind, such as `TPU v5 lite` or `cpu`.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn kind(&self) -> Result<String> {
        let args = DeviceDescriptionKind { device_description: self.description()?, ..CStruct::zeroed() };
        let out = self.client.api().call(args)?;
        Ok(string(out.device_kind, out.device_kind_size))
    }

    /// Returns the plugin's one-line description.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn describe(&self) -> Result<String> {
        let args = DeviceDescriptionToString { device_description: self.description()?, ..CStruct::zeroed() };
        let out = self.client.api().call(args)?;
        Ok(string(out.to_string, out.to_string_size))
    }

    /// Returns the attributes, such as `coords` and `core_on_chip`.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn attributes(&self) -> Result<Options> {
        let args = DeviceDescriptionAttributes { device_description: self.description()?, ..CStruct::zeroed() };
        let out = self.client.api().call(args)?;
        Ok(read_named_values(out.attributes, out.num_attributes))
    }

    /// Returns the memories that the device can use.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn memories(&self) -> Result<Vec<Memory>> {
        let args = DeviceAddressableMemories { device: self.ptr, ..CStruct::zeroed() };
        let out = self.client.api().call(args)?;
        let wrap = |ptr| Memory { client: self.client.clone(), ptr };
        Ok(handles(out.memories, out.num_memories).into_iter().map(wrap).collect())
    }

    /// Returns the memory that arrays are placed in by default.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn default_memory(&self) -> Result<Memory> {
        let out = self.client.api().call(DeviceDefaultMemory { device: self.ptr, ..CStruct::zeroed() })?;
        Ok(Memory { client: self.client.clone(), ptr: out.memory })
    }

    /// Returns the figures of the device's allocator.
    ///
    /// # Errors
    /// The plugin refuses the call. The CPU plugins do so with `Unimplemented`.
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
    pub(super) fn ptr(&self) -> Ptr {
        self.ptr
    }

    /// Returns the memory's id.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn id(&self) -> Result<i32> {
        Ok(self.client.api().call(MemoryId { memory: self.ptr, ..CStruct::zeroed() })?.id)
    }

    /// Returns the kind, such as `device` or `pinned_host`.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn kind(&self) -> Result<String> {
        let out = self.client.api().call(MemoryKind { memory: self.ptr, ..CStruct::zeroed() })?;
        Ok(string(out.kind, out.kind_size))
    }
}

/// The figures of a device's allocator, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryStats {
    pub bytes_in_use: i64,
    pub peak_bytes_in_use: Option<i64>,
    pub bytes_limit: Option<i64>,
}
