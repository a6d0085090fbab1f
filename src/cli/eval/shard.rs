//! Parts of a run, so that several machines share it.

use std::{fmt, str::FromStr};

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub count: usize,
}

impl Shard {
    /// A run in one piece.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Whether the document of this number is in it.
    pub fn has(self, document: usize) -> bool {
        document % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let shard = parts.map(|(index, count)| Self { index, count }).filter(|shard| shard.index < shard.count);
        shard.ok_or_else(|| format!("{text:?} is no shard: give 0/4, 1/4, 2/4 or 3/4 for four parts"))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}
