//! int8 codes to int8 codes, and what training sees of them.

use super::{Encoding, MAGIC, Steps};
use crate::buffer::Rectangle;

/// What codes stand for: `scale · (q − zero)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoding {
    pub scale: f32,
    pub zero: i32,
}

/// Both sides of an addition, their scales in steps of the sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addition {
    pub a: Decoding,
    pub b: Decoding,
}

impl Decoding {
    /// The product is rounded once: subtraction and conversion are exact.
    #[inline(always)]
    pub(super) fn value(self, q: i8) -> f32 {
        self.steps(q) * self.scale
    }

    #[inline(always)]
    fn steps(self, q: i8) -> f32 {
        (i32::from(q) - self.zero) as f32
    }
}

/// `out[r][c] = table[x[r][c] as u8]`, as many rows as `out` has.
#[inline(always)]
pub(super) fn lookup(x: &[i8], table: &[u8; 256], mut out: Rectangle<u8>) {
    for (r, x) in x.chunks_exact(out.cols().max(1)).enumerate() {
        out.row(r).iter_mut().zip(x).for_each(|(u, q)| *u = table[usize::from(*q as u8)]);
    }
}

/// `b.scale · (q_b − b.zero)`, added by a fused multiply-add to `a.scale · (q_a − a.zero)`.
#[inline(always)]
pub(super) fn add_codes(a: &[i8], b: &[i8], rule: Addition, steps: Steps, out: &mut [u8]) {
    let (n, coder) = (out.len(), steps.coder());
    let (a, b) = (&a[..n], &b[..n]);
    for i in 0..n {
        out[i] = coder.code(rule.b.steps(b[i]).mul_add(rule.b.scale, rule.a.value(a[i])));
    }
}

/// `value · mul + add`, fused.
#[inline(always)]
pub(super) fn affine(x: &[i8], d: Decoding, mul: f32, add: f32, out: &mut [f32]) {
    x.iter().zip(out).for_each(|(q, v)| *v = d.value(*q).mul_add(mul, add));
}

/// The same with a factor and an addend for each column of the rows.
#[inline(always)]
pub(super) fn affine_columns(x: &[i8], d: Decoding, mul: &[f32], add: &[f32], out: &mut [f32]) {
    let n = mul.len();
    let add = &add[..n];
    for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        for c in 0..n {
            out[c] = d.value(x[c]).mul_add(mul[c], add[c]);
        }
    }
}

#[inline(always)]
pub(super) fn clamp(x: &mut [f32], lo: f32, hi: f32) {
    for v in x {
        let held = if *v < lo { lo } else { *v };
        *v = if held > hi { hi } else { held };
    }
}

/// [`encode`](super::encode::encode) and its inverse in one; NaN stays NaN.
#[inline(always)]
pub(super) fn fake_quantize(x: &[f32], e: Encoding, out: &mut [f32]) {
    for (x, out) in x.iter().zip(out) {
        let v = x / e.scale;
        let v = if v > e.lo { v } else { e.lo };
        let v = if v < e.hi { v } else { e.hi };
        *out = if x.is_nan() { f32::NAN } else { ((v + MAGIC) - MAGIC) * e.scale };
    }
}

/// 1 where rounding alone gives the code, 0 where it takes clipping.
#[inline(always)]
pub(super) fn inside(x: &[f32], e: Encoding, out: &mut [u8]) {
    for (x, out) in x.iter().zip(out) {
        let v = x / e.scale;
        // beyond a code more than there is, rounding changes nothing
        let v = if v > e.lo - 2.0 { v } else { e.lo - 2.0 };
        let v = if v < e.hi + 2.0 { v } else { e.hi + 2.0 };
        let v = (v + MAGIC) - MAGIC;
        *out = u8::from(v >= e.lo) & u8::from(v <= e.hi) & u8::from(!x.is_nan());
    }
}
