//! Google's Gemma 1 and 1.1 on PJRT plugins, without JAX or Python: a graph builder emits the
//! forward pass as XLA HLO, a plugin (libtpu, CUDA, CPU) compiles it, and one host-side driver
//! places the weights on all devices and runs the sampling loop.
//!
//! Each module is a room that imports only rooms above it in this list:
//!
//! | module | what lives there |
//! |---|---|
//! | [`hlo`] | element types, shapes, meshes, the graph builder, `HloModuleProto`, HLO text |
//! | [`pjrt`] | the C ABI and its safe wrapper: client, device, buffer, executable, topology, FFI |
//! | [`cache_dir`], [`download`] | where files are kept, and how they arrive |
//! | [`whole_file`] | writing files that appear whole or not at all |
//! | [`shield`] | libraries that panic on damaged files |
//! | [`model_file`] | JSON, Git LFS pointers: files of models that are not what their names say |
//! | [`plugins`] | finding, installing and verifying plugin libraries |
//! | [`hub`] | models by name: Hugging Face's cache and hub |
//! | [`kernel_abi`] | names and sizes that CPU programs and kernels agree on |
//! | [`kernels`] | CPU kernels behind typed FFI: products of weights as stored, attention |
//! | [`sampling`] | choosing the next token on the device |
//! | [`gemma`] | the architecture: config, weights and their sharding, layers, programs |
//! | [`checkpoint`] | safetensors files: mapping, strict checks, writing |
//! | [`tokenizer`] | tokenizer.json, the chat template, streaming text |
//! | [`constraint`] | answers held to a form: JSON, expressions, grammars |
//! | [`demo`] | the demo model, embedded |
//! | [`device`] | the platform, and the grid of devices |
//! | [`compile`] | where graphs meet plugins: programs compiled, cached, bundled; target machines |
//! | [`runtime`] | placed weights, sessions: steps over a KV cache |
//! | [`plan`] | memory and speed on machines that are elsewhere |
//! | [`engine`] | many requests at once: slots, continuous batching, prefix cache |
//! | [`openai`] | requests and answers in the JSON of OpenAI's interface |
//! | [`eval`] | benchmarks: tasks, datasets, likelihoods, metrics |
//! | [`serve`] | the HTTP server |
//! | [`cli`] | the commands |

// They panic where the stream is closed or full.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod cache_dir;
pub mod checkpoint;
pub mod cli;
pub mod compile;
pub mod constraint;
#[cfg(feature = "demo")]
pub mod demo;
pub mod device;
pub mod download;
pub mod engine;
#[cfg(feature = "eval")]
pub mod eval;
pub mod gemma;
pub mod hlo;
pub mod hub;
pub mod kernel_abi;
pub mod kernels;
pub mod model_file;
pub mod openai;
pub mod pjrt;
pub mod plan;
pub mod plugins;
pub mod runtime;
pub mod sampling;
#[cfg(feature = "serve")]
pub mod serve;
pub mod shield;
pub mod tokenizer;
pub mod whole_file;
