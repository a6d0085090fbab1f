//! Static shapes for dynamic lengths: few programs serve all batches.

use crate::gemma::Lowering;

/// The most tokens of a replica in one step, unless it has more slots than that.
pub const MAX_STEP_TOKENS: i64 = 512;
/// Token counts that steps are padded to. Up to about 240 tokens a TPU v5e (197 TFLOP/s, 819 GB/s)
/// takes as long to read the weights as to multiply with them, so that padding costs nothing there;
/// kernels do not compute it.
const STEP_TOKENS: [i64; 4] = [32, 128, 256, MAX_STEP_TOKENS];
/// Smallest window of [`window_for`].
const MIN_WINDOW: i64 = 512;
/// Smallest cache.
const MIN_CACHE: i64 = 256;

/// The token counts of a session's steps, in ascending order. Where decoding has no program of its
/// own, a step of as many tokens as there are slots is one of them.
pub fn step_sizes(lowering: Lowering, slots: i64) -> Vec<i64> {
    let mut sizes = STEP_TOKENS.to_vec();
    if !lowering.batches_decode || slots > MAX_STEP_TOKENS {
        sizes.push(slots);
    }
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Cache positions that a decode step over all slots looks at, for sequences of up to `end` tokens.
pub fn window_for(end: i64, cache_len: i64) -> i64 {
    power_of_two(end).max(MIN_WINDOW).min(cache_len)
}

/// All windows that [`window_for`] can give.
pub fn windows(cache_len: i64) -> impl Iterator<Item = i64> {
    let sizes = std::iter::successors(Some(MIN_WINDOW), |n| Some(n * 2)).take_while(move |&n| n < cache_len);
    sizes.chain([cache_len])
}

/// Cache positions to allocate for sequences of up to `tokens`, in a context of at most `context`.
pub fn cache_len_for(tokens: i64, context: i64) -> i64 {
    // First, since a number of tokens that a user gives may have no next power of two.
    power_of_two(tokens.min(context)).max(MIN_CACHE).min(context.max(1))
}

fn power_of_two(n: i64) -> i64 {
    (n.max(1) as u64).next_power_of_two() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_caches_are_powers_of_two_or_the_context() {
        assert_eq!(window_for(513, 2048), 1024);
        assert_eq!(window_for(10, 2048), 512);
        assert_eq!(window_for(2000, 2000), 2000);
        assert_eq!(windows(2000).collect::<Vec<_>>(), [512, 1024, 2000]);
        assert_eq!(cache_len_for(10, 8192), 256);
        assert_eq!(cache_len_for(10, 100), 100);
        assert_eq!(cache_len_for(i64::MAX, 8192), 8192);
    }

    #[test]
    fn a_step_of_every_slot_is_a_size_where_decoding_is_a_step() {
        assert_eq!(step_sizes(Lowering::TPU, 8), [32, 128, 256, 512]);
        assert_eq!(step_sizes(Lowering::CPU, 8), [8, 32, 128, 256, 512]);
        assert_eq!(step_sizes(Lowering::TPU, 600), [32, 128, 256, 512, 600]);
    }
}
