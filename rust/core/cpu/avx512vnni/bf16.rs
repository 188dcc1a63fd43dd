//! The float path on bfloat16 products, for CPUs that have them.
//!
//! | instruction | use | ports (Zen 4) |
//! |---|---|---|
//! | `vdpbf16ps zmm` | 16 channels x 2 steps into float32: twice the products of `vfmadd231ps` | 0 1 |
//! | `vpermw zmm` | 4- or 2-bit codes to bfloat16: the table is one register, the index's high bits are ignored | 1 2 |
//!
//! A code is exact in bfloat16's 8 bits, so nothing is lost but what the caller's activations lack. Zero points are
//! subtracted from a group's sums, times Σa.

use super::{ask_ahead, by_shape, load, load_f16, load_f32, load_u8, store, store_f32};
use crate::cpu::FloatRun;
use crate::matrix::{Scales, ZeroPoints};
use std::arch::x86_64::*;

/// Rows whose float sums stay in registers beside those of the group.
const ROWS_IN_REGISTERS: usize = 3;
/// "Bits" of a code that is a bfloat16 already.
const EXPANDED: usize = 16;

/// `table[i]` is the signed value of the code in i's low bits, as bfloat16.
#[target_feature(enable = "avx512f")]
fn table<const BITS: usize>() -> __m512i {
    let mut values = [0u16; 32];
    for (i, value) in values.iter_mut().enumerate() {
        let code = (i % (1 << BITS.min(8))) as f32 - (1u32 << (BITS.min(8) - 1)) as f32;
        *value = (code.to_bits() >> 16) as u16;
    }
    let bytes: [u8; 64] = std::array::from_fn(|i| values[i / 2].to_le_bytes()[i % 2]);
    load(&bytes)
}

/// As [`FloatRun`] says, from packed blocks of int4 or int2, or from [`expand`]ed ones.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16,f16c")]
pub(super) fn grouped<const BITS: usize>(a: &[u8], rows: usize, b: &[u8], cols: usize, run: FloatRun, f: &mut [f32]) {
    by_shape!(rows, cols, [1 2 3 4 5 6], grouped_shape<BITS>(a, b, run, f))
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16,f16c")]
fn grouped_shape<const BITS: usize, const R: usize, const V: usize>(a: &[u8], b: &[u8], run: FloatRun, f: &mut [f32]) {
    let (out, _) = f.as_chunks_mut::<16>();
    let mut f = [[_mm512_setzero_ps(); V]; R];
    if R <= ROWS_IN_REGISTERS && !run.fresh {
        for r in 0..R {
            for j in 0..V {
                f[r][j] = load_f32(&out[r * V + j]);
            }
        }
    }
    let table = table::<BITS>();
    let (sums, _) = run.sums.as_chunks::<R>();
    let (mut a, _) = a.as_chunks::<4>();
    let (mut b, _) = b.as_chunks::<64>();
    for (g, sums) in sums.iter().enumerate() {
        let quads = if g + 1 < run.sums.len() / R { run.quads } else { a.len() / (R * 2) };
        let (group_a, rest_a) = a.split_at(quads * R * 2);
        let (group_b, rest_b) = b.split_at(quads * BITS * V / 8);
        (a, b) = (rest_a, rest_b);

        let mut c = [[_mm512_setzero_ps(); V]; R];
        // one row has too few sums to hide a product's latency: every other pair goes to a second set
        let mut d = [[_mm512_setzero_ps(); V]; R];
        if BITS == EXPANDED {
            for (a, b) in group_a.chunks_exact(R * 2).zip(group_b.chunks_exact(2 * V)) {
                for h in 0..2 {
                    for r in 0..R {
                        let x = broadcast(a[r * 2 + h]);
                        for j in 0..V {
                            let sum = if R == 1 && h == 1 { &mut d[r][j] } else { &mut c[r][j] };
                            *sum = _mm512_dpbf16_ps(*sum, bits(load(&b[h * V + j])), x);
                        }
                    }
                }
            }
        } else {
            let per = 8 / BITS;
            for (a, b) in group_a.chunks_exact(per * R * 2).zip(group_b.chunks_exact(V)) {
                ask_ahead(b, true);
                let mut codes = [table; V];
                for j in 0..V {
                    codes[j] = load(&b[j]);
                }
                for i in 0..16 / BITS {
                    let (t, h) = (i % per, i / per);
                    let mut w = [table; V];
                    for j in 0..V {
                        w[j] = _mm512_permutexvar_epi16(codes[j], table);
                        codes[j] =
                            if BITS == 4 { _mm512_srli_epi16::<4>(codes[j]) } else { _mm512_srli_epi16::<2>(codes[j]) };
                    }
                    for r in 0..R {
                        let x = broadcast(a[(t * R + r) * 2 + h]);
                        for j in 0..V {
                            let sum = if R == 1 && i % 2 == 1 { &mut d[r][j] } else { &mut c[r][j] };
                            *sum = _mm512_dpbf16_ps(*sum, bits(w[j]), x);
                        }
                    }
                }
            }
        }
        for j in 0..V {
            let at = (g * V + j) * 16;
            let scale = match run.scales {
                Scales::F32(s) => load_f32(&s[at..].as_chunks().0[0]),
                Scales::F16(s) => load_f16(&s[at..].as_chunks().0[0]),
            };
            let zero = match run.zeros {
                ZeroPoints::None => _mm512_setzero_ps(),
                ZeroPoints::U8(z) => {
                    let z = _mm512_sub_epi32(load_u8(&z[at..].as_chunks().0[0]), _mm512_set1_epi32(run.offset));
                    _mm512_cvtepi32_ps(z)
                }
                ZeroPoints::F16(z) => load_f16(&z[at..].as_chunks().0[0]),
            };
            for r in 0..R {
                let sum = if R == 1 { _mm512_add_ps(c[r][j], d[r][j]) } else { c[r][j] };
                let sum = _mm512_fnmadd_ps(zero, _mm512_set1_ps(sums[r]), sum);
                if R <= ROWS_IN_REGISTERS {
                    f[r][j] = _mm512_fmadd_ps(sum, scale, f[r][j]);
                } else {
                    let at = &mut out[r * V + j];
                    let so_far = if g == 0 && run.fresh { _mm512_setzero_ps() } else { load_f32(at) };
                    store_f32(at, _mm512_fmadd_ps(sum, scale, so_far));
                }
            }
        }
    }
    if R <= ROWS_IN_REGISTERS {
        for r in 0..R {
            for j in 0..V {
                store_f32(&mut out[r * V + j], f[r][j]);
            }
        }
    }
}

/// Packed blocks to signed codes in bfloat16, 16 bits each, in the order of the activations.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn expand<const BITS: usize>(b: &[u8], cols: usize, out: &mut [u8]) {
    by_shape!(1, cols, [1], expand_shape<BITS>(b, out))
}

#[target_feature(enable = "avx512f,avx512bw")]
fn expand_shape<const BITS: usize, const R: usize, const V: usize>(b: &[u8], out: &mut [u8]) {
    let table = table::<BITS>();
    let per = 8 / BITS;
    let (b, _) = b.as_chunks::<64>();
    let (out, _) = out.as_chunks_mut::<64>();
    for (b, out) in b.chunks_exact(V).zip(out.chunks_exact_mut(per * 2 * V)) {
        for j in 0..V {
            let mut codes = load(&b[j]);
            if BITS == 8 {
                codes = _mm512_xor_si512(codes, _mm512_set1_epi8(-128)); // offset to two's complement
                for h in 0..2 {
                    // bytes h and 2 + h, sign-extended
                    let (low, high) = if h == 0 {
                        (_mm512_slli_epi32::<24>(codes), _mm512_slli_epi32::<8>(codes))
                    } else {
                        (_mm512_slli_epi32::<16>(codes), codes)
                    };
                    let low = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(low)));
                    let high = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(high)));
                    // the low half of such a float is zero
                    store(&mut out[h * V + j], _mm512_or_si512(_mm512_srli_epi32::<16>(low), high));
                }
            } else {
                for i in 0..16 / BITS {
                    let (t, h) = (i % per, i / per);
                    store(&mut out[(t * 2 + h) * V + j], _mm512_permutexvar_epi16(codes, table));
                    codes = if BITS == 4 { _mm512_srli_epi16::<4>(codes) } else { _mm512_srli_epi16::<2>(codes) };
                }
            }
        }
    }
}

/// Two steps of one row, to every channel.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(pair: [u8; 4]) -> __m512bh {
    bits(_mm512_set1_epi32(i32::from_le_bytes(pair)))
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(clippy::missing_transmute_annotations)]
fn bits(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, any of which are a value.
    unsafe { std::mem::transmute(v) }
}
