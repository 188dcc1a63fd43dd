//! Statically quantized products, and the codes that go in and out of them.

use crate::arguments::{area, floats, floats_mut, slice, slice_mut, value_error};
use crate::packed::{float32, parse};
use crate::threads::run;
use pyo3::prelude::*;
use rquant::{Codes, Epilogue, Error, FixedPoint, Geometry, Input, Output};

/// `[batch, height, width, channels, out channels, kernel 2, stride 2, padding 4, dilation 2, groups, transposed,
/// output padding 2]`.
type Sizes = [usize; 19];

fn geometry(sizes: Sizes) -> Geometry {
    let [batch, height, width, channels, out_channels, rest @ ..] = sizes;
    let [kernel_y, kernel_x, stride_y, stride_x, top, left, bottom, right, rest @ ..] = rest;
    let [dilation_y, dilation_x, groups, transposed, extra_y, extra_x] = rest;
    Geometry {
        batch,
        size: [height, width],
        channels,
        out_channels,
        kernel: [kernel_y, kernel_x],
        stride: [stride_y, stride_x],
        padding: [top, left, bottom, right],
        dilation: [dilation_y, dilation_x],
        groups,
        transposed: (transposed != 0).then_some([extra_y, extra_x]),
    }
}

/// The only element at an address.
fn one<T: Copy>(argument: &str, address: usize) -> PyResult<T> {
    Ok(slice::<T>(argument, address, 1)?[0])
}

#[pyfunction]
pub(crate) fn conv_size(sizes: Sizes) -> PyResult<[usize; 2]> {
    geometry(sizes).out_size().map_err(value_error)
}

#[pyfunction]
pub(crate) fn conv_static(
    py: Python<'_>,
    x: usize,
    x_scale: usize,
    scales: usize,
    x_zero: usize,
    sizes: Sizes,
    panels: usize,
    panels_len: usize,
    bias: usize,
    bias_dtype: u8,
    addend: usize,
    addend_scale: usize,
    addend_zero: usize,
    lo: f32,
    hi: f32,
    out: usize,
    out_dtype: u8,
    out_scale: usize,
    out_zero: usize,
    threads: usize,
) -> PyResult<()> {
    let geometry = geometry(sizes);
    let [height, width] = geometry.out_size().map_err(value_error)?;
    let outputs = area(area(geometry.batch, area(height, width)?)?, geometry.out_channels)?;
    let inputs = area(area(geometry.batch, area(geometry.size[0], geometry.size[1])?)?, geometry.channels)?;
    let w = parse(panels, panels_len)?;
    let input =
        Input { q: slice("x", x, inputs)?, scales: slice("x_scale", x_scale, scales)?, zero: one("x_zero", x_zero)? };
    let bias = (bias != 0).then(|| floats("bias", bias, bias_dtype, geometry.out_channels)).transpose()?.map(float32);
    let addend = if addend == 0 {
        None
    } else {
        let (scale, zero) = (one("addend_scale", addend_scale)?, one("addend_zero", addend_zero)?);
        Some(Codes { q: slice("addend", addend, outputs)?, scale, zero })
    };
    let epilogue = Epilogue { bias: bias.as_deref(), addend, lo, hi };
    let out = if out_scale == 0 {
        Output::Floats(floats_mut("out", out, out_dtype, outputs)?)
    } else {
        Output::Codes(slice_mut("out", out, outputs)?, one("out_scale", out_scale)?, one("out_zero", out_zero)?)
    };
    run(py, threads, |executor| rquant::conv_static(input, &geometry, w, epilogue, out, executor))
}

#[pyfunction]
pub(crate) fn conv_fixed(
    py: Python<'_>,
    x: usize,
    x_zero: usize,
    sizes: Sizes,
    panels: usize,
    panels_len: usize,
    bias: usize,
    multiplier: usize,
    shift: usize,
    out_zero: usize,
    lo: i8,
    hi: i8,
    out: usize,
    threads: usize,
) -> PyResult<()> {
    let geometry = geometry(sizes);
    let [height, width] = geometry.out_size().map_err(value_error)?;
    let (n, w) = (geometry.out_channels, parse(panels, panels_len)?);
    let outputs = area(area(geometry.batch, area(height, width)?)?, n)?;
    let inputs = area(area(geometry.batch, area(geometry.size[0], geometry.size[1])?)?, geometry.channels)?;
    let input = Input { q: slice("x", x, inputs)?, scales: &[], zero: one("x_zero", x_zero)? };
    let fixed = FixedPoint {
        bias: (bias != 0).then(|| slice("bias", bias, n)).transpose()?,
        multiplier: slice("multiplier", multiplier, n)?,
        shift: slice("shift", shift, n)?,
        zero: one("out_zero", out_zero)?,
        lo,
        hi,
    };
    let out = slice_mut("out", out, outputs)?;
    run(py, threads, |executor| rquant::conv_fixed(input, &geometry, w, fixed, out, executor))
}

#[pyfunction]
pub(crate) fn quantize_static(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    count: usize,
    scale: usize,
    zero: usize,
    codes: usize,
    finite: usize,
    samples: usize,
    threads: usize,
) -> PyResult<()> {
    let (x, codes) = (floats("x", x, dtype, count)?, slice_mut("codes", codes, count)?);
    let (scale, zero) = (one("scale", scale)?, one("zero", zero)?);
    let finite = slice_mut::<u8>("finite", finite, samples)?;
    run(py, threads, |executor| {
        let mut flags = vec![true; samples];
        rquant::quantize_static(x, scale, zero, codes, &mut flags, executor)?;
        finite.iter_mut().zip(flags).for_each(|(f, flag)| *f = flag.into());
        Ok::<_, Error>(())
    })
}

#[pyfunction]
pub(crate) fn dequantize_static(
    py: Python<'_>,
    codes: usize,
    count: usize,
    scale: usize,
    zero: usize,
    out: usize,
    out_dtype: u8,
    threads: usize,
) -> PyResult<()> {
    let (q, out) = (slice("codes", codes, count)?, floats_mut("out", out, out_dtype, count)?);
    let (scale, zero) = (one("scale", scale)?, one("zero", zero)?);
    run(py, threads, |executor| rquant::dequantize_static(q, scale, zero, out, executor))
}
