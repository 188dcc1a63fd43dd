//! Sums of two tensors of codes, 64 at a time.
//!
//! A code under the exponent of 2^23 reads as the float 2^23 + 128 + q, from which a subtraction takes all but q − zero,
//! exactly. `vpshufb` brings codes there in the order in which packing puts them back: quarter l of vector i has codes
//! 16 l + 4 i on.

use super::finish::Packer;
use super::load;
use crate::cpu::lanes::{Addition, Decoding, Steps, body};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) fn add_codes(a: &[i8], b: &[i8], rule: Addition, steps: Steps, out: &mut [u8]) {
    let most = (rule.a.scale + rule.b.scale) * 255.0;
    if most.is_nan() || most > Packer::FAR {
        return body::add_codes(a, b, rule, steps, out);
    }
    let packer = Packer::new(steps);
    let (side_a, side_b) = (Side::new(rule.a), Side::new(rule.b));
    let sum = |a: __m512i, b: __m512i| {
        let mut v = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            v[i] = _mm512_fmadd_ps(side_b.steps(b, i), side_b.scale, _mm512_mul_ps(side_a.steps(a, i), side_a.scale));
        }
        packer.pack(v)
    };
    let (a, b) = (&a[..out.len()], &b[..out.len()]);
    let whole = out.len() / 64 * 64;
    for at in (0..whole).step_by(64) {
        // SAFETY: 64 codes from here on are within all three.
        unsafe {
            let codes =
                sum(_mm512_loadu_si512(a.as_ptr().add(at).cast()), _mm512_loadu_si512(b.as_ptr().add(at).cast()));
            _mm512_storeu_si512(out.as_mut_ptr().add(at).cast(), codes);
        }
    }
    let mask = (1u64 << (out.len() - whole)) - 1;
    // SAFETY: the rest of them, as many codes as the mask has bits.
    unsafe {
        let a = _mm512_maskz_loadu_epi8(mask, a.as_ptr().add(whole));
        let b = _mm512_maskz_loadu_epi8(mask, b.as_ptr().add(whole));
        _mm512_mask_storeu_epi8(out.as_mut_ptr().add(whole).cast(), mask, sum(a, b));
    }
}

/// What the codes of one side become steps by.
struct Side {
    /// `vpshufb`'s, for each vector.
    order: [__m512i; 4],
    scale: __m512,
    exponent: __m512i,
    offset: __m512,
}

impl Side {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(d: Decoding) -> Self {
        // a code's byte, and three that become 0
        let order = |i: usize| std::array::from_fn(|b| if b % 4 == 0 { (b / 4 % 4 + 4 * i) as u8 } else { 0x80 });
        Self {
            order: [load(&order(0)), load(&order(1)), load(&order(2)), load(&order(3))],
            scale: _mm512_set1_ps(d.scale),
            exponent: _mm512_set1_epi32(0x4b00_0080),
            offset: _mm512_set1_ps((8_388_608 + 128 + d.zero) as f32),
        }
    }

    /// `q − zero` of the codes of vector `i`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn steps(&self, q: __m512i, i: usize) -> __m512 {
        let float = _mm512_xor_si512(_mm512_shuffle_epi8(q, self.order[i]), self.exponent);
        _mm512_sub_ps(_mm512_castsi512_ps(float), self.offset)
    }
}
