//! Tiles whose rows are read where they lie: no activations are copied.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Here activations are the unsigned ones, a + 128, and weights the signed
//! ones, u − 128: the sums then lack nothing that differs from row to row. Both come by `vpxord`, with a broadcast from
//! memory where that is wanted, on a port that `vpdpbusd` leaves free.
//!
//! Registers: 24 sums at most, up to 4 of weights, 1 of activations, the sign bits. The narrower the panel, the more rows.

use super::finish::Encoder;
use super::{load, load_i32, store_i32};
use crate::buffer::Rows;
use crate::cpu::lanes::{Steps, Tile};
use crate::cpu::{TapTile, Taps};
use std::arch::x86_64::*;

pub(super) const TAPS: Taps = Taps { rows: [12, 12, 8, 6], tile, codes, narrow, sums };

/// `$call` with the constants `$R`, rows, and `$V`, strips, of a tile.
macro_rules! by_shape {
    ($t:ident, |$R:ident, $V:ident| $call:expr) => {
        by_shape!(all $t $R $V $call; [1: 1 2 4 6 8 12] [2: 1 2 4 6 8 12] [3: 1 2 4 6 8] [4: 1 2 4 6])
    };
    (all $t:ident $R:ident $V:ident $call:expr; $([$v:literal: $($r:literal)*])*) => {
        match $t.cols / 16 {
            $($v => by_shape!(rows $t $R $V $call; $v $($r)*),)*
            _ => unreachable!("cols are asserted by the caller"),
        }
    };
    (rows $t:ident $R:ident $V:ident $call:expr; $v:literal $($r:literal)*) => {
        match $t.rows {
            $($r => {
                const $R: usize = $r;
                const $V: usize = $v;
                $call
            })*
            _ => unreachable!("rows are asserted by the caller"),
        }
    };
}

/// The sums of a tile: a macro, since they stay in registers only where this is inlined.
macro_rules! sums_of {
    ($t:ident, $r:ident, $v:ident, $c:ident) => {
        let (start, _) = $t.start.as_chunks::<16>();
        let sign = _mm512_set1_epi8(i8::MIN);
        let mut $c = [[_mm512_setzero_si512(); $v]; $r];
        for r in 0..$r {
            for j in 0..$v {
                $c[r][j] = load_i32(&start[j]);
            }
        }
        let (taps, _) = $t.at.as_chunks::<$r>();
        for (at, b) in taps.iter().zip($t.weights) {
            let (b, _) = $t.panel[*b..*b + $t.quads * $v * 64].as_chunks::<64>();
            let mut step = $t.offset;
            for b in b.chunks_exact($v) {
                let mut w = [_mm512_setzero_si512(); $v];
                for j in 0..$v {
                    w[j] = _mm512_xor_si512(load(&b[j]), sign);
                }
                for r in 0..$r {
                    // SAFETY: `quads * 4` bytes are readable from each address on, by the promise of who made the tile.
                    let x = _mm512_set1_epi32(unsafe { at[r].wrapping_add(step).cast::<i32>().read_unaligned() });
                    let x = _mm512_xor_si512(x, sign);
                    for j in 0..$v {
                        $c[r][j] = _mm512_dpbusd_epi32($c[r][j], x, w[j]);
                    }
                }
                step += 4;
            }
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile(t: &TapTile, acc: &mut [i32]) {
    by_shape!(t, |R, V| shape::<R, V>(t, acc))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn shape<const R: usize, const V: usize>(t: &TapTile, acc: &mut [i32]) {
    sums_of!(t, R, V, c);
    let (out, _) = acc.as_chunks_mut::<16>();
    for r in 0..R {
        for j in 0..V {
            store_i32(&mut out[r * V + j], c[r][j]);
        }
    }
}

/// The same, and at once the codes of the first rows and columns: the sums never lie in memory.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn codes(t: &TapTile, finish: Tile, steps: Steps, out: Rows<u8>) {
    by_shape!(t, |R, V| codes_shape::<R, V>(t, finish, steps, out))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn codes_shape<const R: usize, const V: usize>(t: &TapTile, finish: Tile, steps: Steps, mut out: Rows<u8>) {
    sums_of!(t, R, V, c);
    let encoder = Encoder::<V>::new(&finish, steps, &out);
    // not a loop: sums that one goes through would lie in memory
    macro_rules! groups {
        ($($group:literal)*) => {
            $(
                let first = $group * Encoder::<V>::ROWS;
                if first < R && first < finish.at.len() {
                    let mut four = [_mm512_setzero_si512(); 4];
                    for i in 0..4 {
                        let (r, j) = Encoder::<V>::place(i);
                        four[i] = c[(first + r).min(R - 1)][j];
                    }
                    encoder.write(four, first, &mut out);
                }
            )*
        };
    }
    groups!(0 1 2 3 4 5 6 7);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn narrow(t: &TapTile, acc: &mut [i32]) {
    match t.rows {
        1 => narrow_shape::<1>(t, acc),
        2 => narrow_shape::<2>(t, acc),
        4 => narrow_shape::<4>(t, acc),
        6 => narrow_shape::<6>(t, acc),
        8 => narrow_shape::<8>(t, acc),
        _ => narrow_shape::<12>(t, acc),
    }
}

/// One load has the codes of all groups; a permutation gives each column the quad of its own.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn narrow_shape<const R: usize>(t: &TapTile, acc: &mut [i32]) {
    let sign = _mm512_set1_epi8(i8::MIN);
    let mask = ((1u32 << (TapTile::bytes(t.quads, t.each) / 4)) - 1) as u16;
    let first = load_i32(&std::array::from_fn(|c| (c / t.each * t.quads) as i32));
    let mut c = [load_i32(&t.start.as_chunks().0[0]); R];
    let (taps, _) = t.at.as_chunks::<R>();
    for (at, b) in taps.iter().zip(t.weights) {
        let (b, _) = t.panel[*b..*b + t.quads * 64].as_chunks::<64>();
        let mut x = [sign; R];
        for r in 0..R {
            // SAFETY: readable where the mask is set, by the promise of who made the tile.
            let codes = unsafe { _mm512_maskz_loadu_epi32(mask, at[r].wrapping_add(t.offset).cast()) };
            x[r] = _mm512_xor_si512(codes, sign);
        }
        for (q, b) in b.iter().enumerate() {
            let w = _mm512_xor_si512(load(b), sign);
            let index = _mm512_add_epi32(first, _mm512_set1_epi32(q as i32));
            for r in 0..R {
                c[r] = _mm512_dpbusd_epi32(c[r], _mm512_permutexvar_epi32(index, x[r]), w);
            }
        }
    }
    for (out, c) in acc.as_chunks_mut::<16>().0.iter_mut().zip(c) {
        store_i32(out, c);
    }
}

/// The sums of each row's codes over all taps.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums(at: &[*const u8], offset: usize, bytes: usize, out: &mut [i32]) {
    let (ones, whole) = (_mm512_set1_epi8(1), bytes / 64);
    let tail = (1u64 << (bytes % 64)) - 1;
    for r in 0..out.len() {
        let mut c = [_mm512_setzero_si512(); 2];
        for at in at.iter().skip(r).step_by(out.len()) {
            let at = at.wrapping_add(offset);
            for i in 0..whole {
                // SAFETY: `bytes` bytes are readable from each address on, by the caller's promise.
                let x = unsafe { _mm512_loadu_si512(at.add(i * 64).cast()) };
                c[i % 2] = _mm512_dpbusd_epi32(c[i % 2], ones, x);
            }
            if tail != 0 {
                // SAFETY: as above; what the mask leaves out is not read.
                let x = unsafe { _mm512_maskz_loadu_epi8(tail, at.wrapping_add(whole * 64).cast()) };
                c[1] = _mm512_dpbusd_epi32(c[1], ones, x);
            }
        }
        out[r] = _mm512_reduce_add_epi32(_mm512_add_epi32(c[0], c[1]));
    }
}
