//! The integer kernels.
//!
//! A group's zero points cost one instruction: −z·Σa, which `vpmaddwd` makes of the pairs (z, 128 z) and Σa in two halves
//! (see [`split_sum`](crate::cpu::split_sum)).

use super::{by_strip, load, load_f32, load_floats, store_floats};
use crate::cpu::lanes::body;
use crate::cpu::{GroupRun, Outputs};
use crate::matrix::Scales;
use std::arch::x86_64::*;

/// Quads of codes up to 15 that int16 sums hold: 8 · 15 · 128 · 2 < 2^15.
pub(super) const NIBBLE_QUADS: usize = 8;
/// The same for codes up to 3.
pub(super) const CRUMB_QUADS: usize = 40;

/// `c[r][j] += a · b` over int8 codes: a macro, since the sums stay in registers only where this is inlined.
macro_rules! multiply_wide {
    ($rows:ident, $a:expr, $b:expr, $c:ident, $cols:ident, $strip:ident) => {
        let low = _mm256_set1_epi16(0xff);
        let (a, _) = $a.as_chunks::<8>();
        for (a, b) in a.chunks_exact($rows).zip($b.chunks_exact($cols * 4)) {
            let (b, _) = b[$strip * 64..].as_chunks::<32>();
            for j in 0..2 {
                let w = load(&b[j]);
                let (even, odd) = (_mm256_and_si256(w, low), _mm256_srli_epi16::<8>(w));
                for r in 0..$rows {
                    let x = a[r];
                    let x_even = _mm256_set1_epi32(i32::from_le_bytes([x[0], x[1], x[2], x[3]]));
                    let x_odd = _mm256_set1_epi32(i32::from_le_bytes([x[4], x[5], x[6], x[7]]));
                    $c[r][j] = _mm256_add_epi32($c[r][j], _mm256_madd_epi16(even, x_even));
                    $c[r][j] = _mm256_add_epi32($c[r][j], _mm256_madd_epi16(odd, x_odd));
                }
            }
        }
    };
}

/// The same over codes of up to 4 bits, packed `bits` wide, in int16 sums over up to `quads` quads.
macro_rules! multiply_narrow {
    ($bits:ident, $quads:ident, $rows:ident, $a:expr, $b:expr, $c:ident, $cols:ident, $strip:ident) => {
        let (mask, ones) = (_mm256_set1_epi8(((1u16 << $bits) - 1) as i8), _mm256_set1_epi16(1));
        let (a, _) = $a.as_chunks::<4>();
        let per = 8 / $bits;
        let blocks = $quads / per;
        for (a, b) in a.chunks(blocks * per * $rows).zip($b.chunks(blocks * $cols * 4)) {
            let mut s = [[_mm256_setzero_si256(); 2]; $rows];
            for (a, b) in a.chunks_exact(per * $rows).zip(b.chunks_exact($cols * 4)) {
                let (b, _) = b[$strip * 64..].as_chunks::<32>();
                for t in 0..per {
                    let mut w = [mask; 2];
                    for j in 0..2 {
                        w[j] = match ($bits, t) {
                            (8, _) => load(&b[j]),
                            (_, 0) => _mm256_and_si256(load(&b[j]), mask),
                            (4, _) => _mm256_and_si256(_mm256_srli_epi16::<4>(load(&b[j])), mask),
                            (_, 1) => _mm256_and_si256(_mm256_srli_epi16::<2>(load(&b[j])), mask),
                            (_, 2) => _mm256_and_si256(_mm256_srli_epi16::<4>(load(&b[j])), mask),
                            _ => _mm256_and_si256(_mm256_srli_epi16::<6>(load(&b[j])), mask),
                        };
                    }
                    for r in 0..$rows {
                        let x = _mm256_set1_epi32(i32::from_le_bytes(a[t * $rows + r]));
                        for j in 0..2 {
                            s[r][j] = _mm256_add_epi16(s[r][j], _mm256_maddubs_epi16(w[j], x));
                        }
                    }
                }
            }
            for r in 0..$rows {
                for j in 0..2 {
                    $c[r][j] = _mm256_add_epi32($c[r][j], _mm256_madd_epi16(s[r][j], ones));
                }
            }
        }
    };
}

/// A run of groups of one strip: `$multiply` makes the integer sums of a group.
macro_rules! grouped_strip {
    ($rows:ident, $run:ident, $f:ident, $cols:ident, $strip:ident, $quad_bytes:expr, $per:expr, $a:ident, $b:ident,
     |$group_a:ident, $group_b:ident, $c:ident| $multiply:expr) => {
        let (sums, _) = $run.sums.as_chunks::<$rows>();
        let (mut rest_a, mut rest_b) = ($a, $b);
        let mut f = [[_mm256_setzero_ps(); 2]; $rows];
        if !$run.fresh {
            f = load_floats::<$rows>($f, $cols, $strip);
        }
        for (g, sums) in sums.iter().enumerate() {
            let all = rest_a.len() / ($rows * $quad_bytes);
            let quads = if (g + 1) * $rows < $run.sums.len() { $run.quads } else { all };
            let ($group_a, $group_b);
            ($group_a, rest_a) = rest_a.split_at(quads * $rows * $quad_bytes);
            ($group_b, rest_b) = rest_b.split_at(quads / $per * $cols * 4);
            let mut $c = [[_mm256_setzero_si256(); 2]; $rows];
            $multiply;
            let at = g * $cols + $strip * 16;
            for j in 0..2 {
                let at = at + j * 8;
                let z = match $run.zeros {
                    Some(zeros) => load_u8(&zeros[at..].as_chunks().0[0]),
                    None => _mm256_set1_epi32(i32::from($run.offset)),
                };
                let z = _mm256_or_si256(z, _mm256_slli_epi32::<23>(z));
                let scale = match $run.scales {
                    Scales::F32(s) => load_f32(&s[at..].as_chunks().0[0]),
                    Scales::F16(s) => load_f16(&s[at..].as_chunks().0[0]),
                };
                for r in 0..$rows {
                    let v = _mm256_add_epi32($c[r][j], _mm256_madd_epi16(z, _mm256_set1_epi32(sums[r])));
                    f[r][j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(v), scale, f[r][j]);
                }
            }
        }
        store_floats($f, f, $cols, $strip);
    };
}

#[target_feature(enable = "avx2")]
pub(super) fn wide_tile(a: &[u8], rows: usize, b: &[u8], cols: usize, acc: &mut [i32], accumulate: bool) {
    by_strip!(strip in cols, R = rows; [1 2 3 4 5 6] wide_strip::<R>(a, b, acc, accumulate, cols, strip))
}

#[target_feature(enable = "avx2")]
fn wide_strip<const R: usize>(a: &[u8], b: &[u8], acc: &mut [i32], accumulate: bool, cols: usize, strip: usize) {
    let mut c = load_sums::<R>(acc, accumulate, cols, strip);
    multiply_wide!(R, a, b, c, cols, strip);
    store_sums(acc, c, cols, strip);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn wide_grouped(
    a: &[u8],
    rows: usize,
    b: &[u8],
    cols: usize,
    run: GroupRun,
    f: &mut [f32],
    outputs: Option<Outputs>,
) {
    by_strip!(strip in cols, R = rows; [1 2 3 4 5 6] wide_grouped_strip::<R>(a, b, run, f, cols, strip));
    finish(f, cols, outputs);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn finish(f: &[f32], cols: usize, outputs: Option<Outputs>) {
    if let Some(Outputs { factors, bias, out }) = outputs {
        body::finish(f, cols, factors, bias, out);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn wide_grouped_strip<const R: usize>(a: &[u8], b: &[u8], run: GroupRun, f: &mut [f32], cols: usize, strip: usize) {
    grouped_strip!(R, run, f, cols, strip, 8, 1, a, b, |group_a, group_b, c| {
        multiply_wide!(R, group_a, group_b, c, cols, strip);
    });
}

#[target_feature(enable = "avx2")]
pub(super) fn narrow_tile<const BITS: usize, const QUADS: usize>(
    a: &[u8],
    rows: usize,
    b: &[u8],
    cols: usize,
    acc: &mut [i32],
    accumulate: bool,
) {
    by_strip!(strip in cols, R = rows; [1 2 3 4 5 6] narrow_strip::<BITS, QUADS, R>(a, b, acc, accumulate, cols, strip))
}

#[target_feature(enable = "avx2")]
fn narrow_strip<const BITS: usize, const QUADS: usize, const R: usize>(
    a: &[u8],
    b: &[u8],
    acc: &mut [i32],
    accumulate: bool,
    cols: usize,
    strip: usize,
) {
    let mut c = load_sums::<R>(acc, accumulate, cols, strip);
    multiply_narrow!(BITS, QUADS, R, a, b, c, cols, strip);
    store_sums(acc, c, cols, strip);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn narrow_grouped<const BITS: usize, const QUADS: usize>(
    a: &[u8],
    rows: usize,
    b: &[u8],
    cols: usize,
    run: GroupRun,
    f: &mut [f32],
    outputs: Option<Outputs>,
) {
    by_strip!(strip in cols, R = rows; [1 2 3 4 5 6] narrow_grouped_strip::<BITS, QUADS, R>(a, b, run, f, cols, strip));
    finish(f, cols, outputs);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn narrow_grouped_strip<const BITS: usize, const QUADS: usize, const R: usize>(
    a: &[u8],
    b: &[u8],
    run: GroupRun,
    f: &mut [f32],
    cols: usize,
    strip: usize,
) {
    grouped_strip!(R, run, f, cols, strip, 4, (8 / BITS), a, b, |group_a, group_b, c| {
        multiply_narrow!(BITS, QUADS, R, group_a, group_b, c, cols, strip);
    });
}

#[target_feature(enable = "avx2")]
pub(super) fn unpack<const BITS: usize>(b: &[u8], cols: usize, out: &mut [u8]) {
    // bytes shift and mask alike in any order, so this vectorizes by itself
    let mask = ((1u16 << BITS) - 1) as u8;
    for (b, out) in b.chunks_exact(cols * 4).zip(out.chunks_exact_mut(8 / BITS * cols * 4)) {
        for (t, out) in out.chunks_exact_mut(cols * 4).enumerate() {
            out.iter_mut().zip(b).for_each(|(u, b)| *u = b >> (t * BITS) & mask);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_sums<const R: usize>(acc: &[i32], accumulate: bool, cols: usize, strip: usize) -> [[__m256i; 2]; R] {
    let mut c = [[_mm256_setzero_si256(); 2]; R];
    if accumulate {
        for r in 0..R {
            let (row, _) = acc[r * cols + strip * 16..].as_chunks::<8>();
            for j in 0..2 {
                // SAFETY: 32 readable bytes; the load needs no alignment.
                c[r][j] = unsafe { _mm256_loadu_si256(row[j].as_ptr().cast()) };
            }
        }
    }
    c
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_sums<const R: usize>(acc: &mut [i32], c: [[__m256i; 2]; R], cols: usize, strip: usize) {
    for r in 0..R {
        let (row, _) = acc[r * cols + strip * 16..].as_chunks_mut::<8>();
        for j in 0..2 {
            // SAFETY: 32 writable bytes; the store needs no alignment.
            unsafe { _mm256_storeu_si256(row[j].as_mut_ptr().cast(), c[r][j]) }
        }
    }
}

/// 8 bytes, one a lane.
#[inline]
#[target_feature(enable = "avx2")]
fn load_u8(x: &[u8; 8]) -> __m256i {
    _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*x)))
}

/// 8 half floats as float32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_f16(x: &[half::f16; 8]) -> __m256 {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}
