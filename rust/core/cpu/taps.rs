//! Integer products whose rows are read where they lie, for convolutions: a row is one address a tap of its kernel.

use super::lanes::{Steps, Tile};
use super::{Isa, STRIP, block_bytes};
use crate::buffer::Rows;
use std::ops::Range;

/// Rows times a panel: `acc[r][c] = start[c] + Σ over taps and their steps of (a + 128) · (u − 128)`, over the int8 panels'
/// unsigned codes u, modulo 2^32.
#[derive(Clone)]
pub(crate) struct TapRows<'a> {
    /// `[tap][row]`: where a row's codes of a tap begin, less `offset`. [`Taps::SPARE`] more that are as good lie behind
    /// the last row of each tap: a kernel's last tile reads them too.
    pub at: &'a [*const u8],
    /// Those wanted.
    pub rows: Range<usize>,
    pub offset: usize,
    /// Quads of a tap's codes that one column reads.
    pub quads: usize,
    /// Where the columns are of several groups of channels: how many of each, which read the quads that follow those of
    /// the group before. 0: all columns read the same.
    pub each: usize,
    pub panel: &'a [u8],
    pub cols: usize,
    /// Which of the panel's taps they are.
    pub taps: &'a [usize],
    /// `[cols]`.
    pub start: &'a [i32],
}

/// Tiles of as many rows each, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub first: usize,
    pub tiles: usize,
    pub rows: usize,
}

impl TapRows<'_> {
    /// Of a tap's codes, those that a row reads.
    pub(crate) fn bytes(quads: usize, each: usize) -> usize {
        STRIP.checked_div(each).unwrap_or(1) * quads * 4
    }

    /// Bytes of a tap's codes in the panel.
    pub(super) fn of_tap(&self) -> usize {
        self.quads * block_bytes(self.cols)
    }

    /// From one tap's addresses to the next one's.
    pub(super) fn stride(&self) -> usize {
        self.at.len().checked_div(self.taps.len()).unwrap_or(0)
    }

    /// The rows in tiles of `most`, and one, as small as may be, for those that are left.
    pub(super) fn spans(&self, most: usize) -> impl Iterator<Item = Span> + use<> {
        let Range { start, end } = self.rows;
        let (whole, rest) = ((end - start) / most, (end - start) % most);
        let last = ROWS.into_iter().find(|rows| *rows >= rest).unwrap_or(most).min(most);
        let spans = [
            Span { first: start, tiles: whole, rows: most },
            Span { first: start + whole * most, tiles: usize::from(rest > 0), rows: last },
        ];
        spans.into_iter().filter(|span| span.tiles > 0)
    }
}

/// The kernels of an instruction set.
#[derive(Debug)]
pub(crate) struct Taps {
    /// Most rows of a tile, by the panel's width in strips.
    pub(super) rows: [usize; 4],
    pub(super) sums: unsafe fn(&TapRows, &mut [i32]),
    pub(super) codes: unsafe fn(&TapRows, Tile, Steps, Rows<u8>),
    pub(super) row_sums: unsafe fn(&[*const u8], usize, usize, usize, &mut [i32]),
}

/// Rows that a tile may have, up to the most of its width.
const ROWS: [usize; 6] = [1, 2, 4, 6, 8, 12];

impl Taps {
    /// See [`TapRows::at`].
    pub(crate) const SPARE: usize = ROWS[ROWS.len() - 1] - 1;

    /// Most rows of a tile of so many columns.
    pub(crate) fn most(&self, cols: usize) -> usize {
        self.rows[cols / STRIP - 1]
    }

    /// `acc[rows][cols]`.
    ///
    /// # Safety
    /// [`TapRows::bytes`] are readable from each address plus `offset` on.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn sums(&self, t: &TapRows, acc: &mut [i32]) {
        Self::check(t);
        assert!(acc.len() == t.rows.len() * t.cols);
        // SAFETY: an `Isa` that this CPU lacks is not reached; the lengths are asserted, the addresses the caller's promise.
        unsafe { (self.sums)(t, acc) }
    }

    /// The same, finished as [`Isa::tile_codes`] does; without factors or columns before the first that is an output. `out`
    /// has [`Taps::SPARE`] more rows, in the place of the last.
    ///
    /// # Safety
    /// As for [`Taps::sums`].
    #[allow(unsafe_code)]
    pub(crate) unsafe fn codes(&self, t: &TapRows, finish: Tile, steps: Steps, out: Rows<u8>) {
        Self::check(t);
        assert!(finish.scales.len() == t.cols && finish.bias.len() == t.cols && finish.factors.is_empty());
        assert!(finish.first == 0 && finish.cols == t.cols && finish.used <= t.cols && finish.used > t.cols - STRIP);
        assert!(finish.at.len() == t.rows.len() && out.count() == t.rows.len() + Self::SPARE);
        // SAFETY: an `Isa` that this CPU lacks is not reached; the lengths are asserted, the addresses the caller's promise.
        unsafe { (self.codes)(t, finish, steps, out) }
    }

    fn check(t: &TapRows) {
        assert!(t.cols.is_multiple_of(STRIP) && (STRIP..=4 * STRIP).contains(&t.cols));
        assert!(t.each == 0 || (t.cols == STRIP && TapRows::bytes(t.quads, t.each) <= 64));
        assert!(t.at.len() == t.taps.len() * t.stride());
        assert!(t.taps.is_empty() || t.rows.end + Self::SPARE <= t.stride());
        assert!(t.start.len() == t.cols);
        assert!(t.taps.iter().all(|tap| (tap + 1) * t.of_tap() <= t.panel.len()));
    }

    /// The sums over all taps of each row's codes: `out[r] = Σ at[tap][r][offset..][..bytes]`, taps `stride` apart.
    ///
    /// # Safety
    /// `bytes` bytes are readable from each address plus `offset` on.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn row_sums(
        &self,
        at: &[*const u8],
        stride: usize,
        offset: usize,
        bytes: usize,
        out: &mut [i32],
    ) {
        assert!(out.len() <= stride || at.is_empty());
        // SAFETY: as above.
        unsafe { (self.row_sums)(at, stride.max(1), offset, bytes, out) }
    }
}

impl Isa {
    /// Its kernels over addresses, if it has any.
    pub(crate) fn taps(&self) -> Option<&Taps> {
        self.taps.as_ref()
    }
}
