//! A client of a plugin. Devices, buffers, executables and topologies are in the files that import
//! this one, with the functions of [`Client`] that make them.

use std::sync::Arc;

use super::{
    abi::{CStruct, ClientCreate, ClientDestroy, ClientPlatformName, ClientPlatformVersion, Ptr},
    api::{Api, Options, named_values, string},
    error::Result,
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

/// A client: the devices of one platform in this process. Cheap to clone. All that is made from a
/// client keeps it alive.
#[derive(Clone)]
pub struct Client(Arc<ClientInner>);

impl Client {
    /// Creates a client. The CPU plugin takes `cpu_device_count` (Int), 4 by default.
    ///
    /// # Errors
    /// The plugin refuses, for example because it finds no device.
    pub fn new(api: &Api, options: &Options) -> Result<Self> {
        let values = named_values(options);
        let args =
            ClientCreate { create_options: values.as_ptr(), num_options: values.len(), ..ClientCreate::zeroed() };
        let out = api.call(args)?;
        Ok(Self(Arc::new(ClientInner { api: api.clone(), ptr: out.client })))
    }

    /// Returns the plugin.
    pub fn api(&self) -> &Api {
        &self.0.api
    }

    pub(super) fn ptr(&self) -> Ptr {
        self.0.ptr
    }

    /// Returns the platform: `cpu`, `tpu` or `cuda`.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn platform_name(&self) -> Result<String> {
        let out = self.api().call(ClientPlatformName { client: self.ptr(), ..CStruct::zeroed() })?;
        Ok(string(out.platform_name, out.platform_name_size))
    }

    /// Returns the platform's version, in the plugin's own format; just `cpu` on the CPU plugins.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub fn platform_version(&self) -> Result<String> {
        let out = self.api().call(ClientPlatformVersion { client: self.ptr(), ..CStruct::zeroed() })?;
        Ok(string(out.platform_version, out.platform_version_size))
    }
}
