//! Sampling on the device against plain Rust: the random bits, the thresholds, the choice.

use gemma_pjrt::{
    hlo::{DType, Graph, Literal, Mesh, Op, Shape},
    sampling::{
        Candidates, MAX_BIAS, ParamOps, Params, Penalties, PenaltyInputs, PenaltyOps, TOP_LOGPROBS, VocabSplit,
        allowed, greedy, log_probability, sample, threefry2x32, top_logprobs,
    },
};

use crate::common::{assert_close, numbers, run_graph, run_on_devices, run_s32, several_devices, u32s};

/// The known answers of the Random123 distribution (threefry2x32, 20 rounds).
#[test]
fn threefry_gives_the_published_vectors() {
    let vectors: [([u32; 2], [u32; 2], [u32; 2]); 3] = [
        ([0, 0], [0, 0], [0x6b20_0159, 0x99ba_4efe]),
        ([u32::MAX; 2], [u32::MAX; 2], [0x1cb9_96fc, 0xbb00_2be7]),
        ([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3], [0xc492_3a9c, 0x483d_f7a0]),
    ];
    for (key, counter, expected) in vectors {
        let inputs = [key[0], key[1], counter[0], counter[1]].map(|word| u32s(&[1], &[word]));
        let out = run_graph(&inputs, |_, p| threefry2x32([p[0], p[1]], [p[2], p[3]]).to_vec());
        assert_eq!([numbers::<u32>(&out[0])[0], numbers::<u32>(&out[1])[0]], expected);
    }
}

fn parameters(params: &[Params]) -> Vec<Literal> {
    let rows = params.len() as i64;
    let seeds: Vec<u32> = params.iter().flat_map(|p| [p.seed as u32, (p.seed >> 32) as u32]).collect();
    vec![
        Literal::f32s([rows], &params.iter().map(|p| p.temperature).collect::<Vec<_>>()),
        Literal::s32s([rows], &params.iter().map(|p| p.top_k).collect::<Vec<_>>()),
        Literal::f32s([rows], &params.iter().map(|p| p.top_p).collect::<Vec<_>>()),
        Literal::f32s([rows], &params.iter().map(|p| p.min_p).collect::<Vec<_>>()),
        u32s(&[rows, 2], &seeds),
    ]
}

fn param_ops<'g>(p: &[Op<'g>]) -> ParamOps<'g> {
    ParamOps { temperature: p[0], top_k: p[1], top_p: p[2], min_p: p[3], seed: p[4] }
}

/// Draws one token for each row of `logits`, on one device.
fn draw(logits: &[f32], vocab: i64, params: &[Params], positions: &[i32]) -> Vec<i32> {
    let rows = params.len() as i64;
    let mut inputs = vec![Literal::f32s([rows, vocab], logits), Literal::s32s([rows], positions)];
    inputs.extend(parameters(params));
    run_s32(&inputs, |_, p| {
        let params = param_ops(&p[2..]);
        sample(Candidates::all(p[0], whole(vocab)), &params, p[1])
    })
}

fn whole(tokens: i64) -> VocabSplit {
    VocabSplit { tokens, mesh: Mesh::SINGLE }
}

fn split(tokens: usize, devices: usize) -> VocabSplit {
    VocabSplit { tokens: tokens as i64, mesh: Mesh { data: 1, model: devices } }
}

/// What device `rank` holds of logits `[rows, vocab.tokens]`.
fn held(logits: &[f32], vocab: VocabSplit, rank: usize) -> Literal {
    let rows = logits.chunks_exact(vocab.tokens as usize);
    let dims = [rows.len() as i64, vocab.per_device()];
    let held = vocab.held(rank);
    let part: Vec<f32> = rows.flat_map(|row| row[held.start as usize..held.end as usize].to_vec()).collect();
    Literal::f32s(dims, &part)
}

/// Probabilities after temperature, top-k and top-p, by sorting: the way of transformers' logits
/// processors.
fn probabilities(logits: &[f32], params: &Params) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|&x| f64::from(x / params.temperature)).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| scaled[b].total_cmp(&scaled[a]));
    let kept_k = if params.top_k == 0 { logits.len() } else { (params.top_k as usize).min(logits.len()) };
    let largest = scaled[order[0]];
    let mut weights = vec![0.0; logits.len()];
    for &i in &order[..kept_k] {
        weights[i] = (scaled[i] - largest).exp();
    }
    let total: f64 = weights.iter().sum();
    let mut mass = 0.0;
    for &i in &order {
        if mass >= f64::from(params.top_p) * total {
            weights[i] = 0.0;
        }
        mass += weights[i];
    }
    let least = f64::from(params.min_p) * weights[order[0]];
    weights.iter_mut().filter(|w| **w < least).for_each(|w| *w = 0.0);
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// 4096 draws of each setting follow the reference's distribution, and never leave its support.
#[test]
fn draws_follow_temperature_top_k_top_p_and_min_p() {
    let logits = [2.0, 1.5, 1.0, 0.2, 0.0, -0.5, -1.0, -3.0, -3.5, -9.0_f32];
    let settings = [
        (1.0, 0, 1.0, 0.0),
        (0.7, 4, 1.0, 0.0),
        (1.5, 0, 0.8, 0.0),
        (2.0, 6, 0.9, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 0, 1e-6, 0.0),
        (1.5, 0, 1.0, 0.2),
        (1.5, 4, 1.0, 0.4),
        (1.0, 0, 1.0, 1.0),
    ];
    const DRAWS: usize = 4096;
    for (temperature, top_k, top_p, min_p) in settings {
        let params: Vec<Params> =
            (0..DRAWS).map(|i| Params { temperature, top_k, top_p, min_p, seed: 1_000_000_007 * i as u64 }).collect();
        let rows = logits.repeat(DRAWS);
        let tokens = draw(&rows, logits.len() as i64, &params, &vec![3; DRAWS]);
        let expected = probabilities(&logits, &params[0]);
        let mut counts = vec![0; logits.len()];
        tokens.iter().for_each(|&t| counts[t as usize] += 1);
        for (token, (&count, &p)) in counts.iter().zip(&expected).enumerate() {
            if p == 0.0 {
                assert_eq!(count, 0, "token {token} is outside the support of {:?}", params[0]);
            }
            let deviation = (count as f64 - p * DRAWS as f64) / (p * (1.0 - p) * DRAWS as f64).sqrt().max(1.0);
            assert!(deviation.abs() < 5.0, "token {token}: {count} draws, expected {}", p * DRAWS as f64);
        }
    }
}

/// Each row has its own parameters; rows with temperature 0 are greedy whatever else they say.
#[test]
fn rows_are_independent_of_the_batch() {
    let vocab = 300;
    let logits: Vec<f32> = (0..4 * vocab).map(|i| ((i * 7919) % 1009) as f32 / 100.0).collect();
    let params = [
        Params { temperature: 0.0, top_k: 3, top_p: 0.1, min_p: 0.0, seed: 5 },
        Params { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 5 },
        Params { temperature: 3.0, top_k: 20, top_p: 0.5, min_p: 0.0, seed: u64::MAX - 1 },
        Params { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 5 << 32 },
    ];
    let positions = [0, 10, 20, 10];
    let together = draw(&logits, vocab, &params, &positions);
    for row in 0..4 {
        let part = &logits[row * vocab as usize..(row + 1) * vocab as usize];
        assert_eq!(draw(part, vocab, &params[row..=row], &positions[row..=row]), [together[row]], "row {row}");
    }
    let first: Vec<f32> = logits[..vocab as usize].to_vec();
    let best = (0..vocab as usize).rev().max_by(|&a, &b| first[a].total_cmp(&first[b])).unwrap();
    assert_eq!(together[0] as usize, best);
    // Another position draws anew.
    let other: Vec<i32> =
        (0..20).map(|p| draw(&logits[vocab as usize..2 * vocab as usize], vocab, &params[1..2], &[p])[0]).collect();
    assert!(other.iter().any(|&t| t != other[0]));
}

/// Where top-k leaves few tokens, the largest logits alone are enough, in any order.
#[test]
fn a_few_candidates_give_the_same_tokens() {
    let (vocab, few) = (300_usize, 25_usize);
    let params: Vec<Params> = (0..64)
        .map(|i| Params {
            temperature: [0.0, 0.3, 1.0, 2.5][i % 4],
            top_k: [1, 7, 25][i % 3],
            top_p: [1.0, 0.6][i % 2],
            min_p: [0.0, 0.0, 0.05][i % 3],
            seed: 77 * i as u64,
        })
        .collect();
    let positions: Vec<i32> = (0..64).collect();
    let logits: Vec<f32> = (0..64 * vocab).map(|i| ((i * 7919) % 10007) as f32 / 1000.0).collect();
    let all = draw(&logits, vocab as i64, &params, &positions);
    let mut order: Vec<usize> = (0..64 * vocab).collect();
    order.chunks_mut(vocab).for_each(|row| row.sort_by(|&a, &b| logits[b].total_cmp(&logits[a])));
    let kept: Vec<usize> = order.chunks(vocab).flat_map(|row| row[..few].to_vec()).collect();
    let largest: Vec<f32> = kept.iter().map(|&i| logits[i]).collect();
    let tokens: Vec<i32> = kept.iter().map(|&i| (i % vocab) as i32).collect();
    let dims = [64, few as i64];
    let mut inputs = vec![Literal::f32s(dims, &largest), Literal::s32s([64], &positions), Literal::s32s(dims, &tokens)];
    inputs.extend(parameters(&params));
    let found = run_s32(&inputs, |_, p| {
        let params = param_ops(&p[3..]);
        let candidates = Candidates { logits: p[0], tokens: Some(p[2]), vocab: whole(vocab as i64) };
        sample(candidates, &params, p[1])
    });
    assert_eq!(found, all);
}

/// The vocabulary split over devices, whether they divide it or not: the same tokens, the same
/// log-probabilities.
#[test]
fn a_split_vocabulary_gives_the_same_result() {
    let _alone = several_devices();
    [64, 61].into_iter().for_each(compare_splits);
}

fn compare_splits(vocab: usize) {
    let rows = 3;
    let logits: Vec<f32> = (0..3 * vocab).map(|i| ((i * 31) % 47) as f32 / 5.0).collect(); // with many equal ones
    let params = [
        Params { temperature: 0.9, top_k: 12, top_p: 0.8, min_p: 0.0, seed: 1 },
        Params { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 2 },
        Params { temperature: 1.2, top_k: 0, top_p: 0.7, min_p: 0.0, seed: 3 },
    ];
    let targets = Literal::s32s([rows], &[0, vocab as i32 - 1, 17]);
    let run = |devices: usize| -> Vec<Vec<u8>> {
        let vocab = split(vocab, devices);
        let graph = Graph::new("split");
        let x = graph.parameter("logits", Shape::new(DType::F32, [rows, vocab.per_device()]));
        let positions = graph.parameter("positions", Shape::new(DType::S32, [rows]));
        let wanted = graph.parameter("targets", Shape::new(DType::S32, [rows]));
        let vector = |name: &str, dtype| graph.parameter(name, Shape::new(dtype, [rows]));
        let ops = ParamOps {
            temperature: vector("temperature", DType::F32),
            top_k: vector("top_k", DType::S32),
            top_p: vector("top_p", DType::F32),
            min_p: vector("min_p", DType::F32),
            seed: graph.parameter("seed", Shape::new(DType::U32, [rows, 2])),
        };
        let x = vocab.owned(x);
        let sampled = sample(Candidates::all(x, vocab), &ops, positions);
        let of_few = sample(Candidates::all(x, vocab).merged(20), &ops, positions);
        let outputs = [sampled, greedy(x, vocab), log_probability(x, wanted, vocab), vocab.joined(x), of_few];
        let module = graph.finish(&outputs).unwrap();
        let inputs: Vec<Vec<Literal>> = (0..devices)
            .map(|d| {
                let mut list = vec![held(&logits, vocab, d), Literal::s32s([rows], &[5, 6, 7]), targets.clone()];
                list.extend(parameters(&params));
                list
            })
            .collect();
        let all = run_on_devices(&module, &inputs);
        assert!(all.iter().all(|outputs| outputs == &all[0]), "devices disagree");
        all.into_iter().next().unwrap()
    };
    let single = run(1);
    for devices in [2, 4, 8] {
        let split = run(devices);
        assert_eq!(split[0], single[0], "sampled tokens on {devices}");
        assert_eq!(split[1], single[1], "greedy tokens on {devices}");
        let (a, b) = (numbers::<f32>(&split[2]), numbers::<f32>(&single[2]));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
        assert_eq!(split[3], single[3], "all logits on {devices}");
        assert_eq!(
            numbers::<i32>(&split[4])[..2],
            numbers::<i32>(&single[0])[..2],
            "of each device's largest on {devices}"
        );
    }
}

#[test]
fn wrong_parameters_are_explained() {
    let good = Params { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };
    assert_eq!(good.check(), Ok(()));
    for (bad, word) in [
        (Params { temperature: -1.0, ..good }, "temperature"),
        (Params { temperature: f32::NAN, ..good }, "temperature"),
        (Params { top_k: -1, ..good }, "top-k"),
        (Params { top_p: 0.0, ..good }, "top-p"),
        (Params { top_p: 1.5, ..good }, "top-p"),
        (Params { min_p: 1.5, ..good }, "min-p"),
        (Params { min_p: f32::NAN, ..good }, "min-p"),
    ] {
        assert!(bad.check().unwrap_err().to_string().contains(word));
    }
}

/// Penalties and biases as transformers and OpenAI define them, on a vocabulary that is whole and
/// one that is split.
#[test]
fn penalties_and_biases_change_logits_as_defined() {
    let _alone = several_devices();
    let (rows, vocab, length) = (2_usize, 32_usize, 12_usize);
    let logits: Vec<f32> = (0..rows * vocab).map(|i| ((i * 37) % 19) as f32 / 4.0 - 2.0).collect();
    let penalties = [
        Penalties { repetition: 1.3, presence: 0.5, frequency: 0.25 },
        Penalties { repetition: 0.8, ..Penalties::NONE },
    ];
    // Of each row's tokens the first few are the prompt; the rest of the array is empty.
    let tokens: [&[i32]; 2] = [&[3, 3, 31, 5, 5, 5, 7], &[0, 1]];
    let prompt = [3, 2];
    let bias: [&[(i32, f32)]; 2] = [&[(9, 5.0), (31, -100.0)], &[]];
    let adjusted = |tokens: &[Vec<i32>]| -> Vec<f32> {
        let one = |i: usize| {
            let (row, token) = (i / vocab, i % vocab);
            let Penalties { repetition, presence, frequency } = penalties[row];
            let times = |tokens: &[i32]| tokens.iter().filter(|&&t| t as usize == token).count() as f32;
            let mut x = logits[i];
            if times(&tokens[row]) > 0.0 {
                x = if x > 0.0 { x / repetition } else { x * repetition };
            }
            let generated = times(&tokens[row][prompt[row]..]);
            let bias: f32 = bias[row].iter().filter(|b| b.0 as usize == token).map(|b| b.1).sum();
            x - presence * generated.min(1.0) - frequency * generated + bias
        };
        (0..rows * vocab).map(one).collect()
    };
    let next = [9, 0];
    let before: Vec<Vec<i32>> = tokens.iter().map(|t| t.to_vec()).collect();
    let after: Vec<Vec<i32>> = before.iter().zip(next).map(|(t, next)| [&t[..], &[next]].concat()).collect();

    let padded = |tokens: &[i32], n: usize| [tokens, &vec![-1; n - tokens.len()]].concat();
    let of = |f: fn(&Penalties) -> f32| Literal::f32s([2], &penalties.iter().map(f).collect::<Vec<_>>());
    let ids = |row: usize| padded(&bias[row].iter().map(|b| b.0).collect::<Vec<_>>(), MAX_BIAS);
    let mut values = vec![0.0; rows * MAX_BIAS];
    (0..rows).for_each(|row| bias[row].iter().enumerate().for_each(|(i, b)| values[row * MAX_BIAS + i] = b.1));
    let inputs = vec![
        of(|a| a.repetition),
        of(|a| a.presence),
        of(|a| a.frequency),
        Literal::s32s([2, length as i64], &[padded(tokens[0], length), padded(tokens[1], length)].concat()),
        Literal::s32s([2], &prompt.map(|n| n as i32)),
        Literal::s32s([2, MAX_BIAS as i64], &[ids(0), ids(1)].concat()),
        Literal::f32s([2, MAX_BIAS as i64], &values),
    ];
    for devices in [1, 4, 5] {
        let vocab = split(vocab, devices);
        let graph = Graph::new("adjust");
        let x = graph.parameter("logits", Shape::new(DType::F32, [2, vocab.per_device()]));
        let chosen = graph.parameter("next", Shape::new(DType::S32, [2]));
        let given: Vec<Op<'_>> = inputs
            .iter()
            .enumerate()
            .map(|(i, literal)| graph.parameter(&format!("input{i}"), literal.shape.clone()))
            .collect();
        let &[repetition, presence, frequency, history, prompt_len, bias_tokens, biases] = &given[..] else {
            unreachable!("as many as there are inputs")
        };
        let given = PenaltyInputs { repetition, presence, frequency, history, prompt_len, bias_tokens, biases };
        let ops = PenaltyOps::new(given, vocab);
        let outputs = [ops, ops.after(chosen, vocab)].map(|ops| vocab.joined(ops.apply(vocab.owned(x))));
        let module = graph.finish(&outputs).unwrap();
        let of_device = |d: usize| {
            let own = [held(&logits, vocab, d), Literal::s32s([2], &next)];
            own.into_iter().chain(inputs.clone()).collect::<Vec<_>>()
        };
        let out = run_on_devices(&module, &(0..devices).map(of_device).collect::<Vec<_>>()).swap_remove(0);
        assert_close(&numbers::<f32>(&out[0]), &adjusted(&before), 1e-6);
        assert_close(&numbers::<f32>(&out[1]), &adjusted(&after), 1e-6);
    }
}

/// The most likely tokens in order, the first of equal ones first; also where a device has fewer
/// tokens than are told.
#[test]
fn the_most_likely_tokens_are_told_in_order() {
    let _alone = several_devices();
    let (rows, vocab, most) = (2_usize, 64_usize, TOP_LOGPROBS as usize);
    let logits: Vec<f32> = (0..rows * vocab).map(|i| ((i * 31) % 47) as f32 / 5.0).collect();
    let (mut tokens, mut logprobs): (Vec<i32>, Vec<f32>) = (vec![], vec![]);
    for row in logits.chunks(vocab) {
        let total = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        tokens.extend(order[..most].iter().map(|&i| i as i32));
        logprobs.extend(order[..most].iter().map(|&i| (f64::from(row[i]) - total) as f32));
    }
    for devices in [1, 2, 7, 8] {
        let vocab = split(vocab, devices);
        let graph = Graph::new("top");
        let x = graph.parameter("logits", Shape::new(DType::F32, [2, vocab.per_device()]));
        let module = graph.finish(&top_logprobs(vocab.owned(x), vocab)).unwrap();
        let of_device = |d: usize| vec![held(&logits, vocab, d)];
        let out = run_on_devices(&module, &(0..devices).map(of_device).collect::<Vec<_>>()).swap_remove(0);
        assert_eq!(numbers::<i32>(&out[0]), tokens, "on {devices}");
        assert_close(&numbers::<f32>(&out[1]), &logprobs, 1e-6);
    }
}

/// Tokens that are not allowed are as if their logits were minus infinity, on a vocabulary that is
/// whole and one that is split, also where devices have none that are allowed.
#[test]
fn only_allowed_tokens_are_chosen() {
    let _alone = several_devices();
    for tokens in [64, 61, 100] {
        let rows = 4;
        let logits: Vec<f32> = (0..rows * tokens).map(|i| ((i * 31) % 47) as f32 / 5.0).collect();
        let is_allowed = |row: usize, token: usize| match row {
            0 => true,
            1 => token % 7 == 3,
            2 => token == tokens - 1,
            _ => token < 5,
        };
        let words = tokens.div_ceil(32);
        let mut mask = vec![0_u32; rows * words];
        for (row, token) in (0..rows * tokens).map(|i| (i / tokens, i % tokens)).filter(|&(r, t)| is_allowed(r, t)) {
            mask[row * words + token / 32] |= 1 << (token % 32);
        }
        let mask: Vec<i32> = mask.iter().map(|&word| word as i32).collect();
        let removed = |(i, &x): (usize, &f32)| if is_allowed(i / tokens, i % tokens) { x } else { f32::NEG_INFINITY };
        let removed: Vec<f32> = logits.iter().enumerate().map(removed).collect();
        let params = [
            Params { temperature: 0.9, top_k: 12, top_p: 0.8, min_p: 0.0, seed: 1 },
            Params { temperature: 1.5, top_k: 0, top_p: 0.9, min_p: 0.05, seed: 2 },
            Params { temperature: 1.0, top_k: 40, top_p: 1.0, min_p: 0.0, seed: 3 },
            Params { temperature: 2.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 4 },
        ];
        let positions = [5, 6, 7, 8];
        let drawn = draw(&removed, tokens as i64, &params, &positions);
        let best = removed.chunks(tokens).map(|row| {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter().position(|&x| x == largest).unwrap() as i32
        });
        let best: Vec<i32> = best.collect();
        for devices in [1, 2, 4, 7] {
            let vocab = split(tokens, devices);
            let graph = Graph::new("allowed");
            let x = graph.parameter("logits", Shape::new(DType::F32, [rows as i64, vocab.per_device()]));
            let bits = graph.parameter("mask", Shape::new(DType::S32, [rows as i64, vocab.mask_words()]));
            let at = graph.parameter("positions", Shape::new(DType::S32, [rows as i64]));
            let shapes: Vec<Shape> = parameters(&params).iter().map(|literal| literal.shape.clone()).collect();
            let ops: Vec<Op<'_>> =
                shapes.iter().enumerate().map(|(i, shape)| graph.parameter(&format!("p{i}"), shape.clone())).collect();
            let left = allowed(vocab.owned(x), bits, vocab);
            let outputs = [sample(Candidates::all(left, vocab), &param_ops(&ops), at), greedy(left, vocab)];
            let module = graph.finish(&outputs).unwrap();
            let of_device = |d: usize| {
                let mask = Literal::s32s([rows as i64, words as i64], &mask);
                let mut list = vec![held(&logits, vocab, d), mask, Literal::s32s([rows as i64], &positions)];
                list.extend(parameters(&params));
                list
            };
            let out = run_on_devices(&module, &(0..devices).map(of_device).collect::<Vec<_>>()).swap_remove(0);
            assert_eq!(numbers::<i32>(&out[0]), drawn, "drawn of {tokens} on {devices}");
            assert_eq!(numbers::<i32>(&out[1]), best, "greedy of {tokens} on {devices}");
        }
    }
}
