//! The largest code of each window.

use super::{LEAST, Pool2d, check_image};
use crate::buffer::{Scratch, Shared};
use crate::cpu;
use crate::elementwise::pieces;
use crate::error::{Result, area, check_len};
use crate::executor::Executor;

/// `out[n, oh, ow, c]`: the largest code of each window. A window with nothing of the image in it (which takes dilation)
/// gives −127.
///
/// # Errors
/// [`crate::Error::Mismatch`] for a length, or a window that does not fit.
#[allow(unsafe_code)]
pub fn max_pool(x: &[i8], shape: [usize; 4], pool: Pool2d, out: &mut [i8], executor: &dyn Executor) -> Result<()> {
    let isa = cpu::active()?;
    let [n, h, w, c] = check_image(x, shape)?;
    let [oh, ow] = pool.out_size([h, w])?;
    check_len("out", area(area(n, oh)?, area(ow, c)?)?, out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    let out = Shared::bytes(out);
    let per_row = pool.kernel[0].min(h) * w * c;
    pieces(n * oh, LEAST.div_ceil(per_row), executor, &|rows| {
        let mut most = Scratch::of::<i8>(w * c);
        for row in rows {
            let (first, windows) = pool.row(row % oh, shape);
            let x = &x[(row / oh * h + first) * w * c..];
            // SAFETY: each row is one task's, and `out` is borrowed for this whole call.
            isa.max_windows(x, windows, most.as_mut(), unsafe { out.slice(row * ow * c, ow * c) });
        }
    });
    Ok(())
}
