//! Elementwise loops, written once and compiled once per instruction set by [`lanes!`].
//!
//! Each is plain Rust that vectorizes: no reduction that depends on order, rounding by the magic-number trick, and a
//! fused multiply-add wherever `mul_add` says so, so that every instruction set gives the same bits.

use crate::buffer::Rectangle;
use crate::qtype::QuantType;
use half::bf16;

/// `x + MAGIC` rounds x to an integer, half to even, for |x| < 2^22, and leaves that integer in the low bits.
const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23

/// Most rows of [`add_product`]: their sums of 16 channels are in as many registers.
pub(crate) const PRODUCT_ROWS: usize = 8;

/// Zero points of the channels of a panel, for one group.
#[derive(Clone, Copy)]
pub(crate) enum PanelZeros<'a> {
    /// Z = 0: every channel has the codes' offset.
    Offset(i32),
    /// Stored integer zero points (offset included).
    Stored(&'a [u8]),
    /// Plain fractional zero points, and the codes' offset.
    Fraction(&'a [f32], i32),
}

/// Scales and plain zero points of a panel, both `[groups][cols]`, and where in the row the panel's blocks begin.
#[derive(Clone, Copy)]
pub(crate) struct Groups<'a> {
    pub first: usize,
    pub size: usize,
    pub scales: &'a [f32],
    pub zeros: Option<&'a [f32]>,
}

/// How floats become codes: `u = round(clamp(x / scale + shift, lo, hi)) + base`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoding {
    pub scale: f32,
    /// A fractional zero point, else 0.
    pub shift: f32,
    pub lo: f32,
    pub hi: f32,
    /// Added after rounding: integer zero point plus storage offset.
    pub base: i32,
}

/// A turn of half-quadratic quantization: the ends of the codes, p, beta.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proximal {
    pub qmin: f32,
    pub qmax: f32,
    pub norm: f32,
    pub beta: f32,
}

/// Ranges that [`range_errors`] compares at once.
pub(crate) const TRIED: usize = 80;

/// What follows from a range besides its ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    pub qmin: i32,
    pub qmax: i32,
    pub symmetric: bool,
    /// Scales are stored as float16.
    pub half: bool,
}

/// Largest |x| as bits; at least `INF_BITS` if any element is NaN or infinite.
pub(crate) const INF_BITS: u32 = 0x7f80_0000;

#[inline(always)]
fn absmax_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff))
}

/// The same a column: `most[i]` takes |x[i]| if that is larger.
#[inline(always)]
fn absmax_columns(x: &[f32], most: &mut [u32]) {
    most.iter_mut().zip(x).for_each(|(most, v)| *most = (*most).max(v.to_bits() & 0x7fff_ffff));
}

#[inline(always)]
fn min_max(x: &[f32]) -> (f32, f32) {
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
fn encode(x: &[f32], e: Encoding, out: &mut [u8]) {
    for (x, u) in x.iter().zip(out) {
        let v = x / e.scale + e.shift;
        let v = if v > e.lo { v } else { e.lo };
        let v = if v < e.hi { v } else { e.hi };
        *u = ((v + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32).wrapping_add(e.base) as u8;
    }
}

/// `Σ (x − dequantized)²` for each of the ranges; NaN where the scale leaves float16's normal range but should not.
/// Scales and zero points are those of `quantize::qparams`, codes those of [`encode`] but for ties.
#[inline(always)]
fn range_errors(x: &[f32], lo: &[f32; TRIED], hi: &[f32; TRIED], levels: Levels, errors: &mut [f64; TRIED]) {
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
            let is_half = half >= 6.103_515_6e-5 && half <= 65504.0;
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
fn power(a: f32, p: f32) -> f32 {
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
fn proximal(steps: &[f32], zero: f32, rule: Proximal) -> (f32, f32) {
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

#[inline(always)]
fn sum(a: &[i8]) -> i32 {
    a.iter().fold(0, |s, &v| s + i32::from(v))
}

#[inline(always)]
fn decode(u: &[u8], qtype: QuantType, zero: f32, scale: f32, out: &mut [f32]) {
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
const fn bias(mantissa: u32) -> u32 {
    (1 << (6 - mantissa)) - 1
}

/// A finite float8 as float32. Subnormal codes are integers in steps; float32's own are never met.
#[inline(always)]
fn from_float8<const MANTISSA: u32>(code: u32) -> f32 {
    let step = f32::from_bits((128 - bias(MANTISSA) - MANTISSA) << 23);
    let size = code & 0x7f;
    let normal = (size << (23 - MANTISSA)) + ((127 - bias(MANTISSA)) << 23);
    let small = (size as i32 as f32 * step).to_bits();
    let bits = if size < 1 << MANTISSA { small } else { normal };
    f32::from_bits(bits | (code & 0x80) << 24)
}

/// The nearest float8, half to even; beyond the largest one, that.
#[inline(always)]
fn to_float8<const MANTISSA: u32>(v: f32, largest: f32) -> u8 {
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
fn encode_float8(x: &[f32], scale: f32, qtype: QuantType, out: &mut [u8]) {
    let largest = qtype.largest();
    match qtype {
        QuantType::E5M2 => x.iter().zip(out).for_each(|(x, u)| *u = to_float8::<2>(x / scale, largest)),
        _ => x.iter().zip(out).for_each(|(x, u)| *u = to_float8::<3>(x / scale, largest)),
    }
}

/// Blocks of a panel to float weights `out[k][cols]`, for as many steps as `out` holds.
#[inline(always)]
fn expand(b: &[u8], cols: usize, weight: QuantType, groups: Groups, out: &mut [f32]) {
    match weight {
        QuantType::E4M3 => return expand_float8::<3>(b, cols, groups, out),
        QuantType::E5M2 => return expand_float8::<2>(b, cols, groups, out),
        _ => {}
    }
    let steps = super::block_steps(weight);
    for (k, out) in out.chunks_exact_mut(cols).enumerate() {
        let block = &b[k / steps * cols * 4..][..cols * 4];
        let g = (groups.first + k) / groups.size * cols;
        let zeros = groups.zeros.map(|zeros| &zeros[g..][..cols]);
        expand_step(block, k % steps, weight, &groups.scales[g..][..cols], zeros, out);
    }
}

/// One step of a block to float weights `out[cols]`.
#[inline(always)]
fn expand_step(block: &[u8], step: usize, weight: QuantType, scales: &[f32], zeros: Option<&[f32]>, out: &mut [f32]) {
    let (offset, mask) = (weight.offset(), (1u32 << weight.bits()) - 1);
    let shift = (step % 4 * 8 + step / 4 * weight.bits()) as u32;
    let (words, cols) = (block.as_chunks::<4>().0, out.len());
    let (words, scales) = (&words[..cols], &scales[..cols]);
    match zeros {
        None => {
            for c in 0..cols {
                out[c] = ((u32::from_le_bytes(words[c]) >> shift & mask) as i32 - offset) as f32 * scales[c];
            }
        }
        Some(zeros) => {
            let zeros = &zeros[..cols];
            for c in 0..cols {
                let q = ((u32::from_le_bytes(words[c]) >> shift & mask) as i32 - offset) as f32;
                out[c] = (q - zeros[c]) * scales[c];
            }
        }
    }
}

/// `out[i][c] = rows[c][i]`; a row of `out` has `cols` places.
#[inline(always)]
fn transpose(rows: &[f32], out: &mut [f32], cols: usize) {
    let count = out.len() / cols;
    for (c, row) in rows.chunks_exact(count).enumerate().take(cols) {
        for (i, v) in row.iter().enumerate() {
            out[i * cols + c] = *v;
        }
    }
}

/// `out[rows][cols] += a[rows][count] · w[count][cols]`: a fused multiply-add for each of the count in turn. At most
/// [`PRODUCT_ROWS`] rows.
#[inline(always)]
fn add_product(a: &[f32], w: &[f32], out: &mut [f32], cols: usize) {
    match out.len() / cols {
        1 => add_product_of::<1>(a, w, out, cols),
        2 => add_product_of::<2>(a, w, out, cols),
        3 => add_product_of::<3>(a, w, out, cols),
        4 => add_product_of::<4>(a, w, out, cols),
        5 => add_product_of::<5>(a, w, out, cols),
        6 => add_product_of::<6>(a, w, out, cols),
        7 => add_product_of::<7>(a, w, out, cols),
        _ => add_product_of::<PRODUCT_ROWS>(a, w, out, cols),
    }
}

#[inline(always)]
fn add_product_of<const ROWS: usize>(a: &[f32], w: &[f32], out: &mut [f32], cols: usize) {
    let count = w.len() / cols;
    let a: [&[f32]; ROWS] = std::array::from_fn(|r| &a[r * count..][..count]);
    for first in (0..cols).step_by(16) {
        let mut sums = [[0f32; 16]; ROWS];
        for (r, sum) in sums.iter_mut().enumerate() {
            sum.copy_from_slice(&out[r * cols + first..][..16]);
        }
        for (j, w) in w.chunks_exact(cols).enumerate() {
            let w = &w[first..][..16];
            for (a, sum) in a.iter().zip(&mut sums) {
                for c in 0..16 {
                    sum[c] = w[c].mul_add(a[j], sum[c]);
                }
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            out[r * cols + first..][..16].copy_from_slice(sum);
        }
    }
}

/// The same of float8 codes, which have no zero points.
#[inline(always)]
fn expand_float8<const MANTISSA: u32>(b: &[u8], cols: usize, groups: Groups, out: &mut [f32]) {
    let (words, _) = b.as_chunks::<4>();
    for (k, out) in out.chunks_exact_mut(cols).enumerate() {
        let words = &words[k / 4 * cols..][..cols];
        let scales = &groups.scales[(groups.first + k) / groups.size * cols..][..cols];
        for c in 0..cols {
            let code = u32::from_le_bytes(words[c]) >> (k % 4 * 8) & 0xff;
            out[c] = from_float8::<MANTISSA>(code) * scales[c];
        }
    }
}

/// One group of the integer epilogue: `f += scale · (Σ a·u − Z·Σa)`, exact up to the conversion to float.
#[inline(always)]
fn add_group(acc: &[i32], sum: i32, zeros: PanelZeros, scales: &[f32], f: &mut [f32]) {
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
fn finish(f: &[f32], cols: usize, factors: &[f32], bias: Option<&[f32]>, mut out: Rectangle<f32>) {
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
fn fold(f: &mut [f32], total: &mut [f32], carry: &mut [f32]) {
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
fn add(acc: &[f32], f: &mut [f32]) {
    f.iter_mut().zip(acc).for_each(|(f, a)| *f += a);
}

/// Rounds to bfloat16, half to even; NaN stays NaN.
#[inline(always)]
fn round_bf16(x: &[f32], out: &mut [bf16]) {
    for (x, out) in x.iter().zip(out) {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let nan = bits & 0x7fff_ffff > INF_BITS;
        *out = bf16::from_bits((if nan { bits | 0x40_0000 } else { rounded } >> 16) as u16);
    }
}

macro_rules! table {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)?;)*) => {
        /// The loops of one instruction set.
        #[derive(Debug)]
        pub(super) struct Lanes {
            $(pub(super) $name: unsafe fn($($type),*) $(-> $ret)?,)*
        }

        /// What every file of this folder calls for its own `Lanes`.
        pub(super) mod body {
            use super::*;
            $(#[inline(always)]
            pub(in crate::cpu) fn $name($($arg: $type),*) $(-> $ret)? { super::$name($($arg),*) })*
        }

        #[allow(unsafe_code)]
        impl super::Isa {
            $(#[inline]
            pub(crate) fn $name(&self, $($arg: $type),*) $(-> $ret)? {
                // SAFETY: the loops are safe code compiled for features of an `Isa` that this CPU has (see `detected`).
                unsafe { (self.lanes.$name)($($arg),*) }
            })*
        }

        /// Compile the loops for a list of target features.
        macro_rules! lanes {
            ($features:literal) => {{
                #[allow(unused_imports)] // the types below
                use $crate::{buffer::Rectangle, cpu::lanes::{Encoding, Groups, Levels, PanelZeros, Proximal, TRIED}, qtype::QuantType};
                #[allow(unused_imports)]
                use half::bf16;
                $(#[target_feature(enable = $features)]
                fn $name($($arg: $type),*) $(-> $ret)? { $crate::cpu::lanes::body::$name($($arg),*) })*
                $crate::cpu::lanes::Lanes { $($name),* }
            }};
            () => {
                $crate::cpu::lanes::Lanes { $($name: $crate::cpu::lanes::body::$name),* }
            };
        }
    };
}

table! {
    absmax_bits(x: &[f32]) -> u32;
    absmax_columns(x: &[f32], most: &mut [u32]);
    min_max(x: &[f32]) -> (f32, f32);
    encode(x: &[f32], e: Encoding, out: &mut [u8]);
    range_errors(x: &[f32], lo: &[f32; TRIED], hi: &[f32; TRIED], levels: Levels, errors: &mut [f64; TRIED]);
    proximal(steps: &[f32], zero: f32, rule: Proximal) -> (f32, f32);
    sum(a: &[i8]) -> i32;
    encode_float8(x: &[f32], scale: f32, qtype: QuantType, out: &mut [u8]);
    decode(u: &[u8], qtype: QuantType, zero: f32, scale: f32, out: &mut [f32]);
    expand(b: &[u8], cols: usize, weight: QuantType, groups: Groups, out: &mut [f32]);
    expand_step(block: &[u8], step: usize, weight: QuantType, scales: &[f32], zeros: Option<&[f32]>, out: &mut [f32]);
    transpose(rows: &[f32], out: &mut [f32], cols: usize);
    add_product(a: &[f32], w: &[f32], out: &mut [f32], cols: usize);
    add_group(acc: &[i32], sum: i32, zeros: PanelZeros, scales: &[f32], f: &mut [f32]);
    finish(f: &[f32], cols: usize, factors: &[f32], bias: Option<&[f32]>, out: Rectangle<f32>);
    add(acc: &[f32], f: &mut [f32]);
    fold(f: &mut [f32], total: &mut [f32], carry: &mut [f32]);
    round_bf16(x: &[f32], out: &mut [bf16]);
}
#[allow(clippy::single_component_path_imports)] // gives the macro a path
pub(super) use lanes;
