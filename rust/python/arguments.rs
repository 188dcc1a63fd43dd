//! Python integers to slices and types. Every function of the module documents that its addresses are of live,
//! C-contiguous CPU memory of the stated size; what can be checked here (null, alignment, overflow, codes) is.
#![allow(unsafe_code)]

use half::{bf16, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rquant::{Error, Floats, FloatsMut, QuantType, ScaleDtype, Scales, ZeroKind, ZeroPoints};

pub(crate) const FLOAT32: u8 = 0;
pub(crate) const FLOAT16: u8 = 1;
pub(crate) const BFLOAT16: u8 = 2;

pub(crate) const ZP_NONE: u8 = 0;
pub(crate) const ZP_UINT8: u8 = 1;
pub(crate) const ZP_FLOAT16: u8 = 2;

/// The ends of a clamp; None is no end.
pub(crate) fn clamp(lo: Option<f32>, hi: Option<f32>) -> (f32, f32) {
    (lo.unwrap_or(f32::NEG_INFINITY), hi.unwrap_or(f32::INFINITY))
}

pub(crate) fn value_error(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn bad(argument: &str, expected: &str, got: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(format!("{argument}: expected {expected}, got {got}"))
}

fn check<T>(argument: &str, address: usize, len: usize) -> PyResult<bool> {
    if len == 0 {
        return Ok(false);
    }
    if address == 0 {
        return Err(bad(argument, "an address", "null"));
    }
    if !address.is_multiple_of(align_of::<T>()) {
        return Err(bad(argument, &format!("a multiple of {}", align_of::<T>()), address));
    }
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(bad(argument, "a size in memory", len));
    }
    Ok(true)
}

/// `len` elements to read.
pub(crate) fn slice<'a, T>(argument: &str, address: usize, len: usize) -> PyResult<&'a [T]> {
    if !check::<T>(argument, address, len)? {
        return Ok(&[]);
    }
    // SAFETY: not null, aligned, of a possible size (checked); live and initialised by the module's contract.
    Ok(unsafe { std::slice::from_raw_parts(address as *const T, len) })
}

/// `len` elements to write.
pub(crate) fn slice_mut<'a, T>(argument: &str, address: usize, len: usize) -> PyResult<&'a mut [T]> {
    if !check::<T>(argument, address, len)? {
        return Ok(&mut []);
    }
    // SAFETY: as in `slice`, and nobody else uses an output during the call by the module's contract.
    Ok(unsafe { std::slice::from_raw_parts_mut(address as *mut T, len) })
}

/// `rows * cols`, if that can be a size.
pub(crate) fn area(rows: usize, cols: usize) -> PyResult<usize> {
    rows.checked_mul(cols).ok_or_else(|| bad("rows * cols", "a size in memory", format!("{rows} * {cols}")))
}

pub(crate) fn floats<'a>(argument: &str, address: usize, dtype: u8, len: usize) -> PyResult<Floats<'a>> {
    match dtype {
        FLOAT32 => Ok(Floats::F32(slice(argument, address, len)?)),
        FLOAT16 => Ok(Floats::F16(slice::<f16>(argument, address, len)?)),
        BFLOAT16 => Ok(Floats::Bf16(slice::<bf16>(argument, address, len)?)),
        _ => Err(bad("dtype", "FLOAT32, FLOAT16 or BFLOAT16", dtype)),
    }
}

pub(crate) fn floats_mut<'a>(argument: &str, address: usize, dtype: u8, len: usize) -> PyResult<FloatsMut<'a>> {
    match dtype {
        FLOAT32 => Ok(FloatsMut::F32(slice_mut(argument, address, len)?)),
        FLOAT16 => Ok(FloatsMut::F16(slice_mut::<f16>(argument, address, len)?)),
        BFLOAT16 => Ok(FloatsMut::Bf16(slice_mut::<bf16>(argument, address, len)?)),
        _ => Err(bad("dtype", "FLOAT32, FLOAT16 or BFLOAT16", dtype)),
    }
}

pub(crate) fn qtype(kind: usize) -> PyResult<QuantType> {
    QuantType::from_kind(kind).map_err(value_error)
}

pub(crate) fn scale_dtype(dtype: u8) -> PyResult<ScaleDtype> {
    match dtype {
        FLOAT32 => Ok(ScaleDtype::F32),
        FLOAT16 => Ok(ScaleDtype::F16),
        _ => Err(bad("scale_dtype", "FLOAT32 or FLOAT16", dtype)),
    }
}

pub(crate) fn zero_kind(kind: u8) -> PyResult<ZeroKind> {
    match kind {
        ZP_NONE => Ok(ZeroKind::None),
        ZP_UINT8 => Ok(ZeroKind::U8),
        ZP_FLOAT16 => Ok(ZeroKind::F16),
        _ => Err(bad("zp_kind", "ZP_NONE, ZP_UINT8 or ZP_FLOAT16", kind)),
    }
}

pub(crate) fn scales<'a>(address: usize, dtype: u8, len: usize) -> PyResult<Scales<'a>> {
    match scale_dtype(dtype)? {
        ScaleDtype::F32 => Ok(Scales::F32(slice("scale", address, len)?)),
        ScaleDtype::F16 => Ok(Scales::F16(slice("scale", address, len)?)),
    }
}

pub(crate) fn zeros<'a>(address: usize, kind: u8, len: usize) -> PyResult<ZeroPoints<'a>> {
    match zero_kind(kind)? {
        ZeroKind::None => Ok(ZeroPoints::None),
        ZeroKind::U8 => Ok(ZeroPoints::U8(slice("zero_point", address, len)?)),
        ZeroKind::F16 => Ok(ZeroPoints::F16(slice("zero_point", address, len)?)),
    }
}

/// Groups of a row; an error for a group size of 0.
pub(crate) fn groups(cols: usize, group_size: usize) -> PyResult<usize> {
    if group_size == 0 {
        return Err(bad("group_size", "at least 1", 0));
    }
    Ok(cols.div_ceil(group_size))
}
