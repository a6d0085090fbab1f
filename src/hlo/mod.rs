//! XLA HLO: element types, shapes, a graph builder that infers and checks shapes, `HloModuleProto`
//! and HLO text. Knows nothing else of this crate.
//!
//! A [`Graph`] is built op by op; an [`Op`] is a value in it and carries the methods that make new
//! ones. The first mistake is kept, with the caller's line, and comes out of [`Graph::finish`], so
//! that the maths stays readable:
//!
//! ```
//! use gemma_pjrt::hlo::{DType, Graph, Shape};
//!
//! let g = Graph::new("mean_of_squares");
//! let x = g.parameter("x", Shape::new(DType::F32, [2, 3]));
//! let mean = (x * x).reduce_sum(&[1]) * (1.0 / 3.0);
//! let module = g.finish(&[mean]).unwrap();
//! assert!(module.text().contains("multiply(%x.2, %x.2)"));
//! ```

mod dtype;
mod error;
mod graph;
mod instruction;
mod literal;
mod mesh;
mod module;
mod ops;
pub mod proto;
mod shape;
mod text;
mod tree;

pub use dtype::DType;
pub use error::HloError;
pub use graph::{Computation, Graph, Op, Scope};
pub use instruction::{Comparison, DotDims, GatherDims};
pub use literal::Literal;
pub use mesh::Mesh;
pub use module::{Collective, Module};
pub use ops::Padding;
pub use shape::{Shape, Type};
pub use text::to_text;
pub use tree::{Tree, join};
