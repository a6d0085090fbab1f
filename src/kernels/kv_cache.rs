//! The KV cache of one layer, and appending a step's keys and values to it.

use super::{
    context::ExecContext,
    operands::WeightData,
    segments::{AttentionShape, Segment, Segments},
};

/// Bytes of a segment from which on its heads are copied by several threads.
const PARALLEL_BYTES: usize = 256 << 10;

/// Cached keys and values, `[slots, kv_heads, cache_len, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct KvCache<'a> {
    pub keys: WeightData<'a>,
    pub values: WeightData<'a>,
    /// Factors of the keys and of the values at each position, `[slots, kv_heads, cache_len]` each.
    pub scales: Option<[&'a [f32]; 2]>,
}

impl KvCache<'_> {
    /// Checks the lengths of all arrays.
    ///
    /// # Panics
    /// If they do not have this shape, or elements have four bits.
    pub(super) fn assert_shape(&self, shape: AttentionShape) {
        let vectors = shape.cached_vectors();
        for data in [&self.keys, &self.values] {
            assert!(!matches!(data, WeightData::I4(_)), "a cache in four bits");
            assert_eq!(data.len(), vectors * shape.head_dim, "elements of a cache for {shape:?}");
        }
        for scales in self.scales.iter().flatten() {
            assert_eq!(scales.len(), vectors, "scales of a cache for {shape:?}");
        }
    }
}

/// Keys and values of a step's tokens, `[rows, kv_heads, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct NewKv<'a> {
    pub keys: WeightData<'a>,
    pub values: WeightData<'a>,
    /// Factors of each key and of each value, `[rows, kv_heads]` each.
    pub scales: Option<[&'a [f32]; 2]>,
}

/// A cache's keys or values, to be updated.
#[derive(Debug)]
pub enum CacheData<'a> {
    F32(&'a mut [f32]),
    /// Bits of bf16.
    Bf16(&'a mut [u16]),
    /// Bits of f16.
    F16(&'a mut [u16]),
    I8(&'a mut [i8]),
}

impl CacheData<'_> {
    fn view(&self) -> WeightData<'_> {
        match self {
            Self::F32(data) => WeightData::F32(data),
            Self::Bf16(data) => WeightData::Bf16(data),
            Self::F16(data) => WeightData::F16(data),
            Self::I8(data) => WeightData::I8(data),
        }
    }

    fn append(&mut self, context: ExecContext<'_>, new: WeightData<'_>, segments: &Segments) {
        let width = segments.shape().head_dim;
        match (self, new) {
            (Self::F32(cache), WeightData::F32(new)) => append_vectors(context, new, cache, width, segments),
            (Self::Bf16(cache), WeightData::Bf16(new)) => append_vectors(context, new, cache, width, segments),
            (Self::F16(cache), WeightData::F16(new)) => append_vectors(context, new, cache, width, segments),
            (Self::I8(cache), WeightData::I8(new)) => append_vectors(context, new, cache, width, segments),
            _ => panic!("keys or values of another type than the cache's"),
        }
    }
}

/// A [`KvCache`] to be updated.
#[derive(Debug)]
pub struct KvCacheMut<'a> {
    pub keys: CacheData<'a>,
    pub values: CacheData<'a>,
    pub scales: Option<[&'a mut [f32]; 2]>,
}

impl KvCacheMut<'_> {
    /// Returns the cache as attention reads it.
    pub fn view(&self) -> KvCache<'_> {
        let scales = self.scales.as_ref().map(|[keys, values]| [&**keys, &**values]);
        KvCache { keys: self.keys.view(), values: self.values.view(), scales }
    }

    /// Copies each segment's keys and values to its positions in its slot. Padding rows are not
    /// read, and all other positions stay as they are.
    ///
    /// # Panics
    /// If arrays do not have the segments' shape, or the types or scales of new and cached ones
    /// differ.
    pub fn append(&mut self, context: ExecContext<'_>, new: NewKv<'_>, segments: &Segments) {
        self.view().assert_shape(segments.shape());
        self.keys.append(context, new.keys, segments);
        self.values.append(context, new.values, segments);
        match (&mut self.scales, new.scales) {
            (None, None) => {}
            (Some(cached), Some(new)) => {
                for (cached, new) in cached.iter_mut().zip(new) {
                    append_vectors(context, new, cached, 1, segments);
                }
            }
            _ => panic!("either the cache or the step has scales"),
        }
    }
}

/// Copies vectors of `width` elements from `new` `[rows, kv_heads, width]` to `cache`
/// `[slots, kv_heads, cache_len, width]`.
fn append_vectors<T: Copy + Send + Sync>(
    context: ExecContext<'_>,
    new: &[T],
    cache: &mut [T],
    width: usize,
    segments: &Segments,
) {
    let AttentionShape { rows, kv_heads, cache_len, .. } = segments.shape();
    assert_eq!(new.len(), rows * kv_heads * width, "elements of {rows} new keys or values");
    let head_size = cache_len * width;
    if kv_heads * head_size == 0 {
        return;
    }
    for segment in segments.as_slice() {
        let &Segment { slot, start, len, .. } = segment;
        let append_head = |head: usize, cache: &mut [T]| {
            let cached = cache[start * width..][..len * width].chunks_exact_mut(width);
            for (row, cached) in segment.rows().zip(cached) {
                cached.copy_from_slice(&new[(row * kv_heads + head) * width..][..width]);
            }
        };
        let cache = &mut cache[slot * kv_heads * head_size..][..kv_heads * head_size];
        if size_of::<T>() * len * kv_heads * width >= PARALLEL_BYTES {
            context.pool.run_chunks(cache, head_size, &append_head);
        } else {
            cache.chunks_exact_mut(head_size).enumerate().for_each(|(head, cache)| append_head(head, cache));
        }
    }
}
