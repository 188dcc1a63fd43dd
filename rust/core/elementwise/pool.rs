//! Pooling of channels-last images `[n, h, w, c]`: the largest code of each window, or the encoded mean.

use super::{PerTensor, UNCLAMPED, pieces, share};
use crate::buffer::Scratch;
use crate::cpu;
use crate::cpu::lanes::{Window, WindowRow};
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;
use std::ops::Range;

/// Codes read that are worth a thread.
const LEAST: usize = 1 << 16;

/// Most elements of a window that is averaged: their sum and its zero points fit int32.
const MOST: usize = 1 << 23;

/// Windows over height and width, as `torch.nn.MaxPool2d` has them.
#[derive(Clone, Copy, Debug)]
pub struct Pool2d {
    /// Elements of a window.
    pub kernel: [usize; 2],
    /// From a window to the next.
    pub stride: [usize; 2],
    /// Around the image: at most half of a window.
    pub padding: [usize; 2],
    /// From an element of a window to the next (1 for a mean).
    pub dilation: [usize; 2],
    /// Whether a last window may stand out of the padded image.
    pub ceil_mode: bool,
}

/// What a window's sum is divided by.
#[derive(Clone, Copy, Debug)]
pub enum Average {
    /// Its elements, padding among them.
    Padded,
    /// Its elements inside the image.
    Inside,
    /// This number.
    By(i32),
}

impl Pool2d {
    /// Height and width of the output for an image of `[h, w]`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a window that makes no sense or does not fit the padded image.
    pub fn out_size(&self, size: [usize; 2]) -> Result<[usize; 2]> {
        let mut out = [0; 2];
        for i in 0..2 {
            let (k, s, p, d) = (self.kernel[i], self.stride[i], self.padding[i], self.dilation[i]);
            if k == 0 || s == 0 || d == 0 {
                return Err(Error::mismatch("kernel, stride, dilation", "at least 1", format!("{k}, {s}, {d}")));
            }
            let span = (k - 1).checked_mul(d).and_then(|span| span.checked_add(1));
            let span = span.ok_or_else(|| Error::mismatch("kernel", "a size in memory", format!("{k} * {d}")))?;
            if p > span / 2 {
                return Err(Error::mismatch("padding", format!("at most half of the window's {span}"), p));
            }
            let padded = area(2, p)?.checked_add(size[i]);
            let padded = padded.ok_or_else(|| Error::mismatch("padding", "a size in memory", p))?;
            let (fits, enough) = (padded >= span, self.ceil_mode && span.saturating_sub(padded) < s);
            if size[i] == 0 || !(fits || enough) {
                let got = format!("{} and padding {p}", size[i]);
                return Err(Error::mismatch("x", format!("at least {span} elements a side, padding included"), got));
            }
            let room = padded.saturating_sub(span);
            let steps = if self.ceil_mode { room.div_ceil(s) } else { room / s };
            // a last window has to begin inside the image or the padding before it
            out[i] = steps + usize::from(steps * s < size[i] + p);
        }
        Ok(out)
    }
}

/// `out[n, oh, ow, c]`: the largest code of each window. A window with nothing of the image in it (which takes dilation)
/// gives −127.
///
/// # Errors
/// [`Error::Mismatch`] for a length, or a window that does not fit.
#[allow(unsafe_code)]
pub fn max_pool(x: &[i8], shape: [usize; 4], pool: Pool2d, out: &mut [i8], executor: &dyn Executor) -> Result<()> {
    let isa = cpu::active()?;
    let [n, h, w, c] = check_image(x, shape)?;
    let [oh, ow] = pool.out_size([h, w])?;
    check_len("out", area(n * oh, area(ow, c)?)?, out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    let (out, Pool2d { kernel, stride, padding, dilation, .. }) = (share(out), pool);
    let per_row = area(kernel[0] * kernel[1], ow * c)?;
    pieces(n * oh, LEAST.div_ceil(per_row), executor, &|rows| {
        let mut most = Scratch::of::<i8>(w * c);
        for row in rows {
            let (image, oy) = (row / oh, row % oh);
            let inside = span(oy * stride[0], kernel[0], padding[0], dilation[0], h);
            let windows = WindowRow {
                rows: inside.len(),
                row_step: dilation[0] * w * c,
                width: w,
                channels: c,
                kernel: kernel[1],
                stride: stride[1],
                dilation: dilation[1],
                padding: padding[1],
            };
            let first = (oy * stride[0] + inside.start * dilation[0]).saturating_sub(padding[0]);
            let x = if inside.is_empty() { &[] } else { &x[(image * h + first) * w * c..(image + 1) * h * w * c] };
            // SAFETY: each row is one task's, and `out` is borrowed for this whole call.
            isa.max_windows(x, windows, most.as_mut(), unsafe { out.slice(row * ow * c, ow * c) });
        }
    });
    Ok(())
}

/// `out = encode(float32(Σ (q − z)) · (s / count))`: the mean of each window; padding adds nothing to the sum.
///
/// # Errors
/// [`Error::Mismatch`] for a length, a window that does not fit, a divisor that is not positive, scales or zero points.
pub fn avg_pool(
    x: &[i8],
    params: PerTensor,
    shape: [usize; 4],
    pool: Pool2d,
    average: Average,
    out_params: PerTensor,
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<()> {
    let size = [shape[1], shape[2]];
    let out_size = pool.out_size(size)?;
    if pool.dilation != [1, 1] {
        return Err(Error::mismatch("dilation", "1 for a mean", format!("{:?}", pool.dilation)));
    }
    if let Average::By(divisor) = average
        && divisor <= 0
    {
        return Err(Error::mismatch("divisor", "a positive number", divisor));
    }
    let along = |i: usize, o: usize| {
        let (start, kernel, padding) = (o * pool.stride[i], pool.kernel[i], pool.padding[i]);
        let inside = span(start, kernel, padding, 1, size[i]);
        let from = (start + inside.start).saturating_sub(padding);
        let padded = kernel.min(size[i] + 2 * padding - start);
        (from..from + inside.len(), padded)
    };
    let largest = pool.kernel[0].min(size[0]).saturating_mul(pool.kernel[1].min(size[1]));
    average_windows(x, params, shape, (out_size, largest), out_params, out, executor, &|oy, ox| {
        let ((rows, padded_rows), (cols, padded_cols)) = (along(0, oy), along(1, ox));
        let count = match average {
            Average::Padded => padded_rows * padded_cols,
            Average::Inside => rows.len() * cols.len(),
            Average::By(divisor) => divisor as usize,
        };
        (rows, cols, count)
    })
}

/// [`avg_pool`] over windows that divide the image into `out_size` parts of nearly one size: output i of o over a side of n
/// is the mean of the elements `floor(i n / o) .. ceil((i + 1) n / o)`.
///
/// # Errors
/// As [`avg_pool`].
pub fn adaptive_avg_pool(
    x: &[i8],
    params: PerTensor,
    shape: [usize; 4],
    out_size: [usize; 2],
    out_params: PerTensor,
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<()> {
    let size = [shape[1], shape[2]];
    if size.contains(&0) && out_size.iter().all(|o| *o > 0) {
        return Err(Error::mismatch("x", "an image with elements", format!("{size:?}")));
    }
    let along = |i: usize, o: usize| o * size[i] / out_size[i]..((o + 1) * size[i]).div_ceil(out_size[i]);
    let most = |i: usize| size[i].min(size[i] / out_size[i].max(1) + 2);
    average_windows(
        x,
        params,
        shape,
        (out_size, most(0).saturating_mul(most(1))),
        out_params,
        out,
        executor,
        &|oy, ox| {
            let (rows, cols) = (along(0, oy), along(1, ox));
            let count = rows.len() * cols.len();
            (rows, cols, count)
        },
    )
}

/// Rows and columns of an output's window that lie inside the image, and the count to divide by.
type WindowOf<'a> = &'a (dyn Fn(usize, usize) -> (Range<usize>, Range<usize>, usize) + Sync);

#[allow(unsafe_code)]
fn average_windows(
    x: &[i8],
    params: PerTensor,
    shape: [usize; 4],
    ([oh, ow], largest): ([usize; 2], usize),
    out_params: PerTensor,
    out: &mut [i8],
    executor: &dyn Executor,
    window_of: WindowOf,
) -> Result<()> {
    let isa = cpu::active()?;
    let [n, h, w, c] = check_image(x, shape)?;
    let (decoding, coder) = (params.decoding("x")?, out_params.coder(isa, "out", UNCLAMPED)?);
    check_len("out", area(area(n, oh)?, area(ow, c)?)?, out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    if largest > MOST {
        return Err(Error::mismatch("kernel", format!("at most {MOST} elements"), largest));
    }
    let per_output = largest.saturating_mul(c);
    let out = share(out);
    pieces(n * oh * ow, LEAST.div_ceil(per_output), executor, &|outputs| {
        let mut sums = Scratch::of::<i32>(c);
        let sums = sums.as_mut::<i32>();
        for at in outputs {
            let (image, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
            let (rows, cols, count) = window_of(oy, ox);
            let window = Window { rows: rows.len(), row_step: w * c, cols: cols.len(), col_step: c };
            let first = ((image * h + rows.start) * w + cols.start) * c;
            isa.sum_window(x.get(first..).unwrap_or(&[]), window, sums);
            let offset = decoding.zero * (rows.len() * cols.len()) as i32;
            let factor = decoding.scale / count.max(1) as f32;
            // SAFETY: each output is one task's, and `out` is borrowed for this whole call.
            isa.average(sums, offset, factor, coder, unsafe { out.slice(at * c, c) });
        }
    });
    Ok(())
}

fn check_image(x: &[i8], shape: [usize; 4]) -> Result<[usize; 4]> {
    let [n, h, w, c] = shape;
    check_len("x", area(area(n, h)?, area(w, c)?)?, x.len())?;
    Ok(shape)
}

/// Which of a window's `kernel` elements lie inside a side of `size`, where the window begins `padding` before `start`.
fn span(start: usize, kernel: usize, padding: usize, dilation: usize, size: usize) -> Range<usize> {
    let before = padding.saturating_sub(start).div_ceil(dilation).min(kernel);
    let inside = (size + padding).saturating_sub(start).div_ceil(dilation).min(kernel);
    before..inside.max(before)
}
