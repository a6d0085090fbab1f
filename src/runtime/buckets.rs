//! Static shapes for dynamic lengths: every length is rounded up to a power of two, so that few programs serve all.

/// Largest chunk of a prompt that one program takes.
pub const MAX_PREFILL: i64 = 512;
/// Smallest: shorter chunks are padded to it.
const MIN_PREFILL: i64 = 16;
/// The most tokens of several prompts in one step: from about so many on, multiplying takes longer than reading the weights (on a
/// TPU v5e, 197 TFLOP/s and 819 GB/s, from 240 on), so that prompts are no slower one after the other.
const MAX_TOGETHER: i64 = 256;
/// Smallest attention window and cache.
const MIN_WINDOW: i64 = 256;

/// A part of a prompt: `len` tokens from position `start` on, padded to `bucket`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub start: i64,
    pub len: i64,
    pub bucket: i64,
}

/// Cuts `len` tokens that begin at position `start` into chunks of at most `max` tokens. A chunk's padding never leaves the
/// cache of `cache_len` positions (it would be moved back over what is there).
pub fn chunks(start: i64, len: i64, cache_len: i64, max: i64) -> Vec<Chunk> {
    let (mut at, end) = (start, start + len);
    let mut chunks = Vec::new();
    while at < end {
        let left = end - at;
        let padded = power_of_two(left).clamp(MIN_PREFILL.min(max), max);
        let bucket = if at + padded <= cache_len {
            padded
        } else {
            power_of_two(left + 1) / 2 // the largest power of two that needs no padding
        }
        .min(max);
        let len = left.min(bucket);
        chunks.push(Chunk { start: at, len, bucket });
        at += len;
    }
    chunks
}

/// The bucket for the next chunks of several sequences, each with a start and the tokens that are left, in one step: the smallest
/// one that holds them whole, up to `max`, or the largest one whose padding stays in every sequence's cache.
pub fn bucket_for(parts: &[(i64, i64)], cache_len: i64, max: i64) -> i64 {
    let first =
        |&(start, left): &(i64, i64)| chunks(start, left, cache_len, max).first().map_or(1, |chunk| chunk.bucket);
    let wanted = parts.iter().map(first).max().unwrap_or(1);
    let fits = parts.iter().map(|&(start, _)| power_of_two(cache_len - start + 1) / 2).min().unwrap_or(1);
    wanted.min(fits)
}

/// The attention window for sequences that reach up to `end` positions.
pub fn window_for(end: i64, cache_len: i64) -> i64 {
    power_of_two(end).max(MIN_WINDOW).min(cache_len)
}

/// Cache positions to allocate for sequences of up to `tokens`, in a context of at most `context`.
pub fn cache_len_for(tokens: i64, context: i64) -> i64 {
    power_of_two(tokens).max(MIN_WINDOW).min(context.max(1))
}

/// All windows that [`window_for`] can give.
pub fn windows(cache_len: i64) -> impl Iterator<Item = i64> {
    let sizes = std::iter::successors(Some(MIN_WINDOW), |n| Some(n * 2)).take_while(move |&n| n < cache_len);
    sizes.chain([cache_len])
}

/// All buckets of [`chunks`] with more than a rest of a cache that is nearly full.
pub fn buckets(cache_len: i64, max: i64) -> impl Iterator<Item = i64> {
    std::iter::successors(Some(MIN_PREFILL), |n| Some(n * 2)).take_while(move |&n| n <= max.min(cache_len))
}

/// How many chunks of a bucket one step takes, of `slots` that have some.
pub fn batch_for(bucket: i64, slots: i64) -> i64 {
    slots.min(MAX_TOGETHER / bucket).max(1)
}

/// All batches of chunks of a bucket that programs are made for: fewer are filled up.
pub fn batches(bucket: i64, slots: i64) -> impl Iterator<Item = i64> {
    let most = power_of_two(batch_for(bucket, slots));
    std::iter::successors(Some(1), |n| Some(n * 2)).take_while(move |&n| n <= most)
}

/// The batch for so many chunks.
pub fn batch_of(chunks: usize) -> i64 {
    power_of_two(chunks as i64)
}

fn power_of_two(n: i64) -> i64 {
    (n.max(1) as u64).next_power_of_two() as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_cover_the_prompt_and_stay_in_the_cache(
            cache_len in 1_i64..9000, from in 0.0..1.0_f64, to in 0.0..1.0_f64, max_power in 0_u32..10,
        ) {
            let (a, b) = ((from * cache_len as f64) as i64, (to * cache_len as f64) as i64);
            let (start, end) = (a.min(b), a.max(b));
            let max = 1 << max_power;
            let mut at = start;
            for chunk in chunks(start, end - start, cache_len, max) {
                prop_assert_eq!(chunk.start, at);
                prop_assert!(chunk.len >= 1 && chunk.len <= chunk.bucket && chunk.bucket <= max);
                prop_assert!(chunk.bucket.count_ones() == 1);
                prop_assert!(chunk.start + chunk.bucket <= cache_len, "{:?} leaves {}", chunk, cache_len);
                at += chunk.len;
            }
            prop_assert_eq!(at, end);
        }
    }

    #[test]
    fn a_long_prompt_is_cut_into_full_chunks_and_a_rest() {
        let buckets: Vec<i64> = chunks(0, 1100, 2048, MAX_PREFILL).iter().map(|c| c.bucket).collect();
        assert_eq!(buckets, [512, 512, 128]);
        assert_eq!(window_for(257, 2048), 512);
        assert_eq!(window_for(10, 2048), 256);
        assert_eq!(window_for(2000, 2000), 2000);
    }
}
