//! Gemma 1 and 1.1: configuration, weights and how they are split over devices, the layers, the
//! programs.
//!
//! Reading order: [`Config`], [`tensors`] (the table of weights), [`ModelSpec`], `layers` (the
//! architecture), `attention` and `products` (what a [`Lowering`] changes), [`Program`], [`Cost`].
//! Graphs here are the program of **one device**, Megatron style: q/k/v/gate/up are split by rows,
//! o/down by columns, each followed by one all-reduce; the embedding is split by tokens. On one
//! device there are no collectives at all.
//!
//! What is special about Gemma (and easy to get wrong), all checked against Hugging Face
//! transformers:
//! - RMSNorm multiplies by `1 + w`; the checkpoint stores `w`.
//! - Embeddings are multiplied by sqrt(hidden), rounded to the compute dtype.
//! - head_dim is given, not hidden / heads: in the 7B, 16 heads of 256 make 4096, and hidden is
//!   3072.
//! - The MLP's GELU is the tanh form, also where a config says plain `gelu`.
//! - The output layer is the embedding, transposed.

mod arguments;
mod attention;
mod cache;
mod config;
mod context;
mod cost;
mod emit;
mod forward;
mod heads;
mod inputs;
mod layers;
mod lowering;
mod placing;
mod products;
mod program;
mod spec;
mod storage;
pub mod tensors;
mod weights;

pub use arguments::Argument;
pub use config::{Config, ConfigError, LayerKind};
use context::Context;
pub use cost::{Cost, SequencePart};
pub use inputs::{Field, InputLayout, MAX_STOP_IDS, PackedInputs};
pub use lowering::Lowering;
pub use placing::zeros;
pub use program::{Head, MAX_SCORED_ROWS, Program, ProgramSpec};
pub use spec::ModelSpec;
pub use storage::{StoredTypes, parameters, weight_shape};
