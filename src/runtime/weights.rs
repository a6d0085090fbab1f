//! Putting weights on devices. On CPU a device's part is a view of the mapped file wherever that is possible; elsewhere it is
//! copied there.

use std::{collections::BTreeMap, ops::Range};

use super::{
    bridge::element_type,
    error::{Error, Result, While},
    host_memory,
};
use crate::{
    checkpoint::{ALIGNMENT, Checkpoint, Tensor},
    gemma::{
        Config, Target,
        weights::{SCALE, StoredTypes, TensorSpec, parameters, tensors},
    },
    hlo::{DType, Mesh},
    pjrt::{Buffer, Client, Device, HostBytes, TensorType},
};

/// The model's tensors as this checkpoint stores them, each with its own.
pub fn select<'c>(checkpoint: &'c Checkpoint, config: &Config) -> Result<(StoredTypes, Vec<(TensorSpec, &'c Tensor)>)> {
    let stored = stored_types(checkpoint, config);
    let specs = parameters(config, &stored);
    let needed: Vec<(&str, &[i64])> = specs.iter().map(|s| (s.name.as_str(), s.dims.as_slice())).collect();
    // Exports of tied models may carry the embedding a second time.
    let optional: &[&str] = if config.tie_word_embeddings { &["lm_head.weight", "lm_head.weight_scale"] } else { &[] };
    let found = checkpoint.select(&needed, optional)?;
    for (spec, tensor) in specs.iter().zip(&found) {
        let dtype = *tensor.dtype.as_ref().expect("checked when it was selected");
        let is_scale = spec.name.ends_with(SCALE);
        if (is_scale && dtype != DType::F32) || (spec.dims.len() == 1 && !dtype.is_float()) {
            let expected = if is_scale { "F32" } else { "BF16, F16 or F32: only matrices are quantised" };
            return Err(Error::Invalid(format!("{} is stored as {dtype}, expected {expected}", spec.name)));
        }
    }
    Ok((stored, specs.into_iter().zip(found).collect()))
}

fn stored_types(checkpoint: &Checkpoint, config: &Config) -> StoredTypes {
    let dtype = |name: &str| checkpoint.tensors().get(name).and_then(|tensor| tensor.dtype.as_ref().ok().copied());
    let first = |is_matrix: bool| {
        let mut specs = tensors(config).into_iter().filter(|spec| (spec.dims.len() == 2) == is_matrix);
        specs.find_map(|spec| dtype(&spec.name)).unwrap_or(DType::BF16) // what is missing is said later
    };
    let mut stored = StoredTypes { matrices: first(true), norms: first(false), exceptions: BTreeMap::new() };
    for spec in tensors(config) {
        if let Some(found) = dtype(&spec.name).filter(|&found| found != stored.of(&spec.name)) {
            stored.exceptions.insert(spec.name, found);
        }
    }
    stored
}

/// How the weights were placed, in bytes over all devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Used where they lie in the mapped files.
    pub borrowed: u64,
    /// Copied to device memory.
    pub copied: u64,
    /// Part of `copied` that would have been borrowed if the file had aligned it.
    pub unaligned: u64,
}

/// A device's part of a tensor, in the checkpoint's memory.
struct Part<'t> {
    name: &'t str,
    ty: TensorType,
    rows: HostBytes,
    /// The part's bytes of each row of the tensor; `None` where rows are whole, so that `rows` is the part.
    columns: Option<Range<usize>>,
}

impl<'t> Part<'t> {
    fn new(spec: &'t TensorSpec, tensor: &Tensor, ranges: &[Range<i64>]) -> Self {
        let dtype = *tensor.dtype.as_ref().expect("checked when the tensors were selected");
        let dims: Vec<i64> = ranges.iter().map(|r| r.end - r.start).collect();
        let row_bytes = tensor.bytes.bytes().len() / tensor.dims[0] as usize;
        let bytes = |range: &Range<i64>, unit: usize| range.start as usize * unit..range.end as usize * unit;
        let whole = ranges[1..].iter().zip(&tensor.dims[1..]).all(|(range, &dim)| *range == (0..dim));
        Self {
            name: &spec.name,
            ty: TensorType::new(element_type(dtype), dims),
            rows: tensor.bytes.slice(bytes(&ranges[0], row_bytes)),
            columns: (!whole).then(|| bytes(&ranges[1], dtype.bits() / 8)),
        }
    }

    /// Whether the plugin can use it where it lies.
    fn is_borrowable(&self, target: Target) -> bool {
        target.is_cpu() && self.columns.is_none() && self.rows.is_aligned(ALIGNMENT)
    }

    fn place(&self, client: &Client, target: Target, device: &Device) -> crate::pjrt::Result<(Buffer, Placement)> {
        let bytes = self.ty.host_bytes() as u64;
        let copied = Placement { copied: bytes, ..Placement::default() };
        if let Some(columns) = &self.columns {
            let row_bytes = self.rows.bytes().len() / self.ty.dims[0] as usize;
            let rows = self.rows.bytes().chunks_exact(row_bytes);
            let packed: Vec<u8> = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
            return Ok((client.upload(&packed, &self.ty, device)?, copied));
        }
        if !self.is_borrowable(target) {
            let unaligned = if target.is_cpu() { bytes } else { 0 };
            return Ok((client.upload(self.rows.bytes(), &self.ty, device)?, Placement { unaligned, ..copied }));
        }
        let buffer = client.borrow(self.rows.clone(), &self.ty, device)?;
        // The plugin does not say whether it copied after all; the address does.
        let in_place = buffer.device_address().is_ok_and(|at| at == self.rows.bytes().as_ptr() as usize);
        Ok((buffer, if in_place { Placement { borrowed: bytes, ..Placement::default() } } else { copied }))
    }
}

/// Places every tensor's part on every device: `[device][tensor]`.
pub(super) fn place(
    client: &Client,
    target: Target,
    devices: &[Device],
    config: &Config,
    mesh: Mesh,
    tensors: &[(TensorSpec, &Tensor)],
) -> Result<(Vec<Vec<Buffer>>, Placement)> {
    let parts = |replica: usize| {
        let shard = move |spec: &TensorSpec| spec.shard(config, mesh, replica % mesh.model);
        tensors.iter().map(move |(spec, tensor)| Part::new(spec, tensor, &shard(spec)))
    };
    let all = (0..devices.len()).flat_map(parts);
    let copies = all.filter(|part| !part.is_borrowable(target)).map(|part| part.ty.host_bytes() as u64).sum();
    host_memory::require(target, copies, || "copying weights that cannot be used where they lie".into())?;

    let mut placement = Placement::default();
    let mut placed = Vec::new();
    for (replica, device) in devices.iter().enumerate() {
        let mut buffers = Vec::new();
        for part in parts(replica) {
            let doing = || format!("placing {} on device {replica}", part.name);
            let (buffer, how) = part.place(client, target, device).during(doing)?;
            buffers.push(buffer);
            placement.borrowed += how.borrowed;
            placement.copied += how.copied;
            placement.unaligned += how.unaligned;
        }
        placed.push(buffers);
    }
    Ok((placed, placement))
}
