//! Planning: what a model needs of a machine that need not be here, how fast it could be there, and
//! what would fit.

mod estimate;
mod search;

pub use estimate::{Deployment, Plan, Rates, Step, StepTime};
pub use search::{Alternative, alternatives, search};
