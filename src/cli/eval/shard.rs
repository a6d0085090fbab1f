//! Shards of a run, for several machines.

use std::{fmt, str::FromStr};

/// A shard of a run: every `count`-th document, starting at the `index`-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub count: usize,
}

impl Shard {
    /// The only shard of a run on one machine.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Returns whether the shard contains the document of this number.
    pub fn has(self, document: usize) -> bool {
        document % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let shard = parts.map(|(index, count)| Self { index, count }).filter(|shard| shard.index < shard.count);
        shard.ok_or_else(|| format!("{text:?} is not a shard; for four shards give 0/4, 1/4, 2/4 and 3/4"))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}
