//! The sections of a packed weight, from a canonical one.

use super::blocks::to_block;
use super::header::Head;
use crate::bitpack::row_bytes;
use crate::buffer::{Plain, cast_mut};
use crate::matrix::MatrixRef;

/// The panel of the channels from `first` on, which `out` is as wide as.
pub(super) fn write_panel(q: &MatrixRef, first: usize, out: &mut [u8]) {
    /// Words of a row that are moved together: one cache line read, 16 written.
    const LINE: usize = 16;
    let words_per_row = row_bytes(q.cols, q.qtype) / 4;
    let (out, _) = out.as_chunks_mut::<4>();
    let cols = out.len() / words_per_row;
    let used = cols.min(q.rows - first);
    for from in (0..words_per_row).step_by(LINE) {
        let to = (from + LINE).min(words_per_row);
        for c in 0..used {
            let (row, _) = q.row_codes(first + c).as_chunks::<4>();
            for (block, word) in (from..to).zip(&row[from..to]) {
                out[block * cols + c] = to_block(u32::from_le_bytes(*word), q.qtype).to_le_bytes();
            }
        }
        for block in from..to {
            out[block * cols + used..(block + 1) * cols].fill([0; 4]);
        }
    }
}

/// See [`super::Panel::sums`].
pub(super) fn sum_columns(panel: &[u8], sums: &mut [i32]) {
    sums.fill(0);
    for block in panel.as_chunks::<4>().0.chunks_exact(sums.len().max(1)) {
        for (sum, codes) in sums.iter_mut().zip(block) {
            *sum = sum.wrapping_add(codes.iter().map(|u| i32::from(*u) - 128).sum());
        }
    }
}

/// `[n, groups]` to `[panel][group][channel]`, the padding filled.
pub(super) fn columns<T: Plain>(head: &Head, source: &[T], padding: T, out: &mut [u8]) {
    let groups = head.groups();
    let len = head.n_padded() * groups * size_of::<T>();
    out[len..].fill(0);
    let Some(out) = cast_mut::<T>(&mut out[..len]) else {
        unreachable!("pack_into checked the address, and sections start on a cache line after it")
    };
    for (i, panel) in out.chunks_mut((head.nr * groups).max(1)).enumerate() {
        let cols = panel.len() / groups;
        for (at, value) in panel.iter_mut().enumerate() {
            let (g, channel) = (at / cols, i * head.nr + at % cols);
            *value = if channel < head.n { source[channel * groups + g] } else { padding };
        }
    }
}
