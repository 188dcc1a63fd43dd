//! Kernels for convolutions of each channel by itself: columns of the input as quads, and their products.

use super::{Isa, STRIP};

/// A row of the input: the codes of a column lie `step` after those of the column before (0: all the same).
#[derive(Clone, Copy)]
pub(crate) struct Line {
    pub at: *const u8,
    pub step: usize,
}

/// See [`Depthwise::products`].
type ProductsFn = unsafe fn(&[u8], &[u8], [usize; 2], Option<&[i32; STRIP]>, &mut [i32]);

/// The kernels of an instruction set.
#[derive(Debug)]
pub(crate) struct Depthwise {
    pub(super) columns: unsafe fn(&[Line], usize, &mut [u8]),
    pub(super) products: ProductsFn,
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
        assert!(weights.len().is_multiple_of(COLUMN) && acc.len().is_multiple_of(STRIP));
        let (outputs, taps) = (acc.len() / STRIP, weights.len() / COLUMN);
        if outputs == 0 || taps == 0 {
            return;
        }
        assert!(columns.len() >= ((outputs - 1) * steps[0] + (taps - 1) * steps[1] + 1) * COLUMN);
        // SAFETY: as above; the lengths are asserted.
        unsafe { (self.products)(columns, weights, steps, start, acc) }
    }
}

impl Isa {
    /// Its depthwise kernels.
    pub(crate) fn depthwise(&self) -> &Depthwise {
        &self.depthwise
    }
}
