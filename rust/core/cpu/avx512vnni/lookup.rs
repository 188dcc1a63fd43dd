//! A table of 256 bytes in four registers: `vpermi2b` looks up 64 codes by their low seven bits in each half of it
//! (AVX-512 VBMI, which came after VNNI), and the codes' highest bits choose between the two.

use super::super::lanes::body;
use crate::buffer::Rectangle;
use std::arch::x86_64::*;

/// See [`body::lookup`].
pub(super) fn lookup(x: &[i8], table: &[u8; 256], out: Rectangle<u8>) {
    if is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: this CPU has what the function needs.
        unsafe { permute(x, table, out) }
    } else {
        body::lookup(x, table, out);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn permute(x: &[i8], table: &[u8; 256], mut out: Rectangle<u8>) {
    let (quarters, _) = table.as_chunks::<64>();
    let table: [__m512i; 4] = std::array::from_fn(|i| super::load(&quarters[i]));
    for (r, x) in x.chunks_exact(out.cols().max(1)).enumerate() {
        for (x, out) in x.chunks(64).zip(out.row(r).chunks_mut(64)) {
            let some = u64::MAX >> (64 - x.len());
            // SAFETY: as many readable bytes as the mask has bits.
            let codes = unsafe { _mm512_maskz_loadu_epi8(some, x.as_ptr()) };
            let low = _mm512_permutex2var_epi8(table[0], codes, table[1]);
            let high = _mm512_permutex2var_epi8(table[2], codes, table[3]);
            let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
            // SAFETY: as many writable bytes: the rows of `x` are as wide as those of `out`.
            unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), some, found) }
        }
    }
}
