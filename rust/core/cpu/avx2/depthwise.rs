//! Convolutions of each channel by itself, 16 channels at a time.
//!
//! Quads of codes as with AVX-512. Their products need int16: the even and the odd bytes of both sides are widened (of
//! codes by a mask and a shift, of weights once a line) and go through one `vpmaddwd` each.

use super::load;
use crate::cpu::depthwise::{Depthwise, Line};
use std::arch::x86_64::*;

pub(super) const DEPTHWISE: Depthwise = Depthwise { columns, products, codes: None };

/// Stands for rows that are not there.
static PADDING: [u8; 16] = [0; 16];

/// Most columns of the kernel at once: their weights are in two registers each.
const TAPS: usize = 5;

/// Codes of up to four rows, `step` apart, to quads `[column][channel][4]`, their sign bits flipped.
#[target_feature(enable = "avx2")]
unsafe fn columns(rows: &[Line], channels: usize, out: &mut [u8]) {
    let mut lines = [Line { at: PADDING.as_ptr(), step: 0 }; 4];
    lines[..rows.len()].copy_from_slice(rows);
    if channels == 16 {
        // SAFETY: so many codes are readable at each column, by the caller's promise.
        transpose(lines, |at| unsafe { _mm_loadu_si128(at.cast()) }, out);
    } else if channels.is_multiple_of(4) {
        let fours = _mm_set1_epi32((channels / 4) as i32);
        let mask = _mm_cmpgt_epi32(fours, _mm_setr_epi32(0, 1, 2, 3));
        // SAFETY: as above; what the mask leaves out is not read.
        transpose(lines, |at| unsafe { _mm_maskload_epi32(at.cast(), mask) }, out);
    } else {
        let read = |at: *const u8| {
            let mut codes = [0u8; 16];
            // SAFETY: as above, and there is room for 16 codes; the load needs no alignment.
            unsafe {
                at.copy_to_nonoverlapping(codes.as_mut_ptr(), channels);
                _mm_loadu_si128(codes.as_ptr().cast())
            }
        };
        transpose(lines, read, out);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [Line; 4], read: impl Fn(*const u8) -> __m128i, out: &mut [u8]) {
    let sign = _mm_set1_epi8(i8::MIN);
    let mut at = rows.map(|row| row.at);
    for out in out.as_chunks_mut::<64>().0 {
        let [a, b, c, d] = at.map(&read);
        let (ab, cd) =
            ([_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)], [_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d)]);
        for (out, (ab, cd)) in out.as_chunks_mut::<32>().0.iter_mut().zip(ab.into_iter().zip(cd)) {
            let (ab, cd) = (_mm_xor_si128(ab, sign), _mm_xor_si128(cd, sign));
            let quads = _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
            // SAFETY: 32 writable bytes; the store needs no alignment.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), quads) };
        }
        for (at, row) in at.iter_mut().zip(&rows) {
            *at = at.wrapping_add(row.step);
        }
    }
}

/// `acc[i] = start (or what it was) + Σ columns[i · stride + tap · dilation] · weights[tap]`, 16 channels each.
#[target_feature(enable = "avx2")]
fn products(columns: &[u8], weights: &[u8], steps: [usize; 2], start: Option<&[i32; 16]>, acc: &mut [i32]) {
    for (i, weights) in weights.chunks(TAPS * 64).enumerate() {
        let columns = &columns[i * TAPS * steps[1] * 64..];
        let start = start.filter(|_| i == 0);
        match weights.len() / 64 {
            1 => add::<1>(columns, weights, steps, start, acc),
            2 => add::<2>(columns, weights, steps, start, acc),
            3 => add::<3>(columns, weights, steps, start, acc),
            4 => add::<4>(columns, weights, steps, start, acc),
            _ => add::<TAPS>(columns, weights, steps, start, acc),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn add<const N: usize>(
    columns: &[u8],
    weights: &[u8],
    [stride, dilation]: [usize; 2],
    start: Option<&[i32; 16]>,
    acc: &mut [i32],
) {
    let (columns, _) = columns.as_chunks::<32>();
    let (weights, _) = weights.as_chunks::<32>();
    let (acc, _) = acc.as_chunks_mut::<8>();
    let low = _mm256_set1_epi16(0xff);
    for half in 0..2 {
        let weights: [_; N] = std::array::from_fn(|tap| {
            let w = load(&weights[tap * 2 + half]);
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)), _mm256_srai_epi16::<8>(w)]
        });
        let start = start.map(|start| load_i32(&start.as_chunks().0[half]));
        for (i, acc) in acc.iter_mut().skip(half).step_by(2).enumerate() {
            let mut sum = start.unwrap_or_else(|| load_i32(acc));
            for (tap, [even, odd]) in weights.iter().enumerate() {
                let x = load(&columns[(i * stride + tap * dilation) * 2 + half]);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(x, low), *even));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16::<8>(x), *odd));
            }
            // SAFETY: 32 writable bytes; the store needs no alignment.
            unsafe { _mm256_storeu_si256(acc.as_mut_ptr().cast(), sum) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_i32(x: &[i32; 8]) -> __m256i {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}
