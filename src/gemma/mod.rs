//! Gemma 1 and 1.1: configuration, weights and how they are split over devices, the layers, the programs.
//!
//! Reading order: [`Config`], [`weights`], `layers` (the architecture), [`Target`] (the few primitives that platforms lower in
//! their own way: products, the softmax of attention), [`Program`], [`Cost`]. Graphs here are the program of **one
//! device**, Megatron style: q/k/v/gate/up are split by rows, o/down by columns, each followed by one all-reduce; the
//! embedding is split by tokens. On one device there are no collectives at all.
//!
//! What is special about Gemma (and easy to get wrong), all checked against Hugging Face transformers:
//! - RMSNorm multiplies by `1 + w`; the checkpoint stores `w`.
//! - Embeddings are multiplied by sqrt(hidden), rounded to the compute dtype.
//! - head_dim is given, not hidden / heads: in the 7B, 16 heads of 256 make 4096, and hidden is 3072.
//! - The MLP's GELU is the tanh form, also where a config says plain `gelu`.
//! - The output layer is the embedding, transposed.

mod cache;
mod config;
mod cost;
mod layers;
mod programs;
mod stacking;
mod target;
pub mod weights;

pub use cache::Cache;
pub use config::{Config, ConfigError};
pub use cost::{Cost, Extension};
pub use programs::{More, Output, Program, ProgramSpec, STOP_IDS};
pub use stacking::{put_layer, stacked, zeros};
pub use target::Target;
