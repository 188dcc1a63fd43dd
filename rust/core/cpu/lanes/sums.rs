//! What turns sums into outputs.

use super::{MAGIC, PanelZeros};
use crate::buffer::Rectangle;

#[inline(always)]
pub(super) fn sum(a: &[i8]) -> i32 {
    a.iter().fold(0, |s, &v| s + i32::from(v))
}

/// One group of the integer epilogue: `f += scale · (Σ a·u − Z·Σa)`, exact up to the conversion to float.
#[inline(always)]
pub(super) fn add_group(acc: &[i32], sum: i32, zeros: PanelZeros, scales: &[f32], f: &mut [f32]) {
    let n = f.len();
    let (acc, scales) = (&acc[..n], &scales[..n]);
    match zeros {
        PanelZeros::Offset(offset) => {
            let shared = offset.wrapping_mul(sum);
            for c in 0..n {
                f[c] = (acc[c].wrapping_sub(shared) as f32).mul_add(scales[c], f[c]);
            }
        }
        PanelZeros::Stored(z) => {
            let z = &z[..n];
            for c in 0..n {
                let v = acc[c].wrapping_sub(i32::from(z[c]).wrapping_mul(sum));
                f[c] = (v as f32).mul_add(scales[c], f[c]);
            }
        }
        PanelZeros::Fraction(z, offset) => {
            let z = &z[..n];
            for c in 0..n {
                // the whole part of Z (within the codes' range, so that int32 holds the sum) is subtracted exactly
                let whole = z[c].max(-offset as f32).min((offset - 1) as f32) + MAGIC;
                let stored = (whole.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32).wrapping_add(offset);
                let v = acc[c].wrapping_sub(stored.wrapping_mul(sum)) as f32;
                let v = (whole - MAGIC - z[c]).mul_add(sum as f32, v);
                f[c] = v.mul_add(scales[c], f[c]);
            }
        }
    }
}

/// `out[r][c] = factors[r] · f[r][c] + bias[c]`, with the rows of `f` `cols` apart; as wide as `out`.
#[inline(always)]
pub(super) fn finish(f: &[f32], cols: usize, factors: &[f32], bias: Option<&[f32]>, mut out: Rectangle<f32>) {
    for (r, (f, factor)) in f.chunks_exact(cols).zip(factors).enumerate() {
        let out = out.row(r);
        let f = &f[..out.len()];
        match bias {
            None => out.iter_mut().zip(f).for_each(|(o, v)| *o = v * factor),
            Some(bias) => {
                let bias = &bias[..out.len()];
                for c in 0..out.len() {
                    out[c] = f[c].mul_add(*factor, bias[c]);
                }
            }
        }
    }
}

/// Kahan's compensated `total += f`, and `f = 0`.
#[inline(always)]
pub(super) fn fold(f: &mut [f32], total: &mut [f32], carry: &mut [f32]) {
    for ((f, total), carry) in f.iter_mut().zip(total).zip(carry) {
        let y = *f - *carry;
        let sum = *total + y;
        *carry = (sum - *total) - y;
        *total = sum;
        *f = 0.0;
    }
}

/// `f += acc`, a stretch of the float path.
#[inline(always)]
pub(super) fn add(acc: &[f32], f: &mut [f32]) {
    f.iter_mut().zip(acc).for_each(|(f, a)| *f += a);
}
