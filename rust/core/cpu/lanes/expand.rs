//! Packed blocks to float weights, and a few of those multiplied.

use super::encode::from_float8;
use super::{Groups, PRODUCT_ROWS};
use crate::qtype::QuantType;

/// Blocks of a panel to float weights `out[k][cols]`, for as many steps as `out` holds.
#[inline(always)]
pub(super) fn expand(b: &[u8], cols: usize, weight: QuantType, groups: Groups, out: &mut [f32]) {
    match weight {
        QuantType::E4M3 => return expand_float8::<3>(b, cols, groups, out),
        QuantType::E5M2 => return expand_float8::<2>(b, cols, groups, out),
        _ => {}
    }
    let steps = crate::cpu::block_steps(weight);
    for (k, out) in out.chunks_exact_mut(cols).enumerate() {
        let block = &b[k / steps * cols * 4..][..cols * 4];
        let g = (groups.first + k) / groups.size * cols;
        let zeros = groups.zeros.map(|zeros| &zeros[g..][..cols]);
        expand_step(block, k % steps, weight, &groups.scales[g..][..cols], zeros, out);
    }
}

/// One step of a block to float weights `out[cols]`.
#[inline(always)]
pub(super) fn expand_step(
    block: &[u8],
    step: usize,
    weight: QuantType,
    scales: &[f32],
    zeros: Option<&[f32]>,
    out: &mut [f32],
) {
    let (offset, mask) = (weight.offset(), (1u32 << weight.bits()) - 1);
    let shift = (step % 4 * 8 + step / 4 * weight.bits()) as u32;
    let (words, cols) = (block.as_chunks::<4>().0, out.len());
    let (words, scales) = (&words[..cols], &scales[..cols]);
    match zeros {
        None => {
            for c in 0..cols {
                out[c] = ((u32::from_le_bytes(words[c]) >> shift & mask) as i32 - offset) as f32 * scales[c];
            }
        }
        Some(zeros) => {
            let zeros = &zeros[..cols];
            for c in 0..cols {
                let q = ((u32::from_le_bytes(words[c]) >> shift & mask) as i32 - offset) as f32;
                out[c] = (q - zeros[c]) * scales[c];
            }
        }
    }
}

/// `out[i][c] = rows[c][i]`; a row of `out` has `cols` places.
#[inline(always)]
pub(super) fn transpose(rows: &[f32], out: &mut [f32], cols: usize) {
    let count = out.len() / cols;
    for (c, row) in rows.chunks_exact(count).enumerate().take(cols) {
        for (i, v) in row.iter().enumerate() {
            out[i * cols + c] = *v;
        }
    }
}

/// `out[rows][cols] += a[rows][count] · w[count][cols]`: a fused multiply-add for each of the count in turn. At most
/// [`PRODUCT_ROWS`] rows.
#[inline(always)]
pub(super) fn add_product(a: &[f32], w: &[f32], out: &mut [f32], cols: usize) {
    match out.len() / cols {
        1 => add_product_of::<1>(a, w, out, cols),
        2 => add_product_of::<2>(a, w, out, cols),
        3 => add_product_of::<3>(a, w, out, cols),
        4 => add_product_of::<4>(a, w, out, cols),
        5 => add_product_of::<5>(a, w, out, cols),
        6 => add_product_of::<6>(a, w, out, cols),
        7 => add_product_of::<7>(a, w, out, cols),
        _ => add_product_of::<PRODUCT_ROWS>(a, w, out, cols),
    }
}

#[inline(always)]
pub(super) fn add_product_of<const ROWS: usize>(a: &[f32], w: &[f32], out: &mut [f32], cols: usize) {
    let count = w.len() / cols;
    let a: [&[f32]; ROWS] = std::array::from_fn(|r| &a[r * count..][..count]);
    for first in (0..cols).step_by(16) {
        let mut sums = [[0f32; 16]; ROWS];
        for (r, sum) in sums.iter_mut().enumerate() {
            sum.copy_from_slice(&out[r * cols + first..][..16]);
        }
        for (j, w) in w.chunks_exact(cols).enumerate() {
            let w = &w[first..][..16];
            for (a, sum) in a.iter().zip(&mut sums) {
                for c in 0..16 {
                    sum[c] = w[c].mul_add(a[j], sum[c]);
                }
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            out[r * cols + first..][..16].copy_from_slice(sum);
        }
    }
}

/// The same of float8 codes, which have no zero points.
#[inline(always)]
pub(super) fn expand_float8<const MANTISSA: u32>(b: &[u8], cols: usize, groups: Groups, out: &mut [f32]) {
    let (words, _) = b.as_chunks::<4>();
    for (k, out) in out.chunks_exact_mut(cols).enumerate() {
        let words = &words[k / 4 * cols..][..cols];
        let scales = &groups.scales[(groups.first + k) / groups.size * cols..][..cols];
        for c in 0..cols {
            let code = u32::from_le_bytes(words[c]) >> (k % 4 * 8) & 0xff;
            out[c] = from_float8::<MANTISSA>(code) * scales[c];
        }
    }
}
