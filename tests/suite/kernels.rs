//! CPU kernels against f64, on every instruction set of this machine, with odd sizes and any number of threads.

use gemma_pjrt::{
    hlo::{DType, Graph, Literal, Op, Shape},
    kernels::{
        Isa, Machine, Pool,
        attention::{self, KvCache, Row, attention},
        integer::{GROUP, most_rows, quantize_group},
        linear::{Results, gate_up, linear, linear_max, linear_top},
        operands::{Activations, Elements, Groups, Matrix},
    },
    pjrt::{Arg, CompileOptions, Program, TensorType},
    runtime::{element_type, signature},
};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::common::{assert_close, platform};

/// Random numbers of a seed, as stored in some type, and what they are worth.
#[derive(Clone, Debug)]
enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    F16(Vec<u16>),
    I8(Vec<i8>),
    /// Pairs, and bits of f16 scales.
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
                let pairs = (0..len / 2).map(|_| ((next() + 1.0) * 128.0) as u8).collect();
                Self::I4(pairs, (0..len / GROUP).map(|_| f16::from_f32(next()).to_bits()).collect())
            }
        }
    }

    fn values(&self) -> Vec<f64> {
        match self {
            Self::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Self::Bf16(x) => x.iter().map(|&x| bf16::from_bits(x).to_f64()).collect(),
            Self::F16(x) => x.iter().map(|&x| f16::from_bits(x).to_f64()).collect(),
            Self::I8(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Self::I4(pairs, scales) => {
                let element = |i: usize| {
                    let (group, at) = (i / GROUP, i % GROUP);
                    let pair = pairs[group * 16 + at % 16];
                    let half = if at < 16 { pair % 16 } else { pair / 16 };
                    (f64::from(half) - 8.0) * f16::from_bits(scales[group]).to_f64()
                };
                (0..scales.len() * GROUP).map(element).collect()
            }
        }
    }

    fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(x) => Elements::F32(x),
            Self::Bf16(x) => Elements::Bf16(x),
            Self::F16(x) => Elements::F16(x),
            Self::I8(x) => Elements::I8(x),
            Self::I4(pairs, scales) => Elements::I4(Groups { pairs, scales }),
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

/// `[rows, out]` in f64.
fn product(x: &[f64], w: &[f64], width: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    x.chunks_exact(width).flat_map(|x| w.chunks_exact(width).map(move |w| dot(x, w))).collect()
}

/// Activations as integer kernels take them: groups of 32 in eight bits.
fn rounded(x: &Stored, width: usize) -> Vec<f64> {
    let mut values = to_f32(&x.values());
    for row in values.chunks_exact_mut(width) {
        for group in row.as_chunks_mut::<GROUP>().0 {
            let mut steps = [0; GROUP];
            let step = quantize_group(group, &mut steps);
            assert!(group.iter().zip(&steps).all(|(x, &s)| (x - step * f32::from(s)).abs() <= step * 0.5001));
            group.iter_mut().zip(steps).for_each(|(x, s)| *x = step * f32::from(s));
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
    fn linear_and_what_is_made_of_it(
        rows in prop_oneof![1_usize..20, Just(131)], out in 1_usize..80, width in prop_oneof![1_usize..70, Just(192), 1020_usize..1100, 2040_usize..2120],
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
            let in_integers = rows <= most_rows(isa, &w.elements());
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
            let [w, up] = [&w, &up].map(|w| Matrix::new(w.elements(), out, width));
            let [w, up] = [w, up].map(|w| if scaled { w.scaled(&scales) } else { w });
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

            let most = 1 + seed as usize % out;
            let (mut largest, mut columns) = (vec![0.0; rows * most], vec![0; rows * most]);
            linear_top(machine, x.activations(), w, most, &mut largest, &mut columns);
            for (row, found) in found.chunks_exact(out).enumerate() {
                let mut order: Vec<usize> = (0..out).collect();
                order.sort_by(|&a, &b| found[b].partial_cmp(&found[a]).unwrap());
                let places = row * most..(row + 1) * most;
                let expected: Vec<(f32, i32)> = order[..most].iter().map(|&i| (found[i], i as i32)).collect();
                let given = largest[places.clone()].iter().copied().zip(columns[places].iter().copied());
                prop_assert_eq!(given.collect::<Vec<_>>(), expected);
            }

            let mut found = vec![f32::NAN; rows * out];
            gate_up(machine, x.activations(), w, up, Results::F32(&mut found));
            assert_close(&found, &to_f32(&gated), 2e-5);
        }
    }

    #[test]
    fn attention_sees_what_stands_before(
        seq in prop_oneof![Just(1_usize), 2_usize..40], group in 1_usize..9, kv_heads in 1_usize..4, head_dim in prop_oneof![1_usize..40, Just(64)],
        extra in 0_usize..3, start in prop_oneof![0_usize..100, 600_usize..900], queries in 0_usize..2, stored in 0_usize..4,
        batch in 1_usize..4, threads in 1_usize..4, seed: u64,
    ) {
        let pool = Pool::new(threads);
        let (slots, cache_len) = (batch + extra, 1000);
        // Tokens that a row does not have are left alone.
        let row = |b: usize| Row { slot: (b * 7 + seed as usize % 5) % slots, len: if b == 0 { seq } else { (seed as usize / (b + 2)) % (seq + 1) } };
        let rows: Vec<Row> = (0..batch).map(row).collect();
        let shape = attention::Shape { batch, seq, heads: kv_heads * group, kv_heads, head_dim, slots, cache_len };
        let positions: Vec<i32> = (0..batch).flat_map(|b| (0..seq).map(move |t| (start / (b + 1) + t) as i32)).collect();
        let q = Stored::random(queries, batch * seq * shape.heads * head_dim, seed);
        let [keys, values] = [1, 2].map(|n| Stored::random(stored, slots * kv_heads * cache_len * head_dim, seed ^ n));
        // Positions have scales where elements are in eight bits.
        let scales: Vec<f32> = (0..slots * kv_heads * cache_len).map(|i| (1 + i % 7) as f32 / 512.0).collect();
        let scales = (stored == 3).then_some(&scales[..]);
        let values_of = |part: &Stored| -> Vec<f64> {
            let scale = |i: usize| scales.map_or(1.0, |scales| f64::from(scales[i / head_dim]));
            part.values().iter().enumerate().map(|(i, x)| x * scale(i)).collect()
        };
        let expected = to_f32(&reference_attention(shape, &q.values(), &values_of(&keys), &values_of(&values), &positions, &rows));
        for isa in isas() {
            println!("on {}", isa.name());
            let machine = Machine { pool: &pool, isa };
            let mut found = vec![-7.0; expected.len()];
            let cache = KvCache { keys: keys.elements(), values: values.elements(), scales: scales.map(|s| [s; 2]) };
            attention(machine, shape, q.activations(), cache, &positions, &rows, Results::F32(&mut found));
            assert_close(&found, &expected, 2e-5);
        }
    }
}

fn reference_attention(
    shape: attention::Shape,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    positions: &[i32],
    rows: &[Row],
) -> Vec<f64> {
    let attention::Shape { batch, seq, heads, kv_heads, head_dim, cache_len, .. } = shape;
    let mut out = Vec::new();
    for b in 0..batch {
        for t in 0..seq {
            for h in 0..heads {
                if t >= rows[b].len {
                    out.extend(vec![-7.0; head_dim]);
                    continue;
                }
                let q = &q[((b * seq + t) * heads + h) * head_dim..][..head_dim];
                let cached = (rows[b].slot * kv_heads + h / (heads / kv_heads)) * cache_len * head_dim;
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
        let eight_bits = vec![-127_i8; 5 * 40];
        let in_integers = Matrix::new(Elements::I8(&eight_bits), 5, 40);
        linear(machine, Activations::F32(&x), in_integers, Results::F32(&mut out));
        assert_close(&out[..5], &[-127.0 * 40.0; 5], 1e-6);
        assert!(out[5..].iter().all(|x| x.is_nan()));
        let (mut largest, mut columns) = (vec![0.0; 3], vec![0; 3]);
        linear_max(machine, Activations::F32(&x), matrix, &mut largest, &mut columns);
        assert!(largest[1].is_nan());
        assert_eq!((columns, largest[0], largest[2]), (vec![0; 3], 40.0, f32::INFINITY));
        let (mut largest, mut columns) = (vec![0.0; 6], vec![0; 6]);
        linear_top(machine, Activations::F32(&x), matrix, 2, &mut largest, &mut columns);
        assert!(largest[2].is_nan() && largest[3].is_nan());
        assert_eq!((&columns[..], &largest[..2], largest[5]), (&[0, 1, 0, 1, 0, 1][..], &[40.0; 2][..], f32::INFINITY));

        // A query that is no number; the other heads do not notice.
        let shape =
            attention::Shape { batch: 1, seq: 1, heads: 2, kv_heads: 1, head_dim: 16, slots: 1, cache_len: 300 };
        let mut q = vec![0.5_f32; 32];
        q[3] = f32::NAN;
        let cached = vec![0.25_f32; 300 * 16];
        let cache = KvCache { keys: Elements::F32(&cached), values: Elements::F32(&cached), scales: None };
        let mut out = vec![0.0; 32];
        attention(
            machine,
            shape,
            Activations::F32(&q),
            cache,
            &[290],
            &[Row { slot: 0, len: 1 }],
            Results::F32(&mut out),
        );
        assert!(out[..16].iter().all(|x| x.is_nan()));
        assert_close(&out[16..], &[0.25; 16], 1e-6);
    }
}

/// Calls a handler with these operands; the error of the execution.
fn refused(target: &str, operands: &[Literal], results: &[Shape]) -> String {
    let graph = Graph::new("refused");
    let declare = |(i, l): (usize, &Literal)| graph.parameter(&format!("x{i}"), l.shape.clone());
    let parameters: Vec<Op<'_>> = operands.iter().enumerate().map(declare).collect();
    let outputs = graph.custom_call(target, &parameters, results, &[]);
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
    let run = executable.execute(0, vec![buffers.iter().map(Arg::Keep).collect()]).and_then(|e| e.wait());
    run.err().unwrap_or_else(|| panic!("{target} accepted {results:?}")).to_string()
}

#[test]
fn calls_that_are_wrong_are_errors() {
    let array = |dtype: DType, dims: &[i64]| {
        let shape = Shape::new(dtype, dims);
        Literal { bytes: vec![0; shape.bytes() as usize], shape }
    };
    let floats = |dims: &[i64]| array(DType::F32, dims);
    let first = |index: i32| Literal::s32s([], &[index]);
    let (slot, len) = (|slot: i32| Literal::s32s([1], &[slot]), |len: i32| Literal::s32s([1], &[len]));
    let at = |position: i32| Literal::s32s([1, 1], &[position]);
    let (linear, attention) = ("gemma_pjrt.linear", "gemma_pjrt.attention");
    let (x, wide, result) = (floats(&[3, 8]), floats(&[3, 64]), Shape::new(DType::F32, [3, 5]));
    let (q, kv, mixed) = (floats(&[1, 1, 4, 8]), floats(&[2, 2, 16, 8]), Shape::new(DType::F32, [1, 1, 4, 8]));
    let cases = [
        (linear, vec![x.clone()], &result, "takes activations"),
        (linear, vec![x.clone(), len(-1), floats(&[5, 8])], &result, "a length of -1"),
        (linear, vec![x.clone(), Literal::s32s([2], &[1, 1]), floats(&[5, 8])], &result, "2 lengths of 3 rows"),
        (linear, vec![array(DType::S32, &[3, 8]), len(3), floats(&[5, 8])], &result, "activations of type Some(S32)"),
        (linear, vec![floats(&[24]), len(3), floats(&[5, 8])], &result, "expected 2 of them"),
        (linear, vec![x.clone(), len(3), floats(&[5, 7])], &result, "expected [5, 8]"),
        (linear, vec![x.clone(), len(3), floats(&[6, 8])], &result, "expected [3, 6]"),
        (linear, vec![x.clone(), len(3), array(DType::S32, &[5, 8])], &result, "a weight of type Some(S32)"),
        (linear, vec![x.clone(), len(3), array(DType::S8, &[5, 8]), floats(&[4])], &result, "expected [5]"),
        (
            linear,
            vec![x.clone(), len(3), array(DType::S8, &[5, 8]), array(DType::F16, &[5])],
            &result,
            "16-bit elements",
        ),
        (linear, vec![x.clone(), len(3), floats(&[40 + 16]), floats(&[1])], &result, "first index has dimensions [1]"),
        (linear, vec![x.clone(), len(3), floats(&[41 + 16]), first(0)], &result, "no rows of 8"),
        (linear, vec![x.clone(), len(3), floats(&[40 + 16]), first(17)], &result, "40 from 17 on, in an array of 56"),
        (linear, vec![x.clone(), len(3), floats(&[40 + 16]), first(-1)], &result, "from -1 on"),
        (linear, vec![x.clone(), len(3), floats(&[48 + 16]), first(3)], &result, "expected [3, 6]"),
        (linear, vec![x.clone(), len(3), floats(&[3]), first(0)], &result, "no rows of 8"),
        (linear, vec![x.clone(), len(3), array(DType::U8, &[5, 4])], &result, "no scale"),
        (
            linear,
            vec![x.clone(), len(3), array(DType::U8, &[5, 4]), array(DType::F16, &[5, 0])],
            &result,
            "no whole groups of 32",
        ),
        (
            linear,
            vec![wide.clone(), len(3), array(DType::U8, &[5, 64]), array(DType::F16, &[5, 2])],
            &result,
            "expected [5, 32]",
        ),
        (
            linear,
            vec![wide.clone(), len(3), array(DType::U8, &[5, 32]), array(DType::F16, &[5, 1])],
            &result,
            "expected [5, 2]",
        ),
        (linear, vec![wide, len(3), array(DType::U8, &[5, 32]), floats(&[5, 2])], &result, "must be F16"),
        (
            "gemma_pjrt.gate_up",
            vec![x.clone(), len(3), floats(&[5, 8]), array(DType::BF16, &[5, 8])],
            &result,
            "must be alike",
        ),
        (
            attention,
            vec![q.clone(), kv.clone(), kv.clone(), at(16), len(1), slot(0)],
            &mixed,
            "position 16 in a cache of 16",
        ),
        (attention, vec![q.clone(), kv.clone(), kv.clone(), at(-1), len(1), slot(0)], &mixed, "position -1"),
        (attention, vec![q.clone(), kv.clone(), kv.clone(), at(3), len(1), slot(2)], &mixed, "a cache with 2"),
        (
            attention,
            vec![q.clone(), kv.clone(), floats(&[2, 2, 16, 7]), at(3), len(1), slot(0)],
            &mixed,
            "values has dimensions",
        ),
        (
            attention,
            vec![q.clone(), floats(&[2, 3, 16, 8]), floats(&[2, 3, 16, 8]), at(3), len(1), slot(0)],
            &mixed,
            "cannot share",
        ),
        (
            attention,
            vec![
                q.clone(),
                kv.clone(),
                kv.clone(),
                at(3),
                len(1),
                slot(0),
                floats(&[2, 2, 16, 1]),
                floats(&[2, 2, 15, 1]),
            ],
            &mixed,
            "expected [2, 2, 16, 1]",
        ),
        (
            attention,
            vec![q.clone(), kv.clone(), kv.clone(), at(3), len(1), slot(0), floats(&[2, 2, 16, 1])],
            &mixed,
            "1 scales, expected",
        ),
        (attention, vec![q.clone(), kv.clone(), kv.clone(), at(3), len(-2), slot(0)], &mixed, "a length of -2"),
        (attention, vec![q, kv.clone(), kv], &mixed, "takes 6 operands"),
    ];
    for (target, operands, result, words) in cases {
        let error = refused(target, &operands, std::slice::from_ref(result));
        assert!(error.contains(target) && error.contains(words), "{words:?} is not in: {error}");
    }
}
