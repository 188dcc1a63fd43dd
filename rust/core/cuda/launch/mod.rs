//! The kernels as functions of [`Device`](super::Device): arguments checked for size, grids chosen, launches. Here is what
//! they take; a file each for a kind of kernels.

mod codes;
mod floats;
mod integers;
mod outliers;
mod shape;

use super::error::{Error, Result};
use super::modules::FLOAT8;
pub use outliers::Columns;

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

impl Output {
    /// Bias, its type, output: as kernels of float products take them.
    fn arguments(&self) -> [u64; 3] {
        [self.bias as u64, self.bias_dtype as u64, self.at as u64]
    }
}

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

    /// Bits of a code of any kind that can be dequantized, float8 too.
    fn readable(&self) -> Result<usize> {
        let bits = if FLOAT8.contains(&self.bits) { 8 } else { self.bits };
        Self { bits, ..*self }.checked()?;
        Ok(bits)
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

    /// Codes, scale, its type, zero point, its kind: as all kernels take them.
    fn arguments(&self) -> [u64; 5] {
        let (zero, kind) = self.zero();
        [self.codes as u64, self.scale as u64, self.scale_dtype as u64, zero as u64, kind]
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
