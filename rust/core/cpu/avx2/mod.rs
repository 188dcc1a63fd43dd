//! AVX2, exact: nothing here can saturate.
//!
//! | instruction | use | ports (Skylake) |
//! |---|---|---|
//! | `vpmaddwd ymm` | int8 codes: 8 channels x 2 steps of int16 products into int32 | p0 p1 |
//! | `vpmaddubsw ymm` | 4- and 2-bit codes: u8 · s8 pairs into int16; 15 · 128 · 2 is far from its limit | p0 p1 |
//! | `vpaddw` / `vpaddd` | sums | p0 p1 p5 |
//! | `vfmadd231ps ymm` | the float tile | p0 p1 |
//!
//! int8 codes would overflow `vpmaddubsw`, so even and odd bytes are widened to int16 (two operations per vector of
//! weights, shared by all rows) and activations come as int16. Registers of the 6x16 int8 tile: 12 accumulators, 2 of
//! weights, 2 broadcasts. The 6x16 tile of narrow codes: 12 int16 sums, 2 of weights, 1 broadcast, 1 product; int16
//! sums move to int32 every few quads, before they could overflow.

mod depthwise;
mod float;
mod integer;

use super::lanes::lanes;
use super::{Isa, Microkernel};
use crate::qtype::QuantType;
use std::arch::x86_64::*;

pub(super) static ISA: Isa = Isa {
    name: "avx2",
    nr: 16,
    supported: || {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    },
    kernels: [
        Microkernel {
            name: "qs8_q2w_gemm_6x16c4__avx2",
            weight: QuantType::Int2,
            mr: 6,
            wide: false,
            tile: integer::narrow_tile::<2, { integer::CRUMB_QUADS }>,
            unpacked: integer::narrow_tile::<8, { integer::CRUMB_QUADS }>,
            grouped: Some([
                integer::narrow_grouped::<2, { integer::CRUMB_QUADS }>,
                integer::narrow_grouped::<8, { integer::CRUMB_QUADS }>,
            ]),
            unpack: integer::unpack::<2>,
            dot: float::dot::<2>,
            dot_rows: 8,
        },
        Microkernel {
            name: "qs8_q4w_gemm_6x16c4__avx2",
            weight: QuantType::Int4,
            mr: 6,
            wide: false,
            tile: integer::narrow_tile::<4, { integer::NIBBLE_QUADS }>,
            unpacked: integer::narrow_tile::<8, { integer::NIBBLE_QUADS }>,
            grouped: Some([
                integer::narrow_grouped::<4, { integer::NIBBLE_QUADS }>,
                integer::narrow_grouped::<8, { integer::NIBBLE_QUADS }>,
            ]),
            unpack: integer::unpack::<4>,
            dot: float::dot::<4>,
            dot_rows: 8,
        },
        Microkernel {
            name: "qs16_q8w_gemm_6x16c4__avx2",
            weight: QuantType::Int8,
            mr: 6,
            wide: true,
            tile: integer::wide_tile,
            unpacked: integer::wide_tile,
            grouped: Some([integer::wide_grouped, integer::wide_grouped]),
            unpack: integer::unpack::<8>,
            dot: float::dot::<8>,
            dot_rows: 16,
        },
    ],
    float_mr: 6,
    float_tile: float::float_tile,
    bf16: None,
    fused: true,
    taps: None,
    depthwise: depthwise::DEPTHWISE,
    lanes: lanes!("avx2,fma,f16c"),
};

/// Run `$call` with the constant `$R` equal to a run-time number of rows, for each strip of 16 channels.
macro_rules! by_strip {
    ($strip:ident in $cols:expr, $R:ident = $rows:expr; [$($r:literal)*] $call:expr) => {
        for $strip in 0..$cols / 16 {
            match $rows {
                $($r => { const $R: usize = $r; $call })*
                _ => unreachable!("rows are asserted by the caller"),
            }
        }
    };
}
use by_strip;

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats<const R: usize>(acc: &[f32], cols: usize, strip: usize) -> [[__m256; 2]; R] {
    let mut c = [[_mm256_setzero_ps(); 2]; R];
    for r in 0..R {
        let (row, _) = acc[r * cols + strip * 16..].as_chunks::<8>();
        for j in 0..2 {
            c[r][j] = load_f32(&row[j]);
        }
    }
    c
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_floats<const R: usize>(acc: &mut [f32], c: [[__m256; 2]; R], cols: usize, strip: usize) {
    for r in 0..R {
        let (row, _) = acc[r * cols + strip * 16..].as_chunks_mut::<8>();
        for j in 0..2 {
            // SAFETY: 32 writable bytes; the store needs no alignment.
            unsafe { _mm256_storeu_ps(row[j].as_mut_ptr(), c[r][j]) }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_f32(x: &[f32; 8]) -> __m256 {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}
