//! Communication between devices. Plugins abort on replica groups that are wrong, so they are
//! checked here.

use crate::hlo::{Op, Shape, Type, instruction::Attributes};

impl<'g> Op<'g> {
    /// Sum over the devices of each group; the same everywhere in the group.
    #[track_caller]
    pub fn all_reduce_sum(self, groups: &[Vec<i64>]) -> Self {
        self.all_reduce(groups, "sum", |a, b| a + b)
    }

    /// Maximum over the devices of each group.
    #[track_caller]
    pub fn all_reduce_max(self, groups: &[Vec<i64>]) -> Self {
        self.all_reduce(groups, "max", |a, b| a.max(b))
    }

    /// Minimum over the devices of each group.
    #[track_caller]
    pub fn all_reduce_min(self, groups: &[Vec<i64>]) -> Self {
        self.all_reduce(groups, "min", |a, b| a.min(b))
    }

    #[track_caller]
    fn all_reduce(self, groups: &[Vec<i64>], name: &str, apply: impl for<'a> FnOnce(Op<'a>, Op<'a>) -> Op<'a>) -> Self {
        let shape = self.shape();
        if let Some(message) = bad_groups(groups) {
            return self.graph.reject("all-reduce", message, &[self], shape);
        }
        let apply = self.reducer(name, apply);
        let attributes = Attributes::Collective { groups: groups.to_vec(), dim: None, apply: Some(apply) };
        self.graph.push("all-reduce", Type::Array(shape), &[self], attributes)
    }

    /// Joins the groups' arrays along `dim`, in the group's order.
    #[track_caller]
    pub fn all_gather(self, dim: i64, groups: &[Vec<i64>]) -> Self {
        let mut shape = self.shape();
        if let Some(message) = bad_groups(groups).or_else(|| bad_dim(dim, &shape)) {
            return self.graph.reject("all-gather", message, &[self], shape);
        }
        shape.dims[dim as usize] *= groups[0].len() as i64;
        let attributes = Attributes::Collective { groups: groups.to_vec(), dim: Some(dim), apply: None };
        self.graph.push("all-gather", Type::Array(shape), &[self], attributes)
    }

    /// Sum over the devices of each group, of which each device keeps its part along `dim`.
    #[track_caller]
    pub fn reduce_scatter_sum(self, dim: i64, groups: &[Vec<i64>]) -> Self {
        let mut shape = self.shape();
        let uneven = |shape: &Shape| {
            let (size, parts) = (shape.dims[dim as usize], groups[0].len() as i64);
            (size % parts != 0).then(|| format!("{size} elements do not divide over {parts} devices"))
        };
        let bad = bad_groups(groups).or_else(|| bad_dim(dim, &shape)).or_else(|| uneven(&shape));
        if let Some(message) = bad {
            return self.graph.reject("reduce-scatter", message, &[self], shape);
        }
        shape.dims[dim as usize] /= groups[0].len() as i64;
        let apply = Some(self.reducer("sum", |a, b| a + b));
        let attributes = Attributes::Collective { groups: groups.to_vec(), dim: Some(dim), apply };
        self.graph.push("reduce-scatter", Type::Array(shape), &[self], attributes)
    }

    /// Sends each pair's first device's array to the second; devices that receive nothing get
    /// zeros.
    #[track_caller]
    pub fn collective_permute(self, pairs: &[(i64, i64)]) -> Self {
        let shape = self.shape();
        let mut targets: Vec<i64> = pairs.iter().map(|pair| pair.1).collect();
        let mut sources: Vec<i64> = pairs.iter().map(|pair| pair.0).collect();
        for side in [&mut targets, &mut sources] {
            side.sort_unstable();
            if side.windows(2).any(|w| w[0] == w[1]) {
                let message = format!("a device sends or receives twice in {pairs:?}");
                return self.graph.reject("collective-permute", message, &[self], shape);
            }
        }
        let attributes = Attributes::CollectivePermute { pairs: pairs.to_vec() };
        self.graph.push("collective-permute", Type::Array(shape), &[self], attributes)
    }

    #[track_caller]
    fn reducer(self, name: &str, apply: impl for<'a> FnOnce(Op<'a>, Op<'a>) -> Op<'a>) -> usize {
        self.graph.scalar_function(name, &[self.shape().dtype; 2], |p| vec![apply(p[0], p[1])])
    }
}

fn bad_dim(dim: i64, shape: &Shape) -> Option<String> {
    (dim < 0 || dim >= shape.rank() as i64).then(|| format!("there is no dimension {dim}"))
}

/// Replica groups must be of one size and name each device once: plugins abort on others.
fn bad_groups(groups: &[Vec<i64>]) -> Option<String> {
    let mut ids: Vec<i64> = groups.iter().flatten().copied().collect();
    ids.sort_unstable();
    let each_once = ids.iter().enumerate().all(|(i, &id)| i as i64 == id);
    let even = groups.iter().all(|group| group.len() == groups[0].len() && !group.is_empty());
    (ids.is_empty() || !each_once || !even)
        .then(|| format!("the replica groups {groups:?} must be of one size and name each of 0..n once"))
}
