//! Segments of a step's tokens: which rows of the token axis belong to which slot of the KV cache.

use std::ops::Range;

use crate::kernel_abi::SEGMENT_FIELDS;

/// Consecutive tokens of one sequence: a chunk of a prompt, or the one token of a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row on the token axis.
    pub row: usize,
    /// Slot of the KV cache.
    pub slot: usize,
    /// Position of the first token in the slot.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
}

impl Segment {
    /// Returns its rows on the token axis.
    pub(super) fn rows(&self) -> Range<usize> {
        self.row..self.row + self.len
    }
}

/// Sizes of one step's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Rows of the token axis, padding among them.
    pub rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Slots of the KV cache.
    pub slots: usize,
    /// Positions in a slot.
    pub cache_len: usize,
}

impl AttentionShape {
    /// Returns the number of (slot, head, position) triples in the KV cache.
    pub fn cached_vectors(&self) -> usize {
        self.slots * self.kv_heads * self.cache_len
    }
}

/// The segments of a step whose attention has some shape. They lie inside it, share no row, and
/// belong to different slots. They are ordered by row, and none is empty.
#[derive(Clone, Debug)]
pub struct Segments {
    segments: Vec<Segment>,
    shape: AttentionShape,
}

impl Segments {
    /// Reads segments as programs pass them, `s32[n, 4]`: the fields of [`Segment`] in their order.
    /// A segment without tokens is padding, whatever its other fields are.
    ///
    /// # Errors
    /// If a field is negative, and as [`Self::new`].
    pub fn parse(fields: &[i32], shape: AttentionShape) -> Result<Self, String> {
        let (segments, rest) = fields.as_chunks::<SEGMENT_FIELDS>();
        if !rest.is_empty() {
            return Err(format!("{} numbers are no segments of {SEGMENT_FIELDS} fields", fields.len()));
        }
        let mut parsed = Vec::with_capacity(segments.len());
        for &[row, slot, start, len] in segments {
            if len == 0 {
                continue;
            }
            let field =
                |name: &str, value: i32| usize::try_from(value).map_err(|_| format!("a segment's {name} is {value}"));
            parsed.push(Segment {
                row: field("first row", row)?,
                slot: field("slot", slot)?,
                start: field("first position", start)?,
                len: field("number of tokens", len)?,
            });
        }
        Self::new(parsed, shape)
    }

    /// Checks segments, and leaves out those without tokens.
    ///
    /// # Errors
    /// If a segment is not inside the shape, two segments share a row, or two belong to one slot.
    pub fn new(mut segments: Vec<Segment>, shape: AttentionShape) -> Result<Self, String> {
        let AttentionShape { rows, slots, cache_len, .. } = shape;
        segments.retain(|segment| segment.len > 0);
        for &Segment { row, slot, start, len } in &segments {
            if row.checked_add(len).is_none_or(|end| end > rows) {
                return Err(format!("a segment of {len} tokens at row {row} of {rows}"));
            }
            if slot >= slots {
                return Err(format!("a segment in slot {slot} of a cache with {slots} slots"));
            }
            if start.checked_add(len).is_none_or(|end| end > cache_len) {
                return Err(format!(
                    "a segment of {len} tokens at position {start} in a cache of {cache_len} positions"
                ));
            }
        }
        segments.sort_unstable_by_key(|segment| segment.slot);
        if let Some(pair) = segments.windows(2).find(|pair| pair[0].slot == pair[1].slot) {
            return Err(format!("two segments belong to slot {}", pair[0].slot));
        }
        segments.sort_unstable_by_key(|segment| segment.row);
        if let Some(pair) = segments.windows(2).find(|pair| pair[0].rows().end > pair[1].row) {
            return Err(format!("segments at rows {:?} and {:?} overlap", pair[0].rows(), pair[1].rows()));
        }
        Ok(Self { segments, shape })
    }

    /// Returns the segments, in the order of their rows.
    pub fn as_slice(&self) -> &[Segment] {
        &self.segments
    }

    /// Returns the shape that the segments were checked against.
    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// Returns the ranges of rows between, before and after the segments. Some may be empty.
    pub(super) fn padding(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = self.segments.iter().map(|segment| segment.row).chain([self.shape.rows]);
        let ends = [0].into_iter().chain(self.segments.iter().map(|segment| segment.rows().end));
        ends.zip(starts).map(|(end, start)| end..start)
    }
}
