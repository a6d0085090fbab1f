//! The PJRT C ABI, written by hand: the function table and the argument structs of the calls we
//! make.
//!
//! Field and slot names are those of `pjrt_c_api.h`, so that `tests/external/abi_drift.rs` can
//! compare every offset with a real header. Two properties of the ABI make a hand-written subset
//! safe (measured on APIs 0.81 to 0.117): structs are append-only, and a plugin accepts structs
//! longer than its own. So every struct here has the newest known layout, is zero-filled, and is
//! followed by zeroed padding (see [`Padded`]).
//!
//! Nothing in this file is called from outside `src/pjrt`.
#![allow(non_camel_case_types, reason = "slots carry the C API's own names")]

use std::ffi::{c_char, c_int, c_void};

/// Any opaque `PJRT_*` handle.
pub type Ptr = *mut c_void;

/// Size of the header of `PJRT_Api` that comes before the function pointers.
pub const API_HEADER_SIZE: usize = 40;

#[repr(C)]
pub struct ApiVersion {
    pub struct_size: usize,
    pub extension_start: Ptr,
    pub major_version: c_int,
    pub minor_version: c_int,
}

/// The part of `PJRT_Api` that comes before the function pointers. The table itself is never copied
/// by value.
#[repr(C)]
pub struct ApiHeader {
    pub struct_size: usize,
    pub extension_start: *mut ExtensionBase,
    pub pjrt_api_version: ApiVersion,
}
const _: () = assert!(size_of::<ApiHeader>() == API_HEADER_SIZE);

/// Head of each element of the linked list of extensions.
#[repr(C)]
pub struct ExtensionBase {
    pub struct_size: usize,
    pub kind: c_int,
    pub next: *mut ExtensionBase,
}

pub const EXTENSION_FFI: c_int = 5;

/// Names of the extension types, by number.
pub const EXTENSION_NAMES: [&str; 25] = [
    "GpuCustomCall",
    "Profiler",
    "CustomPartitioner",
    "Stream",
    "Layouts",
    "FFI",
    "MemoryDescriptions",
    "Triton",
    "RawBuffer",
    "PhaseCompile",
    "Example",
    "Unknown",
    "CrossHostTransfers",
    "ExecutableMetadata",
    "Callback",
    "HostAllocator",
    "TpuTopology",
    "TpuExecutable",
    "Megascale",
    "Shardings",
    "AbiVersion",
    "Collectives",
    "MultiSlice",
    "HostMemoryAllocator",
    "XlaTransform",
];

macro_rules! slots {
    ($($name:ident),* $(,)?) => {
        /// Index of an entry point in `PJRT_Api`, in the header's order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Slot { $($name),* }
        /// Every slot's name, in order: `PJRT_<name>` in the header.
        pub const SLOT_NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
slots! {
    Error_Destroy, Error_Message, Error_GetCode, Plugin_Initialize, Plugin_Attributes,
    Event_Destroy, Event_IsReady, Event_Error, Event_Await, Event_OnReady,
    Client_Create, Client_Destroy, Client_PlatformName, Client_ProcessIndex, Client_PlatformVersion,
    Client_Devices, Client_AddressableDevices, Client_LookupDevice, Client_LookupAddressableDevice,
    Client_AddressableMemories, Client_Compile, Client_DefaultDeviceAssignment, Client_BufferFromHostBuffer,
    DeviceDescription_Id, DeviceDescription_ProcessIndex, DeviceDescription_Attributes, DeviceDescription_Kind,
    DeviceDescription_DebugString, DeviceDescription_ToString,
    Device_GetDescription, Device_IsAddressable, Device_LocalHardwareId, Device_AddressableMemories,
    Device_DefaultMemory, Device_MemoryStats,
    Memory_Id, Memory_Kind, Memory_DebugString, Memory_ToString, Memory_AddressableByDevices,
    Executable_Destroy, Executable_Name, Executable_NumReplicas, Executable_NumPartitions, Executable_NumOutputs,
    Executable_SizeOfGeneratedCodeInBytes, Executable_GetCostAnalysis, Executable_OutputMemoryKinds,
    Executable_OptimizedProgram, Executable_Serialize,
    LoadedExecutable_Destroy, LoadedExecutable_GetExecutable, LoadedExecutable_AddressableDevices,
    LoadedExecutable_Delete, LoadedExecutable_IsDeleted, LoadedExecutable_Execute,
    Executable_DeserializeAndLoad, LoadedExecutable_Fingerprint,
    Buffer_Destroy, Buffer_ElementType, Buffer_Dimensions, Buffer_UnpaddedDimensions,
    Buffer_DynamicDimensionIndices, Buffer_GetMemoryLayout, Buffer_OnDeviceSizeInBytes, Buffer_Device,
    Buffer_Memory, Buffer_Delete, Buffer_IsDeleted, Buffer_CopyToDevice, Buffer_ToHostBuffer, Buffer_IsOnCpu,
    Buffer_ReadyEvent, Buffer_UnsafePointer, Buffer_IncreaseExternalReferenceCount,
    Buffer_DecreaseExternalReferenceCount, Buffer_OpaqueDeviceMemoryDataPointer,
    CopyToDeviceStream_Destroy, CopyToDeviceStream_AddChunk, CopyToDeviceStream_TotalBytes,
    CopyToDeviceStream_GranuleSize, CopyToDeviceStream_CurrentBytes,
    TopologyDescription_Create, TopologyDescription_Destroy, TopologyDescription_PlatformName,
    TopologyDescription_PlatformVersion, TopologyDescription_GetDeviceDescriptions,
    TopologyDescription_Serialize, TopologyDescription_Attributes,
    Compile, Executable_OutputElementTypes, Executable_OutputDimensions, Buffer_CopyToMemory,
    Client_CreateViewOfDeviceBuffer, Executable_Fingerprint, Client_TopologyDescription,
    Executable_GetCompiledMemoryStats, Memory_Kind_Id, ExecuteContext_Create, ExecuteContext_Destroy,
    Buffer_CopyRawToHost, AsyncHostToDeviceTransferManager_Destroy, AsyncHostToDeviceTransferManager_TransferData,
    Client_CreateBuffersForAsyncHostToDevice, AsyncHostToDeviceTransferManager_RetrieveBuffer,
    AsyncHostToDeviceTransferManager_Device, AsyncHostToDeviceTransferManager_BufferCount,
    AsyncHostToDeviceTransferManager_BufferSize, AsyncHostToDeviceTransferManager_SetBufferError,
    AsyncHostToDeviceTransferManager_AddMetadata, Client_DmaMap, Client_DmaUnmap,
}

/// The layout of a struct: C name, size, and each field's name and offset. The drift test reads it.
pub struct Layout {
    pub c_name: &'static str,
    pub size: usize,
    pub fields: &'static [(&'static str, usize)],
}

/// A struct that starts with `struct_size` and may be zero-filled.
///
/// # Safety
/// The type is `repr(C)`, starts with `struct_size: usize`, and all-zero bytes are a valid value of
/// it.
pub unsafe trait CStruct: Sized {
    const LAYOUT: Layout;

    /// A zeroed value with its own `struct_size`.
    fn zeroed() -> Self {
        // SAFETY: the trait's contract says that all-zero bytes are valid.
        let mut value: Self = unsafe { std::mem::zeroed() };
        set_struct_size(&mut value, size_of::<Self>());
        value
    }
}

fn set_struct_size<T: CStruct>(value: &mut T, size: usize) {
    // SAFETY: `CStruct` promises that the first field is `struct_size: usize`.
    unsafe { *(&raw mut *value).cast::<usize>() = size }
}

/// An argument struct with a zeroed tail: a plugin with a newer API reads zeros for fields that are
/// not declared here.
#[repr(C)]
pub struct Padded<T> {
    pub value: T,
    tail: [u64; 16],
}

impl<T: CStruct> Padded<T> {
    /// Wraps `value` and makes its `struct_size` cover the tail. Not for structs in arrays, whose
    /// stride is their size.
    pub fn new(mut value: T) -> Self {
        set_struct_size(&mut value, size_of::<Self>());
        Self { value, tail: [0; 16] }
    }
}

/// The argument struct of one entry point.
pub trait Args: CStruct {
    const SLOT: Slot;
}

macro_rules! c_structs {
    ($($(#[$doc:meta])* $name:ident = $c:literal { $($field:ident : $ty:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        pub struct $name { pub struct_size: usize, pub extension_start: Ptr, $(pub $field: $ty),* }
        // SAFETY: repr(C), starts with struct_size; all fields are integers, bools, nullable
        // pointers or options of function pointers, for which zero is valid.
        unsafe impl CStruct for $name {
            const LAYOUT: Layout = Layout {
                c_name: $c,
                size: size_of::<$name>(),
                fields: &[
                    ("struct_size", std::mem::offset_of!($name, struct_size)),
                    ("extension_start", std::mem::offset_of!($name, extension_start)),
                    $((stringify!($field), std::mem::offset_of!($name, $field))),*
                ],
            };
        }
    )*
        /// Layouts of all structs declared by one macro call.
        const PLAIN_LAYOUTS: &[Layout] = &[$($name::LAYOUT),*];
    };
}
macro_rules! args {
    ($($slot:ident => $name:ident { $($field:ident : $ty:ty),* $(,)? })*) => {$(
        #[repr(C)]
        pub struct $name { pub struct_size: usize, pub extension_start: Ptr, $(pub $field: $ty),* }
        // SAFETY: as for the plain structs above.
        unsafe impl CStruct for $name {
            const LAYOUT: Layout = Layout {
                c_name: concat!("PJRT_", stringify!($slot), "_Args"),
                size: size_of::<$name>(),
                fields: &[
                    ("struct_size", std::mem::offset_of!($name, struct_size)),
                    ("extension_start", std::mem::offset_of!($name, extension_start)),
                    $((stringify!($field), std::mem::offset_of!($name, $field))),*
                ],
            };
        }
        impl Args for $name { const SLOT: Slot = Slot::$slot; }
    )*
        const ARG_LAYOUTS: &[Layout] = &[$($name::LAYOUT),*];
    };
}

/// Returns the layouts of all structs declared here.
pub fn layouts() -> impl Iterator<Item = &'static Layout> {
    PLAIN_LAYOUTS.iter().chain(ARG_LAYOUTS)
}

/// The value of a [`NamedValue`], by its `kind`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union NamedValueUnion {
    pub string_value: *const c_char,
    pub int64_value: i64,
    pub int64_array_value: *const i64,
    pub float_value: f32,
    pub bool_value: bool,
}

c_structs! {
    NamedValue = "PJRT_NamedValue" {
        name: *const c_char, name_size: usize, r#type: c_int, value: NamedValueUnion, value_size: usize,
    }
    Program = "PJRT_Program" { code: *mut c_char, code_size: usize, format: *const c_char, format_size: usize }
    ShapeSpec = "PJRT_ShapeSpec" { dims: *const i64, num_dims: usize, element_type: c_int }
    ExecuteOptions = "PJRT_ExecuteOptions" {
        send_callbacks: Ptr, recv_callbacks: Ptr, num_send_ops: usize, num_recv_ops: usize, launch_id: c_int,
        non_donatable_input_indices: *const i64, num_non_donatable_input_indices: usize, context: Ptr,
        call_location: *const c_char, num_tasks: usize, task_ids: *mut c_int, incarnation_ids: *mut i64,
    }
}

args! {
    Error_Destroy => ErrorDestroy { error: Ptr }
    Error_Message => ErrorMessage { error: Ptr, message: *const c_char, message_size: usize }
    Error_GetCode => ErrorGetCode { error: Ptr, code: c_int }
    Plugin_Initialize => PluginInitialize {}
    Plugin_Attributes => PluginAttributes { attributes: *const NamedValue, num_attributes: usize }
    Event_Destroy => EventDestroy { event: Ptr }
    Event_IsReady => EventIsReady { event: Ptr, is_ready: bool }
    Event_Await => EventAwait { event: Ptr }
    Event_OnReady => EventOnReady {
        event: Ptr, callback: Option<unsafe extern "C" fn(Ptr, Ptr)>, user_arg: Ptr,
    }
    Client_Create => ClientCreate {
        create_options: *const NamedValue, num_options: usize, kv_get_callback: Ptr, kv_get_user_arg: Ptr,
        kv_put_callback: Ptr, kv_put_user_arg: Ptr, client: Ptr, kv_try_get_callback: Ptr, kv_try_get_user_arg: Ptr,
    }
    Client_Destroy => ClientDestroy { client: Ptr }
    Client_PlatformName => ClientPlatformName {
        client: Ptr, platform_name: *const c_char, platform_name_size: usize,
    }
    Client_PlatformVersion => ClientPlatformVersion {
        client: Ptr, platform_version: *const c_char, platform_version_size: usize,
    }
    Client_ProcessIndex => ClientProcessIndex { client: Ptr, process_index: c_int }
    Client_Devices => ClientDevices { client: Ptr, devices: *const Ptr, num_devices: usize }
    Client_AddressableDevices => ClientAddressableDevices {
        client: Ptr, addressable_devices: *const Ptr, num_addressable_devices: usize,
    }
    Client_TopologyDescription => ClientTopologyDescription { client: Ptr, topology: Ptr }
    Client_Compile => ClientCompile {
        client: Ptr, program: *const Program, compile_options: *const c_char, compile_options_size: usize,
        executable: Ptr,
    }
    Client_BufferFromHostBuffer => ClientBufferFromHostBuffer {
        client: Ptr, data: *const c_void, r#type: c_int, dims: *const i64, num_dims: usize,
        byte_strides: *const i64, num_byte_strides: usize, host_buffer_semantics: c_int, device: Ptr, memory: Ptr,
        device_layout: Ptr, done_with_host_buffer: Ptr, buffer: Ptr,
    }
    Client_CreateBuffersForAsyncHostToDevice => ClientCreateBuffersForAsyncHostToDevice {
        client: Ptr, shape_specs: *const ShapeSpec, num_shape_specs: usize, device_layouts: Ptr,
        num_device_layouts: usize, memory: Ptr, transfer_manager: Ptr,
    }
    AsyncHostToDeviceTransferManager_TransferData => TransferData {
        transfer_manager: Ptr, buffer_index: c_int, data: *const c_void, offset: i64, transfer_size: i64,
        is_last_transfer: bool, done_with_h2d_transfer: Ptr,
    }
    AsyncHostToDeviceTransferManager_RetrieveBuffer => RetrieveBuffer {
        transfer_manager: Ptr, buffer_index: c_int, buffer_out: Ptr,
    }
    AsyncHostToDeviceTransferManager_Destroy => TransferManagerDestroy { transfer_manager: Ptr }
    DeviceDescription_Id => DeviceDescriptionId { device_description: Ptr, id: c_int }
    DeviceDescription_ProcessIndex => DeviceDescriptionProcessIndex { device_description: Ptr, process_index: c_int }
    DeviceDescription_Kind => DeviceDescriptionKind {
        device_description: Ptr, device_kind: *const c_char, device_kind_size: usize,
    }
    DeviceDescription_ToString => DeviceDescriptionToString {
        device_description: Ptr, to_string: *const c_char, to_string_size: usize,
    }
    DeviceDescription_Attributes => DeviceDescriptionAttributes {
        device_description: Ptr, num_attributes: usize, attributes: *const NamedValue,
    }
    Device_GetDescription => DeviceGetDescription { device: Ptr, device_description: Ptr }
    Device_LocalHardwareId => DeviceLocalHardwareId { device: Ptr, local_hardware_id: c_int }
    Device_AddressableMemories => DeviceAddressableMemories {
        device: Ptr, memories: *const Ptr, num_memories: usize,
    }
    Device_DefaultMemory => DeviceDefaultMemory { device: Ptr, memory: Ptr }
    Device_MemoryStats => DeviceMemoryStats {
        device: Ptr, bytes_in_use: i64,
        peak_bytes_in_use: i64, peak_bytes_in_use_is_set: bool,
        num_allocs: i64, num_allocs_is_set: bool,
        largest_alloc_size: i64, largest_alloc_size_is_set: bool,
        bytes_limit: i64, bytes_limit_is_set: bool,
        bytes_reserved: i64, bytes_reserved_is_set: bool,
        peak_bytes_reserved: i64, peak_bytes_reserved_is_set: bool,
        bytes_reservable_limit: i64, bytes_reservable_limit_is_set: bool,
        largest_free_block_bytes: i64, largest_free_block_bytes_is_set: bool,
        pool_bytes: i64, pool_bytes_is_set: bool,
        peak_pool_bytes: i64, peak_pool_bytes_is_set: bool,
    }
    Memory_Id => MemoryId { memory: Ptr, id: c_int }
    Memory_Kind => MemoryKind { memory: Ptr, kind: *const c_char, kind_size: usize }
    LoadedExecutable_Destroy => LoadedExecutableDestroy { executable: Ptr }
    LoadedExecutable_GetExecutable => LoadedExecutableGetExecutable { loaded_executable: Ptr, executable: Ptr }
    LoadedExecutable_AddressableDevices => LoadedExecutableAddressableDevices {
        executable: Ptr, addressable_devices: *const Ptr, num_addressable_devices: usize,
    }
    LoadedExecutable_Execute => LoadedExecutableExecute {
        executable: Ptr, options: *const ExecuteOptions, argument_lists: *const *const Ptr, num_devices: usize,
        num_args: usize, output_lists: *const *mut Ptr, device_complete_events: *mut Ptr, execute_device: Ptr,
    }
    Executable_Destroy => ExecutableDestroy { executable: Ptr }
    Executable_NumOutputs => ExecutableNumOutputs { executable: Ptr, num_outputs: usize }
    Executable_Serialize => ExecutableSerialize {
        executable: Ptr, serialized_bytes: *const c_char, serialized_bytes_size: usize, serialized_executable: Ptr,
        serialized_executable_deleter: Option<unsafe extern "C" fn(Ptr)>,
    }
    Executable_DeserializeAndLoad => ExecutableDeserializeAndLoad {
        client: Ptr, serialized_executable: *const c_char, serialized_executable_size: usize, loaded_executable: Ptr,
        overridden_serialized_compile_options: *const c_char, overridden_serialized_compile_options_size: usize,
    }
    Executable_OptimizedProgram => ExecutableOptimizedProgram { executable: Ptr, program: *mut Program }
    Executable_GetCompiledMemoryStats => ExecutableGetCompiledMemoryStats {
        executable: Ptr, generated_code_size_in_bytes: i64, argument_size_in_bytes: i64, output_size_in_bytes: i64,
        alias_size_in_bytes: i64, temp_size_in_bytes: i64, host_generated_code_size_in_bytes: i64,
        host_argument_size_in_bytes: i64, host_output_size_in_bytes: i64, host_alias_size_in_bytes: i64,
        host_temp_size_in_bytes: i64, peak_memory_in_bytes: i64,
    }
    Buffer_Destroy => BufferDestroy { buffer: Ptr }
    Buffer_IsDeleted => BufferIsDeleted { buffer: Ptr, is_deleted: bool }
    Buffer_ReadyEvent => BufferReadyEvent { buffer: Ptr, event: Ptr }
    Buffer_ToHostBuffer => BufferToHostBuffer {
        src: Ptr, host_layout: Ptr, dst: *mut c_void, dst_size: usize, event: Ptr,
    }
    Buffer_CopyRawToHost => BufferCopyRawToHost {
        buffer: Ptr, dst: *mut c_void, offset: i64, transfer_size: i64, event: Ptr,
    }
    Buffer_OpaqueDeviceMemoryDataPointer => BufferOpaqueDeviceMemoryDataPointer {
        buffer: Ptr, device_memory_ptr: Ptr,
    }
    TopologyDescription_Create => TopologyDescriptionCreate {
        topology_name: *const c_char, topology_name_size: usize, create_options: *const NamedValue,
        num_options: usize, topology: Ptr,
    }
    TopologyDescription_Destroy => TopologyDescriptionDestroy { topology: Ptr }
    TopologyDescription_PlatformName => TopologyDescriptionPlatformName {
        topology: Ptr, platform_name: *const c_char, platform_name_size: usize,
    }
    TopologyDescription_PlatformVersion => TopologyDescriptionPlatformVersion {
        topology: Ptr, platform_version: *const c_char, platform_version_size: usize,
    }
    TopologyDescription_GetDeviceDescriptions => TopologyDescriptionGetDeviceDescriptions {
        topology: Ptr, descriptions: *const Ptr, num_descriptions: usize,
    }
    TopologyDescription_Attributes => TopologyDescriptionAttributes {
        topology: Ptr, attributes: *const NamedValue, num_attributes: usize,
    }
    Compile => CompileAot {
        topology: Ptr, program: *const Program, compile_options: *const c_char, compile_options_size: usize,
        client: Ptr, executable: Ptr,
    }
}

/// `PJRT_FFI_Extension`: registers typed-FFI handlers with the plugin.
#[repr(C)]
pub struct FfiExtension {
    pub base: ExtensionBase,
    pub type_register: Ptr,
    pub user_data_add: Ptr,
    pub register_handler: Option<unsafe extern "C" fn(*mut FfiRegisterHandler) -> Ptr>,
}

/// `PJRT_FFI_Register_Handler_Args`. Unlike all others it has no extension_start.
#[repr(C)]
pub struct FfiRegisterHandler {
    pub struct_size: usize,
    pub target_name: *const c_char,
    pub target_name_size: usize,
    pub handler: Ptr,
    pub platform_name: *const c_char,
    pub platform_name_size: usize,
    pub traits: c_int,
}
