//! Products of int8 activations.
#![allow(unsafe_code)]

use super::shape::Shape;
use super::{Dtype, Output, Rows, Stream, Weight, ZeroPoint, check_alignment, check_sizes};
use crate::cuda::device::Device;
use crate::cuda::error::{Error, Result};
use crate::cuda::modules::Module;

/// Elements of a group, so that int32 holds sums of 127 * 255 each.
const LONGEST_INTEGER_GROUP: usize = 66_000;

impl Device {
    /// The same as [`linear`](Self::linear) of int8 `x` with float32 scales of its rows at `row_scale`, by int32; `out` is
    /// of `dtype`. `each`: the bias is `[m, n]`, what is added to each element.
    ///
    /// # Safety
    ///
    /// As of [`dequantize`](Self::dequantize).
    pub unsafe fn linear_int8(
        &self,
        stream: Stream,
        x: Rows,
        row_scale: usize,
        w: &Weight,
        (out, each): (Output, bool),
        dtype: Dtype,
    ) -> Result<()> {
        let group = w.blocked_group()?;
        if group > LONGEST_INTEGER_GROUP {
            return Err(Error::argument("group_size", format!("at most {LONGEST_INTEGER_GROUP}"), group));
        }
        check_sizes(x.m, w.k)?;
        check_alignment("x", x.at)?;
        if x.m == 0 || w.n == 0 {
            return Ok(());
        }
        let [codes, scale, scale_dtype, zero, kind] = w.arguments();
        let [bias, bias_dtype, to] = out.arguments();
        let [m, n, k, group] = [x.m, w.n, w.k, group].map(|size| size as u64);
        let (x_at, row_scale, stride) = (x.at as u64, row_scale as u64, if each { n } else { 0 });
        let arguments = [
            x_at,
            row_scale,
            codes,
            scale,
            scale_dtype,
            zero,
            kind,
            bias,
            bias_dtype,
            stride,
            to,
            dtype as u64,
            m,
            n,
            k,
            group,
        ];
        let symmetric = w.zero_point == ZeroPoint::None;
        let (module, kernel, shape) = if x.m > 8 {
            let shape = Shape::tiled(x.m, 128, 3, w.bits, 1);
            let kernel = if shape.rows == 16 { "linear_int8_tiled16" } else { "linear_int8_tiled64" };
            (Module::linear_int8(w.bits, symmetric), kernel, shape)
        } else if self.capability().0 >= 8 {
            (Module::linear_int8_small(w.bits, symmetric), "linear_int8_small", Shape::small(w.bits))
        } else {
            (Module::linear_int8_simt(w.bits, symmetric), "linear_int8_simt", Shape::simt())
        };
        let grid = shape.grid(x.m, w.n)?;
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, module, kernel, grid, shape.threads, shape.shared, &arguments) }
    }
}
