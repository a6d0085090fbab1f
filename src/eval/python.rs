//! Python's `random.Random(seed).sample`, by which the harness draws few-shot examples.
//!
//! The generator is MT19937 (Matsumoto and Nishimura 1998), seeded with `init_by_array`; `sample`
//! is as in CPython's `random.py`.

/// `random.Random` of CPython.
pub struct PythonRandom {
    state: [u32; N],
    next: usize,
}

const N: usize = 624;
const M: usize = 397;

impl PythonRandom {
    /// Returns the generator `random.Random(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut state = [0_u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = spread(state[i - 1]).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        let step = |state: &mut [u32; N], i: &mut usize| {
            *i += 1;
            if *i == N {
                state[0] = state[N - 1];
                *i = 1;
            }
        };
        for _ in 0..N {
            state[i] = (state[i] ^ spread(state[i - 1]).wrapping_mul(1_664_525)).wrapping_add(seed);
            step(&mut state, &mut i);
        }
        for _ in 0..N - 1 {
            state[i] = (state[i] ^ spread(state[i - 1]).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            step(&mut state, &mut i);
        }
        state[0] = 0x8000_0000;
        Self { state, next: N }
    }

    fn word(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7FFF_FFFF);
                let twisted = if y & 1 == 1 { 0x9908_B0DF } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twisted;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    /// CPython's `_randbelow(n)`: draws as many bits as n has, until the number is below n.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let number = (self.word() >> (32 - bits)) as usize;
            if number < n {
                return number;
            }
        }
    }

    /// Returns `sample(range(n), k)`.
    ///
    /// # Panics
    /// If k is larger than n, or n than 2^32.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n && n <= u32::MAX as usize, "a sample is no larger than what it is drawn from");
        let mut set_size = 21.0; // CPython: size of a small set minus size of an empty list
        if k > 5 {
            set_size += 4_f64.powf((k as f64 * 3.0).log(4.0).ceil());
        }
        if n as f64 <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            let take = |i: usize| {
                let at = self.below(n - i);
                let found = pool[at];
                pool[at] = pool[n - i - 1];
                found
            };
            return (0..k).map(take).collect();
        }
        let mut chosen = Vec::new();
        while chosen.len() < k {
            let at = self.below(n);
            if !chosen.contains(&at) {
                chosen.push(at);
            }
        }
        chosen
    }
}

fn spread(x: u32) -> u32 {
    x ^ (x >> 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by CPython 3.12 for `r = random.Random(1234)`.
    #[test]
    fn samples_are_those_of_cpython() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(10, 3), [7, 1, 0]);
        assert_eq!(random.sample(100, 5), [11, 74, 4, 85, 88]);
        assert_eq!(random.sample(2000, 30)[..6], [171, 201, 1569, 726, 484, 35]);
    }
}
