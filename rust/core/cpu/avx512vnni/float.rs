//! The float kernels.

use super::{ask_ahead, by_shape, load, load_f32, store_f32};
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
    if rows == 1 {
        by_shape!(1, cols, [1], dot_row<BITS>(a, b, scales, zeros, acc))
    } else {
        by_shape!(rows, cols, [2 3 4], dot_shape<BITS>(a, b, scales, zeros, acc))
    }
}

/// Bits of a word whose codes are read before it is shifted: as many positions as there are registers for.
const fn span(bits: usize) -> usize {
    if bits == 2 { 8 } else { 16 }
}

/// One row: codes become floats without a permutation, whose ports one row would wait for.
#[target_feature(enable = "avx512f,avx512bw")]
fn dot_row<const BITS: usize, const R: usize, const V: usize>(
    a: &[f32],
    b: &[u8],
    scales: &[f32],
    zeros: Option<&[f32]>,
    acc: &mut [f32],
) {
    let (out, _) = acc.as_chunks_mut::<16>();
    let mut fraction = [_mm512_setzero_ps(); V];
    let mut fractional = false;
    let mut whole = [_mm512_set1_ps((1 << (BITS - 1)) as f32); V];
    if let Some(zeros) = zeros {
        let (zeros, _) = zeros.as_chunks::<16>();
        for j in 0..V {
            let z = load_f32(&zeros[j]);
            let nearest = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(z);
            fraction[j] = _mm512_sub_ps(z, nearest);
            fractional |= _mm512_cmpneq_ps_mask(z, nearest) != 0;
            whole[j] = _mm512_add_ps(whole[j], nearest);
        }
    }
    // a code at bit s under the exponent of 2^(23 - s) reads as 2^(23 - s) + code; what is to be subtracted from it:
    let magic: [f32; 4] = std::array::from_fn(|p| (1u32 << (23 - (p * BITS).min(span(BITS)))) as f32);
    let mut zero = [whole; 4];
    for p in 0..span(BITS) / BITS {
        for j in 0..V {
            zero[p][j] = _mm512_add_ps(_mm512_set1_ps(magic[p]), whole[j]);
        }
    }
    let mut c = [_mm512_setzero_ps(); V];
    let (b, _) = b.as_chunks::<64>();
    for (a, b) in a.chunks_exact(32 / BITS).zip(b.chunks_exact(V)) {
        let mut codes = [_mm512_setzero_si512(); V];
        if BITS < 8 {
            ask_ahead(b, true);
        }
        for j in 0..V {
            codes[j] = load(&b[j]);
        }
        for shift in 0..32 / span(BITS) {
            for p in 0..span(BITS) / BITS {
                let bit = shift * span(BITS) + p * BITS;
                let step = bit % 8 / BITS * 4 + bit / 8;
                let mask = _mm512_set1_epi32((((1u32 << BITS) - 1) << (p * BITS)) as i32);
                let exponent = _mm512_set1_epi32(magic[p].to_bits() as i32);
                let x = _mm512_set1_ps(a[step]);
                for j in 0..V {
                    let w = _mm512_ternarylogic_epi32::<0xea>(codes[j], mask, exponent); // (codes & mask) | exponent
                    let w = _mm512_sub_ps(_mm512_castsi512_ps(w), zero[p][j]);
                    c[j] = _mm512_fmadd_ps(w, x, c[j]);
                }
            }
            for j in 0..V {
                codes[j] = match span(BITS) {
                    8 => _mm512_srli_epi32::<8>(codes[j]),
                    _ => _mm512_srli_epi32::<16>(codes[j]),
                };
            }
        }
    }
    let (scales, _) = scales.as_chunks::<16>();
    // less than half a step of each zero point, so that nothing large cancels
    let sum = _mm512_set1_ps(if fractional { sum(a) } else { 0.0 });
    for j in 0..V {
        let c = _mm512_fnmadd_ps(fraction[j], sum, c[j]);
        let at = &mut out[j];
        store_f32(at, _mm512_fmadd_ps(c, load_f32(&scales[j]), load_f32(at)));
    }
}

/// The sum, in eight parts.
fn sum(a: &[f32]) -> f32 {
    let mut parts = [0f32; 8];
    for (i, a) in a.iter().enumerate() {
        parts[i % 8] += a;
    }
    parts.iter().sum()
}

/// More rows: four instructions a code at most, and few registers beside the sums.
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
        if BITS < 8 {
            ask_ahead(b, true);
        }
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
