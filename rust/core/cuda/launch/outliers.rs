//! Columns of the activations that are multiplied in float beside an integer product; the host need not know which.
#![allow(unsafe_code)]

use super::codes::ROW;
use super::shape::Shape;
use super::{Dtype, Output, Rows, Stream, Weight, check_sizes};
use crate::cuda::device::Device;
use crate::cuda::error::{Error, Result};
use crate::cuda::modules::Module;

/// Columns, as `find_outliers` leaves them: addresses of int32 `[count[0]]`, ascending, and of int32 `[1]`.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// Address of the columns, `[k]` or as many as there are.
    pub list: usize,
    /// Address of their number.
    pub count: usize,
    /// Address of their weights `[n, count[0]]`, or 0 to read them out of the codes.
    pub weights: usize,
    /// Type of these.
    pub weights_dtype: Dtype,
}

impl Device {
    /// Flag with 1 at `flags`, `[k]` bytes that are 0, the columns of `x` in which some |x| of a row without NaN or infinity is
    /// at least `threshold`, and list them.
    ///
    /// # Safety
    ///
    /// As of [`dequantize`](Self::dequantize).
    pub unsafe fn find_outliers(
        &self,
        stream: Stream,
        x: Rows,
        dtype: Dtype,
        k: usize,
        threshold: f32,
        flags: usize,
        (list, count): (usize, usize),
    ) -> Result<()> {
        check_sizes(x.m, k)?;
        if threshold.is_nan() || threshold <= 0.0 {
            return Err(Error::argument("threshold", "a number above 0", threshold));
        }
        let arguments = [x.at as u64, dtype as u64, u64::from(threshold.to_bits()), flags as u64, k as u64];
        if x.m > 0 {
            let grid = (x.m as u32, 1);
            // SAFETY: as in `dequantize`.
            unsafe { self.launch(stream, Module::outliers(), "mark_outliers", grid, ROW.0, ROW.1, &arguments)? };
        }
        let arguments = [flags, list, count, k].map(|argument| argument as u64);
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, Module::outliers(), "list_outliers", (1, 1), ROW.0, ROW.0 * 4, &arguments) }
    }

    /// What [`linear_int8`](Self::linear_int8) is to add for these columns: float32 `[m, n]` at `out.at`, with the bias.
    ///
    /// # Safety
    ///
    /// As of [`dequantize`](Self::dequantize).
    pub unsafe fn outlier_products(
        &self,
        stream: Stream,
        x: Rows,
        dtype: Dtype,
        columns: Columns,
        w: &Weight,
        out: Output,
    ) -> Result<()> {
        w.checked()?;
        check_sizes(x.m, w.k)?;
        if x.m == 0 || w.n == 0 {
            return Ok(());
        }
        let [codes, scale, scale_dtype, zero, kind] = w.arguments();
        let [bias, bias_dtype, to] = out.arguments();
        let [m, n, k, group] = [x.m, w.n, w.k, w.group_size.min(w.k.max(1))].map(|size| size as u64);
        let [x_at, list, count, weights] =
            [x.at, columns.list, columns.count, columns.weights].map(|address| address as u64);
        let (x_dtype, weights_dtype) = (dtype as u64, columns.weights_dtype as u64);
        let arguments = [
            x_at,
            x_dtype,
            list,
            count,
            weights,
            weights_dtype,
            codes,
            scale,
            scale_dtype,
            zero,
            kind,
            bias,
            bias_dtype,
            to,
            m,
            n,
            k,
            group,
        ];
        let (module, shape) = (Module::outlier_products(w.bits), Shape::outliers());
        let grid = shape.grid(x.m, w.n)?;
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, module, "outlier_products", grid, shape.threads, shape.shared, &arguments) }
    }
}
