//! Windows over channels-last codes, many channels at a time.

use super::Steps;
use super::requantize::StepCoder;

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

/// The largest code of each window and channel, `out[pixel][channel]`; of a window with nothing in it the lowest code there
/// is. `most` is room for the largest code of each column, `[width][channels]`: what all windows over that column share.
#[inline(always)]
pub(super) fn max_windows(x: &[i8], row: WindowRow, most: &mut [i8], out: &mut [u8]) {
    if row.rows == 0 {
        return out.fill(LOWEST);
    }
    let len = row.width * row.channels;
    let most = &mut most[..len];
    most.copy_from_slice(&x[..len]);
    for r in 1..row.rows {
        let x = &x[r * row.row_step..][..len];
        most.iter_mut().zip(x).for_each(|(m, q)| *m = if *q > *m { *q } else { *m });
    }
    let channels = row.channels;
    for (i, out) in out.chunks_exact_mut(channels).enumerate() {
        let (start, cols) = row.columns(i);
        if cols == 0 {
            out.fill(LOWEST);
            continue;
        }
        let x = &most[start * channels..];
        by_block!(channels, at, B => max_block::<B>(&x[at..], cols, row.dilation * channels, &mut out[at..at + B]));
    }
}

const LOWEST: u8 = -127i8 as u8;

impl WindowRow {
    /// The first column of window `i` that lies inside the row, and how many do.
    #[inline(always)]
    pub(crate) fn columns(&self, i: usize) -> (usize, usize) {
        let at = i * self.stride;
        if at >= self.padding && at - self.padding + (self.kernel - 1) * self.dilation < self.width {
            return (at - self.padding, self.kernel); // most windows: no division
        }
        let before = self.padding.saturating_sub(at).div_ceil(self.dilation);
        let start = at + before * self.dilation - self.padding;
        let inside = self.width.saturating_sub(start).div_ceil(self.dilation);
        (start, self.kernel.saturating_sub(before).min(inside))
    }
}

#[inline(always)]
fn max_block<const B: usize>(x: &[i8], cols: usize, col_step: usize, out: &mut [u8]) {
    let mut most = [i8::MIN; B];
    for c in 0..cols {
        let x = &x[c * col_step..][..B];
        for i in 0..B {
            most[i] = if x[i] > most[i] { x[i] } else { most[i] };
        }
    }
    out.iter_mut().zip(most).for_each(|(u, q)| *u = q as u8);
}

/// `(sum − offset) · factor` of each window and channel as codes, `out[pixel][channel]`. `part` is room for the sum of each
/// column, as in [`max_windows`].
#[inline(always)]
pub(super) fn average_windows(
    x: &[i8],
    row: WindowRow,
    part: &mut [i32],
    means: &[Mean],
    steps: Steps,
    out: &mut [u8],
) {
    let coder = steps.coder();
    let (channels, len) = (row.channels, row.width * row.channels);
    let part = &mut part[..len];
    part.iter_mut().zip(&x[..len]).for_each(|(p, q)| *p = i32::from(*q));
    for r in 1..row.rows {
        let x = &x[r * row.row_step..][..len];
        part.iter_mut().zip(x).for_each(|(p, q)| *p += i32::from(*q));
    }
    for ((i, out), mean) in out.chunks_exact_mut(channels).enumerate().zip(means) {
        let (start, cols) = row.columns(i);
        let part = &part[start * channels..];
        by_block!(channels, at, B => average_block::<B>(&part[at..], cols, channels, *mean, coder, &mut out[at..at + B]));
    }
}

#[inline(always)]
fn average_block<const B: usize>(
    part: &[i32],
    cols: usize,
    col_step: usize,
    mean: Mean,
    coder: StepCoder,
    out: &mut [u8],
) {
    let mut sums = [0i32; B];
    for c in 0..cols {
        let part = &part[c * col_step..][..B];
        for i in 0..B {
            sums[i] += part[i];
        }
    }
    out.iter_mut().zip(sums).for_each(|(u, sum)| *u = coder.code(mean.of(sum)));
}

/// How a window's sum becomes its mean, in steps of the output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mean {
    pub offset: i32,
    pub factor: f32,
}

impl Mean {
    #[inline(always)]
    fn of(self, sum: i32) -> f32 {
        (sum - self.offset) as f32 * self.factor
    }
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

/// Sums to the codes of their means.
#[inline(always)]
pub(super) fn average(sums: &[i32], mean: Mean, steps: Steps, out: &mut [u8]) {
    let coder = steps.coder();
    sums.iter().zip(out).for_each(|(sum, u)| *u = coder.code(mean.of(*sum)));
}
