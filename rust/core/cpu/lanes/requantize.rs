//! What follows a statically quantized product: bias, an addend, a clamp, and the next layer's codes.

use super::{Encoding, MAGIC};
use crate::buffer::Rows;

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

/// The same in integers alone: `clamp(round((acc + bias) · multiplier / 2^shift) + zero)`.
#[derive(Clone, Copy)]
pub(crate) struct Fixed<'a> {
    pub bias: Option<&'a [i32]>,
    pub multiplier: &'a [i32],
    /// Each 1..=62.
    pub shift: &'a [i32],
    pub zero: i32,
    pub lo: i32,
    pub hi: i32,
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

/// How a tile's exact sums become outputs: `f = acc · scale`, and then as [`Finish`] says.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub cols: usize,
    /// The columns that are outputs.
    pub first: usize,
    pub used: usize,
    /// `[cols]`.
    pub scales: &'a [f32],
    /// `[cols]`.
    pub bias: &'a [f32],
    /// Of each row.
    pub factors: &'a [f32],
    /// int8 codes of the whole output, their scale and zero point.
    pub addend: Option<(&'a [i8], f32, i32)>,
    /// Where in the output each row begins, and how far after that its first column that is an output.
    pub at: &'a [usize],
    pub skip: usize,
    pub lo: f32,
    pub hi: f32,
}

/// Each strip of 16 columns of each row through `$value`, a function of the float value, to its place.
macro_rules! each_strip {
    ($acc:ident, $t:ident, $out:ident, $kind:ty, |$v:ident| $value:expr) => {{
        let Tile { cols, first, used, factors, .. } = $t;
        let columns = $t.scales.as_chunks::<16>().0.iter().zip($t.bias.as_chunks::<16>().0);
        for (j, (scale, bias)) in columns.enumerate().take(cols / 16) {
            // the strip's columns that are outputs, counted from its first, and where they lie in a row of the output
            let (from, to) = (first.saturating_sub(j * 16), (first + used).saturating_sub(j * 16).min(16));
            if from >= to {
                continue;
            }
            let (whole, place) = (to - from == 16, (j * 16 + from) - first);
            for (r, factor) in factors.iter().enumerate() {
                let acc: &[i32; 16] = &$acc[r * cols + j * 16..].as_chunks().0[0];
                let mut lane = [0f32; 16];
                for i in 0..16 {
                    lane[i] = (acc[i] as f32 * scale[i]).mul_add(*factor, bias[i]);
                }
                if let Some((q, addend_scale, zero)) = $t.addend {
                    let q = &q[$t.at[r] + $t.skip + place..][..to - from];
                    let mut codes = [0i8; 16];
                    if whole {
                        codes.copy_from_slice(&q[..16])
                    } else {
                        codes[from..to].copy_from_slice(q)
                    }
                    for i in 0..16 {
                        lane[i] = ((i32::from(codes[i]) - zero) as f32).mul_add(addend_scale, lane[i]);
                    }
                }
                let mut values = [<$kind>::default(); 16];
                for i in 0..16 {
                    let $v = lane[i];
                    values[i] = $value;
                }
                let out = &mut $out.row(r)[place..][..to - from];
                if whole { out[..16].copy_from_slice(&values) } else { out.copy_from_slice(&values[from..to]) }
            }
        }
    }};
}

/// A tile's sums to float values.
#[inline(always)]
pub(super) fn tile_values(acc: &[i32], t: Tile, mut out: Rows<f32>) {
    each_strip!(acc, t, out, f32, |v| {
        let v = if v > t.lo { v } else { t.lo };
        if v < t.hi { v } else { t.hi }
    });
}

/// A tile's sums to int8 codes.
///
/// v / scale is not a division here: with the reciprocal y, `q = v·y; q + (v − q·scale)·y` is the quotient rounded
/// correctly wherever it lies at most two units in the last place from n + 1/2, which is where a code could change. (Tried
/// for each of the 2^23 significands of a scale and each |n| up to 254; scales are within 2^±60, so nothing underflows.)
/// The codes' ends are clamped to before it, so that nothing overflows either.
#[inline(always)]
pub(super) fn tile_codes(acc: &[i32], t: Tile, e: Encoding, mut out: Rows<u8>) {
    let (least, most) = (e.lo * e.scale, e.hi * e.scale);
    let (lo, hi) = (t.lo.max(least).min(most), t.hi.min(most).max(least));
    let (inverse, base) = (1.0 / e.scale, e.base.wrapping_sub(MAGIC.to_bits() as i32));
    each_strip!(acc, t, out, u8, |v| {
        let v = if v > lo { v } else { lo };
        let v = if v < hi { v } else { hi };
        let q = v * inverse;
        let q = (-q).mul_add(e.scale, v).mul_add(inverse, q);
        ((q + MAGIC).to_bits() as i32).wrapping_add(base) as u8
    });
}

/// `acc[r][c] −= (zeros[c] − offset) · sums[r]`: stored zero points of the weights.
#[inline(always)]
pub(super) fn subtract_zeros(acc: &mut [i32], zeros: &[u8], offset: i32, sums: &[i32]) {
    for (acc, sum) in acc.chunks_exact_mut(zeros.len()).zip(sums) {
        acc.iter_mut().zip(zeros).for_each(|(a, z)| *a = a.wrapping_sub((i32::from(*z) - offset).wrapping_mul(*sum)));
    }
}

/// Sums to int8 codes in integers: the exact product, rounded once, half to even.
#[inline(always)]
pub(super) fn requantize_fixed(acc: &[i32], fixed: Fixed, out: &mut [u8]) {
    let n = out.len();
    let (acc, multiplier, shift) = (&acc[..n], &fixed.multiplier[..n], &fixed.shift[..n]);
    for i in 0..n {
        let sum = i64::from(acc[i]) + fixed.bias.map_or(0, |bias| i64::from(bias[i]));
        let sum = sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        let (product, shift) = (sum * i64::from(multiplier[i]), shift[i] as u32 & 63);
        let odd = product >> shift & 1;
        let rounded = (product + (1i64 << shift >> 1) - 1 + odd) >> shift;
        out[i] = (rounded + i64::from(fixed.zero)).clamp(i64::from(fixed.lo), i64::from(fixed.hi)) as u8;
    }
}

/// `out = scale · (q − zero)`.
#[inline(always)]
pub(super) fn dequantize(q: &[i8], scale: f32, zero: i32, out: &mut [f32]) {
    q.iter().zip(out).for_each(|(q, x)| *x = (i32::from(*q) - zero) as f32 * scale);
}
