//! A grid of devices, and collectives along one axis of it.

use std::{fmt, str::FromStr};

use super::{DType, Graph, Op};

/// A `data x model` grid. Device `r` is tp rank `r % model` of replica (dp rank) `r / model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mesh {
    /// Copies of the model that work on different requests.
    pub data: usize,
    /// Devices that share one copy of the model.
    pub model: usize,
}

impl Mesh {
    /// One device.
    pub const SINGLE: Self = Self { data: 1, model: 1 };

    /// Devices in the whole grid.
    pub fn devices(self) -> usize {
        self.data * self.model
    }

    /// The devices that hold one copy of the model, for each replica.
    pub fn model_groups(self) -> Vec<Vec<i64>> {
        let row = |d: usize| (0..self.model).map(|m| (d * self.model + m) as i64).collect();
        (0..self.data).map(row).collect()
    }

    /// This device's tp rank, `s32[]`, as an op of the program that it runs.
    pub fn model_rank(self, graph: &Graph) -> Op<'_> {
        let columns = graph.scalar(DType::U32, self.model as f64);
        graph.replica_id().rem(columns).convert(DType::S32)
    }

    /// Sum of `x` over the devices that share a model. No op at all on one device.
    pub fn sum(self, x: Op<'_>) -> Op<'_> {
        if self.model == 1 { x } else { x.all_reduce_sum(&self.model_groups()) }
    }

    /// Maximum of `x` over the devices that share a model.
    pub fn max(self, x: Op<'_>) -> Op<'_> {
        if self.model == 1 { x } else { x.all_reduce_max(&self.model_groups()) }
    }

    /// Minimum of `x` over the devices that share a model.
    pub fn min(self, x: Op<'_>) -> Op<'_> {
        if self.model == 1 { x } else { x.all_reduce_min(&self.model_groups()) }
    }

    /// The arrays of the devices that share a model, joined along `dim`.
    pub fn gather(self, x: Op<'_>, dim: i64) -> Op<'_> {
        if self.model == 1 { x } else { x.all_gather(dim, &self.model_groups()) }
    }
}

/// `2x4`: 2 replicas of 4 devices each.
impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.data, self.model)
    }
}

impl FromStr for Mesh {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<Option<usize>> = text.split('x').map(|part| part.parse().ok()).collect();
        match parts[..] {
            [Some(data), Some(model)] if (1..=256).contains(&data) && (1..=256).contains(&model) => {
                Ok(Self { data, model })
            }
            _ => Err(format!("a mesh is DATAxMODEL, such as 1x4 for one model over 4 devices; got {text:?}")),
        }
    }
}
