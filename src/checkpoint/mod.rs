//! Checkpoints in Hugging Face's layout: safetensors files, mapped into memory and checked strictly
//! before use.

mod error;
mod foreign;
mod lora;
mod open;
mod quantize;
mod random;
mod tensor;
mod write;

pub use error::CheckpointError;
pub use lora::{ADAPTER_CONFIG, LoraAdapter, adapter_base};
pub use open::{ADAPTER_WEIGHTS, Checkpoint, OutputLayer};
pub use quantize::{Quantization, Quantized, quantize, write_quantized};
pub use random::write_random;
pub use tensor::Tensor;
pub use write::{ALIGNMENT, write_safetensors};
