//! Multiplication by a packed weight: what is asked for, how it is cut into tasks, and its two arithmetics.

mod activations;
mod bf16;
mod float;
mod integer;
mod multiplier;
mod outliers;
mod plan;
mod row_panels;
mod rows;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use multiplier::{DeepSums, Multiplier};
pub use outliers::Outliers;
pub(crate) use plan::{PART, Plan};
pub(crate) use row_panels::{RowPanels, place_row};
pub use rows::{gather_rows, quantize_rows};

use crate::error::{Error, Result, area, check_len};
use crate::executor::{Executor, Serial};
use crate::floats::{Floats, FloatsMut};
use crate::prepack::PackedRef;
use activations::Source;
use outliers::FloatColumns;
use std::ops::Range;

/// How [`linear`] multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Arithmetic {
    /// Weight-only: float activations, float sums.
    Float,
    /// Each row of activations becomes int8 (symmetric, its own scale); products are summed exactly in integers.
    Integer,
}

/// The deepest product whose int32 sum cannot overflow: 131,071 · 128 · 128 < 2^31.
pub const MAX_GEMM_K: usize = (1 << 17) - 1;

/// Rows taken at once: what is kept of them besides the input stays small.
const MAX_ROWS: usize = if cfg!(test) { 40 } else { 4096 };

/// Multiplications below which the calling thread works alone: they take it some 10 µs, as waking another would.
const SERIAL_INTEGER: usize = if cfg!(test) { 0 } else { 1 << 19 };
/// The same in float arithmetic.
const SERIAL_FLOAT: usize = if cfg!(test) { 0 } else { 1 << 18 };

/// `out[m, n] = x[m, k] · dequantize(w)[n, k]ᵀ + bias[n]`.
///
/// Integer arithmetic gives the same bits on every instruction set and with any number of threads; float arithmetic
/// the same with any number of threads. A row of x with NaN or infinity gives a row of NaN.
///
/// # Errors
/// [`Error::Mismatch`] for lengths that do not fit `m` and `w`, and for integer arithmetic with float8 weights.
pub fn linear(
    x: Floats,
    m: usize,
    w: PackedRef,
    bias: Option<&[f32]>,
    arithmetic: Arithmetic,
    out: FloatsMut,
    executor: &dyn Executor,
) -> Result<()> {
    let how = match arithmetic {
        Arithmetic::Float => How::Float,
        Arithmetic::Integer => How::Integer(None),
    };
    multiply(x, m, w, bias, how, out, executor)
}

/// [`linear`] in integer arithmetic, with activations quantized by ready-made scales: one a row, or a single one for all.
/// What lies beyond ±127 scales is clipped. A row whose scale is NaN or infinite gives a row of NaN.
///
/// A rank that holds a slice of each row needs this: a row's scale is that of the whole row. So do calibrated activations.
///
/// # Errors
/// [`Error::Mismatch`] for lengths that do not fit `m` and `w`, and for a scale that is zero or negative.
pub fn linear_scaled(
    x: Floats,
    scales: &[f32],
    m: usize,
    w: PackedRef,
    bias: Option<&[f32]>,
    out: FloatsMut,
    executor: &dyn Executor,
) -> Result<()> {
    if scales.len() != m && scales.len() != 1 {
        return Err(Error::mismatch("scale", format!("length {m} (one a row) or 1"), scales.len()));
    }
    if let Some(i) = scales.iter().position(|scale| *scale <= 0.0) {
        return Err(Error::mismatch("scale", "positive numbers", format!("{} at [{i}]", scales[i])));
    }
    multiply(x, m, w, bias, How::Integer(Some(scales)), out, executor)
}

/// [`linear`] in integer arithmetic but for some columns of x, which are multiplied in float with their weights
/// dequantized (or as they were before); the same bits on every instruction set and with any number of threads.
///
/// # Errors
/// [`Error::Mismatch`] for lengths that do not fit `m` and `w`, columns not in order or outside `0..k`, a threshold that
/// is not above 0.
pub fn linear_outliers(
    x: Floats,
    m: usize,
    w: PackedRef,
    bias: Option<&[f32]>,
    outliers: Outliers,
    out: FloatsMut,
    executor: &dyn Executor,
) -> Result<()> {
    check_len("x", area(m, w.k())?, x.len())?;
    let columns = FloatColumns::new(x, m, &w, outliers, executor)?;
    let how = if columns.len() == 0 { How::Integer(None) } else { How::Outliers(&columns) };
    multiply(x, m, w, bias, how, out, executor)
}

/// [`Arithmetic`], where scales come from, and what stays float.
enum How<'a> {
    Float,
    Integer(Option<&'a [f32]>),
    Outliers(&'a FloatColumns<'a>),
}

fn multiply(
    x: Floats,
    m: usize,
    w: PackedRef,
    bias: Option<&[f32]>,
    how: How,
    mut out: FloatsMut,
    executor: &dyn Executor,
) -> Result<()> {
    check_len("x", area(m, w.k())?, x.len())?;
    check_len("out", area(m, w.n())?, out.len())?;
    if let Some(bias) = bias {
        check_len("bias", w.n(), bias.len())?;
    }
    if !matches!(how, How::Float) {
        only_integers(&w)?;
    }
    if m == 0 || w.n() == 0 {
        return Ok(());
    }
    if w.k() == 0 {
        let zeros = vec![0f32; w.n()];
        out.fill_rows(bias.unwrap_or(&zeros));
        return Ok(());
    }
    let (size, out) = (m.saturating_mul(w.n()).saturating_mul(w.k()), out.share());
    let pick = |alone: usize| if size < alone { &Serial } else { executor };
    for first in (0..m).step_by(MAX_ROWS) {
        let rows = MAX_ROWS.min(m - first);
        let (x, out) = (x.slice(first * w.k()..(first + rows) * w.k()), out.skip(first * w.n()));
        match how {
            How::Float => float::linear(x, rows, &w, bias, out, pick(SERIAL_FLOAT))?,
            How::Integer(scales) => {
                let source = match scales {
                    None => Source::Floats(x),
                    Some([scale]) => Source::Scaled(x, std::slice::from_ref(scale)),
                    Some(scales) => Source::Scaled(x, &scales[first..first + rows]),
                };
                integer::linear(source, rows, &w, bias, out, pick(SERIAL_INTEGER))?
            }
            How::Outliers(columns) => {
                integer::linear(Source::Outliers(x, columns), rows, &w, bias, out, pick(SERIAL_INTEGER))?
            }
        }
    }
    Ok(())
}

fn only_integers(w: &PackedRef) -> Result<()> {
    if w.qtype().is_float() {
        return Err(Error::mismatch("arithmetic", "float for float8 weights", "integer"));
    }
    Ok(())
}

/// `out[m, n] = a[m, k] · q[n, k]ᵀ` over the bare codes, exact in int32.
///
/// # Errors
/// [`Error::TooDeep`] for k above [`MAX_GEMM_K`]; [`Error::Mismatch`] for lengths.
pub fn gemm_i32(a: &[i8], m: usize, w: PackedRef, out: &mut [i32], executor: &dyn Executor) -> Result<()> {
    if w.k() > MAX_GEMM_K {
        return Err(Error::TooDeep { k: w.k(), max: MAX_GEMM_K });
    }
    only_integers(&w)?;
    check_len("a", area(m, w.k())?, a.len())?;
    check_len("out", area(m, w.n())?, out.len())?;
    if m == 0 || w.n() == 0 {
        return Ok(());
    }
    if w.k() == 0 {
        out.fill(0);
        return Ok(());
    }
    integer::product(a, m, &w, out, executor)
}

/// Rows up to which codes are unpacked in the inner loop, once a tile, while more of them arrive from memory. For more
/// rows it is cheaper to unpack a panel once, which nothing overlaps.
const UNPACK_ROWS: usize = if cfg!(test) { 9 } else { 64 };

/// The tasks of one product: each a panel of weights times a stretch of row blocks.
struct Tasks {
    panels: usize,
    blocks: usize,
    blocks_per_task: usize,
}

impl Tasks {
    /// Rows whose sums stay in the second-level cache beside a panel.
    const MAX_ROWS: usize = 512;
    /// Fewer rows do not pay for unpacking a panel again.
    const MIN_ROWS: usize = 48;

    fn new(blocks: usize, mr: usize, panels: usize, threads: usize) -> Self {
        // enough tasks that the last ones even out, if there are rows for it
        let mut wanted = if threads > 1 { threads.saturating_mul(4).div_ceil(panels) } else { 1 };
        if !(panels * wanted).is_multiple_of(threads) && panels < threads.saturating_mul(16) {
            wanted = wanted.saturating_mul(threads); // one task more for one thread would show
        }
        let per_task = blocks.div_ceil(wanted).max(Self::MIN_ROWS.div_ceil(mr)).min(Self::MAX_ROWS.div_ceil(mr));
        Self { panels, blocks, blocks_per_task: per_task.max(1) }
    }

    fn count(&self) -> usize {
        self.panels * self.blocks.div_ceil(self.blocks_per_task)
    }

    /// Panel and row blocks of task `i`. Neighbours share a panel's rows, not its weights: rows are the hotter.
    fn get(&self, i: usize) -> (usize, Range<usize>) {
        let first = i / self.panels * self.blocks_per_task;
        (i % self.panels, first..(first + self.blocks_per_task).min(self.blocks))
    }
}
