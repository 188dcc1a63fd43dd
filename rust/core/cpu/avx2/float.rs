//! The float kernels.

use super::{by_strip, load, load_f32, load_floats, store_floats};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma")]
pub(super) fn dot<const BITS: usize>(
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
pub(super) fn float_tile(a: &[f32], stride: usize, rows: usize, b: &[f32], cols: usize, acc: &mut [f32]) {
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
