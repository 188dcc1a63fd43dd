//! What the searches for a group's range and zero point repeat.

use super::{Levels, MAGIC, Proximal, TRIED};

/// `Σ (x − dequantized)²` for each of the ranges; NaN where the scale leaves float16's normal range but should not.
/// Scales and zero points are those of `quantize::qparams`, codes those of [`encode`] but for ties.
#[inline(always)]
pub(super) fn range_errors(x: &[f32], lo: &[f32; TRIED], hi: &[f32; TRIED], levels: Levels, errors: &mut [f64; TRIED]) {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: MAGIC of float64
    let (qmin, qmax) = (f64::from(levels.qmin), f64::from(levels.qmax));
    for first in (0..TRIED).step_by(16) {
        let mut scale = [0f32; 16];
        let (mut inverse, mut low, mut high) = ([0f32; 16], [0f32; 16], [0f32; 16]);
        for i in 0..16 {
            let (lo, hi) = (f64::from(lo[first + i]), f64::from(hi[first + i]));
            let most = if -lo > hi { -lo } else { hi };
            let s = if levels.symmetric { most / qmax } else { (hi - lo) / (qmax - qmin) };
            let s = s.max(f64::from(f32::MIN_POSITIVE)).min(f64::from(f32::MAX)) as f32;
            let s = if most == 0.0 { 1.0 } else { s };
            let bits = s.to_bits();
            let half = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff);
            let is_half = (6.103_515_6e-5..=65504.0).contains(&half);
            scale[i] = if !levels.half { s } else { if is_half { half } else { f32::NAN } };
            let z = (qmin - lo / f64::from(scale[i]) + ROUND) - ROUND;
            let z = if z < qmax { z } else { qmax };
            let z = if levels.symmetric { 0.0 } else { z };
            inverse[i] = 1.0 / scale[i];
            low[i] = (qmin - z) as f32 + if levels.symmetric { 1.0 } else { 0.0 };
            high[i] = (qmax - z) as f32;
        }
        let mut total = [0f64; 16];
        for x in x.chunks(256) {
            let mut sums = [0f32; 16];
            for &x in x {
                for i in 0..16 {
                    let v = x * inverse[i];
                    let v = if v > low[i] { v } else { low[i] };
                    let v = if v < high[i] { v } else { high[i] };
                    // in steps, whose square float32 holds however small the scale
                    let d = (x - ((v + MAGIC) - MAGIC) * scale[i]) * inverse[i];
                    sums[i] += d * d;
                }
            }
            (0..16).for_each(|i| total[i] += f64::from(sums[i]));
        }
        for i in 0..16 {
            errors[first + i] = total[i] * f64::from(scale[i]) * f64::from(scale[i]);
        }
    }
}

/// `a^p` for a normal a, 0 < p <= 1, to a few 1e-7: 2^(p log2 a), the logarithm by its atanh series.
#[inline(always)]
#[allow(clippy::excessive_precision, clippy::approx_constant)] // coefficients of series
pub(super) fn power(a: f32, p: f32) -> f32 {
    const ROOT: u32 = 0x3f35_04f3; // 1/sqrt(2): mantissas become [1/sqrt(2), sqrt(2))
    let bits = a.to_bits();
    let exponent = (bits.wrapping_sub(ROOT) as i32) >> 23;
    let mantissa = f32::from_bits(bits.wrapping_sub((exponent << 23) as u32));
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let t2 = t * t;
    let series = 2.885_390_1 + t2 * (0.961_796_7 + t2 * (0.577_078_04 + t2 * 0.412_198_6));
    let y = p * (exponent as f32 + t * series);
    let whole = y + MAGIC;
    let r = y - (whole - MAGIC);
    let series = 0.009_618_13 + r * (0.001_333_355_8 + r * 0.000_154_035_3);
    let series = 1.0 + r * (0.693_147_2 + r * (0.240_226_51 + r * (0.055_504_11 + r * series)));
    // 2^whole by the exponent's bits
    f32::from_bits(series.to_bits().wrapping_add(whole.to_bits() << 23))
}

/// For a zero point: `Σ |e|^p` of the errors of `steps` (weights by their scale), and the next zero point, the mean of
/// `q - (steps - E)` with E the proximal operator at the error.
#[inline(always)]
pub(super) fn proximal(steps: &[f32], zero: f32, rule: Proximal) -> (f32, f32) {
    let shrink = 1.0 / rule.beta;
    let one = |v: f32| {
        let u = v + zero;
        let u = if u > rule.qmin { u } else { rule.qmin };
        let u = if u < rule.qmax { u } else { rule.qmax };
        let q = (u + MAGIC) - MAGIC;
        let e = v - (q - zero);
        let size = if e.abs() > 1e-12 { e.abs() } else { 1e-12 };
        let power = power(size, rule.norm);
        let left = size - power / size * shrink;
        let sparse = if left > 0.0 { left.copysign(e) } else { 0.0 };
        (power, q - (v - sparse))
    };
    let (mut loss, mut sum) = (0f64, 0f64);
    for steps in steps.chunks(4096) {
        let (mut losses, mut sums) = ([0f32; 16], [0f32; 16]);
        let (chunks, rest) = steps.as_chunks::<16>();
        for chunk in chunks {
            for i in 0..16 {
                let (l, s) = one(chunk[i]);
                losses[i] += l;
                sums[i] += s;
            }
        }
        for (i, v) in rest.iter().enumerate() {
            let (l, s) = one(*v);
            losses[i] += l;
            sums[i] += s;
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                losses[i] += losses[i + half];
                sums[i] += sums[i + half];
            }
        }
        loss += f64::from(losses[0]);
        sum += f64::from(sums[0]);
    }
    (loss as f32, (sum / steps.len() as f64) as f32)
}
