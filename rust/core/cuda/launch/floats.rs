//! Products of float activations.
#![allow(unsafe_code)]

use super::shape::Shape;
use super::{Dtype, Output, Rows, Stream, Weight, check_alignment, check_sizes};
use crate::cuda::device::Device;
use crate::cuda::error::{Error, Result};
use crate::cuda::modules::{Half, Module};

/// Rows that `linear_small.cu` and `linear_simt.cu` take.
const MOST_SMALL_ROWS: usize = 8;

/// A way to multiply: `linear_small.cu`, `linear_tiled.cu`, `linear_simt.cu`.
struct Way {
    module: Module,
    kernel: &'static str,
    shape: Shape,
}

impl Way {
    /// Float32, and any float before compute capability 8.0, has kernels for up to 8 rows. Else `small` chooses.
    fn of(capability: (i32, i32), m: usize, dtype: Dtype, bits: usize, small: Option<bool>) -> Result<Self> {
        let half = match dtype {
            Dtype::F16 => Half::F16,
            Dtype::Bf16 => Half::Bf16,
            Dtype::F32 => return Self::simt(m, dtype, bits),
        };
        if capability.0 < 8 {
            return Self::simt(m, dtype, bits);
        }
        if small.unwrap_or(m <= MOST_SMALL_ROWS) {
            if m > MOST_SMALL_ROWS {
                return Err(Error::argument("x", format!("at most {MOST_SMALL_ROWS} rows for linear_small"), m));
            }
            let module = Module::linear_small(bits, half);
            return Ok(Self { module, kernel: "linear_small", shape: Shape::small(bits) });
        }
        let shape = Shape::tiled(m, 64, 4, bits, 2);
        let kernel = if shape.rows == 16 { "linear_tiled16" } else { "linear_tiled64" };
        Ok(Self { module: Module::linear_tiled(bits, half), kernel, shape })
    }

    fn simt(m: usize, dtype: Dtype, bits: usize) -> Result<Self> {
        if m > MOST_SMALL_ROWS {
            let expected = "at most 8 rows of float32, or before compute capability 8.0";
            return Err(Error::argument("x", expected, m));
        }
        let kernel = match dtype {
            Dtype::F32 => "linear_simt_f32",
            Dtype::F16 => "linear_simt_f16",
            Dtype::Bf16 => "linear_simt_bf16",
        };
        Ok(Self { module: Module::linear_simt(bits), kernel, shape: Shape::simt() })
    }

    fn can_split(&self) -> bool {
        self.module.needs_ampere()
    }
}

impl Device {
    /// `x (S (q - Z))^T + bias` of float `x`, into `out` of the same type: `[m, n]`. `small`: by the kernel for up to 8 rows or
    /// by tiles; without it up to 8 rows are small. `parts` is 0 and 1, or the address of float32 `[parts, m, n]` to share k
    /// among as many blocks, see [`linear_parts`](Self::linear_parts).
    ///
    /// # Safety
    ///
    /// As of [`dequantize`](Self::dequantize).
    pub unsafe fn linear(
        &self,
        stream: Stream,
        x: Rows,
        dtype: Dtype,
        w: &Weight,
        out: Output,
        small: Option<bool>,
        parts: (usize, usize),
    ) -> Result<()> {
        let group = w.blocked_group()?;
        check_sizes(x.m, w.k)?;
        check_alignment("x", x.at)?;
        if x.m == 0 || w.n == 0 {
            return Ok(());
        }
        let way = Way::of(self.capability(), x.m, dtype, w.bits, small)?;
        if parts.1 == 0 || (parts.1 > 1 && (parts.0 == 0 || !way.can_split())) {
            return Err(Error::argument("parts", "1, or memory for them and a kernel that shares k", parts.1));
        }
        let [codes, scale, scale_dtype, zero, kind] = w.arguments();
        let [bias, bias_dtype, to] = out.arguments();
        let [m, n, k, group] = [x.m, w.n, w.k, group].map(|size| size as u64);
        let (sums, count) = (parts.0 as u64, parts.1 as u64);
        let x_at = x.at as u64;
        let arguments =
            [x_at, codes, scale, scale_dtype, zero, kind, bias, bias_dtype, to, m, n, k, group, sums, count];
        let arguments = if way.can_split() { &arguments[..] } else { &arguments[..13] };
        let (columns, rows) = way.shape.grid(x.m, w.n)?;
        let grid = (columns * parts.1 as u32, rows);
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, way.module, way.kernel, grid, way.shape.threads, way.shape.shared, arguments)? };
        if parts.1 > 1 {
            // SAFETY: as above.
            unsafe { self.add_parts(stream, parts, out, dtype, (x.m, w.n))? };
        }
        Ok(())
    }

    /// How many blocks should share the k of [`linear`](Self::linear), by an estimate that no GPU has confirmed; 1 if no
    /// memory is needed.
    pub fn linear_parts(
        &self,
        m: usize,
        dtype: Dtype,
        (n, k, bits): (usize, usize, usize),
        small: Option<bool>,
    ) -> usize {
        match Way::of(self.capability(), m, dtype, bits, small) {
            Ok(way) if way.can_split() => way.shape.splits(m, n, k, self.multiprocessors().max(1) as usize),
            _ => 1,
        }
    }
}
