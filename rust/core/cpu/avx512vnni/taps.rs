//! Tiles whose rows are read where they lie: no activations are copied.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Here activations are the unsigned ones, a + 128, and weights the signed
//! ones, u − 128: the sums then lack nothing that differs from row to row. Both come by `vpxord`, with a broadcast from
//! memory where that is wanted, on a port that `vpdpbusd` leaves free.
//!
//! Registers: 24 sums at most, up to 4 of weights, 1 of activations, the sign bits. The narrower the panel, the more rows.

use super::finish::{Encoder, write_codes};
use super::{load, load_i32, store_i32};
use crate::buffer::Rows;
use crate::cpu::lanes::{Steps, Tile};
use crate::cpu::taps::Span;
use crate::cpu::{TapRows, Taps};
use std::arch::x86_64::*;

/// Most rows of a tile, by the panel's width.
const MOST: [usize; 4] = [12, 12, 8, 6];

pub(super) const TAPS: Taps = Taps { rows: MOST, sums, codes, row_sums };

/// `$call` for each span of a run, with the constants `$N`, whether a strip is of several groups; `$R`, rows, and `$V`,
/// strips, of its tiles.
macro_rules! by_shape {
    ($t:ident, |$span:ident, $N:ident, $R:ident, $V:ident| $call:expr) => {
        for $span in $t.spans(MOST[$t.cols / 16 - 1]) {
            by_shape!(all $t $span $N $R $V $call; [true 1: 1 2 4 6 8 12]
                [false 1: 1 2 4 6 8 12] [false 2: 1 2 4 6 8 12] [false 3: 1 2 4 6 8] [false 4: 1 2 4 6])
        }
    };
    (all $t:ident $span:ident $N:ident $R:ident $V:ident $call:expr; $([$n:literal $v:literal: $($r:literal)*])*) => {
        match ($t.each > 0, $t.cols / 16) {
            $(($n, $v) => by_shape!(rows $span $N $R $V $call; $n $v $($r)*),)*
            _ => unreachable!("cols are asserted by the caller"),
        }
    };
    (rows $span:ident $N:ident $R:ident $V:ident $call:expr; $n:literal $v:literal $($r:literal)*) => {
        match $span.rows {
            $($r => {
                const $N: bool = $n;
                const $R: usize = $r;
                const $V: usize = $v;
                $call
            })*
            _ => unreachable!("spans have rows of the list"),
        }
    };
}

/// `$body` for every `$by`th row of a tile of `$R`. LLVM leaves large loops as they are, and then the sums, which it sees
/// indexed, in memory.
macro_rules! unroll {
    (|$row:ident in $R:ident by $by:tt| $body:expr) => { unroll!(@ $row $R $by, $body; 0 1 2 3 4 5 6 7 8 9 10 11) };
    (@ $row:ident $R:ident $by:tt, $body:expr; $($n:literal)*) => {{
        $(if usize::is_multiple_of($n, $by) && $n < $R {
            let $row: usize = $n;
            $body
        })*
    }};
}

/// `$body` for each tile of a span, its first row and its sums: a macro, since they stay in registers only where this is
/// inlined. Nothing in its loops can fail, either: LLVM would have the sums in memory for that case.
macro_rules! each_tile {
    ($t:ident, $span:ident, $N:ident, $R:ident, $V:ident, |$row:ident, $sums:ident| $body:expr) => {
        let start: &[[i32; 16]; $V] = $t.start.as_chunks::<16>().0.try_into().expect("a strip is 16 columns");
        let groups = Groups::new(if $N { $t.each } else { 16 }, $t.quads);
        let (stride, of_tap) = ($t.stride(), $t.of_tap());
        for tile in 0..$span.tiles {
            let $row = $span.first + tile * $R;
            let mut $sums = [[_mm512_setzero_si512(); $V]; $R];
            for r in 0..$R {
                for j in 0..$V {
                    $sums[r][j] = load_i32(&start[j]);
                }
            }
            // SAFETY: `Taps::check` has seen to it that tiles have addresses, and taps their quads in the panel.
            let mut at = unsafe { $t.at.as_ptr().add($row) }.cast::<[*const u8; $R]>();
            for tap in $t.taps {
                // SAFETY: as above.
                let (rows, b) = unsafe {
                    (
                        at.read(),
                        std::slice::from_raw_parts(
                            $t.panel.as_ptr().add(tap * of_tap).cast::<[[u8; 64]; $V]>(),
                            $t.quads,
                        ),
                    )
                };
                if $N {
                    narrow_tap!($t, rows, b, groups, $sums, $R)
                } else {
                    tap!($t, rows, b, $sums, $R, $V)
                }
                at = at.cast::<*const u8>().wrapping_add(stride).cast();
            }
            $body
        }
    };
}

/// What a tap adds to the sums.
macro_rules! tap {
    ($t:ident, $at:expr, $b:ident, $c:ident, $R:ident, $V:ident) => {{
        let sign = _mm512_set1_epi8(i8::MIN);
        let mut step = $t.offset;
        for b in $b {
            let mut w = [_mm512_setzero_si512(); $V];
            for j in 0..$V {
                w[j] = _mm512_xor_si512(load(&b[j]), sign);
            }
            for r in 0..$R {
                // SAFETY: `quads * 4` bytes are readable from each address on, by the promise of who made the rows.
                let x = unsafe { unsigned_quad($at[r], step, sign) };
                for j in 0..$V {
                    $c[r][j] = _mm512_dpbusd_epi32($c[r][j], x, w[j]);
                }
            }
            step += 4;
        }
    }};
}

/// The four codes at `at + step` with other signs, in each lane. LLVM would change the signs first and then broadcast, which
/// takes a shuffle, on the port of the products.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn unsigned_quad(at: *const u8, step: usize, sign: __m512i) -> __m512i {
    let x;
    // SAFETY: reads what the caller says is readable.
    unsafe {
        std::arch::asm!(
            "vpxord {x}, {sign}, dword ptr [{at} + {step}]{{1to16}}",
            x = lateout(zmm_reg) x, sign = in(zmm_reg) sign, at = in(reg) at, step = in(reg) step,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    x
}

/// The groups of a strip: where the codes of a tap that its columns read lie among those of the row.
#[derive(Clone, Copy)]
struct Groups {
    /// Of each column: its group's first quad.
    first: __m512i,
    /// Quads of all groups.
    mask: u16,
}

impl Groups {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(each: usize, quads: usize) -> Self {
        let first = load_i32(&std::array::from_fn(|c| (c / each * quads) as i32));
        Self { first, mask: u16::MAX >> 16usize.saturating_sub(16 / each * quads) }
    }

    /// A row's codes of a tap: mostly they are 16, and wider loads would cross lines of the cache.
    ///
    /// # Safety
    /// They are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn load(self, at: *const u8) -> __m512i {
        // SAFETY: the caller's promise; what the mask leaves out is not read.
        unsafe {
            if self.mask < 1 << 4 {
                return _mm512_castsi128_si512(_mm_maskz_loadu_epi32(self.mask as u8, at.cast()));
            }
            _mm512_maskz_loadu_epi32(self.mask, at.cast())
        }
    }
}

/// What a tap adds to the sums of a strip of several groups: one load has the codes of all of them, and a permutation gives
/// each column the quad of its own.
macro_rules! narrow_tap {
    ($t:ident, $at:expr, $b:ident, $groups:ident, $c:ident, $R:ident) => {{
        let sign = _mm512_set1_epi8(i8::MIN);
        let mut x = [sign; $R];
        for r in 0..$R {
            // SAFETY: readable, by the promise of who made the rows.
            x[r] = _mm512_xor_si512(unsafe { $groups.load($at[r].wrapping_add($t.offset)) }, sign);
        }
        for (q, b) in $b.iter().enumerate() {
            let w = _mm512_xor_si512(load(&b[0]), sign);
            let index = _mm512_add_epi32($groups.first, _mm512_set1_epi32(q as i32));
            for r in 0..$R {
                $c[r][0] = _mm512_dpbusd_epi32($c[r][0], _mm512_permutexvar_epi32(index, x[r]), w);
            }
        }
    }};
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sums(t: &TapRows, acc: &mut [i32]) {
    by_shape!(t, |span, N, R, V| sums_of::<N, R, V>(t, span, acc));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sums_of<const N: bool, const R: usize, const V: usize>(t: &TapRows, span: Span, acc: &mut [i32]) {
    let (out, _) = acc.as_chunks_mut::<16>();
    each_tile!(t, span, N, R, V, |first, c| unroll!(|r in R by 1| {
        let row = first - t.rows.start + r;
        if row < t.rows.len() {
            let out = &mut out[row * V..][..V];
            for j in 0..V {
                store_i32(&mut out[j], c[r][j]);
            }
        }
    }));
}

/// The same, and at once their codes: the sums never lie in memory.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn codes(t: &TapRows, finish: Tile, steps: Steps, mut out: Rows<u8>) {
    if finish.addend.is_none() && finish.used == finish.cols {
        by_shape!(t, |span, N, R, V| codes_of::<N, R, V, true>(t, span, finish, steps, &mut out));
    } else {
        by_shape!(t, |span, N, R, V| codes_of::<N, R, V, false>(t, span, finish, steps, &mut out));
    }
}

/// `P`: [`Encoder::is_plain`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn codes_of<const N: bool, const R: usize, const V: usize, const P: bool>(
    t: &TapRows,
    span: Span,
    finish: Tile,
    steps: Steps,
    out: &mut Rows<u8>,
) {
    let encoder = Encoder::<V>::new(&finish, steps, out);
    assert!(!P || encoder.is_plain());
    each_tile!(t, span, N, R, V, |first, c| {
        // what fills a tile up has the sums and the place of the last row
        let places: [usize; R] = out.places(first - t.rows.start);
        unroll!(|row in R by (Encoder::<V>::ROWS)| {
            let (mut four, mut at) = ([_mm512_setzero_si512(); 4], [0; 4]);
            for i in 0..4 {
                let (r, j) = Encoder::<V>::place(i);
                four[i] = c[(row + r).min(R - 1)][j];
                at[i] = places[(row + i).min(R - 1)];
            }
            write_codes!(encoder, P, four, at, *out);
        })
    });
}

/// The sums of each row's codes over all taps.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn row_sums(at: &[*const u8], stride: usize, offset: usize, bytes: usize, out: &mut [i32]) {
    let (ones, whole) = (_mm512_set1_epi8(1), bytes / 64);
    let tail = (1u64 << (bytes % 64)) - 1;
    for r in 0..out.len() {
        let mut c = [_mm512_setzero_si512(); 2];
        for at in at.iter().skip(r).step_by(stride) {
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
