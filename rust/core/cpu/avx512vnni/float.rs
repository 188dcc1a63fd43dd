//! The float kernels.

use super::{by_shape, load, load_f32, store_f32};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn dot<const BITS: usize>(
    a: &[f32],
    rows: usize,
    b: &[u8],
    cols: usize,
    scales: &[f32],
    zeros: Option<&[f32]>,
    acc: &mut [f32],
) {
    by_shape!(rows, cols, [1 2 3 4], dot_shape<BITS>(a, b, scales, zeros, acc))
}

#[target_feature(enable = "avx512f,avx512bw")]
fn dot_shape<const BITS: usize, const R: usize, const V: usize>(
    a: &[f32],
    b: &[u8],
    scales: &[f32],
    zeros: Option<&[f32]>,
    acc: &mut [f32],
) {
    let (out, _) = acc.as_chunks_mut::<16>();
    let mut c = [[_mm512_setzero_ps(); V]; R];
    let mut z = [_mm512_setzero_ps(); V];
    if let Some(zeros) = zeros {
        let (zeros, _) = zeros.as_chunks::<16>();
        for j in 0..V {
            z[j] = load_f32(&zeros[j]);
        }
    }
    let mut table = [0f32; 16];
    for (i, value) in table.iter_mut().enumerate() {
        *value = (i as i32 % (1 << BITS.min(4)) - (1 << (BITS - 1))) as f32;
    }
    let table = load_f32(&table);
    let flip = _mm512_set1_epi8(-128);
    let (b, _) = b.as_chunks::<64>();
    for (a, b) in a.chunks_exact(32 / BITS * R).zip(b.chunks_exact(V)) {
        let mut codes = [flip; V];
        for j in 0..V {
            codes[j] = load(&b[j]);
            if BITS == 8 {
                codes[j] = _mm512_xor_si512(codes[j], flip); // offset to two's complement
            }
        }
        // vectors in the inner loop: as many sums grow side by side
        for i in 0..32 / BITS {
            // narrow codes come off the low end, byte by byte; int8 ones off the high end
            let step = if BITS == 8 { 3 - i } else { i % (8 / BITS) * 4 + i * BITS / 8 };
            for j in 0..V {
                let mut w = if BITS == 8 {
                    let w = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(codes[j]));
                    codes[j] = _mm512_slli_epi32::<8>(codes[j]);
                    w
                } else {
                    let w = _mm512_permutexvar_ps(codes[j], table);
                    codes[j] =
                        if BITS == 4 { _mm512_srli_epi32::<4>(codes[j]) } else { _mm512_srli_epi32::<2>(codes[j]) };
                    w
                };
                if zeros.is_some() {
                    w = _mm512_sub_ps(w, z[j]);
                }
                for r in 0..R {
                    c[r][j] = _mm512_fmadd_ps(w, _mm512_set1_ps(a[step * R + r]), c[r][j]);
                }
            }
        }
    }
    let (scales, _) = scales.as_chunks::<16>();
    for r in 0..R {
        for j in 0..V {
            let sum = _mm512_fmadd_ps(c[r][j], load_f32(&scales[j]), load_f32(&out[r * V + j]));
            store_f32(&mut out[r * V + j], sum);
        }
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn float_tile(a: &[f32], stride: usize, rows: usize, b: &[f32], cols: usize, acc: &mut [f32]) {
    const NO_BITS: usize = 0;
    by_shape!(rows, cols, [1 2 3 4 5 6], float_shape<NO_BITS>(a, stride, b, acc))
}

#[target_feature(enable = "avx512f")]
fn float_shape<const _BITS: usize, const R: usize, const V: usize>(
    a: &[f32],
    stride: usize,
    b: &[f32],
    acc: &mut [f32],
) {
    let (out, _) = acc.as_chunks_mut::<16>();
    let mut c = [[_mm512_setzero_ps(); V]; R];
    for r in 0..R {
        for j in 0..V {
            c[r][j] = load_f32(&out[r * V + j]);
        }
    }
    let (b, _) = b.as_chunks::<16>();
    let mut rows = [&a[..0]; R];
    for r in 0..R {
        rows[r] = &a[r * stride..][..b.len() / V];
    }
    for (k, b) in b.chunks_exact(V).enumerate() {
        let mut w = [_mm512_setzero_ps(); V];
        for j in 0..V {
            w[j] = load_f32(&b[j]);
        }
        for r in 0..R {
            let x = _mm512_set1_ps(rows[r][k]);
            for j in 0..V {
                c[r][j] = _mm512_fmadd_ps(w[j], x, c[r][j]);
            }
        }
    }
    for r in 0..R {
        for j in 0..V {
            store_f32(&mut out[r * V + j], c[r][j]);
        }
    }
}
