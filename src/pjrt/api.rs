//! A loaded plugin: its function table, the only place that calls its functions, and its error
//! objects.

use std::{
    ffi::{c_char, c_int},
    path::{Path, PathBuf},
    sync::{Arc, Once, OnceLock},
};

use super::{
    abi::{self, *},
    error::{Error, Result},
    xla_flags,
};

/// A value of a plugin, client, topology or device attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Str(String),
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Bool(bool),
}

/// Options for creating a client or a topology, or attributes of one, in order.
pub type Options = Vec<(String, Value)>;

/// The `TF_CPP_MIN_LOG_LEVEL` to set before a plugin is loaded. `None` leaves the environment as it
/// is.
static LOG_LEVEL: OnceLock<Option<&str>> = OnceLock::new();

/// Limits the log lines of plugins on stderr to fatal ones. Plugins read this variable when they
/// are loaded. Measured on the CPU plugins of API 0.106 and 0.115, where `ABSL_MIN_LOG_LEVEL` has
/// no effect.
fn set_log_level() {
    const NAME: &str = "TF_CPP_MIN_LOG_LEVEL";
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Some(level) = LOG_LEVEL.get_or_init(|| Some("3"))
            && std::env::var_os(NAME).is_none()
        {
            // SAFETY: std's own lock orders this against every other use of the environment through
            // std, and no plugin code, which might call getenv, has been loaded yet.
            unsafe { std::env::set_var(NAME, level) };
        }
    });
}

/// Refuses `XLA_FLAGS` with flags that the plugin does not know, which would end the process.
fn check_xla_flags(path: &Path) -> Result<()> {
    const NAME: &str = "XLA_FLAGS";
    let refuse = |reason: String| Error::Load { path: path.to_owned(), reason };
    let Some(value) = std::env::var_os(NAME) else { return Ok(()) };
    let names = xla_flags::names(&value.to_string_lossy())
        .map_err(|reason| refuse(format!("{NAME}: {reason}. Unset {NAME}, or begin each flag in it with --")))?;
    let unknown = xla_flags::unknown(path, names).map_err(|e| refuse(e.to_string()))?;
    if unknown.is_empty() {
        if !value.is_empty() {
            // What a value may be, only the plugin knows.
            tracing::info!("the plugin reads {NAME}={} and ends the process if a value is wrong", value.display());
        }
        return Ok(());
    }
    Err(refuse(format!(
        "{NAME} has flags that it does not know: --{}. They may be for the XLA of another program: unset {NAME}, or remove \
         them from it",
        unknown.join(", --")
    )))
}

struct ApiInner {
    path: PathBuf,
    table: *const ApiHeader,
}
// SAFETY: the table is immutable after `GetPjrtApi` and PJRT entry points may be called from any
// thread.
unsafe impl Send for ApiInner {}
// SAFETY: as above.
unsafe impl Sync for ApiInner {}

/// A loaded and initialised PJRT plugin. Cheap to clone. The library is never unloaded: plugins
/// keep threads running.
#[derive(Clone)]
pub struct Api(Arc<ApiInner>);

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.version();
        write!(f, "Api({}, {major}.{minor})", self.0.path.display())
    }
}

impl Api {
    /// Makes plugins log everything to stderr, instead of fatal lines only. Must be called before
    /// the first plugin is loaded.
    pub fn show_plugin_logs() {
        LOG_LEVEL.get_or_init(|| None);
    }

    /// Tells libtpu that this machine has no TPU, for compiling for another machine. Must be called
    /// before libtpu is loaded. Otherwise it would look for Google's metadata server for minutes,
    /// and keep other processes out by a lock file.
    pub fn prepare_for_absent_tpu() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let variables = [
                ("TPU_SKIP_MDS_QUERY", "1"),
                ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
                ("TPU_LOG_DIR", "disabled"),
                // Values that it would have read there, and otherwise warns about.
                ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
                ("TPU_WORKER_HOSTNAMES", "localhost"),
                ("TPU_MIN_LOG_LEVEL", "3"),
                ("TPU_STDERR_LOG_LEVEL", "3"),
            ];
            for (name, value) in variables {
                if std::env::var_os(name).is_none() {
                    // SAFETY: as in `set_log_level`.
                    unsafe { std::env::set_var(name, value) };
                }
            }
        });
    }

    /// Loads the shared library at `path`, checks that it is a PJRT plugin of API major version 0,
    /// and initialises it.
    ///
    /// # Errors
    /// The file is not a PJRT plugin for this machine, or its initialisation fails.
    pub fn load(path: &Path) -> Result<Self> {
        let refuse = |reason: String| Error::Load { path: path.to_owned(), reason };
        check_elf(path)?;
        check_xla_flags(path)?;
        set_log_level();
        // SAFETY: loading runs the library's constructors. That is the plugin contract; the file
        // was checked to be an ELF shared object for this machine, and the user chose it or it was
        // verified by its sha256.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| refuse(load_failure(&e)))?;
        let library = Box::leak(Box::new(library));
        // SAFETY: every PJRT plugin exports `const PJRT_Api* GetPjrtApi()`.
        let get = unsafe { library.get::<unsafe extern "C" fn() -> *const ApiHeader>(b"GetPjrtApi\0") }
            .map_err(|_| refuse("it is a shared library, but not a PJRT plugin (it exports no GetPjrtApi)".into()))?;
        // SAFETY: `GetPjrtApi` takes nothing and returns a static table.
        let table = unsafe { get() };
        if table.is_null() {
            return Err(refuse("GetPjrtApi returned no table".into()));
        }
        let api = Self(Arc::new(ApiInner { path: path.to_owned(), table }));
        let (major, minor) = api.version();
        if major != 0 {
            return Err(refuse(format!("it has PJRT API {major}.{minor}; this program needs 0.x")));
        }
        api.call(PluginInitialize::zeroed())?;
        Ok(api)
    }

    /// Returns the file that the plugin was loaded from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the plugin's API version: (major, minor).
    pub fn version(&self) -> (i32, i32) {
        // SAFETY: the table is a static of the plugin and was checked not to be null.
        let version = unsafe { &(*self.0.table).pjrt_api_version };
        (version.major_version, version.minor_version)
    }

    /// Returns the number of function pointers in the plugin's table.
    pub fn num_slots(&self) -> usize {
        // SAFETY: as in `version`.
        (unsafe { (*self.0.table).struct_size }).saturating_sub(API_HEADER_SIZE) / size_of::<usize>()
    }

    /// Returns whether the plugin's table has this entry point.
    pub fn has(&self, slot: Slot) -> bool {
        self.slot(slot).is_ok()
    }

    fn slot(&self, slot: Slot) -> Result<unsafe extern "C" fn(Ptr) -> Ptr> {
        let (major, minor) = self.version();
        let missing = Error::MissingSlot { slot, slots: self.num_slots(), major, minor };
        if slot as usize >= self.num_slots() {
            return Err(missing);
        }
        // SAFETY: the index was checked against the table's size; each slot is a nullable function
        // pointer, and all of them take one pointer to an argument struct.
        let entry = unsafe {
            let slots = self.0.table.cast::<u8>().add(API_HEADER_SIZE);
            *slots.cast::<Option<unsafe extern "C" fn(Ptr) -> Ptr>>().add(slot as usize)
        };
        entry.ok_or(missing)
    }

    /// Calls the entry point of `args`. Returns the struct with the plugin's outputs filled in.
    pub(super) fn call<A: Args>(&self, args: A) -> Result<A> {
        let entry = self.slot(A::SLOT)?;
        let mut args = Padded::new(args);
        // SAFETY: `entry` is the function for this struct (`A::SLOT`, checked against the header by
        // the drift test); the struct's own pointers are valid for the call, which each caller in
        // this room sees to.
        let error = unsafe { entry((&raw mut args).cast()) };
        self.check(error, A::LAYOUT.c_name)?;
        Ok(args.value)
    }

    /// Calls a destructor. Ignores errors and missing entry points, since destructors must not
    /// fail.
    pub(super) fn destroy<A: Args>(&self, args: A) {
        if let Ok(entry) = self.slot(A::SLOT) {
            let mut args = Padded::new(args);
            // SAFETY: as in `call`. Destructors return null or an error about a handle that is gone
            // either way.
            let error = unsafe { entry((&raw mut args).cast()) };
            if A::SLOT != Slot::Error_Destroy {
                let _ = self.check(error, A::LAYOUT.c_name);
            }
        }
    }

    /// Turns a `PJRT_Error*` into a `Result`, and frees it.
    pub(super) fn check(&self, error: Ptr, call: &'static str) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        let mut message = Padded::new(ErrorMessage { error, ..ErrorMessage::zeroed() });
        let mut code = Padded::new(ErrorGetCode { error, ..ErrorGetCode::zeroed() });
        // SAFETY: `error` is a live error object. Message and Destroy return void, so their result
        // is not read.
        unsafe {
            self.slot(Slot::Error_Message)?((&raw mut message).cast());
            self.slot(Slot::Error_GetCode)?((&raw mut code).cast());
        }
        let text = string(message.value.message, message.value.message_size);
        let code = code.value.code.into();
        let mut destroy = Padded::new(ErrorDestroy { error, ..ErrorDestroy::zeroed() });
        // SAFETY: the error was read and is not used again.
        unsafe { self.slot(Slot::Error_Destroy)?((&raw mut destroy).cast()) };
        let call = call.trim_end_matches("_Args").trim_start_matches("PJRT_");
        Err(Error::Plugin { call, code, message: text })
    }

    /// Returns the attributes of the plugin itself (`xla_version`, `stablehlo_current_version`,
    /// ...).
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn attributes(&self) -> Result<Options> {
        let out = self.call(PluginAttributes::zeroed())?;
        Ok(read_named_values(out.attributes, out.num_attributes))
    }

    /// Returns the names of the plugin's extensions; `#` and a number for unknown ones.
    pub fn extensions(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.walk_extensions(|kind, _| names.push(extension_name(kind)));
        names
    }

    /// Returns the extension of this type, if the plugin has one of at least `size` bytes.
    pub(super) fn extension(&self, wanted: c_int, size: usize) -> Option<*const ExtensionBase> {
        let mut found = None;
        self.walk_extensions(|kind, base| {
            // SAFETY: `base` is an element of the plugin's static list.
            if kind == wanted && unsafe { (*base).struct_size } >= size {
                found = found.or(Some(base));
            }
        });
        found
    }

    fn walk_extensions(&self, mut visit: impl FnMut(c_int, *const ExtensionBase)) {
        // SAFETY: the table and its list of extensions are statics of the plugin; the list ends
        // with null.
        unsafe {
            let mut base: *const ExtensionBase = (*self.0.table).extension_start;
            while !base.is_null() {
                visit((*base).kind, base);
                base = (*base).next;
            }
        }
    }
}

fn extension_name(kind: c_int) -> String {
    let name = usize::try_from(kind).ok().and_then(|k| abi::EXTENSION_NAMES.get(k));
    name.map_or_else(|| format!("#{kind}"), |name| (*name).to_owned())
}

/// Refuses files that `dlopen` would refuse with a worse message: missing, not ELF, or for another
/// CPU.
fn check_elf(path: &Path) -> Result<()> {
    use std::io::Read;
    let refuse = |reason: String| Err(Error::Load { path: path.to_owned(), reason });
    let mut header = Vec::new();
    if let Err(e) = std::fs::File::open(path).and_then(|file| file.take(20).read_to_end(&mut header)) {
        return refuse(e.to_string());
    }
    if !header.starts_with(b"\x7fELF") {
        return refuse("it is not a shared library (no ELF header)".into());
    }
    if header.len() < 20 {
        return refuse("the file is too short to be a shared library".into());
    }
    let machine = u16::from_le_bytes([header[18], header[19]]);
    let (expected, name) = if cfg!(target_arch = "aarch64") { (183, "aarch64") } else { (62, "x86-64") };
    if machine != expected {
        let found = match machine {
            62 => "x86-64".to_owned(),
            183 => "aarch64".to_owned(),
            other => format!("ELF machine {other}"),
        };
        return refuse(format!("it is built for {found}, and this is an {name} machine; install the {name} build"));
    }
    Ok(())
}

fn load_failure(error: &libloading::Error) -> String {
    use std::error::Error as _;
    // libloading keeps dlerror()'s text in the source.
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

/// Copies a string that the plugin returned as pointer and length.
pub(super) fn string(data: *const c_char, size: usize) -> String {
    if data.is_null() {
        return String::new();
    }
    // SAFETY: the plugin returned `size` readable bytes at `data`, alive as long as the object
    // asked.
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(data.cast(), size) }).into_owned()
}

/// Copies an array of handles that the plugin owns.
pub(super) fn handles(data: *const Ptr, len: usize) -> Vec<Ptr> {
    if data.is_null() {
        return Vec::new();
    }
    // SAFETY: the plugin returned `len` handles at `data`.
    unsafe { std::slice::from_raw_parts(data, len) }.to_vec()
}

/// Borrows `options` as the C API's list. The result is valid while `options` is.
pub(super) fn named_values(options: &Options) -> Vec<NamedValue> {
    let convert = |(name, value): &(String, Value)| {
        let (kind, union, size) = match value {
            Value::Str(s) => (0, NamedValueUnion { string_value: s.as_ptr().cast() }, s.len()),
            Value::Int(i) => (1, NamedValueUnion { int64_value: *i }, 1),
            Value::Ints(list) => (2, NamedValueUnion { int64_array_value: list.as_ptr() }, list.len()),
            Value::Float(f) => (3, NamedValueUnion { float_value: *f }, 1),
            Value::Bool(b) => (4, NamedValueUnion { bool_value: *b }, 1),
        };
        NamedValue {
            name: name.as_ptr().cast(),
            name_size: name.len(),
            r#type: kind,
            value: union,
            value_size: size,
            ..NamedValue::zeroed()
        }
    };
    options.iter().map(convert).collect()
}

/// Copies a list of attributes that the plugin returned.
pub(super) fn read_named_values(data: *const NamedValue, len: usize) -> Options {
    let mut values = Vec::with_capacity(len);
    let mut at = data.cast::<u8>();
    for _ in 0..len {
        // SAFETY: the plugin returned `len` values, each as long as its own struct_size says (the
        // element type may have grown in a newer API); `type` says which member of the union is
        // set.
        let (name, value, stride) = unsafe {
            let item = &*at.cast::<NamedValue>();
            let v = &item.value;
            let value = match item.r#type {
                0 => Value::Str(string(v.string_value, item.value_size)),
                1 => Value::Int(v.int64_value),
                2 if item.value_size == 0 => Value::Ints(Vec::new()),
                2 => Value::Ints(std::slice::from_raw_parts(v.int64_array_value, item.value_size).to_vec()),
                3 => Value::Float(v.float_value),
                _ => Value::Bool(v.bool_value),
            };
            (string(item.name, item.name_size), value, item.struct_size.max(size_of::<NamedValue>()))
        };
        values.push((name, value));
        at = at.wrapping_add(stride);
    }
    values
}
