//! What follows a statically quantized product: bias, an addend, a clamp, and the next layer's codes.

use super::MAGIC;
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

/// How sums become values in steps of the output: `v = addend + (f · (multipliers · factor) + bias)`.
#[derive(Clone, Copy)]
pub(crate) struct Folded<'a> {
    pub multipliers: &'a [f32],
    pub factor: f32,
    pub bias: &'a [f32],
    /// int8 codes, the output's steps in one of theirs, and their zero point.
    pub addend: Option<(&'a [i8], f32, i32)>,
}

/// How values in steps become codes: `clip(round(v) + zero, lo, hi)`; NaN is `lo`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    pub zero: i32,
    /// In `[-127, 127]`, as `hi`.
    pub lo: i32,
    pub hi: i32,
}

/// The same with the clip before the rounding: its ends are whole.
#[derive(Clone, Copy)]
pub(super) struct StepCoder {
    lo: f32,
    hi: f32,
    base: i32,
}

impl Steps {
    #[inline(always)]
    pub(super) fn coder(self) -> StepCoder {
        let Self { zero, lo, hi } = self;
        StepCoder { lo: (lo - zero) as f32, hi: (hi - zero) as f32, base: zero.wrapping_sub(MAGIC.to_bits() as i32) }
    }
}

impl StepCoder {
    #[inline(always)]
    pub(super) fn code(self, v: f32) -> u8 {
        let v = if v > self.lo { v } else { self.lo };
        let v = if v < self.hi { v } else { self.hi };
        ((v + MAGIC).to_bits() as i32).wrapping_add(self.base) as u8
    }
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

/// Sums to float values.
#[inline(always)]
pub(super) fn values(f: &[f32], finish: Finish, out: &mut [f32]) {
    let Finish { factor, lo, hi, .. } = finish;
    match finish.bias {
        None => f.iter().zip(&mut *out).for_each(|(f, v)| *v = f * factor),
        Some(bias) => f.iter().zip(bias).zip(&mut *out).for_each(|((f, b), v)| *v = f.mul_add(factor, *b)),
    }
    if let Some((q, scale, zero)) = finish.addend {
        q.iter().zip(&mut *out).for_each(|(q, v)| *v = ((i32::from(*q) - zero) as f32).mul_add(scale, *v));
    }
    for v in out {
        let held = if *v > lo { *v } else { lo };
        *v = if held < hi { held } else { hi };
    }
}

/// Sums to int8 codes.
#[inline(always)]
pub(super) fn requantize(f: &[f32], folded: Folded, steps: Steps, out: &mut [u8]) {
    let (n, factor, coder) = (out.len(), folded.factor, steps.coder());
    let (f, multipliers, bias) = (&f[..n], &folded.multipliers[..n], &folded.bias[..n]);
    match folded.addend {
        None => {
            for i in 0..n {
                out[i] = coder.code(f[i].mul_add(multipliers[i] * factor, bias[i]));
            }
        }
        Some((q, scale, zero)) => {
            let q = &q[..n];
            for i in 0..n {
                let v = f[i].mul_add(multipliers[i] * factor, bias[i]);
                out[i] = coder.code(((i32::from(q[i]) - zero) as f32).mul_add(scale, v));
            }
        }
    }
}

/// How a tile's exact sums become outputs: floats as [`Finish`] says, of `f = acc · scale`, or codes as [`Folded`] does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile<'a> {
    pub cols: usize,
    /// The columns that are outputs.
    pub first: usize,
    pub used: usize,
    /// `[cols]`; of codes, their multipliers.
    pub scales: &'a [f32],
    /// `[cols]`.
    pub bias: &'a [f32],
    /// Of each row. Of codes there may be none: 1.
    pub factors: &'a [f32],
    /// int8 codes of the whole output, their scale (of codes: in the output's steps) and zero point.
    pub addend: Option<(&'a [i8], f32, i32)>,
    /// Where in the output each row begins, and how far after that its first column that is an output.
    pub at: &'a [usize],
    pub skip: usize,
}

/// Each strip of 16 columns of each row to its place: `$value` of a lane's sum, scale, factor and bias, and `$out` of what
/// that is with the addend.
macro_rules! each_strip {
    (
        $acc:ident, $t:ident, $out:ident, $kind:ty,
        |$sum:ident, $scale:ident, $factor:ident, $bias:ident| $value:expr, |$v:ident| $encoded:expr
    ) => {{
        let Tile { cols, first, used, .. } = $t;
        let columns = $t.scales.as_chunks::<16>().0.iter().zip($t.bias.as_chunks::<16>().0);
        for (j, (scales, biases)) in columns.enumerate().take(cols / 16) {
            // the strip's columns that are outputs, counted from its first, and where they lie in a row of the output
            let (from, to) = (first.saturating_sub(j * 16), (first + used).saturating_sub(j * 16).min(16));
            if from >= to {
                continue;
            }
            let (whole, place) = (to - from == 16, (j * 16 + from) - first);
            for r in 0..$t.at.len() {
                let acc: &[i32; 16] = &$acc[r * cols + j * 16..].as_chunks().0[0];
                let $factor = $t.factors.get(r).copied().unwrap_or(1.0);
                let mut lane = [0f32; 16];
                for i in 0..16 {
                    let ($sum, $scale, $bias) = (acc[i] as f32, scales[i], biases[i]);
                    lane[i] = $value;
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
                    values[i] = $encoded;
                }
                let out = &mut $out.row(r)[place..][..to - from];
                if whole { out[..16].copy_from_slice(&values) } else { out.copy_from_slice(&values[from..to]) }
            }
        }
    }};
}

/// A tile's sums to float values, clamped.
#[inline(always)]
pub(super) fn tile_values(acc: &[i32], t: Tile, (lo, hi): (f32, f32), mut out: Rows<f32>) {
    each_strip!(acc, t, out, f32, |sum, scale, factor, bias| (sum * scale).mul_add(factor, bias), |v| {
        let v = if v > lo { v } else { lo };
        if v < hi { v } else { hi }
    });
}

/// A tile's sums to int8 codes.
#[inline(always)]
pub(super) fn tile_codes(acc: &[i32], t: Tile, steps: Steps, mut out: Rows<u8>) {
    let coder = steps.coder();
    each_strip!(acc, t, out, u8, |sum, scale, factor, bias| sum.mul_add(scale * factor, bias), |v| coder.code(v));
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
