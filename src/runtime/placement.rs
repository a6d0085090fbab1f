//! Putting weights on devices. On CPU a device's shard is a view of the mapped file wherever that
//! is possible; elsewhere it is copied there.

use std::{
    borrow::Cow,
    ops::Range,
    time::{Duration, Instant},
};

use crate::{
    checkpoint::{Checkpoint, OutputLayer, Tensor},
    compile::tensor_type,
    device::{DeviceGrid, During, Error, Result, host_memory},
    gemma::{
        Config, Lowering, ModelSpec, StoredTypes, parameters,
        tensors::{LAYERS_PREFIX, LM_HEAD_NAME, SCALE_SUFFIX, TensorKind, TensorSpec, tensors},
        weight_shape,
    },
    hlo::{DType, Mesh, Shape},
    kernel_abi::{ALIGNMENT, GROUP},
    pjrt::{Buffer, Client, Device, ElementType, HostBytes, TensorType, Upload},
};

/// A model as a checkpoint stores it.
pub struct StoredModel<'c> {
    /// With `tie_word_embeddings` as the checkpoint's tensors say.
    pub config: Config,
    pub types: StoredTypes,
    pub tensors: Vec<(TensorSpec, &'c Tensor)>,
}

/// Finds the model's tensors in the checkpoint. An output layer that differs from the embedding is
/// used whatever the config says, and one that is the embedding a second time is not, as in
/// transformers 5.
///
/// # Errors
/// Weights that another program quantised; or tensors that are missing, have other shapes, or types
/// that cannot be used.
pub fn select<'c>(checkpoint: &'c Checkpoint, config: &Config) -> Result<StoredModel<'c>> {
    checkpoint.refuse_formats_of_others()?;
    let config = &with_output_layer(config, checkpoint.output_layer());
    let stored = stored_types(checkpoint, config);
    stored.check(Lowering::CPU, config, Mesh::SINGLE)?;
    let specs = parameters(config, &stored);
    let packed: Vec<Shape> = specs.iter().map(|spec| packed_shape(stored.of(spec), &spec.dims)).collect();
    let needed: Vec<(&str, &[i64])> = specs.iter().zip(&packed).map(|(s, p)| (s.name.as_str(), &p.dims[..])).collect();
    let head_scale = format!("{LM_HEAD_NAME}{SCALE_SUFFIX}");
    let optional: &[&str] = if config.tie_word_embeddings { &[LM_HEAD_NAME, &head_scale] } else { &[] };
    let found = checkpoint.select(&needed, optional)?;
    for ((spec, packed), tensor) in specs.iter().zip(&packed).zip(&found) {
        let dtype = *tensor.dtype.as_ref().expect("checked when it was selected");
        if dtype != packed.dtype {
            return Err(Error::Invalid(format!("{} is stored as {dtype}, expected {}", spec.name, packed.dtype)));
        }
        if spec.kind == TensorKind::Norm && !dtype.is_float() {
            let expected = "BF16, F16 or F32: only matrices are quantised";
            return Err(Error::Invalid(format!("{} is stored as {dtype}, expected {expected}", spec.name)));
        }
    }
    Ok(StoredModel { config: config.clone(), types: stored, tensors: specs.into_iter().zip(found).collect() })
}

fn with_output_layer(config: &Config, output: OutputLayer) -> Config {
    let tie_word_embeddings = match output {
        OutputLayer::Absent => config.tie_word_embeddings,
        OutputLayer::Embedding => true,
        OutputLayer::Separate => false,
    };
    if config.tie_word_embeddings && !tie_word_embeddings {
        tracing::info!(
            "{LM_HEAD_NAME} differs from the embedding and is used as output layer, although config.json ties them, as in \
             transformers; \"tie_word_embeddings\": false in config.json says the same"
        );
    }
    Config { tie_word_embeddings, ..config.clone() }
}

fn stored_types(checkpoint: &Checkpoint, config: &Config) -> StoredTypes {
    let dtype = |name: &str| {
        let found = *checkpoint.tensors().get(name)?.dtype.as_ref().ok()?;
        Some(if found == DType::U8 { DType::S4 } else { found }) // two elements in a byte
    };
    let first = |kind: TensorKind| {
        // The usual type is that of the layers: embeddings may have more bits.
        let in_layers = tensors(config).into_iter().filter(|spec| spec.name.starts_with(LAYERS_PREFIX));
        let mut specs = in_layers.filter(|spec| spec.kind == kind);
        specs.find_map(|spec| dtype(&spec.name)).unwrap_or(DType::BF16) // what is missing is said later
    };
    let (norms, matrices) = (first(TensorKind::Norm), first(TensorKind::Matrix));
    let mut stored = StoredTypes { norms, ..StoredTypes::uniform(matrices) };
    for spec in tensors(config) {
        if let Some(found) = dtype(&spec.name).filter(|&found| found != stored.of(&spec)) {
            stored.exceptions.insert(spec.name, found);
        }
    }
    stored
}

/// Whether programs are to take matrices at any address, so that those which a file does not align
/// can be used where they lie: only kernels find them in their arrays.
pub fn takes_unaligned(model: &ModelSpec, tensors: &[(TensorSpec, &Tensor)]) -> bool {
    let mut matrices = tensors.iter().filter(|(spec, _)| spec.kind == TensorKind::Matrix);
    let is_quantised = matrices.clone().any(|(spec, _)| model.stored.is_quantised(spec));
    model.lowering.kernels && !is_quantised && matrices.any(|(_, tensor)| !tensor.bytes.is_aligned(ALIGNMENT))
}

/// Shape of a tensor as checkpoints store it, which is as programs for CPU take it.
fn packed_shape(dtype: DType, dims: &[i64]) -> Shape {
    weight_shape(Lowering::CPU, dtype, dims)
}

/// How the weights were placed, in bytes over all devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Used where they lie in the mapped files.
    pub borrowed: u64,
    /// Copied to device memory.
    pub copied: u64,
    /// Part of `copied`, of matrices, that would have been borrowed if the file had aligned it.
    pub unaligned: u64,
    /// How long it took.
    pub took: Duration,
}

/// A device's shard of a tensor, in the checkpoint's memory.
pub(super) struct Shard<'t> {
    pub name: &'t str,
    /// The type in which programs take it.
    pub ty: TensorType,
    rows: HostBytes,
    row_bytes: usize,
    /// The shard's bytes of each row of the tensor; `None` where rows are whole, so that `rows` is
    /// the shard.
    columns: Option<Range<usize>>,
    is_matrix: bool,
    /// Whether it is to be placed in a larger array, see [`StoredTypes::unaligned`].
    is_unaligned: bool,
    shares_host_memory: bool,
}

impl<'t> Shard<'t> {
    /// The shard of tp rank `rank`, of a tensor that lies in `memory`.
    pub fn new(model: &ModelSpec, spec: &'t TensorSpec, memory: &HostBytes, rank: usize) -> Self {
        let dtype = model.stored.of(spec);
        let ranges = spec.shard(&model.config, model.mesh, rank);
        let row_bytes = memory.bytes().len() / spec.dims[0] as usize;
        let rows = ranges[0].start as usize * row_bytes..ranges[0].end as usize * row_bytes;
        let byte = |column: i64| column as usize * dtype.bits() / 8;
        let whole = ranges[1..].iter().zip(&spec.dims[1..]).all(|(range, &dim)| *range == (0..dim));
        Self {
            name: &spec.name,
            ty: tensor_type(&model.tensor_shape(spec)),
            rows: memory.slice(rows),
            row_bytes,
            columns: (!whole).then(|| byte(ranges[1].start)..byte(ranges[1].end)),
            is_matrix: spec.kind == TensorKind::Matrix,
            is_unaligned: model.is_unaligned(spec),
            shares_host_memory: model.lowering.shares_host_memory,
        }
    }

    /// The bytes that the plugin can use where they lie, and how many of them stand before the
    /// shard's own.
    fn borrowable(&self) -> Option<(HostBytes, usize)> {
        if !self.shares_host_memory || self.columns.is_some() {
            return None;
        }
        if self.is_unaligned {
            return self
                .rows
                .aligned_around(ALIGNMENT)
                .filter(|(_, before)| before.is_multiple_of(self.element_bytes()));
        }
        self.rows.is_aligned(ALIGNMENT).then(|| (self.rows.clone(), 0))
    }

    fn element_bytes(&self) -> usize {
        self.ty.element_type.host_bits() / 8
    }

    /// Puts it on a device: its elements, and the first one's index where it is unaligned.
    fn place(&self, client: &Client, device: &Device) -> crate::pjrt::Result<(Vec<Buffer>, Placement)> {
        let bytes = self.ty.host_bytes() as u64;
        let offset = |before: usize| {
            let first = (before / self.element_bytes()) as i32;
            let scalar = TensorType::new(ElementType::S32, []);
            self.is_unaligned.then(|| client.upload_slice(&[first], &scalar, device)).transpose()
        };
        let Some((borrowed, before)) = self.borrowable() else {
            let mut bytes_of = if self.columns.is_some() {
                Cow::from(self.of_rows().flatten().copied().collect::<Vec<u8>>())
            } else {
                Cow::from(self.rows.bytes())
            };
            if self.is_unaligned {
                bytes_of.to_mut().resize(bytes as usize, 0);
            }
            let unaligned = if self.shares_host_memory && self.columns.is_none() && self.is_matrix { bytes } else { 0 };
            let elements = client.upload(&bytes_of, &self.ty, device)?;
            let buffers = std::iter::once(elements).chain(offset(0)?).collect();
            return Ok((buffers, Placement { copied: bytes, unaligned, ..Placement::default() }));
        };
        let at = borrowed.bytes().as_ptr() as usize;
        let elements = client.borrow(borrowed, &self.ty, device)?;
        // The plugin does not say whether it copied after all; the address does.
        let placement = if elements.device_address().is_ok_and(|found| found == at) {
            Placement { borrowed: bytes, ..Placement::default() }
        } else {
            Placement { copied: bytes, ..Placement::default() }
        };
        Ok((std::iter::once(elements).chain(offset(before)?).collect(), placement))
    }

    /// Starts its transfer to an accelerator.
    pub fn start_upload(&self, client: &Client, device: &Device) -> crate::pjrt::Result<Upload> {
        if self.ty.element_type == ElementType::S4 {
            return client.start_upload(unpack(self.of_rows()).into(), &self.ty, None, device);
        }
        let Some(columns) = &self.columns else {
            return client.start_upload(self.rows.clone(), &self.ty, None, device);
        };
        // The plugin gathers the columns.
        let behind = self.row_bytes - columns.end;
        let shard = self.rows.slice(columns.start..self.rows.bytes().len() - behind);
        let strides = [self.row_bytes as i64, self.element_bytes() as i64];
        client.start_upload(shard, &self.ty, Some(&strides), device)
    }

    /// Its bytes of each row.
    fn of_rows(&self) -> impl Iterator<Item = &[u8]> {
        let columns = self.columns.clone().unwrap_or(0..self.row_bytes);
        self.rows.bytes().chunks_exact(self.row_bytes).map(move |row| &row[columns.clone()])
    }
}

/// Four-bit elements, one to a byte, `[in, out]`: as [`weight_shape`] describes them, from rows of
/// packed nibbles, which it describes too.
fn unpack<'b>(rows: impl Iterator<Item = &'b [u8]>) -> Vec<u8> {
    const HALF: usize = GROUP / 2;
    let rows: Vec<&[u8]> = rows.collect();
    let (out, width) = (rows.len(), rows.first().map_or(0, |row| row.len() * 2));
    let value = |nibble: u8| nibble.wrapping_sub(8);
    let mut elements = vec![0; out * width];
    // Tiles of a cache line's rows by a group: few lines are written at a time.
    for (block, rows) in rows.chunks(64).enumerate() {
        for group in 0..width / (2 * HALF) {
            for (row, nibbles) in rows.iter().enumerate() {
                for (i, byte) in nibbles[group * HALF..][..HALF].iter().enumerate() {
                    let low = (group * 2 * HALF + i) * out + block * 64 + row;
                    elements[low] = value(byte & 15);
                    elements[low + HALF * out] = value(byte >> 4);
                }
            }
        }
    }
    elements
}

/// Weights on devices, `[device][argument]`.
pub(super) struct PlacedWeights {
    pub buffers: Vec<Vec<Buffer>>,
    pub placement: Placement,
}

/// Places every tensor's shard on every local device, with the index of the first element after
/// each unaligned one.
pub(super) fn place(
    client: &Client,
    grid: &DeviceGrid,
    model: &ModelSpec,
    tensors: &[(TensorSpec, &Tensor)],
) -> Result<PlacedWeights> {
    let shards = |rank: usize| {
        let tp_rank = grid.tp_rank(rank);
        tensors.iter().map(move |(spec, tensor)| Shard::new(model, spec, &tensor.bytes, tp_rank))
    };
    let all = grid.local().flat_map(|(rank, _)| shards(rank));
    let copies = all.filter(|shard| shard.borrowable().is_none()).map(|shard| shard.ty.host_bytes() as u64).sum();
    host_memory::require(copies, || "copying weights that cannot be used where they lie".into())?;

    let started = Instant::now();
    let mut placement = Placement::default();
    let mut buffers = Vec::new();
    for (rank, device) in grid.local() {
        let mut on_device = Vec::new();
        for shard in shards(rank) {
            let doing = || format!("placing {} on device {rank}", shard.name);
            let (placed, how) = shard.place(client, device).during(doing)?;
            on_device.extend(placed);
            placement.borrowed += how.borrowed;
            placement.copied += how.copied;
            placement.unaligned += how.unaligned;
        }
        buffers.push(on_device);
    }
    placement.took = started.elapsed();
    Ok(PlacedWeights { buffers, placement })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_are_unpacked_by_columns() {
        let (out, width) = (70, 64);
        let element = |row: usize, column: usize| ((row * 5 + column * 7) % 16) as u8;
        let pair =
            |row: usize, group: usize, i: usize| element(row, group * 32 + i) | element(row, group * 32 + i + 16) << 4;
        let row = |row| (0..width / 2).map(move |byte| pair(row, byte / 16, byte % 16)).collect::<Vec<u8>>();
        let rows: Vec<Vec<u8>> = (0..out).map(row).collect();
        let expected: Vec<i8> =
            (0..width).flat_map(|column| (0..out).map(move |row| element(row, column) as i8 - 8)).collect();
        assert_eq!(bytemuck::cast_slice::<u8, i8>(&unpack(rows.iter().map(Vec::as_slice))), expected);
    }
}
