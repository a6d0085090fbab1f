pub mod cache_dir;
pub mod checkpoint;
pub mod gemma;
pub mod hlo;
pub mod pjrt;
pub mod plugins;
pub mod sampling;
pub mod tokenizer;
