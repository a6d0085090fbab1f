//! CPU kernels against f64, on every instruction set of this machine, with odd sizes and any number of threads.

use gemma_pjrt::kernels::{
    Isa, Machine, Pool,
    attention::{KvCache, Shape, attention},
    linear::{Results, gate_up, linear, linear_max},
    matmul::{Activations, Elements, Matrix},
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::common::assert_close;

/// Random numbers of a seed, as stored in some type, and what they are worth.
#[derive(Clone, Debug)]
enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    F16(Vec<u16>),
}

impl Stored {
    fn random(kind: usize, len: usize, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = || {
            // xorshift: enough to have no pattern.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let values = (0..len).map(|_| next());
        match kind {
            0 => Self::F32(values.collect()),
            1 => Self::Bf16(values.map(|x| bf16::from_f32(x).to_bits()).collect()),
            _ => Self::F16(values.map(|x| f16::from_f32(x).to_bits()).collect()),
        }
    }

    fn values(&self) -> Vec<f64> {
        match self {
            Self::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Self::Bf16(x) => x.iter().map(|&x| bf16::from_bits(x).to_f64()).collect(),
            Self::F16(x) => x.iter().map(|&x| f16::from_bits(x).to_f64()).collect(),
        }
    }

    fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(x) => Elements::F32(x),
            Self::Bf16(x) => Elements::Bf16(x),
            Self::F16(x) => Elements::F16(x),
        }
    }

    fn activations(&self) -> Activations<'_> {
        match self {
            Self::F32(x) => Activations::F32(x),
            Self::Bf16(x) => Activations::Bf16(x),
            Self::F16(_) => unreachable!("activations are f32 or bf16"),
        }
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// `[rows, out]` in f64.
fn product(x: &[f64], w: &[f64], width: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    x.chunks_exact(width).flat_map(|x| w.chunks_exact(width).map(move |w| dot(x, w))).collect()
}

fn to_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn linear_and_what_is_made_of_it(
        rows in prop_oneof![1_usize..10, Just(131)], out in 1_usize..80, width in prop_oneof![1_usize..70, Just(192), 1020_usize..1100],
        activations in 0_usize..2, weights in 0_usize..3, threads in prop_oneof![1_usize..4, Just(64)], seed: u64,
    ) {
        let pool = Pool::new(threads);
        let x = Stored::random(activations, rows * width, seed);
        let [w, up] = [1, 2].map(|n| Stored::random(weights, out * width, seed ^ n));
        let expected = product(&x.values(), &w.values(), width);
        let ups = product(&x.values(), &up.values(), width);
        let gated: Vec<f64> = expected.iter().zip(&ups).map(|(&g, u)| gelu_tanh(g) * u).collect();
        let [w, up] = [&w, &up].map(|w| Matrix::new(w.elements(), out, width));
        for isa in isas() {
            let machine = Machine { pool: &pool, isa };
            let mut found = vec![f32::NAN; rows * out];
            linear(machine, x.activations(), w, Results::F32(&mut found));
            assert_close(&found, &to_f32(&expected), 1e-5);

            let mut rounded = vec![0; rows * out];
            linear(machine, x.activations(), w, Results::Bf16(&mut rounded));
            for (rounded, value) in rounded.into_iter().zip(&found) {
                prop_assert_eq!(rounded, bf16::from_f32(*value).to_bits());
            }

            let (mut largest, mut columns) = (vec![0.0; rows], vec![0; rows]);
            linear_max(machine, x.activations(), w, &mut largest, &mut columns);
            for (row, found) in found.chunks_exact(out).enumerate() {
                let first = found.iter().enumerate().fold(0, |best, (i, v)| if *v > found[best] { i } else { best });
                prop_assert_eq!((largest[row], columns[row]), (found[first], first as i32));
            }

            let mut found = vec![f32::NAN; rows * out];
            gate_up(machine, x.activations(), w, up, Results::F32(&mut found));
            assert_close(&found, &to_f32(&gated), 2e-5);
        }
    }

    #[test]
    fn attention_sees_what_stands_before(
        seq in prop_oneof![Just(1_usize), 2_usize..40], group in 1_usize..9, kv_heads in 1_usize..4, head_dim in prop_oneof![1_usize..40, Just(64)],
        extra in 0_usize..3, start in prop_oneof![0_usize..100, 600_usize..900], queries in 0_usize..2, stored in 0_usize..3,
        batch in 1_usize..4, threads in 1_usize..4, seed: u64,
    ) {
        let pool = Pool::new(threads);
        // Prompts fill one slot; a decode step has rows at different positions.
        let batch = if seq == 1 { batch } else { 1 };
        let (slots, first_slot, cache_len) = (batch + extra, extra, 1000);
        let shape = Shape { batch, seq, heads: kv_heads * group, kv_heads, head_dim, slots, cache_len };
        let positions: Vec<i32> = (0..batch).flat_map(|b| (0..seq).map(move |t| (start / (b + 1) + t) as i32)).collect();
        let q = Stored::random(queries, batch * seq * shape.heads * head_dim, seed);
        let [keys, values] = [1, 2].map(|n| Stored::random(stored, slots * kv_heads * cache_len * head_dim, seed ^ n));
        let expected = to_f32(&reference_attention(shape, &q.values(), &keys.values(), &values.values(), &positions, first_slot));
        for isa in isas() {
            let machine = Machine { pool: &pool, isa };
            let mut found = vec![f32::NAN; expected.len()];
            let cache = KvCache { keys: keys.elements(), values: values.elements() };
            attention(machine, shape, q.activations(), cache, &positions, first_slot, Results::F32(&mut found));
            assert_close(&found, &expected, 2e-5);
        }
    }
}

fn reference_attention(
    shape: Shape,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    positions: &[i32],
    first_slot: usize,
) -> Vec<f64> {
    let Shape { batch, seq, heads, kv_heads, head_dim, cache_len, .. } = shape;
    let mut out = Vec::new();
    for b in 0..batch {
        for t in 0..seq {
            for h in 0..heads {
                let q = &q[((b * seq + t) * heads + h) * head_dim..][..head_dim];
                let cached = ((first_slot + b) * kv_heads + h / (heads / kv_heads)) * cache_len * head_dim;
                let seen = positions[b * seq + t] as usize + 1;
                let (k, v) = (&k[cached..][..seen * head_dim], &v[cached..][..seen * head_dim]);
                let scores: Vec<f64> = product(q, k, head_dim).iter().map(|s| s / (head_dim as f64).sqrt()).collect();
                let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend(
                    (0..head_dim)
                        .map(|d| weights.iter().enumerate().map(|(i, w)| w * v[i * head_dim + d]).sum::<f64>() / total),
                );
            }
        }
    }
    out
}

#[test]
fn what_is_no_number_stays_none_and_harms_nothing_else() {
    let pool = Pool::new(2);
    for isa in isas() {
        let machine = Machine { pool: &pool, isa };
        let mut x = vec![1.0_f32; 3 * 40];
        (x[45], x[85]) = (f32::NAN, f32::INFINITY);
        let w = vec![1.0_f32; 5 * 40];
        let matrix = Matrix::new(Elements::F32(&w), 5, 40);
        let mut out = vec![0.0; 15];
        linear(machine, Activations::F32(&x), matrix, Results::F32(&mut out));
        assert_eq!(out[..5], [40.0; 5]);
        assert!(out[5..10].iter().all(|x| x.is_nan()) && out[10..].iter().all(|&x| x == f32::INFINITY), "{out:?}");
        let mut bits = vec![0; 15];
        linear(machine, Activations::F32(&x), matrix, Results::Bf16(&mut bits));
        assert!(bits[5..10].iter().all(|&b| bf16::from_bits(b).is_nan()));
        gate_up(machine, Activations::F32(&x), matrix, matrix, Results::F32(&mut out));
        assert_eq!(out[..5], [1600.0; 5]);
        assert!(out[5..10].iter().all(|x| x.is_nan()));
        let (mut largest, mut columns) = (vec![0.0; 3], vec![0; 3]);
        linear_max(machine, Activations::F32(&x), matrix, &mut largest, &mut columns);
        assert!(largest[1].is_nan());
        assert_eq!((columns, largest[0], largest[2]), (vec![0; 3], 40.0, f32::INFINITY));

        // A query that is no number; the other heads do not notice.
        let shape = Shape { batch: 1, seq: 1, heads: 2, kv_heads: 1, head_dim: 16, slots: 1, cache_len: 300 };
        let mut q = vec![0.5_f32; 32];
        q[3] = f32::NAN;
        let cached = vec![0.25_f32; 300 * 16];
        let cache = KvCache { keys: Elements::F32(&cached), values: Elements::F32(&cached) };
        let mut out = vec![0.0; 32];
        attention(machine, shape, Activations::F32(&q), cache, &[290], 0, Results::F32(&mut out));
        assert!(out[..16].iter().all(|x| x.is_nan()));
        assert_close(&out[16..], &[0.25; 16], 1e-6);
    }
}
