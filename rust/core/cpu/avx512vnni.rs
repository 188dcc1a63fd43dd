//! AVX-512 with VNNI.
//!
//! | instruction | use | ports (Ice Lake) |
//! |---|---|---|
//! | `vpdpbusd zmm` | 16 channels x 4 steps of u8 · s8 into int32, wrapping | p0 p5 |
//! | `vpbroadcastd zmm, [mem]` | one row's quad of activations | load only |
//! | `vpermps zmm` | 4- or 2-bit code to float: the table is one register, the index's high bits are ignored | p5 |
//! | `vfmadd231ps zmm` | the float tile | p0 p5 |
//!
//! Registers of a 6x64 tile: 24 accumulators, 4 of weights, 1 broadcast, 1 mask of 32. Six rows because the fourth
//! operand of 7 would spill; 64 channels because 10 loads then feed 24 multiplies.

use super::lanes::lanes;
use super::{Isa, Microkernel};
use crate::qtype::QuantType;
use std::arch::x86_64::*;

const MR: usize = 6;

pub(super) static ISA: Isa = Isa {
    name: "avx512vnni",
    nr: 64,
    supported: || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    },
    kernels: [
        Microkernel {
            name: "qs8_q2w_gemm_6x64c4__avx512vnni",
            weight: QuantType::Int2,
            mr: MR,
            wide: false,
            tile: tile::<2>,
            unpacked: tile::<8>,
            unpack: unpack::<2>,
            dot: dot::<2>,
        },
        Microkernel {
            name: "qs8_q4w_gemm_6x64c4__avx512vnni",
            weight: QuantType::Int4,
            mr: MR,
            wide: false,
            tile: tile::<4>,
            unpacked: tile::<8>,
            unpack: unpack::<4>,
            dot: dot::<4>,
        },
        Microkernel {
            name: "qs8_q8w_gemm_6x64c4__avx512vnni",
            weight: QuantType::Int8,
            mr: MR,
            wide: false,
            tile: tile::<8>,
            unpacked: tile::<8>,
            unpack: unpack::<8>,
            dot: dot::<8>,
        },
    ],
    float_mr: MR,
    float_tile,
    lanes: lanes!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c"),
};

/// Call `$kernel::<.., rows, vectors>` for run-time `rows` and `cols`.
macro_rules! by_shape {
    ($rows:expr, $cols:expr, [$($r:literal)*], $kernel:ident <$bits:ident> $args:tt) => {
        match ($rows, $cols / 16) {
            $(
                ($r, 1) => $kernel::<$bits, $r, 1> $args,
                ($r, 2) => $kernel::<$bits, $r, 2> $args,
                ($r, 3) => $kernel::<$bits, $r, 3> $args,
                ($r, 4) => $kernel::<$bits, $r, 4> $args,
            )*
            _ => unreachable!("rows and cols are asserted by the caller"),
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const BITS: usize>(a: &[u8], rows: usize, b: &[u8], cols: usize, acc: &mut [i32], accumulate: bool) {
    by_shape!(rows, cols, [1 2 3 4 5 6], tile_shape<BITS>(a, b, acc, accumulate))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile_shape<const BITS: usize, const R: usize, const V: usize>(
    a: &[u8],
    b: &[u8],
    acc: &mut [i32],
    accumulate: bool,
) {
    let (out, _) = acc.as_chunks_mut::<16>();
    let mut c = [[_mm512_setzero_si512(); V]; R];
    if accumulate {
        for r in 0..R {
            for j in 0..V {
                c[r][j] = load_i32(&out[r * V + j]);
            }
        }
    }
    let (a, _) = a.as_chunks::<4>();
    let (b, _) = b.as_chunks::<64>();
    let mask = _mm512_set1_epi8(((1u16 << BITS) - 1) as i8);
    for (a, b) in a.chunks_exact(8 / BITS * R).zip(b.chunks_exact(V)) {
        for t in 0..8 / BITS {
            let mut w = [mask; V];
            for j in 0..V {
                w[j] = match (BITS, t) {
                    (8, _) => load(&b[j]),
                    (_, 0) => _mm512_and_si512(load(&b[j]), mask),
                    (4, _) => _mm512_and_si512(_mm512_srli_epi16::<4>(load(&b[j])), mask),
                    (_, 1) => _mm512_and_si512(_mm512_srli_epi16::<2>(load(&b[j])), mask),
                    (_, 2) => _mm512_and_si512(_mm512_srli_epi16::<4>(load(&b[j])), mask),
                    _ => _mm512_and_si512(_mm512_srli_epi16::<6>(load(&b[j])), mask),
                };
            }
            for r in 0..R {
                let x = _mm512_set1_epi32(i32::from_le_bytes(a[t * R + r]));
                for j in 0..V {
                    c[r][j] = _mm512_dpbusd_epi32(c[r][j], w[j], x);
                }
            }
        }
    }
    for r in 0..R {
        for j in 0..V {
            store_i32(&mut out[r * V + j], c[r][j]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn unpack<const BITS: usize>(b: &[u8], cols: usize, out: &mut [u8]) {
    if BITS == 8 {
        return out.copy_from_slice(b);
    }
    let mask = _mm512_set1_epi8(((1u16 << BITS) - 1) as i8);
    let (b, _) = b.as_chunks::<64>();
    let (out, _) = out.as_chunks_mut::<64>();
    let vectors = cols / 16;
    for (b, out) in b.chunks_exact(vectors).zip(out.chunks_exact_mut(8 / BITS * vectors)) {
        for (j, b) in b.iter().enumerate() {
            let mut w = load(b);
            for t in 0..8 / BITS {
                store(&mut out[t * vectors + j], _mm512_and_si512(w, mask));
                w = if BITS == 4 { _mm512_srli_epi16::<4>(w) } else { _mm512_srli_epi16::<2>(w) };
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn dot<const BITS: usize>(
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
fn float_tile(a: &[f32], stride: usize, rows: usize, b: &[f32], cols: usize, acc: &mut [f32]) {
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

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(bytes: &mut [u8; 64], v: __m512i) {
    // SAFETY: 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i32(x: &[i32; 16]) -> __m512i {
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_i32(x: &mut [i32; 16], v: __m512i) {
    // SAFETY: 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(x: &[f32; 16]) -> __m512 {
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_f32(x: &mut [f32; 16], v: __m512) {
    // SAFETY: 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
}
