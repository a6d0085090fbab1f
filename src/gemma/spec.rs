//! Everything that a model's programs have in common.

use super::{Config, ConfigError, Lowering, storage::StoredTypes};
use crate::{
    hlo::{DType, Mesh},
    sampling::{Sampler, VocabSplit},
};

/// A model, and how it is run.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub config: Config,
    pub mesh: Mesh,
    pub lowering: Lowering,
    /// Type of activations, BF16 or F32. Norms, RoPE, softmax and GELU are computed in f32 whatever
    /// it is.
    pub compute: DType,
    /// Type of keys and values in the cache: that of activations, or S8.
    pub kv: DType,
    /// Types of the weights as stored.
    pub stored: StoredTypes,
}

impl ModelSpec {
    /// Checks that the mesh and the weights' types fit the model.
    ///
    /// # Errors
    /// What does not fit, and what would.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.config.check_mesh(self.mesh)?;
        self.stored.check(self.lowering, &self.config, self.mesh)
    }

    /// The most tokens of each slot that one dispatch decodes. XLA:TPU copies four-bit weights
    /// before a loop, all of them (3.8 GiB for the 7B), so that those decode one step a dispatch.
    /// So do answers with masks: which tokens may follow a token only the host knows.
    pub fn decode_steps(&self, sampler: Sampler) -> i64 {
        if self.stored.matrices == DType::S4 || sampler.is_masked() { 1 } else { self.lowering.decode_steps }
    }

    /// Element type of keys and values in the cache's arrays.
    pub fn cache_dtype(&self) -> DType {
        if self.kv == DType::BF16 && self.lowering.caches_bf16_as_u16 { DType::U16 } else { self.kv }
    }

    /// Whether a cache of all layers has its heads after its positions: in eight bits a TPU packs
    /// four neighbours of the second last dimension, so that one position could not be written in
    /// place.
    pub(super) fn caches_heads_last(&self) -> bool {
        self.lowering.stacks_layers && self.kv == DType::S8 && self.kv_heads() > 1
    }

    /// Key/value heads on each device.
    pub fn kv_heads(&self) -> i64 {
        self.config.kv_heads_per_device(self.mesh)
    }

    /// How the vocabulary is split over the devices.
    pub fn vocab(&self) -> VocabSplit {
        self.config.vocab(self.mesh)
    }

    /// The part of a program's name that tells mesh, types and lowering: `tp4-bf16-ws8-cpu`.
    pub(super) fn name(&self) -> String {
        let Self { mesh, compute, kv, stored, .. } = self;
        let data = if mesh.data > 1 { format!("dp{}-", mesh.data) } else { String::new() };
        let is_plain = stored.matrices == *compute && stored.norms == *compute && stored.exceptions.is_empty();
        let weights = if is_plain { String::new() } else { format!("-w{}", stored.matrices) };
        let unaligned = if stored.unaligned { "-unaligned" } else { "" };
        let kv = if kv == compute { String::new() } else { format!("-kv{kv}") };
        format!("{data}tp{}-{compute}{weights}{unaligned}{kv}-{}", mesh.model, self.lowering.name)
    }
}
