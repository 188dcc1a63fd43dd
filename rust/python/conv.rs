//! Convolutions finished in integers, and the codes that go in and out of statically quantized products.

use crate::arguments::{area, floats, floats_mut, slice, slice_mut, value_error};
use crate::packed::parse;
use crate::static_product::{Sizes, geometry, one};
use crate::threads::run;
use pyo3::prelude::*;
use rquant::{Error, FixedPoint, Input};

#[pyfunction]
pub(crate) fn conv_size(sizes: Sizes) -> PyResult<[usize; 2]> {
    geometry(sizes).out_size().map_err(value_error)
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
pub(crate) fn quantize_images(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    shape: [usize; 3],
    scale: usize,
    zero: usize,
    codes: usize,
    finite: usize,
    threads: usize,
) -> PyResult<()> {
    let [images, channels, pixels] = shape;
    let count = area(images, area(channels, pixels)?)?;
    let (x, codes) = (floats("x", x, dtype, count)?, slice_mut("codes", codes, count)?);
    let (scale, zero) = (one("scale", scale)?, one("zero", zero)?);
    let finite = slice_mut::<u8>("finite", finite, images)?;
    run(py, threads, |executor| {
        let mut flags = vec![true; images];
        rquant::quantize_images(x, channels, scale, zero, codes, &mut flags, executor)?;
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
