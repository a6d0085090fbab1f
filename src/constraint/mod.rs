//! Answers that are held to a form: JSON, a JSON schema, a regular expression, one of several
//! texts, or a grammar.
//!
//! ```text
//! Constraint ─► Grammars::compile ─► Grammar ─► Matcher ─► a set of tokens ─► sampler
//! (asked for)   (one a tokenizer)               (one an     for each place
//!                                                answer)
//! ```
//!
//! llguidance (an Earley parser over derivatives of regular expressions) does the work: it says
//! which bytes may follow, and which tokens those are. What is ours: the tokenizer as it needs it,
//! limits on what a request may cost, and numbers and white space that come to an end.
//!
//! A constraint is honoured or refused, never ignored in part.

mod asked;
mod error;
mod grammars;
mod matcher;
mod numbers;
mod vocabulary;

pub use asked::Constraint;
pub use error::{ConstraintError, MatchError};
pub use grammars::{Grammar, Grammars};
pub use matcher::Matcher;
