//! Random numbers that a seed pins: the same seed sends the same prompts at the same times.

/// The splitmix64 generator of Steele, Lea and Flood (2014).
pub(super) struct Random(u64);

impl Random {
    /// Starts a stream of its own for each pair of a seed and an index.
    pub fn new(seed: u64, index: u64) -> Self {
        let mut random = Self(seed);
        random.0 = random.next() ^ index;
        random.0 = random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns an element of a list that is not empty.
    pub fn choose<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[(self.next() % list.len() as u64) as usize]
    }

    /// Returns an exponentially distributed number: the gap between two arrivals of a Poisson
    /// process with this many arrivals in a unit of time.
    pub fn exponential(&mut self, rate: f64) -> f64 {
        // 53 random bits in (0, 1]: the logarithm is finite.
        let uniform = ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -uniform.ln() / rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_of_a_poisson_process_have_its_mean_and_spread() {
        let mut random = Random::new(1, 0);
        let gaps: Vec<f64> = (0..100_000).map(|_| random.exponential(4.0)).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.25).abs() < 0.005 && (variance.sqrt() - 0.25).abs() < 0.005, "{mean} {variance}");
    }

    #[test]
    fn a_seed_and_an_index_pin_the_numbers() {
        let numbers = |seed, index| {
            let mut random = Random::new(seed, index);
            [random.next(), random.next()]
        };
        assert_eq!(numbers(7, 3), numbers(7, 3));
        assert_ne!(numbers(7, 3), numbers(7, 4));
        assert_ne!(numbers(7, 3), numbers(8, 3));
    }
}
