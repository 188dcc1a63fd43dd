//! Packed weights: making panels, reading them back, multiplying.

use crate::arguments::{
    FLOAT16, FLOAT32, ZP_FLOAT16, ZP_NONE, ZP_UINT8, area, floats, floats_mut, groups, qtype, slice, slice_mut,
    value_error, zero_kind,
};
use crate::matrix::matrix;
use crate::threads::run;
use half::slice::HalfFloatSliceExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rquant::{Arithmetic, Executor, Floats, FloatsMut, Outliers, PackedMatrix, PackedRef, ScaleDtype, ZeroKind};
use std::borrow::Cow;

pub(crate) fn parse<'a>(panels: usize, panels_len: usize) -> PyResult<PackedRef<'a>> {
    PackedRef::parse(slice("panels", panels, panels_len)?).map_err(value_error)
}

#[pyfunction]
#[pyo3(name = "packed_len")]
pub(crate) fn packed_len(
    n: usize,
    k: usize,
    kind: usize,
    group_size: usize,
    scale_dtype: u8,
    zp_kind: u8,
) -> PyResult<usize> {
    groups(k, group_size)?;
    let (scales, zeros) = (crate::arguments::scale_dtype(scale_dtype)?, zero_kind(zp_kind)?);
    PackedMatrix::packed_len(n, k, qtype(kind)?, group_size, scales, zeros).map_err(value_error)
}

#[pyfunction]
pub(crate) fn pack(
    py: Python<'_>,
    codes: usize,
    n: usize,
    k: usize,
    kind: usize,
    group_size: usize,
    scale: usize,
    scale_dtype: u8,
    zero_point: usize,
    zp_kind: u8,
    groups: usize,
    panels: usize,
    panels_len: usize,
    threads: usize,
) -> PyResult<()> {
    let q = matrix(codes, n, k, kind, group_size, scale, scale_dtype, zero_point, zp_kind)?;
    let out = slice_mut("panels", panels, panels_len)?;
    run(py, threads, |executor| PackedMatrix::pack_into(&q, groups, out, executor))
}

#[pyfunction]
pub(crate) fn unpack(
    py: Python<'_>,
    panels: usize,
    panels_len: usize,
    codes: usize,
    scale: usize,
    zero_point: usize,
    threads: usize,
) -> PyResult<()> {
    let w = parse(panels, panels_len)?;
    let count = area(w.n(), w.groups())?;
    let codes = slice_mut("codes", codes, area(w.n(), rquant::row_bytes(w.k(), w.qtype()))?)?;
    let scale_bytes = if w.scale_dtype() == ScaleDtype::F32 { 4 } else { 2 };
    let zero_bytes = match w.zero_kind() {
        ZeroKind::None => 0,
        ZeroKind::U8 => 1,
        ZeroKind::F16 => 2,
    };
    let scales = slice_mut("scale", scale, area(count, scale_bytes)?)?;
    let zeros = slice_mut("zero_point", zero_point, area(count, zero_bytes)?)?;
    run(py, threads, |executor| w.unpack(codes, scales, zeros, executor))
}

#[pyfunction]
pub(crate) fn packed_info(panels: usize, panels_len: usize) -> PyResult<(usize, usize, usize, usize, u8, u8, String)> {
    let w = parse(panels, panels_len)?;
    let scales = if w.scale_dtype() == ScaleDtype::F32 { FLOAT32 } else { FLOAT16 };
    let zeros = match w.zero_kind() {
        ZeroKind::None => ZP_NONE,
        ZeroKind::U8 => ZP_UINT8,
        ZeroKind::F16 => ZP_FLOAT16,
    };
    Ok((w.n(), w.k(), w.qtype().kind(), w.group_size(), scales, zeros, format!("{}c4", w.nr())))
}

#[pyfunction]
pub(crate) fn packed_is_native(panels: usize, panels_len: usize, groups: usize) -> PyResult<bool> {
    Ok(parse(panels, panels_len)?.is_native(groups))
}

fn check(argument: &str, expected: usize, got: usize) -> PyResult<()> {
    if expected == got {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("{argument}: expected {expected} (from the packed weight), got {got}")))
}

pub(crate) fn float32(values: Floats) -> Cow<[f32]> {
    match values {
        Floats::F32(values) => values.into(),
        Floats::F16(values) => values.to_f32_vec().into(),
        Floats::Bf16(values) => values.to_f32_vec().into(),
    }
}

/// `linear` with a bias of any float type; by ready-made activation scales if there are any.
pub(crate) fn multiply(
    x: Floats,
    m: usize,
    w: PackedRef,
    bias: Option<Floats>,
    out: FloatsMut,
    integer: bool,
    scales: Option<&[f32]>,
    executor: &dyn Executor,
) -> rquant::Result<()> {
    let bias = bias.map(float32);
    if let Some(scales) = scales {
        return rquant::linear_scaled(x, scales, m, w, bias.as_deref(), out, executor);
    }
    let arithmetic = if integer { Arithmetic::Integer } else { Arithmetic::Float };
    rquant::linear(x, m, w, bias.as_deref(), arithmetic, out, executor)
}

#[pyfunction]
pub(crate) fn linear(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    m: usize,
    k: usize,
    panels: usize,
    panels_len: usize,
    bias: usize,
    bias_dtype: u8,
    out: usize,
    n: usize,
    integer: bool,
    scale: usize,
    scales: usize,
    threads: usize,
) -> PyResult<()> {
    let w = parse(panels, panels_len)?;
    check("x's last dimension", w.k(), k)?;
    check("n", w.n(), n)?;
    let x = floats("x", x, dtype, area(m, k)?)?;
    let bias = (bias != 0).then(|| floats("bias", bias, bias_dtype, n)).transpose()?;
    let out = floats_mut("out", out, dtype, area(m, n)?)?;
    if scale != 0 && !integer {
        return Err(PyValueError::new_err("scale: expected none with float arithmetic, got scales"));
    }
    let scales = (scale != 0).then(|| slice("scale", scale, scales)).transpose()?;
    run(py, threads, |executor| multiply(x, m, w, bias, out, integer, scales, executor))
}

#[pyfunction]
pub(crate) fn linear_outliers(
    py: Python<'_>,
    x: usize,
    dtype: u8,
    m: usize,
    k: usize,
    panels: usize,
    panels_len: usize,
    bias: usize,
    bias_dtype: u8,
    out: usize,
    n: usize,
    threshold: Option<f32>,
    columns: usize,
    count: usize,
    column_weight: usize,
    column_dtype: u8,
    threads: usize,
) -> PyResult<()> {
    let w = parse(panels, panels_len)?;
    check("x's last dimension", w.k(), k)?;
    check("n", w.n(), n)?;
    let x = floats("x", x, dtype, area(m, k)?)?;
    let bias = (bias != 0).then(|| floats("bias", bias, bias_dtype, n)).transpose()?.map(float32);
    let kept = || floats("column_weight", column_weight, column_dtype, area(count, n)?);
    let outliers = match threshold {
        Some(threshold) => Outliers::Above(threshold),
        None => Outliers::Columns(slice("columns", columns, count)?, (column_weight != 0).then(kept).transpose()?),
    };
    let out = floats_mut("out", out, dtype, area(m, n)?)?;
    run(py, threads, |executor| rquant::linear_outliers(x, m, w, bias.as_deref(), outliers, out, executor))
}

#[pyfunction]
pub(crate) fn gemm_i32(
    py: Python<'_>,
    a: usize,
    m: usize,
    k: usize,
    panels: usize,
    panels_len: usize,
    out: usize,
    n: usize,
    threads: usize,
) -> PyResult<()> {
    let w = parse(panels, panels_len)?;
    check("a's last dimension", w.k(), k)?;
    check("n", w.n(), n)?;
    let (a, out) = (slice("a", a, area(m, k)?)?, slice_mut("out", out, area(m, n)?)?);
    run(py, threads, |executor| rquant::gemm_i32(a, m, w, out, executor))
}

#[pyfunction]
pub(crate) fn gather_rows(
    py: Python<'_>,
    panels: usize,
    panels_len: usize,
    ids: usize,
    count: usize,
    out: usize,
    out_dtype: u8,
    threads: usize,
) -> PyResult<()> {
    let w = parse(panels, panels_len)?;
    let ids = slice("ids", ids, count)?;
    let out = floats_mut("out", out, out_dtype, area(count, w.k())?)?;
    run(py, threads, |executor| rquant::gather_rows(w, ids, out, executor))
}
