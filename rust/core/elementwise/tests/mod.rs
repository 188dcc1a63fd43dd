//! Each function against its definition, element by element: `==` on every instruction set, alone and on a pool.

mod codes;
mod fake;
mod norm;
mod pool;

use super::{Clamp, PerTensor};
use crate::cpu::forced::each_isa;
use crate::executor::{Executor, Pool, Serial};

/// Codes of which many lie at the ends.
fn codes(len: usize, seed: u64) -> Vec<i8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|i| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match i % 7 {
                0 => -127,
                1 => 127,
                _ => (state >> 32) as i8,
            }
        })
        .collect()
}

fn floats(len: usize, seed: u64) -> Vec<f32> {
    codes(len, seed)
        .iter()
        .zip(codes(len, seed + 5))
        .map(|(a, b)| f32::from(*a) * 0.05 + f32::from(b) / 3000.0)
        .collect()
}

const fn params(scale: f32, zero: i8) -> PerTensor {
    PerTensor { scale, zero }
}

fn value(q: i8, p: PerTensor) -> f32 {
    (i32::from(q) - i32::from(p.zero)) as f32 * p.scale
}

/// The definition: clamp, divide, round half to even, add the zero point, clip.
fn encoded(v: f32, clamp: Clamp, p: PerTensor) -> i8 {
    let v = v.max(clamp.0).min(clamp.1);
    ((v / p.scale).round_ties_even() + f32::from(p.zero)).clamp(-127.0, 127.0) as i8
}

/// The definition where values are in steps of the output already.
fn rounded(v: f32, clamp: Clamp, p: PerTensor) -> i8 {
    let (lo, hi) = (encoded(clamp.0, clamp, p), encoded(clamp.1, clamp, p));
    // `max` of NaN and a number is the number
    (v.round_ties_even() + f32::from(p.zero)).max(lo.into()).min(hi.into()) as i8
}

/// A scale in steps of another one.
fn over(p: PerTensor, out: PerTensor) -> PerTensor {
    params(p.scale / out.scale, p.zero)
}

/// `run` on one thread and on three, at each instruction set.
fn everywhere(mut run: impl FnMut(&dyn Executor, &str)) {
    let pool = Pool::new(3).unwrap();
    each_isa(|isa| {
        run(&Serial, isa.name);
        run(&pool, isa.name);
    });
}

const CLAMPS: [Clamp; 3] = [super::UNCLAMPED, (0.0, f32::INFINITY), (0.0, 6.0)];
const LENGTHS: [usize; 7] = [0, 1, 15, 64, 65, 1003, 40_000];
