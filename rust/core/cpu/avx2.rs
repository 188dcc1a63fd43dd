//! AVX2, exact: nothing here can saturate.
//!
//! | instruction | use | ports (Skylake) |
//! |---|---|---|
//! | `vpmaddwd ymm` | int8 codes: 8 channels x 2 steps of int16 products into int32 | p0 p1 |
//! | `vpmaddubsw ymm` | 4- and 2-bit codes: u8 · s8 pairs into int16; 15 · 128 · 2 is far from its limit | p0 p1 |
//! | `vpaddw` / `vpaddd` | sums | p0 p1 p5 |
//! | `vfmadd231ps ymm` | the float tile | p0 p1 |
//!
//! int8 codes would overflow `vpmaddubsw`, so even and odd bytes are widened to int16 (two operations per vector of
//! weights, shared by all rows) and activations come as int16. Registers of the 4x16 int8 tile: 8 accumulators, 4 of
//! weights, 2 broadcasts. The 6x16 tile of narrow codes: 12 int16 sums, 2 of weights, 1 broadcast, 1 product; int16
//! sums move to int32 every few quads, before they could overflow.

use super::lanes::lanes;
use super::{Isa, Microkernel};
use crate::qtype::QuantType;
use std::arch::x86_64::*;

/// Quads of codes up to 15 that int16 sums hold: 8 · 15 · 128 · 2 < 2^15.
const NIBBLE_QUADS: usize = 8;
/// The same for codes up to 3.
const CRUMB_QUADS: usize = 40;

pub(super) static ISA: Isa = Isa {
    name: "avx2",
    nr: 16,
    supported: || {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    },
    kernels: [
        Microkernel {
            name: "qs8_q2w_gemm_6x16c4__avx2",
            weight: QuantType::Int2,
            mr: 6,
            wide: false,
            tile: narrow_tile::<2, CRUMB_QUADS>,
            unpacked: narrow_tile::<8, CRUMB_QUADS>,
            grouped: None,
            unpack: unpack::<2>,
            dot: dot::<2>,
        },
        Microkernel {
            name: "qs8_q4w_gemm_6x16c4__avx2",
            weight: QuantType::Int4,
            mr: 6,
            wide: false,
            tile: narrow_tile::<4, NIBBLE_QUADS>,
            unpacked: narrow_tile::<8, NIBBLE_QUADS>,
            grouped: None,
            unpack: unpack::<4>,
            dot: dot::<4>,
        },
        Microkernel {
            name: "qs16_q8w_gemm_4x16c4__avx2",
            weight: QuantType::Int8,
            mr: 4,
            wide: true,
            tile: wide_tile,
            unpacked: wide_tile,
            grouped: None,
            unpack: unpack::<8>,
            dot: dot::<8>,
        },
    ],
    float_mr: 6,
    float_tile,
    lanes: lanes!("avx2,fma,f16c"),
};

/// Run `$call` with the constant `$R` equal to a run-time number of rows, for each strip of 16 channels.
macro_rules! by_strip {
    ($strip:ident in $cols:expr, $R:ident = $rows:expr; [$($r:literal)*] $call:expr) => {
        for $strip in 0..$cols / 16 {
            match $rows {
                $($r => { const $R: usize = $r; $call })*
                _ => unreachable!("rows are asserted by the caller"),
            }
        }
    };
}

#[target_feature(enable = "avx2")]
fn wide_tile(a: &[u8], rows: usize, b: &[u8], cols: usize, acc: &mut [i32], accumulate: bool) {
    by_strip!(strip in cols, R = rows; [1 2 3 4] wide_strip::<R>(a, b, acc, accumulate, cols, strip))
}

#[target_feature(enable = "avx2")]
fn wide_strip<const R: usize>(a: &[u8], b: &[u8], acc: &mut [i32], accumulate: bool, cols: usize, strip: usize) {
    let mut c = load_sums::<R>(acc, accumulate, cols, strip);
    let low = _mm256_set1_epi16(0xff);
    let (a, _) = a.as_chunks::<8>();
    for (a, b) in a.chunks_exact(R).zip(b.chunks_exact(cols * 4)) {
        let (b, _) = b[strip * 64..].as_chunks::<32>();
        for j in 0..2 {
            let w = load(&b[j]);
            let (even, odd) = (_mm256_and_si256(w, low), _mm256_srli_epi16::<8>(w));
            for r in 0..R {
                let x = a[r];
                let x_even = _mm256_set1_epi32(i32::from_le_bytes([x[0], x[1], x[2], x[3]]));
                let x_odd = _mm256_set1_epi32(i32::from_le_bytes([x[4], x[5], x[6], x[7]]));
                c[r][j] = _mm256_add_epi32(c[r][j], _mm256_madd_epi16(even, x_even));
                c[r][j] = _mm256_add_epi32(c[r][j], _mm256_madd_epi16(odd, x_odd));
            }
        }
    }
    store_sums(acc, c, cols, strip);
}

/// Codes of up to 4 bits, packed `BITS` wide, in int16 sums over up to `QUADS` quads.
#[target_feature(enable = "avx2")]
fn narrow_tile<const BITS: usize, const QUADS: usize>(
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
    let (mask, ones) = (_mm256_set1_epi8(((1u16 << BITS) - 1) as i8), _mm256_set1_epi16(1));
    let (a, _) = a.as_chunks::<4>();
    let per = 8 / BITS;
    let blocks = QUADS / per;
    for (a, b) in a.chunks(blocks * per * R).zip(b.chunks(blocks * cols * 4)) {
        let mut s = [[_mm256_setzero_si256(); 2]; R];
        for (a, b) in a.chunks_exact(per * R).zip(b.chunks_exact(cols * 4)) {
            let (b, _) = b[strip * 64..].as_chunks::<32>();
            for t in 0..per {
                let mut w = [mask; 2];
                for j in 0..2 {
                    w[j] = match (BITS, t) {
                        (8, _) => load(&b[j]),
                        (_, 0) => _mm256_and_si256(load(&b[j]), mask),
                        (4, _) => _mm256_and_si256(_mm256_srli_epi16::<4>(load(&b[j])), mask),
                        (_, 1) => _mm256_and_si256(_mm256_srli_epi16::<2>(load(&b[j])), mask),
                        (_, 2) => _mm256_and_si256(_mm256_srli_epi16::<4>(load(&b[j])), mask),
                        _ => _mm256_and_si256(_mm256_srli_epi16::<6>(load(&b[j])), mask),
                    };
                }
                for r in 0..R {
                    let x = _mm256_set1_epi32(i32::from_le_bytes(a[t * R + r]));
                    for j in 0..2 {
                        s[r][j] = _mm256_add_epi16(s[r][j], _mm256_maddubs_epi16(w[j], x));
                    }
                }
            }
        }
        for r in 0..R {
            for j in 0..2 {
                c[r][j] = _mm256_add_epi32(c[r][j], _mm256_madd_epi16(s[r][j], ones));
            }
        }
    }
    store_sums(acc, c, cols, strip);
}

#[target_feature(enable = "avx2")]
fn unpack<const BITS: usize>(b: &[u8], cols: usize, out: &mut [u8]) {
    // bytes shift and mask alike in any order, so this vectorizes by itself
    let mask = ((1u16 << BITS) - 1) as u8;
    for (b, out) in b.chunks_exact(cols * 4).zip(out.chunks_exact_mut(8 / BITS * cols * 4)) {
        for (t, out) in out.chunks_exact_mut(cols * 4).enumerate() {
            out.iter_mut().zip(b).for_each(|(u, b)| *u = b >> (t * BITS) & mask);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn dot<const BITS: usize>(
    a: &[f32],
    rows: usize,
    b: &[u8],
    cols: usize,
    scales: &[f32],
    zeros: Option<&[f32]>,
    acc: &mut [f32],
) {
    by_strip!(strip in cols, R = rows; [1 2 3 4] dot_strip::<BITS, R>(a, b, scales, zeros, acc, cols, strip))
}

#[target_feature(enable = "avx2,fma")]
fn dot_strip<const BITS: usize, const R: usize>(
    a: &[f32],
    b: &[u8],
    scales: &[f32],
    zeros: Option<&[f32]>,
    acc: &mut [f32],
    cols: usize,
    strip: usize,
) {
    let mut c = [[_mm256_setzero_ps(); 2]; R];
    let z = zeros.map(|z| load_floats::<1>(z, cols, strip)[0]);
    // offset codes to two's complement: the top bit of each turns over
    let flip = _mm256_set1_epi32([0xaaaa_aaaa_u32, 0x8888_8888, 0x8080_8080][BITS.ilog2() as usize - 1] as i32);
    let narrow = _mm_cvtsi32_si128(32 - BITS as i32);
    for (a, b) in a.chunks_exact(32 / BITS * R).zip(b.chunks_exact(cols * 4)) {
        let (b, _) = b[strip * 64..].as_chunks::<32>();
        let words = [_mm256_xor_si256(load(&b[0]), flip), _mm256_xor_si256(load(&b[1]), flip)];
        for (step, a) in a.chunks_exact(R).enumerate() {
            let shift = _mm256_set1_epi32((32 - BITS - (step % 4 * 8 + step / 4 * BITS)) as i32);
            for j in 0..2 {
                let mut w = _mm256_cvtepi32_ps(_mm256_sra_epi32(_mm256_sllv_epi32(words[j], shift), narrow));
                if let Some(z) = z {
                    w = _mm256_sub_ps(w, z[j]);
                }
                for r in 0..R {
                    c[r][j] = _mm256_fmadd_ps(w, _mm256_set1_ps(a[r]), c[r][j]);
                }
            }
        }
    }
    let ([scales], mut f) = (load_floats::<1>(scales, cols, strip), load_floats::<R>(acc, cols, strip));
    for r in 0..R {
        for j in 0..2 {
            f[r][j] = _mm256_fmadd_ps(c[r][j], scales[j], f[r][j]);
        }
    }
    store_floats(acc, f, cols, strip);
}

#[target_feature(enable = "avx2,fma")]
fn float_tile(a: &[f32], stride: usize, rows: usize, b: &[f32], cols: usize, acc: &mut [f32]) {
    by_strip!(strip in cols, R = rows; [1 2 3 4 5 6] float_strip::<R>(a, stride, b, acc, cols, strip))
}

#[target_feature(enable = "avx2,fma")]
fn float_strip<const R: usize>(a: &[f32], stride: usize, b: &[f32], acc: &mut [f32], cols: usize, strip: usize) {
    let mut c = load_floats::<R>(acc, cols, strip);
    let mut rows = [&a[..0]; R];
    for r in 0..R {
        rows[r] = &a[r * stride..][..b.len() / cols];
    }
    for (k, b) in b.chunks_exact(cols).enumerate() {
        let (b, _) = b[strip * 16..].as_chunks::<8>();
        let w = [load_f32(&b[0]), load_f32(&b[1])];
        for r in 0..R {
            let x = _mm256_set1_ps(rows[r][k]);
            for j in 0..2 {
                c[r][j] = _mm256_fmadd_ps(w[j], x, c[r][j]);
            }
        }
    }
    store_floats(acc, c, cols, strip);
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

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats<const R: usize>(acc: &[f32], cols: usize, strip: usize) -> [[__m256; 2]; R] {
    let mut c = [[_mm256_setzero_ps(); 2]; R];
    for r in 0..R {
        let (row, _) = acc[r * cols + strip * 16..].as_chunks::<8>();
        for j in 0..2 {
            c[r][j] = load_f32(&row[j]);
        }
    }
    c
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_floats<const R: usize>(acc: &mut [f32], c: [[__m256; 2]; R], cols: usize, strip: usize) {
    for r in 0..R {
        let (row, _) = acc[r * cols + strip * 16..].as_chunks_mut::<8>();
        for j in 0..2 {
            // SAFETY: 32 writable bytes; the store needs no alignment.
            unsafe { _mm256_storeu_ps(row[j].as_mut_ptr(), c[r][j]) }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_f32(x: &[f32; 8]) -> __m256 {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}
