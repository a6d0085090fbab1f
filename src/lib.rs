pub mod hlo;
pub mod pjrt;
