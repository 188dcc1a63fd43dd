//! Pooling of channels-last images `[n, h, w, c]`: the largest code of each window, or the encoded mean.

mod max;
mod mean;

pub use max::max_pool;
pub use mean::{Average, adaptive_avg_pool, avg_pool};

use crate::cpu::lanes::WindowRow;
use crate::error::{Error, Result, area, check_len};

/// Codes read that are worth a thread.
const LEAST: usize = 1 << 16;

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

    /// The windows of row `oy` of an image's output, and the row of the image where they begin (0 where they have none).
    fn row(&self, oy: usize, [_, h, w, c]: [usize; 4]) -> (usize, WindowRow) {
        let Self { kernel, stride, padding, dilation, .. } = *self;
        let start = oy * stride[0];
        let before = padding[0].saturating_sub(start).div_ceil(dilation[0]).min(kernel[0]);
        let inside = (h + padding[0]).saturating_sub(start).div_ceil(dilation[0]).min(kernel[0]);
        let windows = WindowRow {
            rows: inside.saturating_sub(before),
            row_step: dilation[0] * w * c,
            width: w,
            channels: c,
            kernel: kernel[1],
            stride: stride[1],
            dilation: dilation[1],
            padding: padding[1],
        };
        let first = start + before * dilation[0] - padding[0].min(start + before * dilation[0]);
        (if windows.rows == 0 { 0 } else { first }, windows)
    }
}

fn check_image(x: &[i8], shape: [usize; 4]) -> Result<[usize; 4]> {
    let [n, h, w, c] = shape;
    check_len("x", area(area(n, h)?, area(w, c)?)?, x.len())?;
    Ok(shape)
}
