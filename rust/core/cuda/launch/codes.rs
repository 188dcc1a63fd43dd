//! Codes to floats, floats to codes, and codes to bytes.
#![allow(unsafe_code)]

use super::shape::{MOST_BLOCKS_Y, word_grid};
use super::{Dtype, Rows, Stream, Weight, check_alignment, check_sizes};
use crate::cuda::device::Device;
use crate::cuda::error::{Error, Result};
use crate::cuda::modules::Module;

/// Threads of a block that has a row, and their shared memory: `row.cuh`.
pub(super) const ROW: (u32, u32) = (256, 256 / 32 * 4);

impl Device {
    /// `S (q - Z)` of a weight into `out`, `[n, k]` of `dtype`.
    ///
    /// # Safety
    ///
    /// Addresses are of live memory of this device, of the stated sizes, until the stream has come there. So everywhere.
    pub unsafe fn dequantize(&self, stream: Stream, w: &Weight, out: usize, dtype: Dtype) -> Result<()> {
        let bits = w.readable()?;
        check_alignment("out", out)?;
        if w.n == 0 || w.k == 0 {
            return Ok(());
        }
        let [codes, scale, scale_dtype, zero, kind] = w.arguments();
        let (n, k, group) = (w.n as u64, w.k as u64, w.group_size.min(w.k) as u64);
        let arguments = [codes, scale, scale_dtype, zero, kind, out as u64, dtype as u64, n, k, group];
        let grid = word_grid(w.n, w.k, bits);
        // SAFETY: the arguments of the kernel, and by this function's contract.
        unsafe { self.launch(stream, Module::dequantize(w.bits), "dequantize", grid, 256, 0, &arguments) }
    }

    /// Rows of the same: `out` is `[count, k]`, row i that of the weight at `ids[i]`, of 4 or 8 bytes; NaN where that is not
    /// in `0..n`.
    ///
    /// # Safety
    ///
    /// As of [`dequantize`](Self::dequantize).
    pub unsafe fn gather_rows(
        &self,
        stream: Stream,
        w: &Weight,
        (ids, id_bytes, count): (usize, usize, usize),
        out: usize,
        dtype: Dtype,
    ) -> Result<()> {
        let bits = w.readable()?;
        check_alignment("out", out)?;
        check_sizes(count, w.k)?;
        if ![4, 8].contains(&id_bytes) {
            return Err(Error::argument("ids", "of 4 or 8 bytes", id_bytes));
        }
        if count == 0 || w.k == 0 {
            return Ok(());
        }
        let [codes, scale, scale_dtype, zero, kind] = w.arguments();
        let (n, k, group) = (w.n as u64, w.k as u64, w.group_size.min(w.k) as u64);
        let (ids, id_bytes, rows) = (ids as u64, id_bytes as u64, count as u64);
        let arguments =
            [ids, id_bytes, rows, codes, scale, scale_dtype, zero, kind, out as u64, dtype as u64, n, k, group];
        let grid = word_grid(count, w.k, bits);
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, Module::dequantize(w.bits), "gather_rows", grid, 256, 0, &arguments) }
    }

    /// int8 codes `[m, k]` at `codes` of `x` `[m, k]`, and the scale of each row at `scale`; under `given` scales (address,
    /// and 1 for all rows or one each) where that is not null. Columns with a byte other than 0 at `skip`, if that is not
    /// null, count as 0.
    ///
    /// # Safety
    ///
    /// As of [`dequantize`](Self::dequantize).
    pub unsafe fn quantize_rows(
        &self,
        stream: Stream,
        x: Rows,
        dtype: Dtype,
        k: usize,
        given: (usize, usize),
        skip: usize,
        codes: usize,
        scale: usize,
    ) -> Result<()> {
        check_sizes(x.m, k)?;
        if x.m == 0 {
            return Ok(());
        }
        let arguments = [x.at, dtype as usize, given.0, given.1, skip, codes, scale, k].map(|a| a as u64);
        let grid = (x.m as u32, 1);
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, Module::quantize_rows(), "quantize_rows", grid, ROW.0, ROW.1, &arguments) }
    }

    /// int8 codes `[n, k]` to canonical bytes, or back.
    ///
    /// # Safety
    ///
    /// As of [`dequantize`](Self::dequantize).
    pub unsafe fn bitpack(
        &self,
        stream: Stream,
        pack: bool,
        from: usize,
        to: usize,
        (n, k, bits): (usize, usize, usize),
    ) -> Result<()> {
        if ![8, 4, 2].contains(&bits) {
            return Err(Error::argument("bits", "8, 4 or 2", bits));
        }
        check_sizes(n, k)?;
        if n == 0 || k == 0 {
            return Ok(());
        }
        let (module, kernel) = (Module::bitpack(bits), if pack { "pack_codes" } else { "unpack_codes" });
        let arguments = [from as u64, to as u64, n as u64, k as u64];
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, module, kernel, word_grid(n, k, bits), 256, 0, &arguments) }
    }

    /// The sums of `[parts, m, n]` float32 at `sums`, in order, with a bias: the end of a product that was split.
    ///
    /// # Safety
    ///
    /// As of [`dequantize`](Self::dequantize).
    pub(super) unsafe fn add_parts(
        &self,
        stream: Stream,
        (sums, parts): (usize, usize),
        out: super::Output,
        dtype: Dtype,
        (m, n): (usize, usize),
    ) -> Result<()> {
        let [bias, bias_dtype, to] = out.arguments();
        let arguments = [sums as u64, parts as u64, bias, bias_dtype, to, dtype as u64, m as u64, n as u64];
        let grid = (n.div_ceil(256) as u32, m.min(MOST_BLOCKS_Y) as u32);
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, Module::add_parts(), "add_parts", grid, 256, 0, &arguments) }
    }
}
