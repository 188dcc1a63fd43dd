//! Windows over channels-last codes, many channels at a time.

use super::Encoding;
use super::encode::encode_one;

/// Elements of a window: `rows` times `cols`, each a run of channels, `row_step` and `col_step` codes apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub rows: usize,
    pub row_step: usize,
    pub cols: usize,
    pub col_step: usize,
}

/// The windows of one row of outputs: `rows` rows of the input, `row_step` codes apart, each `width` pixels of `channels`
/// codes; a window has `kernel` columns, `dilation` apart, and begins `stride` after the one before, the first one
/// `padding` before the row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowRow {
    pub rows: usize,
    pub row_step: usize,
    pub width: usize,
    pub channels: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub padding: usize,
}

/// `$run` for blocks of `$B` channels from `$at` on that cover all: 64 at a time, then 16, where the last may overlap the
/// one before.
macro_rules! by_block {
    ($channels:expr, $at:ident, $B:ident => $run:expr) => {{
        let mut $at = 0;
        while $at + 64 <= $channels {
            const $B: usize = 64;
            $run;
            $at += 64;
        }
        while $at < $channels {
            if $channels >= 16 {
                const $B: usize = 16;
                $at = $at.min($channels - 16);
                $run;
                $at += 16;
            } else {
                const $B: usize = 1;
                $run;
                $at += 1;
            }
        }
    }};
}

/// The largest code of each window and channel, `out[pixel][channel]`; of a window with nothing in it the lowest code there is.
#[inline(always)]
pub(super) fn max_windows(x: &[i8], row: WindowRow, out: &mut [u8]) {
    let channels = row.channels;
    for (i, out) in out.chunks_exact_mut(channels).enumerate() {
        let before = row.padding.saturating_sub(i * row.stride).div_ceil(row.dilation);
        let start = i * row.stride + before * row.dilation - row.padding; // the first column inside
        if before >= row.kernel || start >= row.width || row.rows == 0 {
            out.fill(-127i8 as u8);
            continue;
        }
        let cols = (row.kernel - before).min((row.width - start).div_ceil(row.dilation));
        let window = Window { rows: row.rows, row_step: row.row_step, cols, col_step: row.dilation * channels };
        let x = &x[start * channels..];
        by_block!(channels, at, B => max_block::<B>(&x[at..], window, &mut out[at..at + B]));
    }
}

#[inline(always)]
fn max_block<const B: usize>(x: &[i8], window: Window, out: &mut [u8]) {
    let mut most = [i8::MIN; B];
    for r in 0..window.rows {
        for c in 0..window.cols {
            let x = &x[r * window.row_step + c * window.col_step..][..B];
            for i in 0..B {
                most[i] = if x[i] > most[i] { x[i] } else { most[i] };
            }
        }
    }
    out.iter_mut().zip(most).for_each(|(u, q)| *u = q as u8);
}

/// The sum of each channel's codes over a window that begins at `x`; exact for up to 2^23 of them.
#[inline(always)]
pub(super) fn sum_window(x: &[i8], window: Window, sums: &mut [i32]) {
    let channels = sums.len();
    by_block!(channels, at, B => sum_block::<B>(&x[at..], window, &mut sums[at..at + B]));
}

#[inline(always)]
fn sum_block<const B: usize>(x: &[i8], window: Window, sums: &mut [i32]) {
    const MOST: usize = 256; // codes whose sum an int16 holds
    sums.fill(0);
    let (mut part, mut count) = ([0i16; B], 0);
    for r in 0..window.rows {
        for c in 0..window.cols {
            let x = &x[r * window.row_step + c * window.col_step..][..B];
            for i in 0..B {
                part[i] = part[i].wrapping_add(i16::from(x[i]));
            }
            count += 1;
            if count == MOST {
                sums.iter_mut().zip(&part).for_each(|(s, p)| *s += i32::from(*p));
                (part, count) = ([0; B], 0);
            }
        }
    }
    sums.iter_mut().zip(&part).for_each(|(s, p)| *s += i32::from(*p));
}

/// `(sums − offset) · factor`, encoded.
#[inline(always)]
pub(super) fn average(sums: &[i32], offset: i32, factor: f32, e: Encoding, out: &mut [u8]) {
    sums.iter().zip(out).for_each(|(s, u)| *u = encode_one((s - offset) as f32 * factor, e));
}
