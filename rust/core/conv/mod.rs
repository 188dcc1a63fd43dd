//! Statically quantized products: convolutions, and matrix products as 1x1 ones, of int8 activations that share one scale
//! and one zero point, with the next layer's quantization fused.
//!
//! The same bits on every instruction set, with any number of threads and whatever kernel is taken.

mod addresses;
mod codes;
mod depthwise;
mod direct;
mod driver;
mod fixed;
mod geometry;
mod merged;
mod output;
mod patches;
mod phases;
mod places;
mod requantization;
#[cfg(test)]
mod tests;

pub use codes::{dequantize_static, quantize_images, quantize_static};
pub use fixed::FixedPoint;
pub use geometry::Geometry;
pub use output::{Codes, Epilogue, Output};

use crate::error::{Error, Result, area, check_len};
use crate::executor::{Executor, Serial};
use crate::prepack::PackedRef;
use depthwise::Channels;
use direct::Direct;
use merged::Merged;
use output::{Sink, check_scale, check_zero};
use patches::Patches;

/// Multiplications below which the calling thread works alone: they take it some 10 µs, as waking another would.
const SERIAL: usize = if cfg!(test) { 1 } else { 1 << 19 };

/// How much longer a multiplication takes where channels do not mix.
const CHANNELS_APART: usize = 8;

/// int8 activations `[batch, height, width, channels]` in `[-127, 127]`: `x ≈ scale · (q − zero)`.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The codes.
    pub q: &'a [i8],
    /// One for all, or one an image.
    pub scales: &'a [f32],
    /// In `[-127, 127]`. Padding has this code.
    pub zero: i8,
}

/// `out[batch, out height, out width, out channels]`, a convolution of `x` by the rows of `w`
/// `[out channels, kernel height * kernel width * channels / groups]`, channels innermost.
///
/// Of each output, in this order: `acc_g = Σ (a − z)(q − Z)` exactly, for each group g of weights that shares a scale;
/// `f = fma(float(acc_g), scale_g, f)`; `v = fma(f, scale of x, bias)`; `v = fma(addend, scale of addend, v)`; a clamp.
///
/// Where the output is codes, the unit is their steps, and scales are folded: `r = scale of x / scale`;
/// `v = fma(float(acc), scale_0 · r, bias / scale)`, or of several groups `fma(f, r, bias / scale)`;
/// `v = fma(addend, scale of addend / scale, v)`; then `q = round_half_even(v) + zero`, clipped to the codes of the clamp's
/// ends, which are within ±127. NaN becomes the lower end.
///
/// # Errors
/// [`Error::Mismatch`] for lengths and a geometry that do not fit each other, scales that are not positive numbers, zero
/// points below -127, float8 weights.
pub fn conv_static(
    x: Input,
    geometry: &Geometry,
    w: PackedRef,
    epilogue: Epilogue,
    mut out: Output,
    executor: &dyn Executor,
) -> Result<()> {
    let (out_size, rows) = check(&x, geometry, &w)?;
    let sink = Sink::new(epilogue, &mut out, rows, &w, x.scales)?;
    convolve(&x, geometry, out_size, &w, &sink, executor)
}

/// The same in integers alone; the scales of `x` are not looked at, since the multipliers hold them.
///
/// # Errors
/// [`Error::Mismatch`] as in [`conv_static`], and for a weight of several scales a channel or with fractional zero points.
pub fn conv_fixed(
    x: Input,
    geometry: &Geometry,
    w: PackedRef,
    fixed: FixedPoint,
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<()> {
    let x = Input { scales: &[1.0], ..x };
    let (out_size, rows) = check(&x, geometry, &w)?;
    fixed.check(&w, driver::LONGEST)?;
    let sink = Sink::fixed(fixed, out, rows, geometry.out_channels)?;
    convolve(&x, geometry, out_size, &w, &sink, executor)
}

/// The size of the output, and its pixels in all images, once everything fits.
fn check(x: &Input, geometry: &Geometry, w: &PackedRef) -> Result<([usize; 2], usize)> {
    let out_size = geometry.out_size()?;
    let rows = area(geometry.batch, area(out_size[0], out_size[1])?)?;
    area(rows, geometry.out_channels)?;
    let pixels = area(geometry.batch, area(geometry.size[0], geometry.size[1])?)?;
    check_len("x", area(pixels, geometry.channels)?, x.q.len())?;
    let k = area(area(geometry.kernel[0], geometry.kernel[1])?, geometry.group_channels())?;
    if (w.n(), w.k()) != (geometry.out_channels, k) {
        let expected = format!("a weight [{}, {k}] for this geometry", geometry.out_channels);
        return Err(Error::mismatch("panels", expected, format!("[{}, {}]", w.n(), w.k())));
    }
    if w.qtype().is_float() {
        return Err(Error::mismatch("panels", "codes of integers", "float8"));
    }
    if x.scales.len() != 1 && x.scales.len() != geometry.batch {
        let expected = format!("length 1 or {} (one an image)", geometry.batch);
        return Err(Error::mismatch("x_scale", expected, x.scales.len()));
    }
    x.scales.iter().try_for_each(|scale| check_scale("x_scale", *scale))?;
    check_zero("x_zero", x.zero)?;
    Ok((out_size, rows))
}

/// By the driver that suits the weight and the output.
fn convolve(
    x: &Input,
    geometry: &Geometry,
    out_size: [usize; 2],
    w: &PackedRef,
    sink: &Sink,
    executor: &dyn Executor,
) -> Result<()> {
    let patches = Patches { x: x.q, zero: x.zero, geometry, out_size };
    let rows = patches.rows();
    if rows == 0 || geometry.out_channels == 0 {
        return Ok(());
    }
    let work = rows.saturating_mul(geometry.out_channels).saturating_mul(w.k());
    let factors = sink.factors(x.scales);
    if let Some(channels) = Channels::new(&patches, w).filter(|_| sink.is_plain()) {
        let executor = if work.saturating_mul(CHANNELS_APART) < SERIAL { &Serial } else { executor };
        channels.multiply(factors, sink, executor);
        return Ok(());
    }
    let executor = if work < SERIAL { &Serial } else { executor };
    if !sink.is_plain() || !Direct::takes(w) {
        return driver::multiply(&patches, factors, w, sink, executor);
    }
    let quads = geometry.group_channels().is_multiple_of(4);
    let merged = if quads { None } else { Merged::new(&patches, w) };
    let of_merged = merged.as_ref().map(|merged| merged.patches(x.zero, out_size));
    let direct = Direct::new(of_merged.as_ref().unwrap_or(&patches), w, merged.as_ref())?;
    direct.multiply(factors, sink, executor);
    Ok(())
}

/// `out[m, n] = x[m, k] · w[n, k]ᵀ`, as [`conv_static`] over images of one pixel; `x.scales` has 1 or `m` entries.
///
/// # Errors
/// Those of [`conv_static`].
pub fn linear_static(
    x: Input,
    m: usize,
    w: PackedRef,
    epilogue: Epilogue,
    out: Output,
    executor: &dyn Executor,
) -> Result<()> {
    conv_static(x, &Geometry::linear(m, w.k(), w.n()), w, epilogue, out, executor)
}
