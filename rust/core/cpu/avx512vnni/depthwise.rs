//! Convolutions of each channel by itself, 16 channels at a time.
//!
//! The columns of a kernel's rows become quads first, each once: 4 rows of 16 codes are 4 lanes of a register, `vpermd`
//! brings the 4 dwords of the same channels together and `vpshufb` transposes them. Then an output is one `vpdpbusd` a
//! column of the kernel.

use super::finish::{Encoder, write_codes};
use super::{load, load_i32, store, store_i32};
use crate::buffer::Rows;
use crate::cpu::depthwise::{COLUMN, Depthwise, Line, Lines};
use crate::cpu::lanes::{Steps, Tile};
use std::arch::x86_64::*;

/// Stands for rows that are not there.
static PADDING: [u8; 16] = [0; 16];

pub(super) const DEPTHWISE: Depthwise = Depthwise { columns, products, codes: Some(codes) };

/// Codes of up to four rows, `step` apart, to quads `[column][channel][4]`, their sign bits flipped.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn columns(rows: &[Line], channels: usize, out: &mut [u8]) {
    match (rows, channels) {
        ([a, b, c], 16) => transpose([*a, *b, *c], |at| load_whole(at), out),
        ([a, b, c, d], 16) => transpose([*a, *b, *c, *d], |at| load_whole(at), out),
        _ => {
            let mask = ((1u32 << channels) - 1) as u16;
            let mut lines = [Line { at: PADDING.as_ptr(), step: 0 }; 4];
            lines[..rows.len()].copy_from_slice(rows);
            // SAFETY: so many codes are readable at each column, by the promise of who made the lines.
            transpose(lines, |at| unsafe { _mm_maskz_loadu_epi8(mask, at.cast()) }, out);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_whole(at: *const u8) -> __m128i {
    // SAFETY: 16 codes are readable at each column, by the promise of who made the lines.
    unsafe { _mm_loadu_si128(at.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn transpose<const R: usize>(rows: [Line; R], read: impl Fn(*const u8) -> __m128i, out: &mut [u8]) {
    let sign = _mm512_set1_epi8(i8::MIN);
    let order = load_i32(&std::array::from_fn(|i| (i % 4 * 4 + i / 4) as i32));
    let bytes: [u8; 64] = std::array::from_fn(|i| (i % 4 * 4 + i / 4 % 4) as u8);
    let bytes = load(&bytes);
    let mut at = rows.map(|row| row.at);
    for out in out.as_chunks_mut::<64>().0 {
        let mut x = _mm512_castsi128_si512(read(at[0]));
        if R > 1 {
            x = _mm512_inserti32x4::<1>(x, read(at[1]));
        }
        if R > 2 {
            x = _mm512_inserti32x4::<2>(x, read(at[2]));
        }
        if R > 3 {
            x = _mm512_inserti32x4::<3>(x, read(at[3]));
        }
        let x = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(order, x), bytes);
        store(out, _mm512_xor_si512(x, sign));
        for r in 0..R {
            at[r] = at[r].wrapping_add(rows[r].step);
        }
    }
}

/// `acc[i] = start (or what it was) + Σ columns[i · stride + tap · dilation] · weights[tap]`, 16 channels each.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products(
    columns: &[u8],
    weights: &[u8],
    [stride, dilation]: [usize; 2],
    start: Option<&[i32; 16]>,
    acc: &mut [i32],
) {
    let (columns, _) = columns.as_chunks::<64>();
    let (weights, _) = weights.as_chunks::<64>();
    let (acc, _) = acc.as_chunks_mut::<16>();
    if let ([a, b, c], Some(start)) = (weights, start) {
        let (a, b, c, start) = (load(a), load(b), load(c), load_i32(start));
        for (i, acc) in acc.iter_mut().enumerate() {
            let at = i * stride;
            let sum = _mm512_dpbusd_epi32(start, load(&columns[at]), a);
            let sum = _mm512_dpbusd_epi32(sum, load(&columns[at + dilation]), b);
            store_i32(acc, _mm512_dpbusd_epi32(sum, load(&columns[at + 2 * dilation]), c));
        }
        return;
    }
    for (i, acc) in acc.iter_mut().enumerate() {
        let mut sum = load_i32(start.unwrap_or(acc));
        for (tap, w) in weights.iter().enumerate() {
            sum = _mm512_dpbusd_epi32(sum, load(&columns[i * stride + tap * dilation]), load(w));
        }
        store_i32(acc, sum);
    }
}

/// The sums of lines, and at once their codes: the sums never lie in memory.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn codes(p: &Lines, finish: Tile, steps: Steps, out: Rows<u8>) {
    let three = p.fours == 1 && p.taps() == 3;
    match (p.lines, p.steps) {
        (1, [1, 1]) if three => codes_of::<1, 3, 1>(p, finish, steps, out),
        (1, [2, 1]) if three => codes_of::<1, 3, 2>(p, finish, steps, out),
        (2, [1, 1]) if three => codes_of::<2, 3, 1>(p, finish, steps, out),
        (1, _) => codes_of::<1, 0, 0>(p, finish, steps, out),
        _ => codes_of::<2, 0, 0>(p, finish, steps, out),
    }
}

/// `L` lines; of `T` taps next to each other over up to four rows and `S` steps between outputs, or of any number and steps
/// (0). Four outputs of a line at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn codes_of<const L: usize, const T: usize, const S: usize>(p: &Lines, finish: Tile, steps: Steps, mut out: Rows<u8>) {
    let encoder = Encoder::<1>::new(&finish, steps, &out);
    let (fours, taps) = if T > 0 { (1, T) } else { (p.fours, p.taps()) };
    let [stride, dilation] = if S > 0 { [S, 1] } else { p.steps };
    let (start, width, span) = (load_i32(p.start), finish.at.len() / L, p.span());
    let (columns, weights) = (p.columns.as_ptr(), p.weights.as_ptr());
    let plain = encoder.is_plain();
    let mut line = [(0, 0); L];
    for l in 0..L {
        line[l] = out.line(l * width..(l + 1) * width);
    }
    for first in (0..width).step_by(4) {
        // of a last few outputs, the last one again
        let place = if first + 4 <= width {
            [first, first + 1, first + 2, first + 3]
        } else {
            std::array::from_fn(|i| (first + i).min(width - 1))
        };
        let mut c = [[start; 4]; L];
        for four in 0..fours {
            for tap in 0..taps {
                let mut w = [start; L];
                for l in 0..L {
                    let at = ((l * fours + four) * taps + tap) * COLUMN;
                    // SAFETY: each line has weights for each tap.
                    w[l] = unsafe { _mm512_loadu_si512(weights.add(at).cast()) };
                }
                for i in 0..4 {
                    let column = place[i] * stride + tap * dilation;
                    // SAFETY: each tap of each output is a column, by the promise of the caller.
                    let x = unsafe { _mm512_loadu_si512(columns.add(four * span + column * COLUMN).cast()) };
                    for l in 0..L {
                        c[l][i] = _mm512_dpbusd_epi32(c[l][i], x, w[l]);
                    }
                }
            }
        }
        for l in 0..L {
            write_codes!(encoder, plain, c[l], place.map(|i| line[l].0 + i * line[l].1), out);
        }
    }
}
