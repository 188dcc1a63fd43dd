//! Three planes to the pixels of a picture, 16 at a time: a dword each, of which three bytes are kept.

use super::load_u8;
use crate::cpu::lanes::body;
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) fn interleave(planes: &[u8], channels: usize, out: &mut [u8]) {
    let pixels = planes.len() / channels;
    let (red, rest) = planes.split_at(pixels);
    if channels != 3 || red.is_empty() {
        return body::interleave(planes, channels, out);
    }
    let (green, blue) = rest.split_at(pixels);
    let out = &mut out[..pixels * 3];
    // a quarter's 12 bytes together, and then the quarters
    let kept = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    let together = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    let blocks = red.as_chunks::<16>().0.iter().zip(green.as_chunks().0).zip(blue.as_chunks().0);
    let mut done = 0;
    for ((r, g), b) in blocks {
        // what is stored is 64 bytes, of which the next pixels write over the last 16
        if done * 3 + 64 > out.len() {
            break;
        }
        let pixel = _mm512_or_si512(load_u8(r), _mm512_slli_epi32::<8>(load_u8(g)));
        let pixel = _mm512_or_si512(pixel, _mm512_slli_epi32::<16>(load_u8(b)));
        let codes = _mm512_permutexvar_epi32(together, _mm512_shuffle_epi8(pixel, kept));
        // SAFETY: 64 writable bytes, as was just seen; the store needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(done * 3).cast(), codes) };
        done += 16;
    }
    let last = red[done..].iter().zip(&green[done..]).zip(&blue[done..]);
    for (out, ((r, g), b)) in out[done * 3..].as_chunks_mut::<3>().0.iter_mut().zip(last) {
        *out = [*r, *g, *b];
    }
}
