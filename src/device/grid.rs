//! The global grid of devices: rank r of the mesh is device r of the grid, wherever that device is.
//! A process holds those that are local to it; with one process these are all.

use super::{
    Platform,
    error::{During, Error, Result},
};
use crate::{
    hlo::Mesh,
    pjrt::{Client, Device, Value},
};

/// A device of the grid.
#[derive(Clone, Debug)]
pub struct GridDevice {
    /// The plugin's global id, as device assignments name it.
    pub id: i32,
    /// The process that drives it.
    pub process_index: i32,
    /// Where it stands among the chips of a slice; empty where the plugin does not say.
    pub coords: Vec<i64>,
    device: Device,
}

/// Devices in the order of the mesh's ranks.
#[derive(Clone, Debug)]
pub struct DeviceGrid {
    pub mesh: Mesh,
    devices: Vec<GridDevice>,
    process_index: i32,
}

impl DeviceGrid {
    /// Lays the mesh over the platform's devices, in the order of their processes and ids.
    ///
    /// # Errors
    /// The plugin's, or that there are too few devices.
    pub fn new(platform: &Platform, mesh: Mesh) -> Result<Self> {
        let client: &Client = &platform.client;
        let doing = || "reading the devices' places".to_owned();
        let mut devices = Vec::new();
        for device in client.all_devices().during(doing)? {
            let coords = device.attributes().during(doing)?.into_iter().find_map(|(name, value)| match value {
                Value::Ints(coords) if name == "coords" => Some(coords),
                _ => None,
            });
            let (id, process_index) = (device.id().during(doing)?, device.process_index().during(doing)?);
            devices.push(GridDevice { id, process_index, coords: coords.unwrap_or_default(), device });
        }
        devices.sort_by_key(|device| (device.process_index, device.id));
        if devices.len() < mesh.devices() {
            return Err(Error::Invalid(format!(
                "mesh {mesh} needs {} devices, there are {}; use a smaller --mesh",
                mesh.devices(),
                devices.len()
            )));
        }
        devices.truncate(mesh.devices());
        let process_index = client.process_index().during(doing)?;
        Ok(Self { mesh, devices, process_index })
    }

    /// Global ids of all devices, in the order of the ranks.
    pub fn ids(&self) -> impl Iterator<Item = i32> {
        self.devices.iter().map(|device| device.id)
    }

    /// All devices, in the order of the ranks.
    pub fn devices(&self) -> &[GridDevice] {
        &self.devices
    }

    /// Ranks and devices of this process.
    pub fn local(&self) -> impl Iterator<Item = (usize, &Device)> {
        let is_local = |(_, device): &(usize, &GridDevice)| device.process_index == self.process_index;
        self.devices.iter().enumerate().filter(is_local).map(|(rank, device)| (rank, &device.device))
    }

    /// The replica (dp rank) that a rank belongs to.
    pub fn replica(&self, rank: usize) -> usize {
        rank / self.mesh.model
    }

    /// The part of the model (tp rank) that a rank holds.
    pub fn tp_rank(&self, rank: usize) -> usize {
        rank % self.mesh.model
    }
}
