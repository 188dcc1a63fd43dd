//! AVX-512 with VNNI.
//!
//! | instruction | use | ports (Ice Lake) |
//! |---|---|---|
//! | `vpdpbusd zmm` | 16 channels x 4 steps of u8 · s8 into int32, wrapping | p0 p5 |
//! | `vpbroadcastd zmm, [mem]` | one row's quad of activations | load only |
//! | `vpmaddwd zmm` | zero point times Σa, from which a group's sums start | p0 p5 |
//! | `vpermps zmm` | 4- or 2-bit code to float: the table is one register, the index's high bits are ignored | p5 |
//! | `vpternlogd zmm` | a code under an exponent, which reads as a float: for one row, which would wait for p5 | p0 p5 |
//! | `vfmadd231ps zmm` | the float tile | p0 p5 |
//! | `vpermi2b zmm` | 64 look-ups in a table of 128 bytes | p5 |
//!
//! Registers of a 6x64 tile: 24 accumulators, 4 of weights, 1 broadcast, 1 mask of 32. Six rows because the fourth
//! operand of 7 would spill; 64 channels because 10 loads then feed 24 multiplies.

mod add;
mod bf16;
mod depthwise;
mod finish;
mod float;
mod integer;
mod interleave;
mod lookup;
mod taps;

use super::lanes::{Lanes, lanes};
use super::{Bf16, Isa, Microkernel};
use crate::qtype::QuantType;
use std::arch::x86_64::*;

const MR: usize = 6;

fn supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

const VNNI: Isa = Isa {
    name: "avx512vnni",
    nr: 64,
    supported,
    kernels: [
        Microkernel {
            name: "qs8_q2w_gemm_6x64c4__avx512vnni",
            weight: QuantType::Int2,
            mr: MR,
            wide: false,
            tile: integer::tile::<2>,
            unpacked: integer::tile::<8>,
            grouped: Some([integer::grouped::<2>, integer::grouped::<8>]),
            unpack: integer::unpack::<2>,
            dot: float::dot::<2>,
            dot_rows: 12,
        },
        Microkernel {
            name: "qs8_q4w_gemm_6x64c4__avx512vnni",
            weight: QuantType::Int4,
            mr: MR,
            wide: false,
            tile: integer::tile::<4>,
            unpacked: integer::tile::<8>,
            grouped: Some([integer::grouped::<4>, integer::grouped::<8>]),
            unpack: integer::unpack::<4>,
            dot: float::dot::<4>,
            dot_rows: 12,
        },
        Microkernel {
            name: "qs8_q8w_gemm_6x64c4__avx512vnni",
            weight: QuantType::Int8,
            mr: MR,
            wide: false,
            tile: integer::tile::<8>,
            unpacked: integer::tile::<8>,
            grouped: Some([integer::grouped::<8>, integer::grouped::<8>]),
            unpack: integer::unpack::<8>,
            dot: float::dot::<8>,
            dot_rows: 16,
        },
    ],
    float_mr: MR,
    float_tile: float::float_tile,
    bf16: None,
    fused: true,
    taps: Some(taps::TAPS),
    depthwise: depthwise::DEPTHWISE,
    lanes: Lanes {
        add_codes: add::add_codes,
        interleave: interleave::interleave,
        lookup: lookup::lookup,
        tile_codes: finish::tile_codes,
        ..lanes!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")
    },
};

pub(super) static ISA: Isa = VNNI;

/// The same and bfloat16 products, for the float path.
pub(super) static ISA_BF16: Isa = Isa {
    name: "avx512bf16",
    supported: || supported() && is_x86_feature_detected!("avx512bf16"),
    bf16: Some(Bf16 {
        mr: MR,
        packed: [Some(bf16::grouped::<2>), Some(bf16::grouped::<4>), None],
        expanded: bf16::grouped::<16>,
        expand: [bf16::expand::<2>, bf16::expand::<4>, bf16::expand::<8>],
    }),
    ..VNNI
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

use by_shape;

/// Few rows wait for memory, and the processor's own prefetching stops at each page: ask for what comes next, into the
/// second-level cache. `busy` (work enough between two lines): every line; else one of a block, as a hint to go on.
/// Beyond the panel lies most likely the next one; an address that is nobody's does no harm.
#[inline]
fn ask_ahead(block: &[[u8; 64]], busy: bool) {
    let (lines, distance) = if busy { (block.len(), 8192) } else { (1, 16384) };
    for line in &block[..lines] {
        // SAFETY: a hint, which does not read.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_add(distance).cast()) }
    }
}

/// Have memory at hand that is about to be written.
#[inline]
fn ask_for(row: &[f32]) {
    for line in row.chunks(16) {
        // SAFETY: a hint, which does not read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
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

/// 16 bytes, one a lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_u8(x: &[u8; 16]) -> __m512i {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

/// 16 half floats as float32.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_f16(x: &[half::f16; 16]) -> __m512 {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
}
