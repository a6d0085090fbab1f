//! A client of a plugin. What it makes is in the files above this one: devices, buffers, executables, a topology.

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

/// A client: the devices of one platform in this process. Cheap to clone; everything made from it keeps it alive.
#[derive(Clone)]
pub struct Client(Arc<ClientInner>);

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

    pub(super) fn ptr(&self) -> Ptr {
        self.0.ptr
    }

    /// `cpu`, `tpu` or `cuda`.
    pub fn platform_name(&self) -> Result<String> {
        let out = self.api().call(ClientPlatformName { client: self.ptr(), ..CStruct::zeroed() })?;
        Ok(string(out.platform_name, out.platform_name_size))
    }

    /// The platform's version, as the plugin words it; plain `cpu` on the CPU plugins.
    pub fn platform_version(&self) -> Result<String> {
        let out = self.api().call(ClientPlatformVersion { client: self.ptr(), ..CStruct::zeroed() })?;
        Ok(string(out.platform_version, out.platform_version_size))
    }
}
