//! Operations on int8 codes between layers.

use crate::arguments::{area, clamp, floats, floats_mut, slice, slice_mut, value_error};
use crate::threads::run;
use pyo3::prelude::*;
use rquant::elementwise as core;
use rquant::elementwise::{AffineOut, Average, Channels, Norm, Part, PerTensor, Pool2d};

/// A tensor's parameters, one value each.
fn per_tensor(scale: usize, zero: usize) -> PyResult<PerTensor> {
    Ok(PerTensor { scale: slice::<f32>("scale", scale, 1)?[0], zero: slice::<i8>("zero", zero, 1)?[0] })
}

/// `len` floats, if there are any.
fn optional<'a>(argument: &str, address: usize, len: usize) -> PyResult<Option<&'a [f32]>> {
    if address == 0 { Ok(None) } else { slice(argument, address, len).map(Some) }
}

#[pyfunction]
pub(crate) fn add_static(
    py: Python<'_>,
    a: (usize, usize, usize),
    b: (usize, usize, usize),
    count: usize,
    lo: Option<f32>,
    hi: Option<f32>,
    out: (usize, usize, usize),
    threads: usize,
) -> PyResult<()> {
    let (pa, pb, po) = (per_tensor(a.1, a.2)?, per_tensor(b.1, b.2)?, per_tensor(out.1, out.2)?);
    let (a, b, out) = (slice("a", a.0, count)?, slice("b", b.0, count)?, slice_mut("out", out.0, count)?);
    run(py, threads, |executor| core::add(a, pa, b, pb, clamp(lo, hi), po, out, executor))
}

#[pyfunction]
pub(crate) fn requantize_static(
    py: Python<'_>,
    x: (usize, usize, usize),
    count: usize,
    lo: Option<f32>,
    hi: Option<f32>,
    out: (usize, usize, usize),
    threads: usize,
) -> PyResult<()> {
    let (px, po) = (per_tensor(x.1, x.2)?, per_tensor(out.1, out.2)?);
    let (x, out) = (slice("x", x.0, count)?, slice_mut("out", out.0, count)?);
    run(py, threads, |executor| core::requantize(x, px, clamp(lo, hi), po, out, executor))
}

#[pyfunction]
pub(crate) fn lookup_static(
    py: Python<'_>,
    x: usize,
    table: usize,
    count: usize,
    out: usize,
    threads: usize,
) -> PyResult<()> {
    let (x, table, out) = (slice("x", x, count)?, slice("table", table, 256)?, slice_mut("out", out, count)?);
    run(py, threads, |executor| core::lookup(x, table, out, executor))
}

#[pyfunction]
pub(crate) fn concat_static(
    py: Python<'_>,
    xs: Vec<(usize, usize, usize, usize)>,
    rows: usize,
    out: (usize, usize, usize),
    threads: usize,
) -> PyResult<()> {
    let part = |(x, scale, zero, cols)| {
        Ok(Part { codes: slice("xs", x, area(rows, cols)?)?, cols, params: per_tensor(scale, zero)? })
    };
    let parts = xs.into_iter().map(part).collect::<PyResult<Vec<_>>>()?;
    let width = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.cols)).unwrap_or(usize::MAX);
    let (po, out) = (per_tensor(out.1, out.2)?, slice_mut("out", out.0, area(rows, width)?)?);
    run(py, threads, |executor| core::concat(&parts, rows, po, out, executor))
}

/// Elements of `shape`, if that can be a size.
fn volume(shape: [usize; 4]) -> PyResult<usize> {
    area(area(shape[0], shape[1])?, area(shape[2], shape[3])?)
}

#[pyfunction]
pub(crate) fn pooled_size(
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    ceil_mode: bool,
) -> PyResult<(usize, usize)> {
    let [h, w] = Pool2d { kernel, stride, padding, dilation, ceil_mode }.out_size(size).map_err(value_error)?;
    Ok((h, w))
}

#[pyfunction]
pub(crate) fn max_pool_static(
    py: Python<'_>,
    x: usize,
    shape: [usize; 4],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    ceil_mode: bool,
    out: usize,
    threads: usize,
) -> PyResult<()> {
    let pool = Pool2d { kernel, stride, padding, dilation, ceil_mode };
    let [oh, ow] = pool.out_size([shape[1], shape[2]]).map_err(value_error)?;
    let (x, out) = (slice("x", x, volume(shape)?)?, slice_mut("out", out, volume([shape[0], oh, ow, shape[3]])?)?);
    run(py, threads, |executor| core::max_pool(x, shape, pool, out, executor))
}

#[pyfunction]
#[pyo3(signature = (x, shape, kernel, stride, padding, ceil_mode, count_include_pad, divisor, out, threads))]
pub(crate) fn avg_pool_static(
    py: Python<'_>,
    x: (usize, usize, usize),
    shape: [usize; 4],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: Option<i32>,
    out: (usize, usize, usize),
    threads: usize,
) -> PyResult<()> {
    let pool = Pool2d { kernel, stride, padding, dilation: [1, 1], ceil_mode };
    let average = match divisor {
        Some(divisor) => Average::By(divisor),
        None if count_include_pad => Average::Padded,
        None => Average::Inside,
    };
    let [oh, ow] = pool.out_size([shape[1], shape[2]]).map_err(value_error)?;
    let (px, po) = (per_tensor(x.1, x.2)?, per_tensor(out.1, out.2)?);
    let (x, out) = (slice("x", x.0, volume(shape)?)?, slice_mut("out", out.0, volume([shape[0], oh, ow, shape[3]])?)?);
    run(py, threads, |executor| core::avg_pool(x, px, shape, pool, average, po, out, executor))
}

#[pyfunction]
pub(crate) fn adaptive_avg_pool_static(
    py: Python<'_>,
    x: (usize, usize, usize),
    shape: [usize; 4],
    output_size: [usize; 2],
    out: (usize, usize, usize),
    threads: usize,
) -> PyResult<()> {
    let (px, po) = (per_tensor(x.1, x.2)?, per_tensor(out.1, out.2)?);
    let len = volume([shape[0], output_size[0], output_size[1], shape[3]])?;
    let (x, out) = (slice("x", x.0, volume(shape)?)?, slice_mut("out", out.0, len)?);
    run(py, threads, |executor| core::adaptive_avg_pool(x, px, shape, output_size, po, out, executor))
}

#[pyfunction]
pub(crate) fn layer_norm_static(
    py: Python<'_>,
    x: (usize, usize, usize),
    dtype: u8,
    rows: usize,
    features: usize,
    weight: usize,
    bias: usize,
    eps: f64,
    out: (usize, usize, usize),
    threads: usize,
) -> PyResult<()> {
    let count = area(rows, features)?;
    let weight = optional("weight", weight, features)?;
    let norm = Norm { features, weight, bias: optional("bias", bias, features)?, eps };
    let (po, out) = (per_tensor(out.1, out.2)?, slice_mut("out", out.0, count)?);
    if x.1 == 0 {
        let x = floats("x", x.0, dtype, count)?;
        return run(py, threads, |executor| core::layer_norm(x, norm, po, out, executor));
    }
    let (px, x) = (per_tensor(x.1, x.2)?, slice("x", x.0, count)?);
    run(py, threads, |executor| core::layer_norm_codes(x, px, norm, po, out, executor))
}

#[pyfunction]
pub(crate) fn affine_static(
    py: Python<'_>,
    x: (usize, usize, usize),
    shape: [usize; 3],
    mul: usize,
    add: usize,
    lo: Option<f32>,
    hi: Option<f32>,
    out: (usize, usize, usize),
    dtype: u8,
    threads: usize,
) -> PyResult<()> {
    let [samples, channels, inner] = shape;
    let count = area(area(samples, channels)?, inner)?;
    let given = Channels { mul: slice("mul", mul, channels)?, add: slice("add", add, channels)?, inner };
    let (px, x) = (per_tensor(x.1, x.2)?, slice("x", x.0, count)?);
    let out = match out {
        (out, 0, _) => AffineOut::Floats(floats_mut("out", out, dtype, count)?),
        (out, scale, zero) => AffineOut::Codes(per_tensor(scale, zero)?, slice_mut("out", out, count)?),
    };
    run(py, threads, |executor| core::affine(x, px, given, clamp(lo, hi), out, executor))
}

#[pyfunction]
pub(crate) fn fake_quantize_static(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    shape: [usize; 3],
    scale: usize,
    zero: usize,
    out: usize,
    inside: usize,
    threads: usize,
) -> PyResult<()> {
    let [samples, channels, inner] = shape;
    let count = area(area(samples, channels)?, inner)?;
    let (scales, zeros) = (slice("scale", scale, channels)?, slice("zero", zero, channels)?);
    let x = floats("x", x, dtype, count)?;
    let out = if out == 0 { None } else { Some(floats_mut("out", out, dtype, count)?) };
    let inside = if inside == 0 { None } else { Some(slice_mut("inside", inside, count)?) };
    run(py, threads, |executor| core::fake_quantize_channels(x, scales, zeros, inner, out, inside, executor))
}
