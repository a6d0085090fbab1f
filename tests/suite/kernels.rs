//! CPU kernels against f64, on every instruction set of this context, with odd sizes and any number
//! of threads.

use gemma_pjrt::{
    compile::{element_type, signature},
    hlo::{DType, Graph, Literal, Op, Shape},
    kernel_abi::{self, GROUP},
    kernels::{
        ExecContext, Isa, Pool,
        attention::attention,
        integer::{most_rows, quantize_group},
        kv_cache::{CacheData, KvCache, KvCacheMut, NewKv},
        linear::{RowScores, gate_up, linear, linear_max, linear_score, linear_top},
        operands::{Activations, QuantBlocks, WeightData, WeightMatrix},
        output::OutputRows,
        segments::{AttentionShape, Segment, Segments},
    },
    pjrt::{Arg, CompileOptions, Program, TensorType},
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::common::{assert_close, numbers, platform};

/// Random numbers from a seed, stored in some type.
#[derive(Clone, Debug, PartialEq)]
enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    F16(Vec<u16>),
    I8(Vec<i8>),
    /// Packed nibbles, and bits of f16 scales.
    I4(Vec<u8>, Vec<u16>),
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
        let values = (0..len).map(|_| next()).collect::<Vec<f32>>().into_iter();
        match kind {
            0 => Self::F32(values.collect()),
            1 => Self::Bf16(values.map(|x| bf16::from_f32(x).to_bits()).collect()),
            2 => Self::F16(values.map(|x| f16::from_f32(x).to_bits()).collect()),
            3 => Self::I8(values.map(|x| (x * 127.0) as i8).collect()),
            _ => {
                let nibbles = (0..len / 2).map(|_| ((next() + 1.0) * 128.0) as u8).collect();
                Self::I4(nibbles, (0..len / GROUP).map(|_| f16::from_f32(next()).to_bits()).collect())
            }
        }
    }

    fn values(&self) -> Vec<f64> {
        match self {
            Self::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Self::Bf16(x) => x.iter().map(|&x| bf16::from_bits(x).to_f64()).collect(),
            Self::F16(x) => x.iter().map(|&x| f16::from_bits(x).to_f64()).collect(),
            Self::I8(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Self::I4(nibbles, scales) => {
                let element = |i: usize| {
                    let (group, at) = (i / GROUP, i % GROUP);
                    let byte = nibbles[group * 16 + at % 16];
                    let nibble = if at < 16 { byte % 16 } else { byte / 16 };
                    (f64::from(nibble) - 8.0) * f16::from_bits(scales[group]).to_f64()
                };
                (0..scales.len() * GROUP).map(element).collect()
            }
        }
    }

    fn data(&self) -> WeightData<'_> {
        match self {
            Self::F32(x) => WeightData::F32(x),
            Self::Bf16(x) => WeightData::Bf16(x),
            Self::F16(x) => WeightData::F16(x),
            Self::I8(x) => WeightData::I8(x),
            Self::I4(nibbles, scales) => WeightData::I4(QuantBlocks { nibbles, scales }),
        }
    }

    fn cache_data(&mut self) -> CacheData<'_> {
        match self {
            Self::F32(x) => CacheData::F32(x),
            Self::Bf16(x) => CacheData::Bf16(x),
            Self::F16(x) => CacheData::F16(x),
            Self::I8(x) => CacheData::I8(x),
            Self::I4(..) => unreachable!("caches have no four-bit elements"),
        }
    }

    fn activations(&self) -> Activations<'_> {
        match self {
            Self::F32(x) => Activations::F32(x),
            Self::Bf16(x) => Activations::Bf16(x),
            Self::F16(_) | Self::I8(_) | Self::I4(..) => unreachable!("activations are f32 or bf16"),
        }
    }
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// Returns `x wᵀ`, `[rows, out]`, in f64.
fn product(x: &[f64], w: &[f64], width: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    x.chunks_exact(width).flat_map(|x| w.chunks_exact(width).map(move |w| dot(x, w))).collect()
}

/// Returns activations as the integer kernels round them: to eight bits, in groups of 32.
fn rounded(x: &Stored, width: usize) -> Vec<f64> {
    let mut values = to_f32(&x.values());
    for row in values.chunks_exact_mut(width) {
        for group in row.as_chunks_mut::<GROUP>().0 {
            let mut quantised = [0; GROUP];
            let scale = quantize_group(group, &mut quantised);
            assert!(group.iter().zip(&quantised).all(|(x, &q)| (x - scale * f32::from(q)).abs() <= scale * 0.5001));
            group.iter_mut().zip(quantised).for_each(|(x, q)| *x = scale * f32::from(q));
        }
    }
    values.into_iter().map(f64::from).collect()
}

fn to_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(48)))]

    #[test]
    fn linear_and_its_epilogues(
        rows in prop_oneof![1_usize..20, Just(33), Just(131), Just(265)], out in 1_usize..80, width in prop_oneof![1_usize..70, Just(192), 1020_usize..1100, 2040_usize..2120],
        activations in 0_usize..2, weights in 0_usize..5, scaled: bool, threads in prop_oneof![1_usize..4, Just(64)], seed: u64,
    ) {
        let pool = Pool::new(threads);
        let width = if weights == 4 { width.next_multiple_of(GROUP) } else { width };
        let x = Stored::random(activations, rows * width, seed);
        let [w, up] = [1, 2].map(|n| Stored::random(weights, out * width, seed ^ n));
        let scales: Vec<f32> = (0..out).map(|i| if scaled { 0.01 + i as f32 / 64.0 } else { 1.0 }).collect();
        for isa in isas() {
            println!("on {}", isa.name());
            // Few rows are rounded to eight bits where the weights are.
            let in_integers = rows <= most_rows(isa, &w.data());
            let exact = if in_integers { rounded(&x, width) } else { x.values() };
            // Four-bit weights are rounded where bf16 is multiplied.
            let in_bf16 = isa >= Isa::Avx512Bf16 && activations == 1 && weights == 4 && !in_integers;
            let values = |w: &Stored| -> Vec<f64> {
                let rounded = |x: &f64| if in_bf16 { bf16::from_f32(*x as f32).to_f64() } else { *x };
                w.values().iter().map(rounded).collect()
            };
            let product = |w: &Stored| -> Vec<f64> {
                let products = product(&exact, &values(w), width);
                products.chunks_exact(out).flat_map(|row| row.iter().zip(&scales).map(|(p, &s)| p * f64::from(s))).collect()
            };
            let (expected, ups) = (product(&w), product(&up));
            let gated: Vec<f64> = expected.iter().zip(&ups).map(|(&g, u)| gelu_tanh(g) * u).collect();
            let [w, up] = [&w, &up].map(|w| WeightMatrix::new(w.data(), out, width));
            let [w, up] = [w, up].map(|w| if scaled { w.scaled(&scales) } else { w });
            let context = ExecContext { pool: &pool, isa };
            let mut found = vec![f32::NAN; rows * out];
            linear(context, x.activations(), w, OutputRows::F32(&mut found));
            assert_close(&found, &to_f32(&expected), 1e-5);

            let mut rounded = vec![0; rows * out];
            linear(context, x.activations(), w, OutputRows::Bf16(&mut rounded));
            for (rounded, value) in rounded.into_iter().zip(&found) {
                prop_assert_eq!(rounded, bf16::from_f32(*value).to_bits());
            }

            let (mut largest, mut columns) = (vec![0.0; rows], vec![0; rows]);
            linear_max(context, x.activations(), w, &mut largest, &mut columns);
            for (row, found) in found.chunks_exact(out).enumerate() {
                let first = found.iter().enumerate().fold(0, |best, (i, v)| if *v > found[best] { i } else { best });
                prop_assert_eq!((largest[row], columns[row]), (found[first], first as i32));
            }

            // A target beyond the last column, or before the first one, is no error.
            let targets: Vec<i32> = (0..rows).map(|row| (row * 7 + seed as usize % 90) as i32 - 3).collect();
            let (mut first, mut at, mut log_totals, mut chosen) = (vec![0.0; rows], vec![0; rows], vec![0.0; rows], vec![0.0; rows]);
            let scores =
                RowScores { largest: &mut first, columns: &mut at, log_totals: &mut log_totals, chosen: &mut chosen };
            linear_score(context, x.activations(), w, &targets, scores);
            prop_assert_eq!((&first, &at), (&largest, &columns));
            for (row, found) in found.chunks_exact(out).enumerate() {
                let target = usize::try_from(targets[row]).ok().and_then(|at| found.get(at));
                prop_assert_eq!(chosen[row], target.copied().unwrap_or(f32::NEG_INFINITY));
                let total: f64 = found.iter().map(|&x| f64::from(x - first[row]).exp()).sum();
                let expected = f64::from(first[row]) + total.ln();
                let error = (f64::from(log_totals[row]) - expected).abs();
                prop_assert!(error <= 1e-6 * (1.0 + expected.abs()), "{} for {expected}", log_totals[row]);
            }

            let most = 1 + seed as usize % out;
            let (mut largest, mut columns) = (vec![0.0; rows * most], vec![0; rows * most]);
            linear_top(context, x.activations(), w, most, &mut largest, &mut columns);
            for (row, found) in found.chunks_exact(out).enumerate() {
                let mut order: Vec<usize> = (0..out).collect();
                order.sort_by(|&a, &b| found[b].partial_cmp(&found[a]).unwrap());
                let places = row * most..(row + 1) * most;
                let expected: Vec<(f32, i32)> = order[..most].iter().map(|&i| (found[i], i as i32)).collect();
                let given = largest[places.clone()].iter().copied().zip(columns[places].iter().copied());
                prop_assert_eq!(given.collect::<Vec<_>>(), expected);
            }

            let mut found = vec![f32::NAN; rows * out];
            gate_up(context, x.activations(), w, up, OutputRows::F32(&mut found));
            assert_close(&found, &to_f32(&gated), 2e-5);
        }
    }

    #[test]
    fn attention_of_ragged_steps(
        plan in prop::collection::vec(planned_segment(), 1..6), padding in 0_usize..4, extra_slots in 0_usize..3,
        group in 1_usize..9, kv_heads in 1_usize..4, head_dim in prop_oneof![1_usize..40, Just(64)],
        queries in 0_usize..2, stored in 0_usize..4, threads in prop_oneof![1_usize..4, Just(64)], seed: u64,
    ) {
        let pool = Pool::new(threads);
        let slots = plan.len() + extra_slots;
        let mut fields = Vec::new();
        let mut rows = 0;
        for (i, &PlannedSegment { gap, len, start }) in plan.iter().enumerate() {
            rows += gap;
            let slot = (i + seed as usize % slots) % slots;
            fields.push(if len == 0 { [-7, 99, i32::MAX, 0] } else { [rows, slot, start, len].map(|x| x as i32) });
            rows += len;
        }
        // Segments come in any order.
        fields.rotate_left(seed as usize % plan.len());
        let rows = (rows + padding).max(1);
        let shape = AttentionShape { rows, heads: kv_heads * group, kv_heads, head_dim, slots, cache_len: 1000 };
        let segments = Segments::parse(fields.as_flattened(), shape).unwrap();
        let step = RaggedStep::random(shape, queries, stored, seed);
        let updated = step.appended(&fields);
        let expected = to_f32(&step.reference_attention(&updated, &fields));
        for isa in isas() {
            println!("on {}", isa.name());
            let context = ExecContext { pool: &pool, isa };
            let mut cached = step.cached.clone();
            let mut cache = cached.as_cache();
            cache.append(context, step.new.as_new(), &segments);
            let mut found = vec![f32::NAN; expected.len()];
            attention(context, step.queries.activations(), cache.view(), &segments, OutputRows::F32(&mut found));
            prop_assert!(cached == updated, "another cache than expected");
            assert_close(&found, &expected, 2e-5);
            let mut rounded = vec![0; expected.len()];
            attention(
                context,
                step.queries.activations(),
                cached.as_cache().view(),
                &segments,
                OutputRows::Bf16(&mut rounded),
            );
            for (rounded, value) in rounded.into_iter().zip(&found) {
                prop_assert_eq!(rounded, bf16::from_f32(*value).to_bits());
            }
        }
    }

    #[test]
    fn hostile_segments_are_errors(
        fields in prop::collection::vec(prop_oneof![Just(i32::MIN), Just(i32::MAX), -2..9_i32], 0..25),
    ) {
        let shape = AttentionShape { rows: 6, heads: 1, kv_heads: 1, head_dim: 1, slots: 4, cache_len: 5 };
        if let Ok(segments) = Segments::parse(&fields, shape) {
            let (mut rows, mut slots) = ([0; 6], [0; 4]);
            for &Segment { row, slot, start, len } in segments.as_slice() {
                rows[row..row + len].iter_mut().for_each(|n| *n += 1);
                slots[slot] += 1;
                prop_assert!(len > 0 && start + len <= 5);
            }
            prop_assert!(rows.into_iter().chain(slots).all(|n| n <= 1), "{:?}", segments);
            prop_assert_eq!(segments.as_slice().len(), fields.chunks(4).filter(|segment| segment[3] != 0).count());
        }
    }
}

/// A segment to be laid out after `gap` padding rows. It is padding if `len` is 0.
#[derive(Clone, Copy, Debug)]
struct PlannedSegment {
    gap: usize,
    len: usize,
    start: usize,
}

/// A decode row, a chunk of a prompt, or padding.
fn planned_segment() -> impl Strategy<Value = PlannedSegment> {
    let len = prop_oneof![2 => Just(1_usize), 2 => 2_usize..40, 1 => Just(0)];
    let start = prop_oneof![Just(0_usize), 0_usize..100, 600_usize..900];
    (0_usize..3, len, start).prop_map(|(gap, len, start)| PlannedSegment { gap, len, start })
}

/// Keys, values, and their scales if they have eight bits.
#[derive(Clone, Debug, PartialEq)]
struct StoredKv {
    keys: Stored,
    values: Stored,
    scales: Option<[Vec<f32>; 2]>,
}

impl StoredKv {
    /// Random vectors of `width` elements.
    fn random(stored: usize, vectors: usize, width: usize, seed: u64) -> Self {
        let [keys, values] = [1, 2].map(|n| Stored::random(stored, vectors * width, seed ^ n));
        let scales = |n: usize| (0..vectors).map(|i| (1 + (i + n) % 7) as f32 / 512.0).collect();
        Self { keys, values, scales: (stored == 3).then(|| [scales(seed as usize % 5), scales(3)]) }
    }

    fn as_new(&self) -> NewKv<'_> {
        let scales = self.scales.as_ref().map(|scales| scales.each_ref().map(Vec::as_slice));
        NewKv { keys: self.keys.data(), values: self.values.data(), scales }
    }

    fn as_cache(&mut self) -> KvCacheMut<'_> {
        let scales = self.scales.as_mut().map(|scales| scales.each_mut().map(Vec::as_mut_slice));
        KvCacheMut { keys: self.keys.cache_data(), values: self.values.cache_data(), scales }
    }

    /// Keys' and values' numbers, vector after vector, multiplied by their scales.
    fn dequantised(&self, width: usize) -> [Vec<f64>; 2] {
        let of = |part: &Stored, scales: Option<&Vec<f32>>| {
            let scale = |i: usize| scales.map_or(1.0, |scales| f64::from(scales[i / width]));
            part.values().iter().enumerate().map(|(i, x)| x * scale(i)).collect()
        };
        let [key_scales, value_scales] = [0, 1].map(|part| self.scales.as_ref().map(|scales| &scales[part]));
        [of(&self.keys, key_scales), of(&self.values, value_scales)]
    }
}

/// Operands of a step's attention.
struct RaggedStep {
    shape: AttentionShape,
    queries: Stored,
    new: StoredKv,
    cached: StoredKv,
}

impl RaggedStep {
    fn random(shape: AttentionShape, queries: usize, stored: usize, seed: u64) -> Self {
        let AttentionShape { rows, heads, kv_heads, head_dim, .. } = shape;
        Self {
            shape,
            queries: Stored::random(queries, rows * heads * head_dim, seed),
            new: StoredKv::random(stored, rows * kv_heads, head_dim, seed ^ 4),
            cached: StoredKv::random(stored, shape.cached_vectors(), head_dim, seed ^ 8),
        }
    }

    /// The vector of a head at a position of a slot.
    fn cached_vector(&self, slot: usize, head: usize, position: usize) -> usize {
        (slot * self.shape.kv_heads + head) * self.shape.cache_len + position
    }

    /// The cache with all segments appended, one element after the other.
    fn appended(&self, segments: &[[i32; 4]]) -> StoredKv {
        fn copy<T: Copy>(new: &[T], from: usize, cache: &mut [T], to: usize, width: usize) {
            for i in 0..width {
                cache[to * width + i] = new[from * width + i];
            }
        }
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let mut updated = self.cached.clone();
        for &[row, slot, start, len] in segments {
            for (token, head) in (0..len).flat_map(|token| (0..kv_heads).map(move |head| (token, head))) {
                let from = (row + token) as usize * kv_heads + head;
                let to = self.cached_vector(slot as usize, head, (start + token) as usize);
                let parts = [(&self.new.keys, &mut updated.keys), (&self.new.values, &mut updated.values)];
                for (new, cache) in parts {
                    match (new, cache) {
                        (Stored::F32(new), Stored::F32(cache)) => copy(new, from, cache, to, head_dim),
                        (Stored::Bf16(new), Stored::Bf16(cache)) => copy(new, from, cache, to, head_dim),
                        (Stored::F16(new), Stored::F16(cache)) => copy(new, from, cache, to, head_dim),
                        (Stored::I8(new), Stored::I8(cache)) => copy(new, from, cache, to, head_dim),
                        other => unreachable!("{other:?}"),
                    }
                }
                if let (Some(new), Some(cache)) = (&self.new.scales, &mut updated.scales) {
                    new.iter().zip(cache).for_each(|(new, cache)| copy(new, from, cache, to, 1));
                }
            }
        }
        updated
    }

    /// Attention over an updated cache in f64; zeros where there is no segment.
    fn reference_attention(&self, updated: &StoredKv, segments: &[[i32; 4]]) -> Vec<f64> {
        let AttentionShape { rows, heads, kv_heads, head_dim, .. } = self.shape;
        let (q, [k, v]) = (self.queries.values(), updated.dequantised(head_dim));
        let mut out = vec![0.0; rows * heads * head_dim];
        for &[row, slot, start, len] in segments {
            for (token, head) in (0..len).flat_map(|token| (0..heads).map(move |head| (token, head))) {
                let query = ((row + token) as usize * heads + head) * head_dim;
                let cached = self.cached_vector(slot as usize, head / (heads / kv_heads), 0) * head_dim;
                let seen = (start + token) as usize + 1;
                let (k, v) = (&k[cached..][..seen * head_dim], &v[cached..][..seen * head_dim]);
                let scores = product(&q[query..][..head_dim], k, head_dim);
                let scores: Vec<f64> = scores.iter().map(|s| s / (head_dim as f64).sqrt()).collect();
                let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    let sum: f64 = weights.iter().enumerate().map(|(i, w)| w * v[i * head_dim + d]).sum();
                    out[query + d] = sum / total;
                }
            }
        }
        out
    }
}

#[test]
fn attention_appends_large_segments_on_several_threads() {
    let pool = Pool::new(3);
    let context = ExecContext { pool: &pool, isa: Isa::Portable };
    let shape = AttentionShape { rows: 520, heads: 4, kv_heads: 4, head_dim: 64, slots: 3, cache_len: 600 };
    let fields = [[5, 2, 70, 512], [0, 0, 599, 1]];
    let segments = Segments::parse(fields.as_flattened(), shape).unwrap();
    for stored in 0..4 {
        let step = RaggedStep::random(shape, 0, stored, 11);
        let mut cached = step.cached.clone();
        cached.as_cache().append(context, step.new.as_new(), &segments);
        assert!(cached == step.appended(&fields), "type {stored}");
    }
}

#[test]
fn wrong_segments_are_errors() {
    let shape = AttentionShape { rows: 8, heads: 1, kv_heads: 1, head_dim: 1, slots: 2, cache_len: 16 };
    let error = |fields: &[[i32; 4]]| Segments::parse(fields.as_flattened(), shape).unwrap_err();
    for (fields, words) in [
        (&[[0, 0, 0, -1]][..], "number of tokens is -1"),
        (&[[-1, 0, 0, 1]], "first row is -1"),
        (&[[0, -1, 0, 1]], "slot is -1"),
        (&[[0, 0, -1, 1]], "first position is -1"),
        (&[[7, 0, 0, 2]], "2 tokens at row 7 of 8"),
        (&[[i32::MAX, 0, 0, i32::MAX]], "at row 2147483647 of 8"),
        (&[[0, 2, 0, 1]], "slot 2 of a cache with 2 slots"),
        (&[[0, 0, 15, 2]], "2 tokens at position 15 in a cache of 16"),
        (&[[0, 0, 0, 1], [4, 0, 1, 1]], "two segments belong to slot 0"),
        (&[[2, 1, 0, 2], [0, 0, 0, 3]], "rows 0..3 and 2..4 overlap"),
        (&[[0, 0, 0, 8], [7, 1, 0, 1]], "rows 0..8 and 7..8 overlap"),
    ] {
        let error = error(fields);
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
    assert!(Segments::parse(&[0, 0, 0], shape).unwrap_err().contains("3 numbers"));
    let segments = Segments::parse(&[2, 1, 3, 2, -1, -1, -1, 0, 0, 0, 0, 2], shape).unwrap();
    let [first, second] = [(0, 0, 0), (2, 1, 3)].map(|(row, slot, start)| Segment { row, slot, start, len: 2 });
    assert_eq!(segments.as_slice(), [first, second]);
    assert!(Segments::parse(&[], shape).unwrap().as_slice().is_empty());
}

#[test]
fn nan_and_infinity_stay_in_their_rows() {
    let pool = Pool::new(2);
    for isa in isas() {
        let context = ExecContext { pool: &pool, isa };
        let mut x = vec![1.0_f32; 3 * 40];
        (x[45], x[85]) = (f32::NAN, f32::INFINITY);
        let w = vec![1.0_f32; 5 * 40];
        let matrix = WeightMatrix::new(WeightData::F32(&w), 5, 40);
        let mut out = vec![0.0; 15];
        linear(context, Activations::F32(&x), matrix, OutputRows::F32(&mut out));
        assert_eq!(out[..5], [40.0; 5]);
        assert!(out[5..10].iter().all(|x| x.is_nan()) && out[10..].iter().all(|&x| x == f32::INFINITY), "{out:?}");
        let mut bits = vec![0; 15];
        linear(context, Activations::F32(&x), matrix, OutputRows::Bf16(&mut bits));
        assert!(bits[5..10].iter().all(|&b| bf16::from_bits(b).is_nan()));
        gate_up(context, Activations::F32(&x), matrix, matrix, OutputRows::F32(&mut out));
        assert_eq!(out[..5], [1600.0; 5]);
        assert!(out[5..10].iter().all(|x| x.is_nan()));
        let eight_bits = vec![-127_i8; 5 * 40];
        let in_integers = WeightMatrix::new(WeightData::I8(&eight_bits), 5, 40);
        linear(context, Activations::F32(&x), in_integers, OutputRows::F32(&mut out));
        assert_close(&out[..5], &[-127.0 * 40.0; 5], 1e-6);
        assert!(out[5..].iter().all(|x| x.is_nan()));
        let (mut largest, mut columns) = (vec![0.0; 3], vec![0; 3]);
        linear_max(context, Activations::F32(&x), matrix, &mut largest, &mut columns);
        assert!(largest[1].is_nan());
        assert_eq!((columns, largest[0], largest[2]), (vec![0; 3], 40.0, f32::INFINITY));
        let (mut largest, mut columns) = (vec![0.0; 6], vec![0; 6]);
        linear_top(context, Activations::F32(&x), matrix, 2, &mut largest, &mut columns);
        assert!(largest[2].is_nan() && largest[3].is_nan());
        assert_eq!((&columns[..], &largest[..2], largest[5]), (&[0, 1, 0, 1, 0, 1][..], &[40.0; 2][..], f32::INFINITY));

        // A query with a NaN, which the other head does not notice.
        let shape = AttentionShape { rows: 1, heads: 2, kv_heads: 1, head_dim: 16, slots: 1, cache_len: 300 };
        let segments = Segments::new(vec![Segment { row: 0, slot: 0, start: 290, len: 1 }], shape).unwrap();
        let mut q = vec![0.5_f32; 32];
        q[3] = f32::NAN;
        let cached = vec![0.25_f32; 300 * 16];
        let cache = KvCache { keys: WeightData::F32(&cached), values: WeightData::F32(&cached), scales: None };
        let mut out = vec![0.0; 32];
        attention(context, Activations::F32(&q), cache, &segments, OutputRows::F32(&mut out));
        assert!(out[..16].iter().all(|x| x.is_nan()));
        assert_close(&out[16..], &[0.25; 16], 1e-6);
    }
}

/// Runs a program that calls a handler, with some of its results aliased to operands: pairs of a
/// result and an operand.
fn call(
    target: &str,
    operands: &[Literal],
    results: &[Shape],
    aliases: &[(usize, usize)],
) -> gemma_pjrt::pjrt::Result<Vec<Vec<u8>>> {
    let graph = Graph::new("call");
    let declare = |(i, l): (usize, &Literal)| graph.parameter(&format!("x{i}"), l.shape.clone());
    let parameters: Vec<Op<'_>> = operands.iter().enumerate().map(declare).collect();
    let outputs = graph.custom_call(target, &parameters, results, &[], aliases);
    let module = graph.finish(&outputs).unwrap();
    let device = &platform().devices(1).unwrap()[0];
    let code = module.encode();
    let program = Program { code: &code, format: "hlo" };
    let options = CompileOptions::replicas([device.id().unwrap()]);
    let executable = platform().client.compile(&program, &options, signature(&module)).unwrap();
    let upload = |literal: &Literal| {
        let ty = TensorType::new(element_type(literal.shape.dtype), literal.shape.dims.clone());
        platform().client.upload(&literal.bytes, &ty, device).unwrap()
    };
    let buffers: Vec<_> = operands.iter().map(upload).collect();
    let outputs = executable.execute(0, vec![buffers.iter().map(Arg::Keep).collect()])?.wait()?;
    // Kept parameters are not written to: XLA copies them for the call.
    for (buffer, literal) in buffers.iter().zip(operands) {
        assert!(buffer.to_host()? == literal.bytes, "a parameter has changed");
    }
    outputs[0].iter().map(|output| output.to_host()).collect()
}

/// Calls a handler that refuses its operands, and returns the error of the execution.
fn refused(target: &str, operands: &[Literal], results: &[Shape]) -> String {
    let run = call(target, operands, results, &[]);
    run.err().unwrap_or_else(|| panic!("{target} accepted {results:?}")).to_string()
}

#[test]
fn programs_update_their_cache_in_place() {
    for stored in [0, 1, 3] {
        let shape = AttentionShape { rows: 7, heads: 4, kv_heads: 2, head_dim: 16, slots: 3, cache_len: 20 };
        let fields = [[1, 2, 4, 4], [-1, 9, 9, 0], [6, 0, 19, 1]];
        let step = RaggedStep::random(shape, 0, stored, 5);
        let updated = step.appended(&fields);
        let expected = to_f32(&step.reference_attention(&updated, &fields));

        let literal = |data: &Stored, dims: &[usize]| {
            let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
            let (dtype, bytes) = match data {
                Stored::F32(x) => (DType::F32, bytemuck::cast_slice(x)),
                Stored::Bf16(x) => (DType::U16, bytemuck::cast_slice(x)),
                Stored::I8(x) => (DType::S8, bytemuck::cast_slice(x)),
                other => unreachable!("{other:?}"),
            };
            Literal { shape: Shape::new(dtype, dims), bytes: bytes.to_vec() }
        };
        let (new, cache) = ([7, 2, 16], [3, 2, 20, 16]);
        let mut operands = vec![
            literal(&step.queries, &[7, 4, 16]),
            literal(&step.new.keys, &new),
            literal(&step.new.values, &new),
            literal(&step.cached.keys, &cache),
            literal(&step.cached.values, &cache),
            Literal::s32s([3, 4], fields.as_flattened()),
        ];
        let mut updates = vec![literal(&updated.keys, &cache), literal(&updated.values, &cache)];
        let mut aliases = vec![(1, 3), (2, 4)];
        if let (Some(new), Some(cached), Some(updated)) = (&step.new.scales, &step.cached.scales, &updated.scales) {
            operands.extend(new.iter().map(|scales| Literal::f32s([7, 2, 1], scales)));
            operands.extend(cached.iter().map(|scales| Literal::f32s([3, 2, 20, 1], scales)));
            updates.extend(updated.iter().map(|scales| Literal::f32s([3, 2, 20, 1], scales)));
            aliases.extend([(3, 8), (4, 9)]);
        }
        let mut results = vec![operands[0].shape.clone()];
        results.extend(updates.iter().map(|update| update.shape.clone()));

        let found = call(kernel_abi::ATTENTION, &operands, &results, &aliases).unwrap();
        assert_close(&numbers(&found[0]), &expected, 2e-5);
        for (found, expected) in found[1..].iter().zip(&updates) {
            assert!(*found == expected.bytes, "an updated cache of type {stored}");
        }
        let error = refused(kernel_abi::ATTENTION, &operands, &results);
        assert!(error.contains("the updated keys are not aliased to the cached keys"), "{error}");
        let error = call(kernel_abi::ATTENTION, &operands, &results, &aliases[..1]).unwrap_err().to_string();
        assert!(error.contains("the updated values are not aliased"), "{error}");
    }
}

#[test]
fn products_leave_padding_rows_out() {
    let (x, w): (Vec<f32>, Vec<f32>) = ((0..12).map(|i| i as f32).collect(), (0..8).map(|i| i as f32 - 2.0).collect());
    // A NaN in a padding row reaches nothing.
    for count in 0..4 {
        let mut rows = x.clone();
        rows[count * 4..].fill(f32::NAN);
        let weight = Literal::f32s([2, 4], &w);
        let operands = [Literal::f32s([3, 4], &rows), Literal::s32s([], &[count as i32]), weight.clone()];
        let products: Vec<f64> = product(
            &x[..count * 4].iter().map(|&x| x.into()).collect::<Vec<f64>>(),
            &w.iter().map(|&w| w.into()).collect::<Vec<f64>>(),
            4,
        );
        let largest = |row: usize| if products[2 * row + 1] > products[2 * row] { 1 } else { 0 };
        let floats = |dims: &[i64]| Shape::new(DType::F32, dims);
        let columns = |dims: &[i64]| Shape::new(DType::S32, dims);
        let padded = |values: Vec<f32>, len: usize| values.into_iter().chain([0.0; 6]).take(len).collect::<Vec<f32>>();

        let found = call(kernel_abi::LINEAR, &operands, &[floats(&[3, 2])], &[]).unwrap();
        assert_eq!(numbers::<f32>(&found[0]), padded(to_f32(&products), 6));

        let gated = [operands.as_slice(), &[weight]].concat();
        let found = call(kernel_abi::GATE_UP, &gated, &[floats(&[3, 2])], &[]).unwrap();
        let expected: Vec<f64> = products.iter().map(|&p| gelu_tanh(p) * p).collect();
        assert_close(&numbers(&found[0]), &padded(to_f32(&expected), 6), 1e-5);

        let found = call(kernel_abi::LINEAR_MAX, &operands, &[floats(&[3]), columns(&[3])], &[]).unwrap();
        let expected = (0..count).map(|row| products[2 * row + largest(row)] as f32).collect();
        assert_eq!(numbers::<f32>(&found[0]), padded(expected, 3));
        let expected: Vec<i32> = (0..3).map(|row| if row < count { largest(row) as i32 } else { 0 }).collect();
        assert_eq!(numbers::<i32>(&found[1]), expected);

        let scored = [[Literal::s32s([3], &[0, 1, 2])].as_slice(), &operands].concat();
        let results = [floats(&[3]), columns(&[3]), floats(&[3]), floats(&[3])];
        let found = call(kernel_abi::LINEAR_SCORE, &scored, &results, &[]).unwrap();
        let score = |row: usize, value: &dyn Fn(f64, f64) -> f64| {
            if row < count { value(products[2 * row], products[2 * row + 1]) as f32 } else { 0.0 }
        };
        let expected: Vec<f32> = (0..3).map(|row| score(row, &|a, b| (a.exp() + b.exp()).ln())).collect();
        assert_close(&numbers(&found[2]), &expected, 1e-6);
        let expected: Vec<f32> = (0..3).map(|row| score(row, &|a, b| [a, b, f64::NEG_INFINITY][row])).collect();
        assert_eq!(numbers::<f32>(&found[3]), expected);

        let found = call(kernel_abi::LINEAR_TOP, &operands, &[floats(&[3, 2]), columns(&[3, 2])], &[]).unwrap();
        let order = (0..count).flat_map(|row| [(row, largest(row)), (row, 1 - largest(row))]);
        let expected = order.clone().map(|(row, column)| products[2 * row + column] as f32).collect();
        assert_eq!(numbers::<f32>(&found[0]), padded(expected, 6));
        let mut expected: Vec<i32> = order.map(|(_, column)| column as i32).collect();
        expected.resize(6, 0);
        assert_eq!(numbers::<i32>(&found[1]), expected);
    }
}

#[test]
fn calls_that_are_wrong_are_errors() {
    let array = |dtype: DType, dims: &[i64]| {
        let shape = Shape::new(dtype, dims);
        Literal { bytes: vec![0; shape.bytes() as usize], shape }
    };
    let floats = |dims: &[i64]| array(DType::F32, dims);
    let scalar = |value: i32| Literal::s32s([], &[value]);
    let linear = kernel_abi::LINEAR;
    let (x, wide, result) = (floats(&[3, 8]), floats(&[3, 64]), Shape::new(DType::F32, [3, 5]));
    let cases = [
        (linear, vec![x.clone()], &result, "takes activations"),
        (linear, vec![x.clone(), scalar(-1), floats(&[5, 8])], &result, "-1 real rows of 3"),
        (
            linear,
            vec![x.clone(), Literal::s32s([1], &[1]), floats(&[5, 8])],
            &result,
            "number of real rows has dimensions [1]",
        ),
        (linear, vec![x.clone(), scalar(4), floats(&[5, 8])], &result, "4 real rows of 3"),
        (
            linear,
            vec![array(DType::S32, &[3, 8]), scalar(3), floats(&[5, 8])],
            &result,
            "activations of type Some(S32)",
        ),
        (linear, vec![floats(&[24]), scalar(3), floats(&[5, 8])], &result, "expected 2 of them"),
        (linear, vec![x.clone(), scalar(3), floats(&[5, 7])], &result, "expected [5, 8]"),
        (linear, vec![x.clone(), scalar(3), floats(&[6, 8])], &result, "expected [3, 6]"),
        (linear, vec![x.clone(), scalar(3), array(DType::S32, &[5, 8])], &result, "a weight of type Some(S32)"),
        (linear, vec![x.clone(), scalar(3), array(DType::S8, &[5, 8]), floats(&[4])], &result, "expected [5]"),
        (
            linear,
            vec![x.clone(), scalar(3), array(DType::S8, &[5, 8]), array(DType::F16, &[5])],
            &result,
            "16-bit elements",
        ),
        (
            linear,
            vec![x.clone(), scalar(3), floats(&[40 + 16]), floats(&[1])],
            &result,
            "element offset has dimensions [1]",
        ),
        (linear, vec![x.clone(), scalar(3), floats(&[41 + 16]), scalar(0)], &result, "no rows of 8"),
        (
            linear,
            vec![x.clone(), scalar(3), floats(&[40 + 16]), scalar(17)],
            &result,
            "40 from 17 on, in an array of 56",
        ),
        (linear, vec![x.clone(), scalar(3), floats(&[40 + 16]), scalar(-1)], &result, "from -1 on"),
        (linear, vec![x.clone(), scalar(3), floats(&[48 + 16]), scalar(3)], &result, "expected [3, 6]"),
        (linear, vec![x.clone(), scalar(3), floats(&[3]), scalar(0)], &result, "no rows of 8"),
        (linear, vec![x.clone(), scalar(3), array(DType::U8, &[5, 4])], &result, "no scale"),
        (
            linear,
            vec![x.clone(), scalar(3), array(DType::U8, &[5, 4]), array(DType::F16, &[5, 0])],
            &result,
            "no whole groups of 32",
        ),
        (
            linear,
            vec![wide.clone(), scalar(3), array(DType::U8, &[5, 64]), array(DType::F16, &[5, 2])],
            &result,
            "expected [5, 32]",
        ),
        (
            linear,
            vec![wide.clone(), scalar(3), array(DType::U8, &[5, 32]), array(DType::F16, &[5, 1])],
            &result,
            "expected [5, 2]",
        ),
        (linear, vec![wide, scalar(3), array(DType::U8, &[5, 32]), floats(&[5, 2])], &result, "must be F16"),
        (
            kernel_abi::GATE_UP,
            vec![x.clone(), scalar(3), floats(&[5, 8]), array(DType::BF16, &[5, 8])],
            &result,
            "must be alike",
        ),
    ];
    for (target, operands, result, words) in cases {
        let error = refused(target, &operands, std::slice::from_ref(result));
        assert!(error.contains(target) && error.contains(words), "{words:?} is not in: {error}");
    }

    let operands = |cache: DType, kv_heads: i64| {
        let (new, cached) = (array(cache, &[3, kv_heads, 8]), array(cache, &[2, kv_heads, 16, 8]));
        let segment = Literal::s32s([1, 4], &[0, 1, 3, 1]);
        vec![floats(&[3, 4, 8]), new.clone(), new, cached.clone(), cached, segment]
    };
    let plain = || operands(DType::F32, 2);
    let scaled = || {
        let (new, cached) = (floats(&[3, 2, 1]), floats(&[2, 2, 16, 1]));
        [operands(DType::S8, 2), vec![new.clone(), new, cached.clone(), cached]].concat()
    };
    let with = |mut operands: Vec<Literal>, index: usize, operand: Literal| {
        operands[index] = operand;
        operands
    };
    let segment = |fields: &[i32]| Literal::s32s([1, fields.len() as i64], fields);
    let cases = [
        (plain()[..5].to_vec(), "takes 6 operands"),
        (with(plain(), 0, floats(&[3, 32])), "queries have dimensions"),
        (with(plain(), 1, floats(&[4, 2, 8])), "new keys has dimensions"),
        (with(plain(), 2, array(DType::BF16, &[3, 2, 8])), "new values of type Some(BF16)"),
        (with(plain(), 4, floats(&[2, 2, 16, 7])), "cached values has dimensions"),
        (operands(DType::F32, 3), "cannot share"),
        (operands(DType::S8, 2), "scales belong to S8"),
        (scaled()[..9].to_vec(), "3 scales, expected 4"),
        ([plain(), scaled()[6..].to_vec()].concat(), "scales belong to S8"),
        (with(scaled(), 7, floats(&[3, 2])), "expected [3, 2, 1]"),
        (with(scaled(), 9, floats(&[2, 2, 15, 1])), "expected [2, 2, 16, 1]"),
        (with(plain(), 5, segment(&[0, 0, 3])), "a segment has dimensions [3]"),
        (with(plain(), 5, segment(&[0, 0, 16, 1])), "position 16 in a cache of 16"),
        (with(plain(), 5, segment(&[0, 2, 3, 1])), "a cache with 2 slots"),
        (with(plain(), 5, segment(&[2, 0, 3, 2])), "2 tokens at row 2 of 3"),
        (with(plain(), 5, segment(&[0, 0, 3, -2])), "number of tokens is -2"),
        (operands(DType::S32, 2), "cached keys of type Some(S32)"),
    ];
    let results = |operands: &[Literal], count: usize| {
        [&operands[0], &operands[3], &operands[4]][..count].iter().map(|l| l.shape.clone()).collect::<Vec<_>>()
    };
    for (operands, words) in cases {
        let error = refused(kernel_abi::ATTENTION, &operands, &results(&operands, operands.len().min(3)));
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
    let error = refused(kernel_abi::ATTENTION, &plain(), &results(&plain(), 2));
    assert!(error.contains("2 results, expected 3"), "{error}");
    let error = refused(kernel_abi::ATTENTION, &scaled(), &results(&scaled(), 3));
    assert!(error.contains("3 results, expected 5"), "{error}");
}
