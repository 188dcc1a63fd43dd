//! What follows a statically quantized product: bias, an addend, a clamp, and the next layer's codes.

use super::{Encoding, MAGIC};

/// How sums become values: `v = clamp(addend + (f · factor + bias))`.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    pub factor: f32,
    pub bias: Option<&'a [f32]>,
    /// int8 codes, their scale and zero point.
    pub addend: Option<(&'a [i8], f32, i32)>,
    pub lo: f32,
    pub hi: f32,
}

/// `use_value(i, v)` for each element: a macro, so that each combination of bias and addend is a loop of its own.
macro_rules! each_value {
    ($f:ident, $finish:ident, $n:expr, |$i:ident, $v:ident| $body:expr) => {{
        let (n, factor, lo, hi) = ($n, $finish.factor, $finish.lo, $finish.hi);
        let f = &$f[..n];
        macro_rules! run {
            (|$at:ident, $before:ident| $value:expr) => {
                for $at in 0..n {
                    let $before = f[$at];
                    let v = $value;
                    let v = if v > lo { v } else { lo };
                    let ($i, $v) = ($at, if v < hi { v } else { hi });
                    $body;
                }
            };
        }
        match ($finish.bias, $finish.addend) {
            (None, None) => run!(|i, v| v * factor),
            (Some(bias), None) => {
                let bias = &bias[..n];
                run!(|i, v| v.mul_add(factor, bias[i]))
            }
            (None, Some((q, scale, zero))) => {
                let q = &q[..n];
                run!(|i, v| ((i32::from(q[i]) - zero) as f32).mul_add(scale, v * factor))
            }
            (Some(bias), Some((q, scale, zero))) => {
                let (q, bias) = (&q[..n], &bias[..n]);
                run!(|i, v| ((i32::from(q[i]) - zero) as f32).mul_add(scale, v.mul_add(factor, bias[i])))
            }
        }
    }};
}

/// Sums to float values.
#[inline(always)]
pub(super) fn values(f: &[f32], finish: Finish, out: &mut [f32]) {
    each_value!(f, finish, out.len(), |i, v| out[i] = v);
}

/// Sums to int8 codes.
#[inline(always)]
pub(super) fn requantize(f: &[f32], finish: Finish, e: Encoding, out: &mut [u8]) {
    each_value!(f, finish, out.len(), |i, v| {
        let v = v / e.scale;
        let v = if v > e.lo { v } else { e.lo };
        let v = if v < e.hi { v } else { e.hi };
        out[i] = ((v + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32).wrapping_add(e.base) as u8;
    });
}

/// `out = scale · (q − zero)`.
#[inline(always)]
pub(super) fn dequantize(q: &[i8], scale: f32, zero: i32, out: &mut [f32]) {
    q.iter().zip(out).for_each(|(q, x)| *x = (i32::from(*q) - zero) as f32 * scale);
}
