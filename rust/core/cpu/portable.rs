//! The specification: slow, obvious, for any panel width. Every other kernel must give these bits.

use super::depthwise::{COLUMN, Depthwise, Line};
use super::lanes::lanes;
use super::{Isa, Microkernel, STRIP};
use crate::qtype::QuantType;

pub(super) static ISA: Isa = Isa {
    name: "portable",
    nr: 16,
    supported: || true,
    kernels: [
        Microkernel {
            name: "qs8_q2w_gemm_4x16c4__portable",
            weight: QuantType::Int2,
            mr: 4,
            wide: false,
            tile: tile::<2>,
            unpacked: tile::<8>,
            grouped: None,
            unpack: unpack::<2>,
            dot: dot::<2>,
            dot_rows: 4,
        },
        Microkernel {
            name: "qs8_q4w_gemm_4x16c4__portable",
            weight: QuantType::Int4,
            mr: 4,
            wide: false,
            tile: tile::<4>,
            unpacked: tile::<8>,
            grouped: None,
            unpack: unpack::<4>,
            dot: dot::<4>,
            dot_rows: 4,
        },
        Microkernel {
            name: "qs8_q8w_gemm_4x16c4__portable",
            weight: QuantType::Int8,
            mr: 4,
            wide: false,
            tile: tile::<8>,
            unpacked: tile::<8>,
            grouped: None,
            unpack: unpack::<8>,
            dot: dot::<8>,
            dot_rows: 4,
        },
    ],
    float_mr: 4,
    float_tile,
    bf16: None,
    fused: false,
    taps: None,
    depthwise: Depthwise { columns, products, codes: None },
    lanes: lanes!(),
};

/// The code of step `4 * quad + i` of channel `c` in a block.
#[inline(always)]
fn code<const BITS: usize>(block: &[u8], c: usize, quad: usize, i: usize) -> i32 {
    i32::from(block[c * 4 + i] >> (quad * BITS) & ((1u16 << BITS) - 1) as u8)
}

fn tile<const BITS: usize>(a: &[u8], rows: usize, b: &[u8], cols: usize, acc: &mut [i32], accumulate: bool) {
    if !accumulate {
        acc.fill(0);
    }
    let per = 8 / BITS;
    for (block, a) in b.chunks_exact(cols * 4).zip(a.chunks_exact(per * rows * 4)) {
        for (quad, a) in a.chunks_exact(rows * 4).enumerate() {
            for (a, acc) in a.chunks_exact(4).zip(acc.chunks_exact_mut(cols)) {
                for (c, acc) in acc.iter_mut().enumerate() {
                    for i in 0..4 {
                        *acc = acc.wrapping_add(i32::from(a[i] as i8) * code::<BITS>(block, c, quad, i));
                    }
                }
            }
        }
    }
}

fn unpack<const BITS: usize>(b: &[u8], cols: usize, out: &mut [u8]) {
    let per = 8 / BITS;
    for (block, out) in b.chunks_exact(cols * 4).zip(out.chunks_exact_mut(per * cols * 4)) {
        for (quad, out) in out.chunks_exact_mut(cols * 4).enumerate() {
            for (u, byte) in out.iter_mut().zip(block) {
                *u = byte >> (quad * BITS) & ((1u16 << BITS) - 1) as u8;
            }
        }
    }
}

fn dot<const BITS: usize>(
    a: &[f32],
    rows: usize,
    b: &[u8],
    cols: usize,
    scales: &[f32],
    zeros: Option<&[f32]>,
    acc: &mut [f32],
) {
    let offset = 1 << (BITS - 1);
    let mut sums = vec![0f32; rows * cols];
    for (block, a) in b.chunks_exact(cols * 4).zip(a.chunks_exact(32 / BITS * rows)) {
        for (step, a) in a.chunks_exact(rows).enumerate() {
            for c in 0..cols {
                let q = (code::<BITS>(block, c, step / 4, step % 4) - offset) as f32;
                let w = q - zeros.map_or(0.0, |z| z[c]);
                for (r, x) in a.iter().enumerate() {
                    sums[r * cols + c] += x * w;
                }
            }
        }
    }
    for (i, sum) in sums.iter().enumerate() {
        acc[i] = sum.mul_add(scales[i % cols], acc[i]);
    }
}

fn float_tile(a: &[f32], stride: usize, rows: usize, b: &[f32], cols: usize, acc: &mut [f32]) {
    for (k, b) in b.chunks_exact(cols).enumerate() {
        for (r, acc) in acc.chunks_exact_mut(cols).enumerate().take(rows) {
            for (w, acc) in b.iter().zip(acc) {
                *acc += a[r * stride + k] * w;
            }
        }
    }
}

#[allow(unsafe_code)]
unsafe fn columns(rows: &[Line], channels: usize, out: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        for (x, column) in out.chunks_exact_mut(COLUMN).enumerate() {
            // SAFETY: so many codes are readable at each column, by the caller's promise.
            let codes = unsafe { std::slice::from_raw_parts(row.at.wrapping_add(x * row.step), channels) };
            for (quad, code) in column.chunks_exact_mut(4).zip(codes) {
                quad[r] = code ^ 0x80;
            }
        }
    }
}

fn products(
    columns: &[u8],
    weights: &[u8],
    [stride, dilation]: [usize; 2],
    start: Option<&[i32; STRIP]>,
    acc: &mut [i32],
) {
    let (columns, _) = columns.as_chunks::<COLUMN>();
    for (i, acc) in acc.as_chunks_mut::<STRIP>().0.iter_mut().enumerate() {
        let mut sums = *start.unwrap_or(acc);
        for (tap, w) in weights.as_chunks::<COLUMN>().0.iter().enumerate() {
            let column = &columns[i * stride + tap * dilation];
            for c in 0..STRIP {
                for r in c * 4..c * 4 + 4 {
                    sums[c] = sums[c].wrapping_add(i32::from(column[r]) * i32::from(w[r] as i8));
                }
            }
        }
        *acc = sums;
    }
}
