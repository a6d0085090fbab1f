//! Every op of the builder, run on the plugin, against plain Rust.

use gemma_pjrt::hlo::{Comparison, DType, DotDims, GatherDims, Graph, Literal, Mesh, Op, Padding, Shape};
use ndarray::{ArrayD, Axis, IxDyn, Slice, concatenate};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::common::{assert_close, numbers, run_f32, run_graph, run_on_devices, run_s32, several_devices, u32s};

fn f32s(dims: &[i64], values: &[f32]) -> Literal {
    Literal::f32s(dims, values)
}

fn s32s(dims: &[i64], values: &[i32]) -> Literal {
    Literal::s32s(dims, values)
}

/// Numbers without a pattern, in -2..2.
fn noise(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / f32::powi(2.0, 22) - 2.0).collect()
}

fn array(dims: &[i64], values: &[f32]) -> ArrayD<f32> {
    let dims: Vec<usize> = dims.iter().map(|&d| d as usize).collect();
    ArrayD::from_shape_vec(IxDyn(&dims), values.to_vec()).unwrap()
}

/// Runs a property on few random cases: each compiles a program.
fn property<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config).run(&strategy, test).unwrap();
}

#[test]
fn unary_ops() {
    let x = [-2.0, -0.5, 0.25, 0.5, 1.0, 3.0_f32];
    let positive = x.map(f32::abs);
    type Unary = (&'static str, for<'g> fn(Op<'g>) -> Op<'g>, fn(f32) -> f32, bool);
    let ops: [Unary; 11] = [
        ("neg", |x| x.neg(), |x| -x, false),
        ("abs", |x| x.abs(), f32::abs, false),
        ("exp", |x| x.exp(), f32::exp, false),
        ("log", |x| x.log(), f32::ln, true),
        ("tanh", |x| x.tanh(), f32::tanh, false),
        ("sqrt", |x| x.sqrt(), f32::sqrt, true),
        ("rsqrt", |x| x.rsqrt(), |x| 1.0 / x.sqrt(), true),
        ("cos", |x| x.cos(), f32::cos, false),
        ("sin", |x| x.sin(), f32::sin, false),
        ("floor", |x| x.floor(), f32::floor, false),
        ("minus", |x| -x, |x| -x, false),
    ];
    for (name, op, reference, positive_only) in ops {
        let input = if positive_only { positive } else { x };
        println!("{name}");
        assert_close(&run_f32(&[f32s(&[6], &input)], |_, p| op(p[0])), &input.map(reference), 1e-6);
    }
    assert_eq!(run_s32(&[s32s(&[2], &[0, 5])], |_, p| p[0].not()), [!0, !5]);
}

/// RoPE takes cosines of angles up to the last position.
#[test]
fn cosine_and_sine_of_large_angles() {
    let angles: Vec<f32> = (0..2048).map(|i| i as f32 * 4.003).collect();
    let dims = [angles.len() as i64];
    let exact = |f: fn(f64) -> f64| angles.iter().map(|&a| f(f64::from(a)) as f32).collect::<Vec<_>>();
    assert_close(&run_f32(&[f32s(&dims, &angles)], |_, p| p[0].cos()), &exact(f64::cos), 1e-6);
    assert_close(&run_f32(&[f32s(&dims, &angles)], |_, p| p[0].sin()), &exact(f64::sin), 1e-6);
}

#[test]
fn binary_ops() {
    let (a, b) = ([7.5, -3.0, 2.0, 0.5_f32], [2.0, 2.0, -4.0, 0.25_f32]);
    type Binary = (for<'g> fn(Op<'g>, Op<'g>) -> Op<'g>, fn(f32, f32) -> f32);
    let ops: [Binary; 7] = [
        (|a, b| a + b, |a, b| a + b),
        (|a, b| a - b, |a, b| a - b),
        (|a, b| a * b, |a, b| a * b),
        (|a, b| a / b, |a, b| a / b),
        (|a, b| a.max(b), f32::max),
        (|a, b| a.min(b), f32::min),
        (|a, b| a.rem(b), |a, b| a % b),
    ];
    for (op, reference) in ops {
        let expected: Vec<f32> = a.iter().zip(&b).map(|(&a, &b)| reference(a, b)).collect();
        assert_close(&run_f32(&[f32s(&[4], &a), f32s(&[4], &b)], |_, p| op(p[0], p[1])), &expected, 1e-6);
    }
    let power = run_f32(&[f32s(&[2], &[2.0, 9.0]), f32s(&[2], &[10.0, 0.5])], |_, p| p[0].pow(p[1]));
    assert_close(&power, &[1024.0, 3.0], 1e-6);

    let (x, y) = ([0b1100_u32, 0x8000_0001, 7], [0b1010_u32, 4, 1]);
    type Bits = (for<'g> fn(Op<'g>, Op<'g>) -> Op<'g>, fn(u32, u32) -> u32);
    let ops: [Bits; 6] = [
        (|a, b| a.and(b), |a, b| a & b),
        (|a, b| a.or(b), |a, b| a | b),
        (|a, b| a.xor(b), |a, b| a ^ b),
        (|a, b| a.shift_left(b), |a, b| a << b),
        (|a, b| a.shift_right_logical(b), |a, b| a >> b),
        (|a, b| a.shift_right_arithmetic(b), |a, b| (a as i32 >> b) as u32),
    ];
    for (op, reference) in ops {
        let out = run_graph(&[u32s(&[3], &x), u32s(&[3], &y)], |_, p| vec![op(p[0], p[1])]);
        let expected: Vec<u32> = x.iter().zip(&y).map(|(&a, &b)| reference(a, b)).collect();
        assert_eq!(numbers::<u32>(&out[0]), expected);
    }
}

#[test]
fn binary_ops_broadcast_like_numpy() {
    let shapes = prop::collection::vec(1_i64..4, 1..4).prop_flat_map(|dims| {
        let n = dims.len();
        (Just(dims), prop::collection::vec(any::<bool>(), n), 0..n, prop::collection::vec(any::<bool>(), n))
    });
    property(12, shapes, |(dims, squash_a, drop_b, squash_b)| {
        let squash = |dims: &[i64], mask: &[bool]| -> Vec<i64> {
            dims.iter().zip(mask).map(|(&d, &squash)| if squash { 1 } else { d }).collect()
        };
        let a_dims = squash(&dims, &squash_a);
        let b_dims = squash(&dims[drop_b..], &squash_b[drop_b..]);
        let (a, b) = (noise(a_dims.iter().product::<i64>() as usize), noise(b_dims.iter().product::<i64>() as usize));
        let found = run_f32(&[f32s(&a_dims, &a), f32s(&b_dims, &b)], |_, p| p[0] * p[1] + 1.0);
        // ndarray broadcasts one side only; a sum with zeros of the common shape makes it both.
        let rank = a_dims.len();
        let at = |d: &[i64], i: usize| if i + d.len() < rank { 1 } else { d[i + d.len() - rank] };
        let common: Vec<usize> = (0..rank).map(|i| at(&a_dims, i).max(at(&b_dims, i)) as usize).collect();
        let zeros = ArrayD::<f32>::zeros(IxDyn(&common));
        let expected = (&zeros + &array(&a_dims, &a)) * (&zeros + &array(&b_dims, &b)) + 1.0;
        // Not equal to the last bit: XLA fuses multiplication and addition.
        assert_close(&found, &expected.iter().copied().collect::<Vec<_>>(), 1e-6);
        Ok(())
    });
}

#[test]
fn comparisons_select_and_clamp() {
    let (a, b) = ([1.0, 2.0, 3.0, f32::NAN], [2.0, 2.0, 2.0, 2.0]);
    let expected = [
        (Comparison::Eq, [0, 1, 0, 0]),
        (Comparison::Ne, [1, 0, 1, 1]),
        (Comparison::Lt, [1, 0, 0, 0]),
        (Comparison::Le, [1, 1, 0, 0]),
        (Comparison::Gt, [0, 0, 1, 0]),
        (Comparison::Ge, [0, 1, 1, 0]),
    ];
    for (direction, wanted) in expected {
        let found =
            run_s32(&[f32s(&[4], &a), f32s(&[4], &b)], |_, p| p[0].compare(direction, p[1]).convert(DType::S32));
        assert_eq!(found, wanted, "{direction:?}");
    }
    let found = run_f32(&[f32s(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), f32s(&[2], &[2.0, 3.0])], |g, p| {
        p[0].gt(p[1]).select(p[0], g.scalar(DType::F32, -1.0)).clamp(g.scalar(DType::F32, 0.0), p[1])
    });
    assert_eq!(found, [0.0, 0.0, 2.0, 3.0]);
}

#[test]
fn conversions() {
    let x = [1.0, -2.75, 300.5, 1e-3_f32];
    for dtype in [DType::BF16, DType::F16] {
        let found = run_f32(&[f32s(&[4], &x)], |_, p| p[0].convert(dtype).convert(DType::F32));
        let expected = x.map(|v| match dtype {
            DType::BF16 => half::bf16::from_f32(v).to_f32(),
            _ => half::f16::from_f32(v).to_f32(),
        });
        assert_eq!(found, expected);
    }
    assert_eq!(run_s32(&[f32s(&[4], &x)], |_, p| p[0].convert(DType::S32)), [1, -2, 300, 0]);
    assert_eq!(run_s32(&[f32s(&[1], &[1.0])], |_, p| p[0].bitcast_convert(DType::S32)), [0x3f80_0000]);
    for dtype in [DType::S8, DType::U8, DType::U16, DType::S64, DType::U64, DType::F64, DType::U32, DType::Pred] {
        let found = run_s32(&[s32s(&[2], &[0, 1])], |_, p| p[0].convert(dtype).convert(DType::S32));
        assert_eq!(found, [0, 1], "{dtype}");
    }
}

#[test]
fn constants_of_every_type() {
    for dtype in DType::ALL.into_iter().filter(|&d| d != DType::S4) {
        let found = run_s32(&[], |g, _| g.scalar(dtype, 1.0).convert(DType::S32).reshape(&[1]));
        assert_eq!(found, [1], "{dtype}");
    }
    let found = run_f32(&[], |g, _| g.constant(Literal::f32s([2, 2], &[1.0, -2.0, 3.5, f32::NEG_INFINITY])));
    assert_eq!(found, [1.0, -2.0, 3.5, f32::NEG_INFINITY]);
    assert_eq!(run_s32(&[], |g, _| g.iota(Shape::new(DType::S32, [2, 3]), 1)), [0, 1, 2, 0, 1, 2]);
    assert_eq!(run_s32(&[], |g, _| g.iota(Shape::new(DType::S32, [2, 3]), 0)), [0, 0, 0, 1, 1, 1]);
    assert_eq!(run_f32(&[], |g, _| g.full(&Shape::new(DType::F32, [3]), 0.5)), [0.5; 3]);
}

#[test]
fn transposes_and_slices() {
    let cases = prop::collection::vec(1_i64..5, 1..4).prop_flat_map(|dims| {
        let permutation = Just((0..dims.len() as i64).collect::<Vec<_>>()).prop_shuffle();
        let bounds: Vec<_> =
            dims.iter().map(|&d| (0..d).prop_flat_map(move |s| (Just(s), s + 1..=d, 1_i64..3))).collect();
        (Just(dims), permutation, bounds)
    });
    property(12, cases, |(dims, permutation, bounds)| {
        let x = noise(dims.iter().product::<i64>() as usize);
        let starts: Vec<i64> = bounds.iter().map(|b| b.0).collect();
        let limits: Vec<i64> = bounds.iter().map(|b| b.1).collect();
        let strides: Vec<i64> = bounds.iter().map(|b| b.2).collect();
        let found =
            run_f32(&[f32s(&dims, &x)], |_, p| p[0].strided_slice(&starts, &limits, &strides).transpose(&permutation));
        let mut view = array(&dims, &x);
        for (axis, (start, limit, stride)) in bounds.iter().enumerate() {
            let slice = Slice::new(*start as isize, Some(*limit as isize), *stride as isize);
            view = view.slice_axis(Axis(axis), slice).to_owned();
        }
        let axes: Vec<usize> = permutation.iter().map(|&p| p as usize).collect();
        let expected: Vec<f32> = view.permuted_axes(IxDyn(&axes)).iter().copied().collect();
        prop_assert_eq!(found, expected);
        Ok(())
    });
}

#[test]
fn dynamic_slices_are_moved_inside() {
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    for (start, expected) in [(0, 0.0), (2, 2.0), (9, 2.0), (-5, 0.0)] {
        let found = run_f32(&[f32s(&[3, 4], &x), s32s(&[], &[start])], |g, p| {
            p[0].dynamic_slice(&[g.scalar(DType::S32, 1.0), p[1]], &[1, 2])
        });
        assert_eq!(found, [4.0 + expected, 5.0 + expected], "start {start}");
    }
    let found = run_f32(&[f32s(&[3, 4], &x), s32s(&[], &[9])], |g, p| {
        let update = g.full(&Shape::new(DType::F32, [1, 2]), -1.0);
        p[0].dynamic_update_slice(update, &[g.scalar(DType::S32, 0.0), p[1]])
    });
    assert_eq!(found[..4], [0.0, 1.0, -1.0, -1.0]);
    assert_eq!(found[4..], x[4..]);
}

#[test]
fn gather_and_take_rows() {
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let rows = run_f32(&[f32s(&[4, 3], &x), s32s(&[2, 2], &[3, 0, 9, 1])], |_, p| p[0].take_rows(p[1]));
    assert_eq!(rows, [9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 9.0, 10.0, 11.0, 3.0, 4.0, 5.0]); // 9 is clamped to 3
    // Windows of two columns at (row, column) pairs.
    let dims = GatherDims {
        offset_dims: vec![1],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0, 1],
        index_vector_dim: 1,
        slice_sizes: vec![1, 2],
    };
    let found = run_f32(&[f32s(&[4, 3], &x), s32s(&[2, 2], &[1, 0, 2, 1])], |_, p| p[0].gather(p[1], dims));
    assert_eq!(found, [3.0, 4.0, 7.0, 8.0]);
}

#[test]
fn concatenate_pad_and_broadcast() {
    let (a, b) = (noise(6), noise(4));
    let found = run_f32(&[f32s(&[2, 3], &a), f32s(&[2, 2], &b)], |_, p| Op::concatenate(&[p[0], p[1]], -1));
    let expected = concatenate(Axis(1), &[array(&[2, 3], &a).view(), array(&[2, 2], &b).view()]).unwrap();
    assert_eq!(found, expected.iter().copied().collect::<Vec<_>>());

    let padding = [Padding { low: 1, high: 0, interior: 0 }, Padding { low: 0, high: -1, interior: 1 }];
    let found = run_f32(&[f32s(&[1, 2], &[1.0, 2.0])], |g, p| p[0].pad(g.scalar(DType::F32, 9.0), &padding));
    assert_eq!(found, [9.0, 9.0, 1.0, 9.0]);

    let found = run_f32(&[f32s(&[2], &[1.0, 2.0])], |_, p| p[0].broadcast_in_dim(&[2, 3], &[0]));
    assert_eq!(found, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    let found = run_f32(&[f32s(&[2, 1], &[1.0, 2.0])], |_, p| p[0].broadcast_to(&[2, 2, 2]));
    assert_eq!(found, [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
}

#[test]
fn dots() {
    property(10, (1_i64..4, 1_i64..6, 1_i64..40, 1_i64..6), |(batch, m, k, n)| {
        let (x, y) = (noise((batch * m * k) as usize), noise((batch * n * k) as usize));
        let dims = DotDims { lhs_batch: vec![0], rhs_batch: vec![0], lhs_contract: vec![2], rhs_contract: vec![2] };
        let inputs = [f32s(&[batch, m, k], &x), f32s(&[batch, n, k], &y)];
        let found = run_f32(&inputs, |_, p| p[0].dot(p[1], &dims, DType::F32));
        let mut expected = Vec::new();
        for b in 0..batch {
            for i in 0..m {
                for j in 0..n {
                    let row = |v: &[f32], r: i64, rows: i64, t: i64| f64::from(v[((b * rows + r) * k + t) as usize]);
                    expected.push((0..k).map(|t| row(&x, i, m, t) * row(&y, j, n, t)).sum::<f64>() as f32);
                }
            }
        }
        assert_close(&found, &expected, 1e-5);
        Ok(())
    });
    // bf16 products accumulated in f32: 4096 ones would stay at 256 in bf16.
    let ones = Literal { shape: Shape::new(DType::BF16, [1, 4096]), bytes: half::bf16::ONE.to_le_bytes().repeat(4096) };
    let dims = DotDims { lhs_contract: vec![1], rhs_contract: vec![1], ..DotDims::default() };
    assert_eq!(run_f32(&[ones.clone(), ones], |_, p| p[0].dot(p[1], &dims, DType::F32)), [4096.0]);
}

#[test]
fn reductions() {
    property(10, (1_i64..4, 1_i64..5, 1_i64..6, 0_usize..3), |(a, b, c, axis)| {
        let x = noise((a * b * c) as usize);
        let input = [f32s(&[a, b, c], &x)];
        let sum = run_f32(&input, |_, p| p[0].reduce_sum(&[axis as i64]));
        let expected: Vec<f32> = array(&[a, b, c], &x).sum_axis(Axis(axis)).iter().copied().collect();
        assert_close(&sum, &expected, 1e-5);
        let max = run_f32(&input, |_, p| p[0].reduce_max(&[axis as i64]));
        let folded = array(&[a, b, c], &x).fold_axis(Axis(axis), f32::NEG_INFINITY, |m, v| m.max(*v));
        prop_assert_eq!(max, folded.iter().copied().collect::<Vec<_>>());
        Ok(())
    });
    let product = run_f32(&[f32s(&[4], &[1.0, 2.0, 3.0, 4.0])], |g, p| {
        p[0].reduce(g.scalar(DType::F32, 1.0), &[0], "product", |a, b| a * b).reshape(&[1])
    });
    assert_eq!(product, [24.0]);
}

#[test]
fn argmax_takes_the_first_of_equals() {
    let x = [1.0, 5.0, 5.0, 2.0, -1.0, -1.0, -3.0, -1.0];
    assert_eq!(run_s32(&[f32s(&[2, 4], &x)], |_, p| p[0].argmax()), [1, 0]);
    let large: Vec<f32> = (0..5000).map(|i| if i == 4321 || i == 4987 { 7.0 } else { (i % 7) as f32 }).collect();
    assert_eq!(run_s32(&[f32s(&[1, 5000], &large)], |_, p| p[0].argmax()), [4321]);
}

#[test]
fn sort_and_top_k() {
    let x = noise(30);
    let out = run_graph(&[f32s(&[2, 15], &x)], |_, p| p[0].top_k(4).to_vec());
    let (values, indices) = (numbers::<f32>(&out[0]), numbers::<i32>(&out[1]));
    for row in 0..2 {
        let mut order: Vec<usize> = (0..15).collect();
        order.sort_by(|&a, &b| x[row * 15 + b].total_cmp(&x[row * 15 + a]));
        for i in 0..4 {
            assert_eq!(indices[row * 4 + i] as usize, order[i]);
            assert_eq!(values[row * 4 + i], x[row * 15 + order[i]]);
        }
    }
    let sorted =
        run_s32(&[s32s(&[5], &[3, 1, 2, 1, 0])], |_, p| Op::sort(&[p[0]], 0, "smaller", |a, b| a[0].lt(b[0]))[0]);
    assert_eq!(sorted, [0, 1, 1, 2, 3]);
}

#[test]
fn while_loops_and_conditionals() {
    // Fibonacci by a loop of two values; and the sum of the numbers of turns.
    let found = run_s32(&[s32s(&[], &[100])], |g, p| {
        let (zero, one) = (g.scalar(DType::S32, 0.0), g.scalar(DType::S32, 1.0));
        let state = g.repeat(10, &[zero, one, p[0]], |index, [a, b, sum]| [b, a + b, sum + index]);
        Op::concatenate(&[state[0].reshape(&[1]), state[2].reshape(&[1])], 0)
    });
    assert_eq!(found, [55, 145]);
    for (index, expected) in [(0, 11.0), (1, 20.0), (7, 20.0), (-1, 20.0)] {
        let found = run_f32(&[s32s(&[], &[index]), f32s(&[1], &[10.0])], |g, p| {
            let shape = [("x", Shape::new(DType::F32, [1]))];
            let plus = g.computation("plus", &shape, |_, p| vec![p[0] + 1.0]);
            let twice = g.computation("twice", &shape, |_, p| vec![p[0] * 2.0]);
            let arguments = [p[1]];
            g.conditional(p[0], &[(&plus, &arguments), (&twice, &arguments)])[0]
        });
        assert_eq!(found, [expected], "branch {index}");
    }
    let called = run_graph(&[f32s(&[2], &[1.0, 2.0])], |g, p| {
        let both = g.computation("both", &[("x", p[0].shape())], |_, p| vec![p[0] + 1.0, p[0] * 3.0]);
        g.call(&both, &[p[0]])
    });
    assert_eq!(numbers::<f32>(&called[0]), [2.0, 3.0]);
    assert_eq!(numbers::<f32>(&called[1]), [3.0, 6.0]);
}

#[test]
fn barriers_and_tuples_pass_values_through() {
    let out = run_graph(&[f32s(&[1], &[1.5]), s32s(&[1], &[4])], |g, p| {
        let through = Op::optimization_barrier(&[p[0], p[1]]);
        let tuple = g.tuple(&[through[1], through[0]]);
        vec![tuple.element(1), tuple.element(0)]
    });
    assert_eq!(numbers::<f32>(&out[0]), [1.5]);
    assert_eq!(numbers::<i32>(&out[1]), [4]);
}

/// One module on four devices, with device `d` holding `10 d + [0, 1, 2, 3]`.
fn on_four(build: impl for<'g> Fn(&'g Graph, Op<'g>) -> Op<'g>) -> Vec<Vec<f32>> {
    let _alone = several_devices();
    let graph = Graph::new("collective");
    let x = graph.parameter("x", Shape::new(DType::F32, [4]));
    let out = build(&graph, x);
    let module = graph.finish(&[out]).unwrap();
    let inputs: Vec<Vec<Literal>> =
        (0..4).map(|d| vec![f32s(&[4], &[0.0, 1.0, 2.0, 3.0].map(|x: f32| x + 10.0 * d as f32))]).collect();
    run_on_devices(&module, &inputs).iter().map(|outputs| numbers(&outputs[0])).collect()
}

#[test]
fn collectives() {
    let pairs = Mesh { data: 2, model: 2 };
    let all = Mesh { data: 1, model: 4 };
    assert_eq!(on_four(|_, x| all.sum(x)), vec![vec![60.0, 64.0, 68.0, 72.0]; 4]);
    let by_pair = on_four(|_, x| pairs.max(x));
    assert_eq!(by_pair[0], [10.0, 11.0, 12.0, 13.0]);
    assert_eq!(by_pair[3], [30.0, 31.0, 32.0, 33.0]);
    assert_eq!(on_four(|_, x| pairs.min(x))[3], [20.0, 21.0, 22.0, 23.0]);
    let gathered = on_four(|_, x| pairs.gather(x.slice(&[0], &[2]), 0));
    assert_eq!(gathered[2], [20.0, 21.0, 30.0, 31.0]);
    let scattered = on_four(|_, x| x.reduce_scatter_sum(0, &all.model_groups()));
    assert_eq!(scattered, [[60.0], [64.0], [68.0], [72.0]]);
    let permuted = on_four(|_, x| x.collective_permute(&[(0, 1), (1, 2), (2, 0)]));
    assert_eq!(permuted[1], [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(permuted[3], [0.0; 4]);
    let ranks =
        on_four(|g, x| x * 0.0 + pairs.model_rank(g).convert(DType::F32) + g.replica_id().convert(DType::F32) * 10.0);
    assert_eq!(ranks.iter().map(|r| r[0]).collect::<Vec<_>>(), [0.0, 11.0, 20.0, 31.0]);
}

#[test]
fn mistakes_name_the_op_the_operands_and_the_line() {
    fn error(build: impl for<'g> FnOnce(&'g Graph, Op<'g>) -> Op<'g>) -> String {
        let graph = Graph::new("wrong");
        let x = graph.parameter("x", Shape::new(DType::F32, [2, 3]));
        let out = build(&graph, x);
        graph.finish(&[out]).unwrap_err().to_string()
    }
    let line = line!() + 1;
    let text = error(|g, x| x + g.full(&Shape::new(DType::F32, [4]), 0.0));
    assert!(text.contains("add") && text.contains("f32[2,3]{1,0}, f32[4]{0}"), "{text}");
    assert!(text.contains(&format!("{}:{line}", file!())), "{text}");

    let dot = DotDims { lhs_contract: vec![1], rhs_contract: vec![0], ..DotDims::default() };
    type Wrong = (&'static str, for<'g> fn(&'g Graph, Op<'g>) -> Op<'g>);
    let wrong: [Wrong; 15] = [
        ("reshape", |_, x| x.reshape(&[5])),
        ("transpose", |_, x| x.transpose(&[0, 0])),
        ("slice", |_, x| x.slice(&[0, 0], &[3, 3])),
        ("slice", |_, x| x.slice_in_dim(4, 0, 1)),
        ("multiply", |g, x| x * g.full(&Shape::new(DType::S32, [2, 3]), 0.0)),
        ("and", |_, x| x.and(x)),
        ("exponential", |g, _| g.full(&Shape::new(DType::S32, [1]), 0.0).exp()),
        ("bitcast-convert", |_, x| x.bitcast_convert(DType::BF16)),
        ("broadcast", |_, x| x.broadcast_to(&[2, 4])),
        ("reduce", |_, x| x.reduce_sum(&[2])),
        ("iota", |g, _| g.iota(Shape::new(DType::S32, [2]), 1)),
        ("dynamic-slice", |_, x| x.dynamic_slice(&[x, x], &[1, 1])),
        ("concatenate", |g, x| Op::concatenate(&[x, g.full(&Shape::new(DType::F32, [3, 4]), 0.0)], 0)),
        ("all-reduce", |_, x| x.all_reduce_sum(&[vec![0, 1], vec![1, 2]])),
        ("dim", |_, x| x * x.dim(2) as f64),
    ];
    for (op, build) in wrong {
        let text = error(build);
        assert!(text.starts_with(op), "expected a mistake of {op}: {text}");
    }
    let text = error(|_, x| x.dot(x, &dot, DType::F32));
    assert!(text.starts_with("dot"), "{text}");
}

#[test]
fn an_op_of_another_computation_is_refused() {
    let graph = Graph::new("outer");
    let x = graph.parameter("x", Shape::scalar(DType::F32));
    let other = Graph::new("other");
    let y = other.parameter("y", Shape::scalar(DType::F32));
    let sum = x + y;
    assert!(graph.finish(&[sum]).unwrap_err().to_string().contains("another computation"));
}
