//! Where the rows of a task lie: in the input itself, or, where a tap's channels are no whole quads, in copies.

use super::patches::Patches;
use super::phases::Phase;
use crate::buffer::Scratch;
use crate::cpu::{Isa, Taps};
use std::ops::Range;

/// Each row's address a tap.
pub(super) struct Addresses {
    /// `[tap][stride]`.
    at: Scratch,
    /// Rows, and those that fill tiles up.
    pub stride: usize,
    /// Copies, if there are any.
    _copies: Option<Scratch>,
}

impl Addresses {
    /// As [`crate::cpu::TapRows::at`] says.
    pub(super) fn at(&self) -> &[*const u8] {
        self.at.as_slice()
    }

    /// Rows `range` of a phase: images times the places of its grid.
    pub(super) fn of_input(isa: &Isa, patches: &Patches, phase: &Phase, zeros: &[i8], range: Range<usize>) -> Self {
        let (batch, channels) = (patches.geometry.batch, patches.geometry.channels);
        let (mut size, mut grid) = (patches.geometry.size, phase.grid);
        if phase.reads_each_pixel(size) {
            // one long line
            (size, grid) = ([1, batch * size[0] * size[1]], [1, batch * grid[0] * grid[1]]);
        }
        let (x, zeros) = (patches.x.as_ptr().cast::<u8>(), zeros.as_ptr().cast::<u8>());
        let mut all = Self::empty(range.len(), phase.taps.len());
        let (stride, at) = (all.stride, all.at.as_mut::<*const u8>());
        let mut row = range.start;
        while row < range.end {
            // up to the end of a line
            let (line, from) = (row / grid[1], row % grid[1]);
            let (image, y) = (line / grid[0], line % grid[0]);
            let count = (grid[1] - from).min(range.end - row);
            for (t, tap) in phase.taps.iter().enumerate() {
                let out = &mut at[t * stride + row - range.start..][..count];
                let y = (y * phase.step[0]) as isize + tap.offset[0];
                if !(0..size[0] as isize).contains(&y) {
                    out.fill(zeros);
                    continue;
                }
                // which of them read columns before one
                let first = (from * phase.step[1]) as isize + tap.offset[1];
                let before = |column: isize| (column - first).max(0).unsigned_abs().div_ceil(phase.step[1]).min(count);
                let inside = before(0)..before(size[1] as isize);
                let line = x.wrapping_add((image * size[0] + y as usize) * size[1] * channels);
                let line = line.wrapping_offset(first * channels as isize);
                out[..inside.start].fill(zeros);
                out[inside.end..].fill(zeros);
                let step = phase.step[1] * channels;
                isa.addresses(line.wrapping_add(inside.start * step), step, &mut out[inside]);
            }
            row += count;
        }
        all.fill_up();
        all
    }

    /// Copies of what output positions `range` see in `group`: one tap of all steps, the zero point behind them up to
    /// a whole quad.
    pub(super) fn of_copies(isa: &Isa, patches: &Patches, group: usize, range: Range<usize>) -> Self {
        let mut all = Self::empty(range.len(), 1);
        let depth = patches.geometry.depth();
        let bytes = depth.next_multiple_of(4);
        let mut copies = Scratch::of::<u8>(range.len() * bytes);
        for (row, codes) in range.zip(copies.as_mut::<u8>().chunks_exact_mut(bytes.max(1))) {
            patches.gather(row, group, &mut codes[..depth]);
            codes[depth..].fill(patches.zero as u8);
        }
        let stride = all.stride;
        isa.addresses(copies.as_slice::<u8>().as_ptr(), bytes, &mut all.at.as_mut()[..stride - Taps::SPARE]);
        all.fill_up();
        all._copies = Some(copies);
        all
    }

    fn empty(rows: usize, taps: usize) -> Self {
        let stride = rows + Taps::SPARE;
        Self { at: Scratch::of::<*const u8>(stride * taps), stride, _copies: None }
    }

    /// What fills tiles up reads what the last row does.
    fn fill_up(&mut self) {
        for of_tap in self.at.as_mut::<*const u8>().chunks_exact_mut(self.stride) {
            let (rows, spare) = of_tap.split_at_mut(of_tap.len() - Taps::SPARE);
            if let Some(last) = rows.last() {
                spare.fill(*last);
            }
        }
    }
}
