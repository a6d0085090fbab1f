//! Which slots there are, and what fits them.

use super::batch::{BatchHead, RowRef, StepBatch};
use crate::device::{Error, Result};

/// The slots of a session: each replica of the mesh has as many, numbered one replica after the
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotLayout {
    pub per_replica: i64,
    pub replicas: usize,
    /// Tokens that a slot can hold.
    pub cache_len: i64,
}

impl SlotLayout {
    /// Slots of all replicas.
    pub fn total(self) -> i64 {
        self.per_replica * self.replicas as i64
    }

    /// The replica that a slot belongs to.
    pub fn replica_of(self, slot: i64) -> usize {
        (slot / self.per_replica) as usize
    }

    /// A slot's number in its replica.
    pub fn local(self, slot: i64) -> i64 {
        slot % self.per_replica
    }

    /// Checks that a slot exists and has room for `tokens` tokens from position `start` on.
    pub fn check_room(self, slot: i64, start: i64, tokens: i64) -> Result<()> {
        if slot < 0 || slot >= self.total() {
            return Err(Error::Invalid(format!("there is no slot {slot}, the session has {}", self.total())));
        }
        if start < 0 || start + tokens > self.cache_len {
            let cache_len = self.cache_len;
            return Err(Error::Invalid(format!(
                "{tokens} tokens from position {start} on do not fit a cache of {cache_len}; use a longer --context"
            )));
        }
        Ok(())
    }

    /// Checks that each segment has tokens, a slot of its own and room there, and that the head is
    /// for tokens of the batch.
    pub fn check(self, batch: &StepBatch<'_>) -> Result<()> {
        let segments = &batch.segments;
        let mut seen = vec![false; self.total() as usize];
        for segment in segments {
            self.check_room(segment.slot, segment.start, segment.tokens.len() as i64)?;
            if segment.tokens.is_empty() {
                return Err(Error::Invalid(format!("slot {} has no tokens in this step", segment.slot)));
            }
            if std::mem::replace(&mut seen[segment.slot as usize], true) {
                return Err(Error::Invalid(format!("slot {} is in this step twice", segment.slot)));
            }
        }
        let samples_outside = match &batch.head {
            BatchHead::Sample(rows) => rows.iter().any(|row| row.0 >= segments.len()),
            _ => false,
        };
        if segments.is_empty() || samples_outside {
            return Err(Error::Invalid("a step takes at least one segment, and samples after its own only".into()));
        }
        let is_outside =
            |row: &RowRef| segments.get(row.segment).is_none_or(|segment| row.token >= segment.tokens.len());
        match batch.head.rows(segments).iter().find(|row| is_outside(row)) {
            Some(row) => Err(Error::Invalid(format!("a step has no token {} in segment {}", row.token, row.segment))),
            None => Ok(()),
        }
    }
}
