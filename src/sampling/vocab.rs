//! A vocabulary that is split over the devices which share a model.
//!
//! Each device holds as many tokens as the others: one program runs on all of them. Where the
//! devices do not divide the vocabulary, the last one's part begins earlier, with tokens of the
//! device before it. They are that one's: on the last device their logits are minus infinity, so
//! that each token is chosen, counted and looked up on one device.

use std::ops::Range;

use crate::hlo::{DType, Graph, Mesh, Op};

/// A vocabulary, and the devices that it is split over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VocabSplit {
    /// Tokens of the whole vocabulary.
    pub tokens: i64,
    pub mesh: Mesh,
}

impl VocabSplit {
    fn devices(self) -> i64 {
        self.mesh.model as i64
    }

    /// Tokens that each device holds.
    pub fn per_device(self) -> i64 {
        (self.tokens + self.devices() - 1) / self.devices()
    }

    /// Tokens that the last device holds and the one before it owns.
    pub fn shared(self) -> i64 {
        self.per_device() * self.devices() - self.tokens
    }

    /// Returns whether each device owns a token.
    pub fn is_possible(self) -> bool {
        self.shared() < self.per_device()
    }

    /// The tokens that tp rank `rank` holds.
    pub fn held(self, rank: usize) -> Range<i64> {
        let first = (rank as i64 * self.per_device()).min(self.tokens - self.per_device());
        first..first + self.per_device()
    }

    /// Id of the first token that this device holds: `s32[]`.
    pub fn first(self, graph: &Graph) -> Op<'_> {
        if self.devices() == 1 {
            return graph.s32(0);
        }
        let even = self.mesh.model_rank(graph) * self.per_device();
        self.first_own(graph).map_or(even, |own| even - own)
    }

    /// Index of the first token that this device owns among those that it holds, `s32[]`, where
    /// that is not 0 everywhere.
    pub fn first_own(self, graph: &Graph) -> Option<Op<'_>> {
        let is_last = || self.mesh.model_rank(graph).eq(graph.s32(self.devices() - 1));
        (self.shared() > 0).then(|| is_last().select(graph.s32(self.shared()), graph.s32(0)))
    }

    /// Indices of tokens `s32[rows]` among those that this device holds; a token of another device
    /// has an index beyond them, or that of a token which this device does not own.
    pub fn on_this_device(self, tokens: Op<'_>) -> Op<'_> {
        if self.devices() == 1 { tokens } else { tokens - self.first(tokens.graph()) }
    }

    /// Logits `f32[rows, per_device]`, minus infinity where another device owns the token.
    pub fn owned(self, logits: Op<'_>) -> Op<'_> {
        let graph = logits.graph();
        let Some(first) = self.first_own(graph) else { return logits };
        let index = graph.iota(logits.shape().with_dtype(DType::S32), 1);
        index.ge(first).select(logits, graph.f32(f64::NEG_INFINITY))
    }

    /// Each device's `[rows, per_device]` joined to `[rows, tokens]`, on all of them.
    pub fn joined(self, logits: Op<'_>) -> Op<'_> {
        let all = self.mesh.gather(logits, 1);
        if self.shared() == 0 {
            return all;
        }
        let last = self.per_device() * (self.devices() - 1);
        Op::concatenate(&[all.slice_in_dim(1, 0, last), all.slice_in_dim(1, last + self.shared(), all.dim(1))], 1)
    }
}
