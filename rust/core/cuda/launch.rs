//! The kernels as functions: arguments checked for size, grids chosen, one launch each.
#![allow(unsafe_code)]

use super::device::Device;
use super::error::{Error, Result};
use super::modules::{FLOAT8, Half, Module};

/// A type of floats, as kernels number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Dtype {
    /// 4 bytes.
    F32 = 0,
    /// 2 bytes.
    F16 = 1,
    /// The other 2 bytes.
    Bf16 = 2,
}

/// Handle of a stream, 0 for the default one.
pub type Stream = usize;

/// What is known of a weight's zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPoint {
    /// Symmetric.
    None,
    /// Address of bytes, with the codes' offset.
    U8(usize),
    /// Address of float16.
    F16(usize),
}

/// A canonical weight `[n, k]` on the device: addresses of contiguous tensors, codes at a multiple of 16.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// Address of packed codes, rows padded to 4 bytes.
    pub codes: usize,
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// Bits of a code: 8, 4 or 2; 43 or 52 of float8 (e4m3fn, e5m2), which can only be dequantized.
    pub bits: usize,
    /// Columns that share a scale.
    pub group_size: usize,
    /// Address of scales `[n, groups]`.
    pub scale: usize,
    /// Their type, float32 or float16.
    pub scale_dtype: Dtype,
    /// Zero points of the same shape.
    pub zero_point: ZeroPoint,
}

/// Activations `[m, k]`, contiguous, at a multiple of 16.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Address.
    pub at: usize,
    /// Rows.
    pub m: usize,
}

/// Where products go: `[m, n]`, contiguous, and what is added to each row.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Address.
    pub at: usize,
    /// Address of `[n]`, or 0.
    pub bias: usize,
    /// Type of the bias.
    pub bias_dtype: Dtype,
}

const MOST_BLOCKS_Y: usize = 65535;
/// Rows that `linear_small.cu` takes.
const MOST_SMALL_ROWS: usize = 8;
/// Elements of a group, so that int32 holds sums of 127 * 255 each.
const LONGEST_INTEGER_GROUP: usize = 66_000;

impl Weight {
    fn checked(&self) -> Result<()> {
        if ![8, 4, 2].contains(&self.bits) {
            return Err(Error::argument("bits", "8, 4 or 2", self.bits));
        }
        if self.group_size == 0 {
            return Err(Error::argument("group_size", "at least 1", 0));
        }
        check_sizes(self.n, self.k)?;
        check_alignment("codes", self.codes)
    }

    /// The group size for products, which are of blocks of 32.
    fn blocked_group(&self) -> Result<usize> {
        self.checked()?;
        if self.group_size >= self.k {
            return Ok(self.k.next_multiple_of(32).max(32));
        }
        if self.group_size.is_multiple_of(32) {
            return Ok(self.group_size);
        }
        Err(Error::argument("group_size", "a multiple of 32, or one group a row", self.group_size))
    }

    fn zero(&self) -> (usize, u64) {
        match self.zero_point {
            ZeroPoint::None => (0, 0),
            ZeroPoint::U8(at) => (at, 1),
            ZeroPoint::F16(at) => (at, 2),
        }
    }

    /// Scale, its type, zero point, its kind: as all kernels take them.
    fn parameters(&self) -> [u64; 4] {
        let (zero, kind) = self.zero();
        [self.scale as u64, self.scale_dtype as u64, zero as u64, kind]
    }
}

fn check_sizes(rows: usize, k: usize) -> Result<()> {
    let most = 1 << 28; // an index in bytes fits int32
    if rows > most || k > most {
        return Err(Error::argument("sizes", format!("at most {most} rows and columns"), format!("{rows} x {k}")));
    }
    Ok(())
}

fn check_alignment(argument: &'static str, address: usize) -> Result<()> {
    if address.is_multiple_of(16) { Ok(()) } else { Err(Error::argument(argument, "a multiple of 16", address)) }
}

impl Device {
    /// `S (q - Z)` of a weight into `out`, `[n, k]` of `dtype`.
    ///
    /// # Safety
    ///
    /// Addresses are of live memory of this device, of the stated sizes, until the stream has come there. So everywhere.
    pub unsafe fn dequantize(&self, stream: Stream, w: &Weight, out: usize, dtype: Dtype) -> Result<()> {
        let float8 = FLOAT8.contains(&w.bits);
        Weight { bits: if float8 { 8 } else { w.bits }, ..*w }.checked()?;
        check_alignment("out", out)?;
        if w.n == 0 || w.k == 0 {
            return Ok(());
        }
        let [scale, scale_dtype, zero, kind] = w.parameters();
        let sizes = [w.n as u64, w.k as u64, w.group_size.min(w.k) as u64];
        let arguments =
            [w.codes as u64, scale, scale_dtype, zero, kind, out as u64, dtype as u64, sizes[0], sizes[1], sizes[2]];
        let grid = word_grid(w.n, w.k, if float8 { 8 } else { w.bits });
        // SAFETY: the arguments of the kernel, and by this function's contract.
        unsafe { self.launch(stream, Module::dequantize(w.bits), "dequantize", grid, 256, 0, &arguments) }
    }

    /// int8 codes `[m, k]` at `codes` of `x` `[m, k]`, and the scale of each row at `scale`; under `given` scales (address,
    /// and 1 for all rows or one each) where that is not null.
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
        codes: usize,
        scale: usize,
    ) -> Result<()> {
        check_sizes(x.m, k)?;
        if x.m == 0 {
            return Ok(());
        }
        let arguments =
            [x.at as u64, dtype as u64, given.0 as u64, given.1 as u64, codes as u64, scale as u64, k as u64];
        let (module, grid) = (Module::quantize_rows(), (x.m as u32, 1));
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, module, "quantize_rows", grid, 256, 8 * 4, &arguments) }
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

    /// `x (S (q - Z))^T + bias` of float16 or bfloat16 `x`, into `out` of the same type: `[m, n]`. `small`: by the kernel
    /// for up to 8 rows or by tiles; without it up to 8 rows are small.
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
    ) -> Result<()> {
        let half = match dtype {
            Dtype::F16 => Half::F16,
            Dtype::Bf16 => Half::Bf16,
            Dtype::F32 => return Err(Error::argument("x", "float16 or bfloat16", "float32")),
        };
        let group = w.blocked_group()?;
        check_sizes(x.m, w.k)?;
        check_alignment("x", x.at)?;
        if x.m == 0 || w.n == 0 {
            return Ok(());
        }
        let [scale, scale_dtype, zero, kind] = w.parameters();
        let sizes = [x.m as u64, w.n as u64, w.k as u64, group as u64];
        let arguments = [
            x.at as u64,
            w.codes as u64,
            scale,
            scale_dtype,
            zero,
            kind,
            out.bias as u64,
            out.bias_dtype as u64,
            out.at as u64,
            sizes[0],
            sizes[1],
            sizes[2],
            sizes[3],
        ];
        let small = small.unwrap_or(x.m <= MOST_SMALL_ROWS);
        if small && x.m > MOST_SMALL_ROWS {
            return Err(Error::argument("x", format!("at most {MOST_SMALL_ROWS} rows for linear_small"), x.m));
        }
        let shape = if small { Shape::small(w.bits) } else { Shape::tiled(x.m, 64, 4, w.bits, 2) };
        let module = if small { Module::linear_small(w.bits, half) } else { Module::linear_tiled(w.bits, half) };
        let kernel = match (small, shape.rows) {
            (true, _) => "linear_small",
            (_, 16) => "linear_tiled16",
            _ => "linear_tiled64",
        };
        let (grid, threads, shared) = (shape.grid(x.m, w.n)?, shape.threads, shape.shared);
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, module, kernel, grid, threads, shared, &arguments) }
    }

    /// The same of int8 `x` with float32 scales of its rows at `row_scale`, by int32; `out` is of `dtype`.
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
        out: Output,
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
        let [scale, scale_dtype, zero, kind] = w.parameters();
        let sizes = [x.m as u64, w.n as u64, w.k as u64, group as u64];
        let arguments = [
            x.at as u64,
            row_scale as u64,
            w.codes as u64,
            scale,
            scale_dtype,
            zero,
            kind,
            out.bias as u64,
            out.bias_dtype as u64,
            out.at as u64,
            dtype as u64,
            sizes[0],
            sizes[1],
            sizes[2],
            sizes[3],
        ];
        let module = Module::linear_int8(w.bits, w.zero_point == ZeroPoint::None);
        let shape = Shape::tiled(x.m, 128, 3, w.bits, 1);
        let kernel = if shape.rows == 16 { "linear_int8_tiled16" } else { "linear_int8_tiled64" };
        let (grid, threads, shared) = (shape.grid(x.m, w.n)?, shape.threads, shape.shared);
        // SAFETY: as in `dequantize`.
        unsafe { self.launch(stream, module, kernel, grid, threads, shared, &arguments) }
    }
}

/// A thread for each 32-bit word of codes, rows along y.
fn word_grid(n: usize, k: usize, bits: usize) -> (u32, u32) {
    (k.div_ceil(32 / bits).div_ceil(256) as u32, n.min(MOST_BLOCKS_Y) as u32)
}

/// What a block of a product covers and takes.
struct Shape {
    rows: usize,
    columns: usize,
    threads: u32,
    shared: u32,
}

impl Shape {
    /// `linear_small.cu`: 8 warps, each with a ring of stages of 16 rows and 128 k; the sums of all warps in the end.
    fn small(bits: usize) -> Self {
        let stages = if bits == 8 { 3 } else { 4 };
        let ring = 8 * stages * 16 * 128 * bits / 8;
        Self { rows: 8, columns: 16, threads: 256, shared: ring.max(8 * 16 * 8 * 4) as u32 }
    }

    /// `linear_tiled.cu`, `linear_int8.cu`: a ring of stages of both operands, `depth` k deep; `bytes` an activation.
    fn tiled(m: usize, depth: usize, stages: usize, bits: usize, bytes: usize) -> Self {
        let (rows, columns) = (if m <= 16 { 16 } else { 64 }, 64);
        let shared = stages * (rows * depth * bytes + columns * depth * bits / 8);
        Self { rows, columns, threads: 128, shared: shared as u32 }
    }

    fn grid(&self, m: usize, n: usize) -> Result<(u32, u32)> {
        let (x, y) = (n.div_ceil(self.columns), m.div_ceil(self.rows));
        if y > MOST_BLOCKS_Y {
            return Err(Error::argument("x", format!("at most {} rows", MOST_BLOCKS_Y * self.rows), m));
        }
        Ok((x as u32, y as u32))
    }
}
