//! A tile's sums to codes, in registers from the integer to the byte: what the loop of `lanes` says, which compilers make
//! three times as slow.

use super::{load_f32, load_i32};
use crate::buffer::Rows;
use crate::cpu::lanes::{Encoding, Tile, body};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) fn tile_codes(acc: &[i32], t: Tile, e: Encoding, out: Rows<u8>) {
    match t.addend {
        _ if t.first != 0 => body::tile_codes(acc, t, e, out),
        None => finish::<false>(acc, t, e, out),
        Some(_) => finish::<true>(acc, t, e, out),
    }
}

/// What encoding takes of a tile, in registers.
pub(super) struct Encoder<'a> {
    lo: __m512,
    hi: __m512,
    scale: __m512,
    inverse: __m512,
    base: __m512i,
    scales: &'a [[f32; 16]],
    biases: &'a [[f32; 16]],
}

impl<'a> Encoder<'a> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(t: &Tile<'a>, e: Encoding) -> Self {
        let (least, most) = (e.lo * e.scale, e.hi * e.scale);
        Self {
            lo: _mm512_set1_ps(t.lo.max(least).min(most)),
            hi: _mm512_set1_ps(t.hi.min(most).max(least)),
            scale: _mm512_set1_ps(e.scale),
            inverse: _mm512_set1_ps(1.0 / e.scale),
            base: _mm512_set1_epi32(e.base),
            scales: t.scales.as_chunks().0,
            biases: t.bias.as_chunks().0,
        }
    }

    /// The sums of `V` strips of a row, from strip `first` on, to codes. Step by step for all strips: one after the other
    /// they would fill the schedulers with operations that wait.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn strips<const V: usize>(
        &self,
        c: [__m512i; V],
        first: usize,
        factor: __m512,
        addend: Option<([__m128i; V], __m512, __m512i)>,
    ) -> [__m128i; V] {
        let mut v = [_mm512_setzero_ps(); V];
        for j in 0..V {
            v[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(c[j]), load_f32(&self.scales[first + j]));
        }
        for j in 0..V {
            v[j] = _mm512_fmadd_ps(v[j], factor, load_f32(&self.biases[first + j]));
        }
        if let Some((q, scale, zero)) = addend {
            for j in 0..V {
                let q = _mm512_sub_epi32(_mm512_cvtepi8_epi32(q[j]), zero);
                v[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), scale, v[j]);
            }
        }
        let mut q = v;
        for j in 0..V {
            v[j] = _mm512_min_ps(_mm512_max_ps(v[j], self.lo), self.hi);
            q[j] = _mm512_mul_ps(v[j], self.inverse);
        }
        for j in 0..V {
            q[j] = _mm512_fmadd_ps(_mm512_fnmadd_ps(q[j], self.scale, v[j]), self.inverse, q[j]);
        }
        let mut out = [_mm_setzero_si128(); V];
        for j in 0..V {
            out[j] = _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(q[j]), self.base));
        }
        out
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn finish<const ADD: bool>(acc: &[i32], t: Tile, e: Encoding, mut out: Rows<u8>) {
    let encoder = Encoder::new(&t, e);
    let (addend, add_scale, add_zero) = t.addend.unwrap_or((&[], 0.0, 0));
    let (add_scale, add_zero) = (_mm512_set1_ps(add_scale), _mm512_set1_epi32(add_zero));
    let encode = |acc: &[i32; 16], j: usize, factor: __m512, q: __m128i| {
        let addend = if ADD { Some(([q], add_scale, add_zero)) } else { None };
        encoder.strips([load_i32(acc)], j, factor, addend)[0]
    };
    let (whole, tail) = (t.used / 16, ((1u32 << (t.used % 16)) - 1) as u16);
    let strips = t.cols / 16;
    let rows = acc.as_chunks::<16>().0.chunks_exact(strips);
    assert!(t.used <= t.cols && encoder.biases.len() == strips && encoder.scales.len() == strips);
    for (r, (acc, factor)) in rows.zip(t.factors).enumerate() {
        let factor = _mm512_set1_ps(*factor);
        let out = &mut out.row(r)[..t.used];
        let addend = if ADD { &addend[t.at[r] + t.skip..][..t.used] } else { &[] };
        let mut q = _mm_setzero_si128();
        for j in 0..whole {
            // SAFETY: 16 bytes from `j * 16` on are within `used`, as long as both slices are.
            unsafe {
                if ADD {
                    q = _mm_loadu_si128(addend.as_ptr().add(j * 16).cast());
                }
                _mm_storeu_si128(out.as_mut_ptr().add(j * 16).cast(), encode(&acc[j], j, factor, q));
            }
        }
        if tail != 0 {
            // SAFETY: the rest, as many bytes as the mask has bits.
            unsafe {
                if ADD {
                    q = _mm_maskz_loadu_epi8(tail, addend.as_ptr().add(whole * 16).cast());
                }
                let q = encode(&acc[whole], whole, factor, q);
                _mm_mask_storeu_epi8(out.as_mut_ptr().add(whole * 16).cast(), tail, q);
            }
        }
    }
}
