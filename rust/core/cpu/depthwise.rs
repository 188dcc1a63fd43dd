//! Kernels for convolutions of each channel by itself: columns of the input as quads, and their products.

use super::lanes::{Steps, Tile};
use super::{Isa, STRIP};
use crate::buffer::Rows;

/// A row of the input: the codes of a column lie `step` after those of the column before (0: all the same).
#[derive(Clone, Copy)]
pub(crate) struct Line {
    pub at: *const u8,
    pub step: usize,
}

/// See [`Depthwise::products`].
type ProductsFn = unsafe fn(&[u8], &[u8], [usize; 2], Option<&[i32; STRIP]>, &mut [i32]);

/// One or two lines of outputs: each is `start + Σ over fours and taps of column · weights`, as [`Depthwise::products`].
pub(crate) struct Lines<'a> {
    pub lines: usize,
    /// `[four][column][channel][4]` of as many rows as the lines see.
    pub columns: &'a [u8],
    pub fours: usize,
    /// `[line][four][tap][channel][4]`, int8.
    pub weights: &'a [u8],
    /// Stride and dilation.
    pub steps: [usize; 2],
    pub start: &'a [i32; STRIP],
}

impl Lines<'_> {
    /// Bytes of a four's columns.
    pub(super) fn span(&self) -> usize {
        self.columns.len() / self.fours
    }

    /// Columns of the kernel.
    pub(super) fn taps(&self) -> usize {
        self.weights.len() / (self.lines * self.fours * COLUMN)
    }
}

/// See [`Depthwise::codes`].
type CodesFn = unsafe fn(&Lines, Tile, Steps, Rows<u8>);

/// The kernels of an instruction set.
#[derive(Debug)]
pub(crate) struct Depthwise {
    pub(super) columns: unsafe fn(&[Line], usize, &mut [u8]),
    pub(super) products: ProductsFn,
    pub(super) codes: Option<CodesFn>,
}

/// Bytes of a column: 4 rows of 16 channels.
pub(crate) const COLUMN: usize = 64;

impl Depthwise {
    /// Up to four rows of up to 16 channels to columns `[channel][4]` of codes + 128 (anything where there is no row).
    ///
    /// # Safety
    /// Each line has as many columns as `out`, each of `channels` readable bytes.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn columns(&self, rows: &[Line], channels: usize, out: &mut [u8]) {
        assert!(rows.len() <= 4 && channels <= STRIP && out.len().is_multiple_of(COLUMN));
        // SAFETY: an `Isa` that this CPU lacks is not reached; the addresses are the caller's promise.
        unsafe { (self.columns)(rows, channels, out) }
    }

    /// `acc[i] = start + Σ over taps of columns[i · stride + tap · dilation] · weights[tap]`: `acc` `[outputs][16]`,
    /// `weights` `[tap][channel][4]` int8, `steps` stride and dilation. Without a start it is added to what is there.
    #[allow(unsafe_code)]
    pub(crate) fn products(
        &self,
        columns: &[u8],
        weights: &[u8],
        steps: [usize; 2],
        start: Option<&[i32; STRIP]>,
        acc: &mut [i32],
    ) {
        assert!(acc.len().is_multiple_of(STRIP));
        if fit(columns, weights, steps, acc.len() / STRIP) {
            // SAFETY: as above; the lengths are found to fit.
            unsafe { (self.products)(columns, weights, steps, start, acc) }
        }
    }

    /// Whether there is [`Depthwise::codes`].
    pub(crate) fn has_codes(&self) -> bool {
        self.codes.is_some()
    }

    /// The sums of lines, finished at once as [`Isa::tile_codes`] does a tile of one strip, whose first column is an output
    /// and whose rows, those of one line and then the other's, have no factors.
    #[allow(unsafe_code)]
    pub(crate) fn codes(&self, lines: &Lines, finish: Tile, encoding: Steps, out: Rows<u8>) {
        let kernel = self.codes.expect("the caller asks has_codes");
        assert!(finish.cols == STRIP && finish.first == 0 && finish.factors.is_empty());
        assert!((1..=2).contains(&lines.lines) && finish.at.len().is_multiple_of(lines.lines) && lines.fours > 0);
        assert!(lines.weights.len().is_multiple_of(lines.lines * lines.fours * COLUMN));
        assert!(lines.columns.len().is_multiple_of(lines.fours * COLUMN) && out.count() >= finish.at.len());
        let (columns, weights) = (&lines.columns[..lines.span()], &lines.weights[..lines.taps() * COLUMN]);
        if fit(columns, weights, lines.steps, finish.at.len() / lines.lines) {
            // SAFETY: as above.
            unsafe { kernel(lines, finish, encoding, out) }
        }
    }
}

/// Whether there is anything to do; its columns are there, then.
fn fit(columns: &[u8], weights: &[u8], steps: [usize; 2], outputs: usize) -> bool {
    assert!(weights.len().is_multiple_of(COLUMN));
    let taps = weights.len() / COLUMN;
    if outputs == 0 || taps == 0 {
        return false;
    }
    assert!(columns.len() >= ((outputs - 1) * steps[0] + (taps - 1) * steps[1] + 1) * COLUMN);
    true
}

impl Isa {
    /// Its depthwise kernels.
    pub(crate) fn depthwise(&self) -> &Depthwise {
        &self.depthwise
    }
}
