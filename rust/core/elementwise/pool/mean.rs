//! The mean of each window, encoded.

use super::{LEAST, Pool2d, check_image};
use crate::buffer::{Scratch, Shared};
use crate::cpu;
use crate::cpu::lanes::{Mean, Window};
use crate::elementwise::{PerTensor, UNCLAMPED, pieces};
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;

/// Most elements of a window that is averaged: their sum and its zero points fit int32.
const MOST: usize = 1 << 23;

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

/// `out = clip(round(float32(Σ (q − z)) · (s / out s / count)) + out z)`: the mean of each window; padding adds nothing to
/// the sum.
///
/// # Errors
/// [`Error::Mismatch`] for a length, a window that does not fit, a divisor that is not positive, scales or zero points.
#[allow(unsafe_code)]
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
    let isa = cpu::active()?;
    let [n, h, w, c] = check_image(x, shape)?;
    let [oh, ow] = pool.out_size([h, w])?;
    let (decoding, steps) = (params.in_steps_of(out_params, "x")?, out_params.steps("out", UNCLAMPED)?);
    check_len("out", area(area(n, oh)?, area(ow, c)?)?, out.len())?;
    if pool.dilation != [1, 1] {
        return Err(Error::mismatch("dilation", "1 for a mean", format!("{:?}", pool.dilation)));
    }
    if let Average::By(divisor) = average
        && divisor <= 0
    {
        return Err(Error::mismatch("divisor", "a positive number", divisor));
    }
    check_window(pool.kernel[0].min(h), pool.kernel[1].min(w))?;
    if out.is_empty() {
        return Ok(());
    }
    let out = Shared::bytes(out);
    // elements along one side of output o's window, those of the padding among them
    let padded = |i: usize, o: usize| pool.kernel[i].min([h, w][i] + 2 * pool.padding[i] - (o * pool.stride[i]));
    let per_row = pool.kernel[0].min(h) * w * c;
    pieces(n * oh, LEAST.div_ceil(per_row), executor, &|rows| {
        let (mut part, mut means) = (Scratch::of::<i32>(w * c), Vec::with_capacity(ow));
        for row in rows {
            let oy = row % oh;
            let (first, windows) = pool.row(oy, shape);
            means.clear();
            means.extend((0..ow).map(|ox| {
                let inside = windows.rows * windows.columns(ox).1;
                let count = match average {
                    Average::Padded => padded(0, oy) * padded(1, ox),
                    Average::Inside => inside,
                    Average::By(divisor) => divisor as usize,
                };
                Mean { offset: decoding.zero * inside as i32, factor: decoding.scale / count as f32 }
            }));
            let x = &x[(row / oh * h + first) * w * c..];
            // SAFETY: each row is one task's, and `out` is borrowed for this whole call.
            isa.average_windows(x, windows, part.as_mut(), &means, steps, unsafe { out.slice(row * ow * c, ow * c) });
        }
    });
    Ok(())
}

/// [`avg_pool`] over windows that divide the image into `out_size` parts of nearly one size: output i of o over a side of n
/// is the mean of the elements `floor(i n / o) .. ceil((i + 1) n / o)`.
///
/// # Errors
/// As [`avg_pool`].
#[allow(unsafe_code)]
pub fn adaptive_avg_pool(
    x: &[i8],
    params: PerTensor,
    shape: [usize; 4],
    [oh, ow]: [usize; 2],
    out_params: PerTensor,
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    let [n, h, w, c] = check_image(x, shape)?;
    let (decoding, steps) = (params.in_steps_of(out_params, "x")?, out_params.steps("out", UNCLAMPED)?);
    check_len("out", area(area(n, oh)?, area(ow, c)?)?, out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    if h == 0 || w == 0 {
        return Err(Error::mismatch("x", "an image with elements", format!("{h} by {w}")));
    }
    let largest = check_window(h.min(h / oh + 2), w.min(w / ow + 2))?;
    let out = Shared::bytes(out);
    pieces(n * oh * ow, LEAST.div_ceil(largest.saturating_mul(c)), executor, &|outputs| {
        let mut sums = Scratch::of::<i32>(c);
        let sums = sums.as_mut::<i32>();
        for at in outputs {
            let (image, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
            let (top, bottom) = (oy * h / oh, ((oy + 1) * h).div_ceil(oh));
            let (left, right) = (ox * w / ow, ((ox + 1) * w).div_ceil(ow));
            let window = Window { rows: bottom - top, row_step: w * c, cols: right - left, col_step: c };
            isa.sum_window(&x[((image * h + top) * w + left) * c..], window, sums);
            let count = window.rows * window.cols;
            let mean = Mean { offset: decoding.zero * count as i32, factor: decoding.scale / count as f32 };
            // SAFETY: each output is one task's, and `out` is borrowed for this whole call.
            isa.average(sums, mean, steps, unsafe { out.slice(at * c, c) });
        }
    });
    Ok(())
}

/// The elements of the largest window, if their sum fits.
fn check_window(rows: usize, cols: usize) -> Result<usize> {
    let elements = rows.saturating_mul(cols);
    if elements <= MOST {
        return Ok(elements);
    }
    Err(Error::mismatch("kernel", format!("at most {MOST} elements"), format!("{rows} by {cols}")))
}
