//! Integer tiles whose rows are read where they lie, for convolutions: a row is one address a tap of its kernel.

use super::lanes::{Steps, Tile};
use super::{Isa, STRIP, block_bytes};
use crate::buffer::Rows;

/// A tile: `acc[r][c] = start[c] + Σ over taps and their steps of (a + 128) · (u − 128)`, over the int8 panels' unsigned
/// codes u, modulo 2^32.
pub(crate) struct TapTile<'a> {
    /// `[tap][rows]`: where a row's codes of a tap begin, less `offset`.
    pub at: &'a [*const u8],
    pub rows: usize,
    pub offset: usize,
    /// Quads of a tap's codes that one column reads.
    pub quads: usize,
    /// Where the columns are of several groups of channels: how many of each, which read the quads that follow those of
    /// the group before. 0: all columns read the same.
    pub each: usize,
    pub panel: &'a [u8],
    pub cols: usize,
    /// Where each tap's codes begin in the panel.
    pub weights: &'a [usize],
    /// `[cols]`.
    pub start: &'a [i32],
}

impl TapTile<'_> {
    /// Of a tap's codes, those that the tile reads.
    pub(crate) fn bytes(quads: usize, each: usize) -> usize {
        STRIP.checked_div(each).unwrap_or(1) * quads * 4
    }
}

/// The kernels of an instruction set.
#[derive(Debug)]
pub(crate) struct Taps {
    /// Most rows of a tile, by the panel's width in strips.
    pub(super) rows: [usize; 4],
    pub(super) tile: unsafe fn(&TapTile, &mut [i32]),
    pub(super) codes: unsafe fn(&TapTile, Tile, Steps, Rows<u8>),
    /// The same as `tile` of several groups: one strip, whose groups read at most 64 bytes.
    pub(super) narrow: unsafe fn(&TapTile, &mut [i32]),
    pub(super) sums: unsafe fn(&[*const u8], usize, usize, &mut [i32]),
}

/// Rows that a tile may have, up to the most of its width.
const ROWS: [usize; 6] = [1, 2, 4, 6, 8, 12];

impl Taps {
    /// Most rows of a tile of so many columns.
    pub(crate) fn most(&self, cols: usize) -> usize {
        self.rows[cols / STRIP - 1]
    }

    /// The fewest rows that a tile may have to hold `count`.
    pub(crate) fn rows(&self, count: usize) -> usize {
        ROWS.into_iter().find(|rows| *rows >= count).unwrap_or(count)
    }

    /// Compute a tile.
    ///
    /// # Safety
    /// [`TapTile::bytes`] are readable from each address plus `offset` on.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn tile(&self, t: &TapTile, acc: &mut [i32]) {
        self.check(t);
        assert!(acc.len() == t.rows * t.cols);
        assert!(t.each == 0 || (t.cols == STRIP && TapTile::bytes(t.quads, t.each) <= 64));
        let kernel = if t.each == 0 { self.tile } else { self.narrow };
        // SAFETY: an `Isa` that this CPU lacks is not reached; the lengths are asserted, the addresses the caller's promise.
        unsafe { kernel(t, acc) }
    }

    /// Compute a tile and finish it as [`Isa::tile_codes`] does; without factors, several groups or columns before the
    /// first that is an output.
    ///
    /// # Safety
    /// As for [`Taps::tile`].
    #[allow(unsafe_code)]
    pub(crate) unsafe fn codes(&self, t: &TapTile, finish: Tile, steps: Steps, out: Rows<u8>) {
        self.check(t);
        let strips = finish.scales.len() == t.cols && finish.bias.len() == t.cols && t.each == 0;
        assert!(strips && finish.first == 0 && finish.factors.is_empty() && finish.cols == t.cols);
        assert!(finish.used <= t.cols && finish.used > t.cols - STRIP && finish.at.len() <= t.rows);
        // SAFETY: an `Isa` that this CPU lacks is not reached; the lengths are asserted, the addresses the caller's promise.
        unsafe { (self.codes)(t, finish, steps, out) }
    }

    fn check(&self, t: &TapTile) {
        assert!(t.cols.is_multiple_of(STRIP) && (STRIP..=4 * STRIP).contains(&t.cols));
        assert!(ROWS.contains(&t.rows) && t.rows <= self.most(t.cols));
        assert!(t.at.len() == t.weights.len() * t.rows);
        assert!(t.start.len() == t.cols);
        debug_assert!(t.weights.iter().all(|at| at + t.quads * block_bytes(t.cols) <= t.panel.len()));
    }

    /// The sums over all taps of each row's codes: `out[r] = Σ at[tap][r][..bytes]`.
    ///
    /// # Safety
    /// `bytes` bytes are readable from each address plus `offset` on.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn sums(&self, at: &[*const u8], offset: usize, bytes: usize, out: &mut [i32]) {
        assert!(!out.is_empty() && at.len().is_multiple_of(out.len()));
        // SAFETY: as above.
        unsafe { (self.sums)(at, offset, bytes, out) }
    }
}

impl Isa {
    /// Its kernels over addresses, if it has any.
    pub(crate) fn taps(&self) -> Option<&Taps> {
        self.taps.as_ref()
    }
}
