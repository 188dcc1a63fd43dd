//! Floats to codes and back.

use super::{Encoding, INF_BITS, MAGIC};
use crate::qtype::QuantType;
use half::bf16;

#[inline(always)]
pub(super) fn absmax_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff))
}

/// The same a column: `most[i]` takes |x[i]| if that is larger.
#[inline(always)]
pub(super) fn absmax_columns(x: &[f32], most: &mut [u32]) {
    most.iter_mut().zip(x).for_each(|(most, v)| *most = (*most).max(v.to_bits() & 0x7fff_ffff));
}

#[inline(always)]
pub(super) fn min_max(x: &[f32]) -> (f32, f32) {
    let (mut lo, mut hi) = ([0f32; 16], [0f32; 16]); // ranges contain 0 anyway
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lo[i] = if chunk[i] < lo[i] { chunk[i] } else { lo[i] };
            hi[i] = if chunk[i] > hi[i] { chunk[i] } else { hi[i] };
        }
    }
    let least = lo.iter().chain(rest).fold(0f32, |m, &v| m.min(v));
    let most = hi.iter().chain(rest).fold(0f32, |m, &v| m.max(v));
    (least, most)
}

#[inline(always)]
pub(super) fn encode(x: &[f32], e: Encoding, out: &mut [u8]) {
    x.iter().zip(out).for_each(|(x, u)| *u = encode_one(*x, e));
}

#[inline(always)]
pub(super) fn encode_one(x: f32, e: Encoding) -> u8 {
    let v = x / e.scale + e.shift;
    let v = if v > e.lo { v } else { e.lo };
    let v = if v < e.hi { v } else { e.hi };
    ((v + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32).wrapping_add(e.base) as u8
}

#[inline(always)]
pub(super) fn decode(u: &[u8], qtype: QuantType, zero: f32, scale: f32, out: &mut [f32]) {
    match qtype {
        QuantType::E4M3 => u.iter().zip(out).for_each(|(u, x)| *x = from_float8::<3>(u32::from(*u)) * scale),
        QuantType::E5M2 => u.iter().zip(out).for_each(|(u, x)| *x = from_float8::<2>(u32::from(*u)) * scale),
        integer => {
            let offset = integer.offset();
            u.iter().zip(out).for_each(|(u, x)| *x = ((i32::from(*u) - offset) as f32 - zero) * scale);
        }
    }
}

/// The exponent's bias of a float8 with so many bits of mantissa: 7 of e4m3, 15 of e5m2.
pub(super) const fn bias(mantissa: u32) -> u32 {
    (1 << (6 - mantissa)) - 1
}

/// A finite float8 as float32. Subnormal codes are integers in steps; float32's own are never met.
#[inline(always)]
pub(super) fn from_float8<const MANTISSA: u32>(code: u32) -> f32 {
    let step = f32::from_bits((128 - bias(MANTISSA) - MANTISSA) << 23);
    let size = code & 0x7f;
    let normal = (size << (23 - MANTISSA)) + ((127 - bias(MANTISSA)) << 23);
    let small = (size as i32 as f32 * step).to_bits();
    let bits = if size < 1 << MANTISSA { small } else { normal };
    f32::from_bits(bits | (code & 0x80) << 24)
}

/// The nearest float8, half to even; beyond the largest one, that.
#[inline(always)]
pub(super) fn to_float8<const MANTISSA: u32>(v: f32, largest: f32) -> u8 {
    let bits = v.to_bits();
    let size = f32::from_bits(bits & 0x7fff_ffff);
    let size = if size < largest { size } else { largest };
    // below the smallest normal number, steps are even: adding this leaves their count in the low bits
    let magic = f32::from_bits((127 + 24 - bias(MANTISSA) - MANTISSA) << 23 | 1 << 22);
    let small = (size + magic).to_bits().wrapping_sub(magic.to_bits());
    let drop = 23 - MANTISSA;
    let raw = size.to_bits();
    let rounded = (raw + (1 << (drop - 1)) - 1 + (raw >> drop & 1)) >> drop;
    let normal = rounded.wrapping_sub((127 - bias(MANTISSA)) << MANTISSA);
    let code = if raw < (128 - bias(MANTISSA)) << 23 { small } else { normal };
    (code | bits >> 24 & 0x80) as u8
}

/// `x / scale` as float8.
#[inline(always)]
pub(super) fn encode_float8(x: &[f32], scale: f32, qtype: QuantType, out: &mut [u8]) {
    let largest = qtype.largest();
    match qtype {
        QuantType::E5M2 => x.iter().zip(out).for_each(|(x, u)| *u = to_float8::<2>(x / scale, largest)),
        _ => x.iter().zip(out).for_each(|(x, u)| *u = to_float8::<3>(x / scale, largest)),
    }
}

/// Rounds to bfloat16, half to even; NaN stays NaN.
#[inline(always)]
pub(super) fn round_bf16(x: &[f32], out: &mut [bf16]) {
    for (x, out) in x.iter().zip(out) {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let nan = bits & 0x7fff_ffff > INF_BITS;
        *out = bf16::from_bits((if nan { bits | 0x40_0000 } else { rounded } >> 16) as u16);
    }
}
