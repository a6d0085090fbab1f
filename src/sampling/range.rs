//! Parameters of requests that are refused.

/// A parameter that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct OutOfRange {
    /// Its name in JSON.
    pub name: &'static str,
    pub problem: String,
}
