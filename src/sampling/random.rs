//! Counter-based random bits: Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", SC 2011), the generator that JAX uses by default.

use crate::hlo::{DType, Op};

const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
const PARITY: u32 = 0x1BD1_1BDA;

/// Two words of random bits for each pair of key and counter, all u32 and broadcast together.
pub fn threefry2x32<'g>(key: [Op<'g>; 2], counter: [Op<'g>; 2]) -> [Op<'g>; 2] {
    let graph = key[0].graph();
    let constant = |value: u32| graph.scalar(DType::U32, f64::from(value));
    let rotate = |x: Op<'g>, by: u32| {
        x.shift_left(constant(by)).or(x.shift_right_logical(constant(32 - by))) // rotate left
    };
    let keys = [key[0], key[1], key[0].xor(key[1]).xor(constant(PARITY))];
    let mut x = [counter[0] + keys[0], counter[1] + keys[1]];
    for round in 0..5 {
        for &rotation in &ROTATIONS[round % 2] {
            x[0] = x[0] + x[1];
            x[1] = rotate(x[1], rotation).xor(x[0]);
        }
        x[0] = x[0] + keys[(round + 1) % 3];
        x[1] = x[1] + keys[(round + 2) % 3] + constant(round as u32 + 1);
    }
    x
}

/// Standard Gumbel noise `f32[rows, tokens]`, a function of each row's seed (`u32[rows, 2]`), its
/// position (`s32[rows]`) and the token's id (`s32[rows, tokens]`) alone: the same request draws
/// the same noise in any batch, slot or mesh.
pub fn gumbel<'g>(seed: Op<'g>, positions: Op<'g>, ids: Op<'g>) -> Op<'g> {
    let rows = seed.dim(0);
    let position = positions.bitcast_convert(DType::U32).reshape(&[rows, 1]);
    let counter = [position.broadcast_to(&ids.shape().dims), ids.bitcast_convert(DType::U32)];
    let key = [seed.slice_in_dim(1, 0, 1), seed.slice_in_dim(1, 1, 2)];
    let [bits, _] = threefry2x32(key, counter);
    // 23 random bits and a half: strictly between 0 and 1, so that both logarithms are finite.
    let graph = seed.graph();
    let uniform = bits.shift_right_logical(graph.scalar(DType::U32, 9.0)).convert(DType::F32);
    let uniform = (uniform + 0.5) * f64::from(1.0 / 8_388_608.0_f32);
    -(-uniform.log()).log()
}
