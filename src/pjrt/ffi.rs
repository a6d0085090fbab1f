//! XLA's typed FFI: Rust functions that a compiled CPU program calls.
//!
//! A handler is a type that implements [`Handler`]; [`register`] makes it known to a plugin under
//! [`Handler::TARGET`], and a custom-call of that target with `api_version=API_VERSION_TYPED_FFI`
//! calls it. Layouts are those of xla/ffi/api/c_api.h, version 0.3.

use std::ffi::{c_char, c_int, c_void};

use super::{
    abi::{EXTENSION_FFI, FfiExtension, FfiRegisterHandler, Ptr},
    api::Api,
    element_type::ElementType,
    error::{Error, Result},
};

/// A function that a compiled program can call.
pub trait Handler {
    /// Name of the custom-call target.
    const TARGET: &'static str;

    /// Does the work.
    ///
    /// # Errors
    /// What becomes the execution's error.
    fn call(frame: Frame<'_>) -> std::result::Result<(), String>;
}

/// Registers the handler with the plugin, once per process and plugin.
///
/// # Errors
/// The plugin has no FFI extension, or knows the handler already.
pub fn register<H: Handler>(api: &Api) -> Result<()> {
    let extension = api.extension(EXTENSION_FFI, size_of::<FfiExtension>()).ok_or(Error::MissingExtension("FFI"))?;
    // SAFETY: the extension's type number says that it is a PJRT_FFI_Extension, and its size was
    // checked.
    let entry = unsafe { (*extension.cast::<FfiExtension>()).register_handler };
    let entry = entry.ok_or(Error::MissingExtension("FFI"))?;
    const PLATFORM: &str = "Host";
    let mut args = FfiRegisterHandler {
        struct_size: size_of::<FfiRegisterHandler>(),
        target_name: H::TARGET.as_ptr().cast(),
        target_name_size: H::TARGET.len(),
        handler: trampoline::<H> as *const () as Ptr,
        platform_name: PLATFORM.as_ptr().cast(),
        platform_name_size: PLATFORM.len(),
        traits: 0,
    };
    // SAFETY: `entry` takes this struct; the handler has the signature of XLA_FFI_Handler and lives
    // forever.
    let error = unsafe { entry(&raw mut args) };
    api.check(error, "FFI_Register_Handler")
}

#[repr(C)]
struct ExtensionBase {
    struct_size: usize,
    kind: c_int,
    next: *mut ExtensionBase,
}

const EXTENSION_METADATA: c_int = 1;

#[repr(C)]
struct ApiVersion {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    major_version: c_int,
    minor_version: c_int,
}

#[repr(C)]
struct Metadata {
    struct_size: usize,
    api_version: ApiVersion,
    traits: u32,
}

#[repr(C)]
struct MetadataExtension {
    base: ExtensionBase,
    metadata: *mut Metadata,
}

#[repr(C)]
struct FfiApi {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    api_version: ApiVersion,
    internal_api: *const c_void,
    error_create: unsafe extern "C" fn(*mut ErrorCreate) -> Ptr,
}

#[repr(C)]
struct ErrorCreate {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    message: *const c_char,
    errc: c_int,
}

#[repr(C)]
struct RawBuffer {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    dtype: c_int,
    data: *mut c_void,
    rank: i64,
    dims: *const i64,
}

#[repr(C)]
struct Operands {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    size: i64,
    types: *const c_int,
    values: *const *mut c_void,
}

#[repr(C)]
struct ByteSpan {
    ptr: *const c_char,
    len: usize,
}

#[repr(C)]
struct Scalar {
    dtype: c_int,
    value: *const c_void,
}

#[repr(C)]
struct Attributes {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    size: i64,
    types: *const c_int,
    names: *const *const ByteSpan,
    values: *const *mut c_void,
}

#[repr(C)]
struct CallFrame {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    api: *const FfiApi,
    ctx: *mut c_void,
    stage: c_int,
    args: Operands,
    rets: Operands,
    attrs: Attributes,
}

const STAGE_EXECUTE: c_int = 3;
const ARG_BUFFER: c_int = 1;
const ATTR_SCALAR: c_int = 3;
const ERROR_INTERNAL: c_int = 13;

/// One call of a handler: its operands, results and attributes.
pub struct Frame<'a>(&'a CallFrame);

/// An operand.
pub struct Operand<'a> {
    buffer: &'a RawBuffer,
    /// Whether a result lies in its memory.
    is_aliased: bool,
}

/// A result, to be filled.
pub struct Output<'a>(&'a RawBuffer);

impl<'a> Frame<'a> {
    /// Returns all operands and all results, of which there must be `R`.
    ///
    /// # Errors
    /// If an operand or result is not an array, or there are not `R` results.
    pub fn arrays<const R: usize>(self) -> std::result::Result<(Vec<Operand<'a>>, [Output<'a>; R]), String> {
        let (operands, results) = self.array_lists()?;
        let results =
            results.try_into().map_err(|all: Vec<_>| format!("the call has {} results, expected {R}", all.len()))?;
        Ok((operands, results))
    }

    /// Returns all operands and all results, however many there are.
    ///
    /// # Errors
    /// If an operand or result is not an array.
    pub fn array_lists(self) -> std::result::Result<(Vec<Operand<'a>>, Vec<Output<'a>>), String> {
        let operands = buffers(&self.0.args, "operand")?;
        let results = buffers(&self.0.rets, "result")?;
        let operand = |buffer: &'a RawBuffer| {
            // XLA gives an operand's memory to a result as a whole, where the program aliases the
            // two. A result without elements has no memory, wherever it points.
            let is_aliased = results.iter().any(|result| result.data == buffer.data && !result.dims().contains(&0));
            Operand { buffer, is_aliased }
        };
        let operands = operands.into_iter().map(operand).collect();
        Ok((operands, results.into_iter().map(Output).collect()))
    }

    /// Returns the scalar 64-bit integer attribute of this name.
    ///
    /// # Errors
    /// There is none, or it has another type.
    pub fn attribute_i64(&self, name: &str) -> std::result::Result<i64, String> {
        let attrs = &self.0.attrs;
        for i in 0..usize::try_from(attrs.size).unwrap_or(0) {
            // SAFETY: names, types and values have `size` elements each.
            let (found, kind, value) = unsafe {
                let span = &**attrs.names.add(i);
                let found = std::slice::from_raw_parts(span.ptr.cast::<u8>(), span.len);
                (found, *attrs.types.add(i), *attrs.values.add(i))
            };
            if found == name.as_bytes() && kind == ATTR_SCALAR {
                // SAFETY: the attribute's kind says that it is a scalar; its dtype says what it
                // points to.
                return unsafe {
                    let scalar = &*value.cast::<Scalar>();
                    if scalar.dtype == 5 {
                        Ok(*scalar.value.cast::<i64>())
                    } else {
                        Err(format!("attribute {name} has XLA type {}, expected s64", scalar.dtype))
                    }
                };
            }
        }
        Err(format!("the custom call has no scalar attribute {name}"))
    }
}

fn buffers<'a>(list: &'a Operands, what: &str) -> std::result::Result<Vec<&'a RawBuffer>, String> {
    let buffer = |index: usize| {
        // SAFETY: the list has `size` entries; the kind is checked before the cast.
        unsafe {
            if *list.types.add(index) != ARG_BUFFER {
                return Err(format!("{what} {index} is not an array"));
            }
            Ok(&*(*list.values.add(index)).cast::<RawBuffer>())
        }
    };
    (0..usize::try_from(list.size).unwrap_or_default()).map(buffer).collect()
}

impl RawBuffer {
    fn dims(&self) -> &[i64] {
        if self.rank == 0 {
            return &[];
        }
        // SAFETY: the plugin gives `rank` dims.
        unsafe { std::slice::from_raw_parts(self.dims, self.rank as usize) }
    }

    fn element_type(&self) -> Option<ElementType> {
        // XLA's own numbering, which differs from PJRT's.
        Some(match self.dtype {
            1 => ElementType::Pred,
            2 => ElementType::S8,
            3 => ElementType::S16,
            4 => ElementType::S32,
            5 => ElementType::S64,
            6 => ElementType::U8,
            7 => ElementType::U16,
            8 => ElementType::U32,
            9 => ElementType::U64,
            10 => ElementType::F16,
            11 => ElementType::F32,
            12 => ElementType::F64,
            16 => ElementType::BF16,
            _ => return None,
        })
    }

    fn elements<T>(&self) -> std::result::Result<usize, String> {
        let bits = self.element_type().ok_or(format!("unsupported XLA type {}", self.dtype))?.host_bits();
        if bits != size_of::<T>() * 8 {
            return Err(format!("an array of {bits}-bit elements was read as {}", std::any::type_name::<T>()));
        }
        Ok(self.dims().iter().product::<i64>() as usize)
    }
}

impl<'a> Operand<'a> {
    /// Dimensions.
    pub fn dims(&self) -> &'a [i64] {
        self.buffer.dims()
    }

    /// Element type, if this crate knows it.
    pub fn element_type(&self) -> Option<ElementType> {
        self.buffer.element_type()
    }

    /// Returns the address of the first element. An operand and a result that the program aliases
    /// have one address.
    pub fn data_address(&self) -> usize {
        self.buffer.data.addr()
    }

    /// Returns the elements, row-major.
    ///
    /// # Errors
    /// If elements do not have the size of `T`, or the operand is aliased to a result: its elements
    /// are in the result's [`Output::as_mut_slice`].
    pub fn as_slice<T: bytemuck::Pod>(&self) -> std::result::Result<&'a [T], String> {
        let len = self.buffer.elements::<T>()?;
        if len == 0 {
            return Ok(&[]);
        }
        if self.is_aliased {
            return Err("an operand that is aliased to a result was read beside it".into());
        }
        // SAFETY: the plugin gives memory for the whole array, aligned for its element type.
        // Nothing writes to it during the call: it is no result's memory, as just checked.
        Ok(unsafe { std::slice::from_raw_parts(self.buffer.data.cast(), len) })
    }
}

impl<'a> Output<'a> {
    /// Dimensions.
    pub fn dims(&self) -> &'a [i64] {
        self.0.dims()
    }

    /// Element type, if this crate knows it.
    pub fn element_type(&self) -> Option<ElementType> {
        self.0.element_type()
    }

    /// Returns the address of the first element, see [`Operand::data_address`].
    pub fn data_address(&self) -> usize {
        self.0.data.addr()
    }

    /// Returns the elements to fill, row-major. Where the program aliases an operand to this
    /// result, they are that operand's elements.
    ///
    /// # Errors
    /// If elements do not have the size of `T`.
    pub fn as_mut_slice<T: bytemuck::Pod>(self) -> std::result::Result<&'a mut [T], String> {
        let len = self.0.elements::<T>()?;
        if len == 0 {
            return Ok(&mut []);
        }
        // SAFETY: the plugin gives memory for the whole array, aligned for its element type. A
        // result's memory overlaps no other result's, and `Frame` hands each result out once, for
        // one slice. It overlaps an operand's only where the program aliases the two, and
        // `Operand::as_slice` refuses to make a slice of such an operand.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.data.cast(), len) })
    }
}

/// The C function behind a [`Handler`].
unsafe extern "C" fn trampoline<H: Handler>(frame: *mut CallFrame) -> Ptr {
    // SAFETY: XLA passes a call frame that is valid during the call. It may be shorter than ours at
    // its end (`attrs` is the last field we read, and it is part of version 0.1).
    let frame = unsafe { &*frame };
    let mut extension = frame.extension_start;
    while !extension.is_null() {
        // SAFETY: a list of extensions that ends with null; the kind says what each is.
        unsafe {
            if (*extension).kind == EXTENSION_METADATA {
                // Asked during registration: which API version the handler was built for.
                let metadata = (*extension.cast::<MetadataExtension>()).metadata;
                (*metadata).api_version.major_version = 0;
                (*metadata).api_version.minor_version = 3;
                (*metadata).traits = 0;
                return std::ptr::null_mut();
            }
            extension = (*extension).next;
        }
    }
    if frame.stage != STAGE_EXECUTE {
        return std::ptr::null_mut();
    }
    let result = std::panic::catch_unwind(|| H::call(Frame(frame)));
    let message = match result {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(message)) => format!("{}: {message}", H::TARGET),
        Err(_) => format!("{}: the handler panicked", H::TARGET),
    };
    let message = std::ffi::CString::new(message.replace('\0', " ")).unwrap_or_default();
    let mut args = ErrorCreate {
        struct_size: size_of::<ErrorCreate>(),
        extension_start: std::ptr::null_mut(),
        message: message.as_ptr(),
        errc: ERROR_INTERNAL,
    };
    // SAFETY: the frame's API table is valid, and XLA copies the message.
    unsafe { ((*frame.api).error_create)(&raw mut args) }
}
