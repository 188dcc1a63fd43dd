//! Kernels on GPUs: device addresses in, launches on the caller's stream. A first call may compile, so the GIL is released.
//! Every function documents that its addresses are of live memory of the device, C-contiguous, of the stated size.
#![allow(unsafe_code)]

use crate::arguments::{BFLOAT16, FLOAT16, FLOAT32, ZP_FLOAT16, ZP_NONE, ZP_UINT8};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rquant::cuda::{self, Columns, Device, Dtype, Error, Module, Nvrtc, Output, Rows, Weight, ZeroPoint};
use std::path::PathBuf;

fn raised(error: Error) -> PyErr {
    match error {
        Error::Argument { .. } => PyValueError::new_err(error.to_string()),
        _ => PyRuntimeError::new_err(error.to_string()),
    }
}

fn dtype(code: u8) -> PyResult<Dtype> {
    match code {
        FLOAT32 => Ok(Dtype::F32),
        FLOAT16 => Ok(Dtype::F16),
        BFLOAT16 => Ok(Dtype::Bf16),
        _ => Err(PyValueError::new_err(format!("dtype: expected FLOAT32, FLOAT16 or BFLOAT16, got {code}"))),
    }
}

/// `(codes, n, k, bits, group_size, scale, scale_dtype, zero_point, zp_kind)`.
type WeightTuple = (usize, usize, usize, usize, usize, usize, u8, usize, u8);

fn weight((codes, n, k, bits, group_size, scale, scale_dtype, zero, kind): WeightTuple) -> PyResult<Weight> {
    let zero_point = match kind {
        ZP_NONE => ZeroPoint::None,
        ZP_UINT8 => ZeroPoint::U8(zero),
        ZP_FLOAT16 => ZeroPoint::F16(zero),
        _ => {
            return Err(PyValueError::new_err(format!(
                "zp_kind: expected ZP_NONE, ZP_UINT8 or ZP_FLOAT16, got {kind}"
            )));
        }
    };
    Ok(Weight { codes, n, k, bits, group_size, scale, scale_dtype: dtype(scale_dtype)?, zero_point })
}

fn on_device(py: Python<'_>, ordinal: i32, call: impl FnOnce(&Device) -> cuda::Result<()> + Send) -> PyResult<()> {
    py.detach(|| Device::get(ordinal).and_then(call)).map_err(raised)
}

#[pyfunction]
pub(crate) fn cuda_driver_present() -> bool {
    cuda::driver_present()
}

#[pyfunction]
pub(crate) fn cuda_configure(nvrtc: Option<PathBuf>, major: i32, cache: Option<PathBuf>) {
    cuda::configure(nvrtc, major, cache);
}

#[pyfunction]
pub(crate) fn cuda_device(py: Python<'_>, ordinal: i32) -> PyResult<(String, i32)> {
    let device = py.detach(|| Device::get(ordinal)).map_err(raised)?;
    Ok((device.arch(), device.multiprocessors()))
}

#[pyfunction]
pub(crate) fn cuda_dequantize(
    py: Python<'_>,
    ordinal: i32,
    stream: usize,
    w: WeightTuple,
    out: usize,
    out_dtype: u8,
) -> PyResult<()> {
    let (w, out_dtype) = (weight(w)?, dtype(out_dtype)?);
    // SAFETY: the module's contract, as at the top. So below.
    on_device(py, ordinal, |device| unsafe { device.dequantize(stream, &w, out, out_dtype) })
}

#[pyfunction]
pub(crate) fn cuda_quantize_rows(
    py: Python<'_>,
    ordinal: i32,
    stream: usize,
    x: usize,
    x_dtype: u8,
    m: usize,
    k: usize,
    given: usize,
    given_len: usize,
    skip: usize,
    codes: usize,
    scale: usize,
) -> PyResult<()> {
    if given != 0 && given_len != 1 && given_len != m {
        return Err(PyValueError::new_err(format!("scale: expected 1 or {m} elements, got {given_len}")));
    }
    let (rows, x_dtype) = (Rows { at: x, m }, dtype(x_dtype)?);
    on_device(py, ordinal, |device| {
        // SAFETY: see `cuda_dequantize`.
        unsafe { device.quantize_rows(stream, rows, x_dtype, k, (given, given_len), skip, codes, scale) }
    })
}

#[pyfunction]
pub(crate) fn cuda_bitpack(
    py: Python<'_>,
    ordinal: i32,
    stream: usize,
    pack: bool,
    from_: usize,
    to: usize,
    n: usize,
    k: usize,
    bits: usize,
) -> PyResult<()> {
    // SAFETY: see `cuda_dequantize`.
    on_device(py, ordinal, |device| unsafe { device.bitpack(stream, pack, from_, to, (n, k, bits)) })
}

#[pyfunction]
pub(crate) fn cuda_gather_rows(
    py: Python<'_>,
    ordinal: i32,
    stream: usize,
    w: WeightTuple,
    ids: usize,
    id_bytes: usize,
    count: usize,
    out: usize,
    out_dtype: u8,
) -> PyResult<()> {
    let (w, out_dtype, ids) = (weight(w)?, dtype(out_dtype)?, (ids, id_bytes, count));
    // SAFETY: see `cuda_dequantize`.
    on_device(py, ordinal, |device| unsafe { device.gather_rows(stream, &w, ids, out, out_dtype) })
}

#[pyfunction]
#[pyo3(signature = (ordinal, stream, x, x_dtype, m, w, bias, bias_dtype, out, small=None, parts=0, count=1))]
pub(crate) fn cuda_linear(
    py: Python<'_>,
    ordinal: i32,
    stream: usize,
    x: usize,
    x_dtype: u8,
    m: usize,
    w: WeightTuple,
    bias: usize,
    bias_dtype: u8,
    out: usize,
    small: Option<bool>,
    parts: usize,
    count: usize,
) -> PyResult<()> {
    let (w, x_dtype, bias_dtype) = (weight(w)?, dtype(x_dtype)?, dtype(bias_dtype)?);
    let (rows, output) = (Rows { at: x, m }, Output { at: out, bias, bias_dtype });
    on_device(py, ordinal, |device| {
        // SAFETY: see `cuda_dequantize`.
        unsafe { device.linear(stream, rows, x_dtype, &w, output, small, (parts, count)) }
    })
}

#[pyfunction]
#[pyo3(signature = (ordinal, m, x_dtype, n, k, bits, small=None))]
pub(crate) fn cuda_linear_parts(
    py: Python<'_>,
    ordinal: i32,
    m: usize,
    x_dtype: u8,
    n: usize,
    k: usize,
    bits: usize,
    small: Option<bool>,
) -> PyResult<usize> {
    let x_dtype = dtype(x_dtype)?;
    py.detach(|| Device::get(ordinal))
        .map(|device| device.linear_parts(m, x_dtype, (n, k, bits), small))
        .map_err(raised)
}

#[pyfunction]
pub(crate) fn cuda_linear_int8(
    py: Python<'_>,
    ordinal: i32,
    stream: usize,
    x: usize,
    row_scale: usize,
    m: usize,
    w: WeightTuple,
    bias: usize,
    bias_dtype: u8,
    bias_each: bool,
    out: usize,
    out_dtype: u8,
) -> PyResult<()> {
    let (w, bias_dtype, out_dtype) = (weight(w)?, dtype(bias_dtype)?, dtype(out_dtype)?);
    let output = (Output { at: out, bias, bias_dtype }, bias_each);
    on_device(py, ordinal, |device| {
        // SAFETY: see `cuda_dequantize`.
        unsafe { device.linear_int8(stream, Rows { at: x, m }, row_scale, &w, output, out_dtype) }
    })
}

#[pyfunction]
pub(crate) fn cuda_find_outliers(
    py: Python<'_>,
    ordinal: i32,
    stream: usize,
    x: usize,
    x_dtype: u8,
    m: usize,
    k: usize,
    threshold: f32,
    flags: usize,
    columns: usize,
    count: usize,
) -> PyResult<()> {
    let (rows, x_dtype) = (Rows { at: x, m }, dtype(x_dtype)?);
    on_device(py, ordinal, |device| {
        // SAFETY: see `cuda_dequantize`.
        unsafe { device.find_outliers(stream, rows, x_dtype, k, threshold, flags, (columns, count)) }
    })
}

/// `(list, count, weights, weights_dtype)`.
type ColumnsTuple = (usize, usize, usize, u8);

#[pyfunction]
pub(crate) fn cuda_outlier_products(
    py: Python<'_>,
    ordinal: i32,
    stream: usize,
    x: usize,
    x_dtype: u8,
    m: usize,
    columns: ColumnsTuple,
    w: WeightTuple,
    bias: usize,
    bias_dtype: u8,
    out: usize,
) -> PyResult<()> {
    let (w, x_dtype, bias_dtype) = (weight(w)?, dtype(x_dtype)?, dtype(bias_dtype)?);
    let (list, count, weights, weights_dtype) = columns;
    let columns = Columns { list, count, weights, weights_dtype: dtype(weights_dtype)? };
    let (rows, output) = (Rows { at: x, m }, Output { at: out, bias, bias_dtype });
    // SAFETY: see `cuda_dequantize`.
    on_device(py, ordinal, |device| unsafe { device.outlier_products(stream, rows, x_dtype, columns, &w, output) })
}

fn module(name: &str) -> PyResult<Module> {
    let found = Module::all().into_iter().find(|module| module.name() == name);
    found.ok_or_else(|| PyValueError::new_err(format!("module: expected one of cuda_modules(), got {name:?}")))
}

/// Name, file, options, kernels, whether it needs compute capability 8.0.
type ModuleRow = (String, String, Vec<String>, Vec<String>, bool);

#[pyfunction]
pub(crate) fn cuda_modules() -> Vec<ModuleRow> {
    let row = |m: Module| (m.name(), m.file(), m.defines(), m.kernels(), m.needs_ampere());
    Module::all().into_iter().map(row).collect()
}

#[pyfunction]
pub(crate) fn cuda_compile<'py>(
    py: Python<'py>,
    nvrtc: PathBuf,
    name: &str,
    arch: &str,
) -> PyResult<(Bound<'py, PyBytes>, String)> {
    let module = module(name)?;
    let image = py.detach(|| Nvrtc::get(&nvrtc)?.compile(&module, arch)).map_err(raised)?;
    Ok((PyBytes::new(py, &image.bytes), image.log))
}

#[pyfunction]
pub(crate) fn cuda_compile_text<'py>(
    py: Python<'py>,
    nvrtc: PathBuf,
    name: &str,
    source: &str,
    options: Vec<String>,
    arch: &str,
) -> PyResult<(Bound<'py, PyBytes>, String)> {
    let image = py.detach(|| Nvrtc::get(&nvrtc)?.compile_text(name, source, &options, arch)).map_err(raised)?;
    Ok((PyBytes::new(py, &image.bytes), image.log))
}

#[pyfunction]
pub(crate) fn cuda_precompile(
    py: Python<'_>,
    nvrtc: PathBuf,
    name: &str,
    arch: &str,
    folder: PathBuf,
) -> PyResult<PathBuf> {
    let module = module(name)?;
    py.detach(|| cuda::precompile(Nvrtc::get(&nvrtc)?, &module, arch, &folder)).map_err(raised)
}

#[pyfunction]
pub(crate) fn cuda_nvrtc_version(py: Python<'_>, nvrtc: PathBuf) -> PyResult<(i32, i32)> {
    py.detach(|| Nvrtc::get(&nvrtc)).map(Nvrtc::version).map_err(raised)
}
