//! Tests of the library. One binary, so that they share one client of the plugin.

mod checkpoint;
mod checkpoint_variations;
mod common;
mod compat;
mod constraint;
mod demo;
mod engine;
mod eval;
mod floors;
mod golden_hlo;
mod harness_variations;
mod hlo_ops;
mod hostile;
mod kernels;
mod lora;
mod not_numbers;
mod parity;
mod pjrt;
mod quantize;
mod sampling;
mod service;
mod tokenizer;
mod vocabulary;
