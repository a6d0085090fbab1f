//! The devices that a model runs on: the platform, and the grid of devices that a mesh is laid
//! over.

mod error;
mod grid;
pub mod host_memory;
mod platform;

pub use error::{During, Error, Result};
pub use grid::{DeviceGrid, GridDevice};
pub use platform::{Platform, PlatformRequest};
