//! Statically quantized products as Python calls them: each by itself, or one that is done again and again.

use crate::arguments::{area, clamp, floats, floats_mut, slice, slice_mut, value_error};
use crate::packed::{float32, parse};
use crate::threads::{self, run};
use pyo3::prelude::*;
use rquant::{Codes, Epilogue, Geometry, Input, Output};

/// `[batch, height, width, channels, out channels, kernel 2, stride 2, padding 4, dilation 2, groups, transposed,
/// output padding 2]`.
pub(crate) type Sizes = [usize; 19];

pub(crate) fn geometry(sizes: Sizes) -> Geometry {
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
pub(crate) fn one<T: Copy>(argument: &str, address: usize) -> PyResult<T> {
    Ok(slice::<T>(argument, address, 1)?[0])
}

/// What all calls of a product share.
struct Product {
    geometry: Geometry,
    inputs: usize,
    outputs: usize,
    lo: f32,
    hi: f32,
    bias_dtype: u8,
    /// Of floats; codes have none.
    out_dtype: u8,
}

/// Addresses of what a layer holds beside its weight, 0 for what it has not.
#[derive(Clone, Copy, PartialEq)]
struct Held {
    x_scale: usize,
    x_zero: usize,
    bias: usize,
    addend_scale: usize,
    addend_zero: usize,
    out_scale: usize,
    out_zero: usize,
}

impl Product {
    fn new(sizes: Sizes, (lo, hi): (f32, f32), bias_dtype: u8, out_dtype: u8) -> PyResult<Self> {
        let geometry = geometry(sizes);
        let [height, width] = geometry.out_size().map_err(value_error)?;
        let outputs = area(area(geometry.batch, area(height, width)?)?, geometry.out_channels)?;
        let inputs = area(area(geometry.batch, area(geometry.size[0], geometry.size[1])?)?, geometry.channels)?;
        Ok(Self { geometry, inputs, outputs, lo, hi, bias_dtype, out_dtype })
    }

    fn run(
        &self,
        py: Python<'_>,
        (x, scales): (usize, usize),
        (panels, panels_len): (usize, usize),
        addend: usize,
        held: Held,
        out: usize,
        threads: usize,
    ) -> PyResult<()> {
        let w = parse(panels, panels_len)?;
        let x = Input {
            q: slice("x", x, self.inputs)?,
            scales: slice("x_scale", held.x_scale, scales)?,
            zero: one("x_zero", held.x_zero)?,
        };
        let bias = (held.bias != 0).then(|| floats("bias", held.bias, self.bias_dtype, self.geometry.out_channels));
        let bias = bias.transpose()?.map(float32);
        let addend = if addend == 0 {
            None
        } else {
            let (scale, zero) = (one("addend_scale", held.addend_scale)?, one("addend_zero", held.addend_zero)?);
            Some(Codes { q: slice("addend", addend, self.outputs)?, scale, zero })
        };
        let epilogue = Epilogue { bias: bias.as_deref(), addend, lo: self.lo, hi: self.hi };
        let out = if held.out_scale == 0 {
            Output::Floats(floats_mut("out", out, self.out_dtype, self.outputs)?)
        } else {
            let (scale, zero) = (one("out_scale", held.out_scale)?, one("out_zero", held.out_zero)?);
            Output::Codes(slice_mut("out", out, self.outputs)?, scale, zero)
        };
        run(py, threads, |executor| rquant::conv_static(x, &self.geometry, w, epilogue, out, executor))
    }
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
    lo: Option<f32>,
    hi: Option<f32>,
    out: usize,
    out_dtype: u8,
    out_scale: usize,
    out_zero: usize,
    threads: usize,
) -> PyResult<()> {
    let held = Held { x_scale, x_zero, bias, addend_scale, addend_zero, out_scale, out_zero };
    let product = Product::new(sizes, clamp(lo, hi), bias_dtype, out_dtype)?;
    product.run(py, (x, scales), (panels, panels_len), addend, held, out, threads)
}

/// A layer's product, for inputs of one size and one epilogue.
#[pyclass(frozen)]
pub(crate) struct StaticProduct {
    product: Product,
    held: Held,
    /// Keeps what is `held` alive: an address that is the same is the same memory.
    _owners: Py<PyAny>,
}

#[pymethods]
impl StaticProduct {
    #[new]
    fn new(
        sizes: Sizes,
        lo: Option<f32>,
        hi: Option<f32>,
        bias_dtype: u8,
        out_dtype: u8,
        held: [usize; 7],
        owners: Py<PyAny>,
    ) -> PyResult<Self> {
        let [x_scale, x_zero, bias, addend_scale, addend_zero, out_scale, out_zero] = held;
        let held = Held { x_scale, x_zero, bias, addend_scale, addend_zero, out_scale, out_zero };
        Ok(Self { product: Product::new(sizes, clamp(lo, hi), bias_dtype, out_dtype)?, held, _owners: owners })
    }

    fn run(
        &self,
        py: Python<'_>,
        x: usize,
        x_scale: usize,
        x_zero: usize,
        panels: usize,
        panels_len: usize,
        bias: usize,
        addend: usize,
        addend_scale: usize,
        addend_zero: usize,
        out: usize,
        out_scale: usize,
        out_zero: usize,
        torch_threads: usize,
    ) -> PyResult<bool> {
        let held = Held { x_scale, x_zero, bias, addend_scale, addend_zero, out_scale, out_zero };
        if held != self.held {
            return Ok(false);
        }
        let threads = threads::allowed(torch_threads);
        self.product.run(py, (x, 1), (panels, panels_len), addend, held, out, threads)?;
        Ok(true)
    }
}
