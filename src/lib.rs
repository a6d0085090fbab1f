pub mod hlo;
