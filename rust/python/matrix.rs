//! Canonical matrices: ranges, scales, codes and back.

use crate::arguments::{area, floats, floats_mut, groups, qtype, scales, slice, slice_mut, value_error, zeros};
use crate::threads::run;
use pyo3::prelude::*;
use rquant::{Error, HalfQuadratic, MatrixRef};

#[pyfunction]
pub(crate) fn row_bytes(cols: usize, kind: usize) -> PyResult<usize> {
    Ok(rquant::row_bytes(cols, qtype(kind)?))
}

#[pyfunction]
pub(crate) fn ranges(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    rows: usize,
    cols: usize,
    group_size: usize,
    lo: usize,
    hi: usize,
    threads: usize,
) -> PyResult<isize> {
    let count = area(rows, groups(cols, group_size)?)?;
    let x = floats("x", x, dtype, area(rows, cols)?)?;
    let (lo, hi) = (slice_mut("lo", lo, count)?, slice_mut("hi", hi, count)?);
    run(py, threads, |executor| match rquant::ranges(x, rows, cols, group_size, lo, hi, executor) {
        Err(Error::NotFinite { index, .. }) => Ok(index as isize),
        other => other.map(|()| -1),
    })
}

#[pyfunction]
pub(crate) fn qparams(
    lo: usize,
    hi: usize,
    count: usize,
    kind: usize,
    symmetric: bool,
    half: bool,
    scale: usize,
    zero_point: usize,
) -> PyResult<bool> {
    let (lo, hi) = (slice("lo", lo, count)?, slice("hi", hi, count)?);
    let zeros = slice_mut("zero_point", zero_point, if symmetric { 0 } else { count })?;
    let scales = slice_mut("scale", scale, count)?;
    rquant::qparams(lo, hi, qtype(kind)?, symmetric, half, scales, zeros).map_err(value_error)
}

#[pyfunction]
pub(crate) fn search(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    rows: usize,
    cols: usize,
    kind: usize,
    symmetric: bool,
    group_size: usize,
    half: bool,
    lo: usize,
    hi: usize,
    threads: usize,
) -> PyResult<bool> {
    let (qtype, count) = (qtype(kind)?, area(rows, groups(cols, group_size)?)?);
    let x = floats("x", x, dtype, area(rows, cols)?)?;
    let (lo, hi) = (slice_mut("lo", lo, count)?, slice_mut("hi", hi, count)?);
    run(py, threads, |executor| rquant::search(x, rows, cols, qtype, symmetric, group_size, half, lo, hi, executor))
}

#[pyfunction]
pub(crate) fn half_quadratic(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    rows: usize,
    cols: usize,
    kind: usize,
    group_size: usize,
    scale: usize,
    scale_dtype: u8,
    lp_norm: f32,
    beta: f32,
    kappa: f32,
    turns: usize,
    zero_point: usize,
    threads: usize,
) -> PyResult<()> {
    let (qtype, count) = (qtype(kind)?, area(rows, groups(cols, group_size)?)?);
    let x = floats("x", x, dtype, area(rows, cols)?)?;
    let (s, z) = (scales(scale, scale_dtype, count)?, slice_mut("zero_point", zero_point, count)?);
    let method = HalfQuadratic { norm: lp_norm, beta, kappa, turns };
    run(py, threads, |executor| rquant::half_quadratic(x, rows, cols, qtype, group_size, s, method, z, executor))
}

#[pyfunction]
pub(crate) fn encode(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    rows: usize,
    cols: usize,
    kind: usize,
    group_size: usize,
    scale: usize,
    scale_dtype: u8,
    zero_point: usize,
    zp_kind: u8,
    codes: usize,
    threads: usize,
) -> PyResult<()> {
    let (qtype, count) = (qtype(kind)?, area(rows, groups(cols, group_size)?)?);
    let x = floats("x", x, dtype, area(rows, cols)?)?;
    let (s, z) = (scales(scale, scale_dtype, count)?, zeros(zero_point, zp_kind, count)?);
    let codes = slice_mut("codes", codes, area(rows, rquant::row_bytes(cols, qtype))?)?;
    run(py, threads, |executor| rquant::encode(x, rows, cols, qtype, group_size, s, z, codes, executor))
}

#[pyfunction]
pub(crate) fn pack_codes(q: usize, rows: usize, cols: usize, kind: usize, codes: usize) -> PyResult<()> {
    let qtype = qtype(kind)?;
    let q = slice("q", q, area(rows, cols)?)?;
    let codes = slice_mut("codes", codes, area(rows, rquant::row_bytes(cols, qtype))?)?;
    rquant::pack_codes(q, rows, cols, qtype, codes).map_err(value_error)
}

#[pyfunction]
pub(crate) fn unpack_codes(codes: usize, rows: usize, cols: usize, kind: usize, q: usize) -> PyResult<()> {
    let qtype = qtype(kind)?;
    let codes = slice("codes", codes, area(rows, rquant::row_bytes(cols, qtype))?)?;
    rquant::unpack_codes(codes, rows, cols, qtype, slice_mut("q", q, area(rows, cols)?)?).map_err(value_error)
}

/// A canonical matrix by its addresses.
pub(crate) fn matrix<'a>(
    codes: usize,
    rows: usize,
    cols: usize,
    kind: usize,
    group_size: usize,
    scale: usize,
    scale_dtype: u8,
    zero_point: usize,
    zp_kind: u8,
) -> PyResult<MatrixRef<'a>> {
    let (qtype, count) = (qtype(kind)?, area(rows, groups(cols, group_size)?)?);
    let codes = slice("codes", codes, area(rows, rquant::row_bytes(cols, qtype))?)?;
    let (s, z) = (scales(scale, scale_dtype, count)?, zeros(zero_point, zp_kind, count)?);
    MatrixRef::new(rows, cols, qtype, group_size, codes, s, z).map_err(value_error)
}

#[pyfunction]
pub(crate) fn dequantize(
    py: Python<'_>,
    codes: usize,
    rows: usize,
    cols: usize,
    kind: usize,
    group_size: usize,
    scale: usize,
    scale_dtype: u8,
    zero_point: usize,
    zp_kind: u8,
    out: usize,
    out_dtype: u8,
    threads: usize,
) -> PyResult<()> {
    let q = matrix(codes, rows, cols, kind, group_size, scale, scale_dtype, zero_point, zp_kind)?;
    let out = floats_mut("out", out, out_dtype, area(rows, cols)?)?;
    run(py, threads, |executor| rquant::dequantize(&q, out, executor))
}

#[pyfunction]
pub(crate) fn quantize_rows(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    m: usize,
    k: usize,
    q: usize,
    scale: usize,
    threads: usize,
) -> PyResult<()> {
    let x = floats("x", x, dtype, area(m, k)?)?;
    let (q, scale) = (slice_mut("q", q, area(m, k)?)?, slice_mut("scale", scale, m)?);
    run(py, threads, |executor| rquant::quantize_rows(x, m, k, q, scale, executor))
}
