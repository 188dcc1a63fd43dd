//! What calibration watches: the ends of the values, and their histogram.

use crate::arguments::{floats, slice, slice_mut, value_error};
use crate::threads::run;
use pyo3::prelude::*;
use rquant::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// First bad index or -1, minimum, maximum.
type Seen = (isize, f32, f32);

fn seen(result: rquant::Result<Option<(f32, f32)>>) -> rquant::Result<Seen> {
    match result {
        Err(Error::NotFinite { index, .. }) => Ok((index as isize, f32::NAN, f32::NAN)),
        other => other.map(|found| {
            let (lo, hi) = found.unwrap_or((f32::INFINITY, f32::NEG_INFINITY));
            (-1, lo, hi)
        }),
    }
}

#[pyfunction]
pub(crate) fn extent(py: Python<'_>, x: usize, dtype: u8, len: usize, threads: usize) -> PyResult<Seen> {
    let x = floats("x", x, dtype, len)?;
    run(py, threads, |executor| seen(rquant::extent(x, executor)))
}

#[pyclass(frozen)]
pub(crate) struct Histogram(Mutex<rquant::Histogram>);

impl Histogram {
    fn held(&self) -> MutexGuard<'_, rquant::Histogram> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Histogram {
    #[new]
    fn new(bins: usize) -> PyResult<Self> {
        Ok(Self(Mutex::new(rquant::Histogram::new(bins).map_err(value_error)?)))
    }

    #[staticmethod]
    fn from_parts(counts: usize, bins: usize, zeros: u64, least: f32, most: f32) -> PyResult<Self> {
        let counts = slice::<u64>("counts", counts, bins)?.to_vec();
        Ok(Self(Mutex::new(rquant::Histogram::from_parts(counts, zeros, least, most).map_err(value_error)?)))
    }

    fn update(&self, py: Python<'_>, x: usize, dtype: u8, len: usize, threads: usize) -> PyResult<Seen> {
        let x = floats("x", x, dtype, len)?;
        run(py, threads, |executor| seen(self.held().update(x, executor)))
    }

    fn merge(&self, py: Python<'_>, other: &Self) -> PyResult<()> {
        py.detach(|| {
            let other = other.held().clone(); // which may be this one
            self.held().merge(&other)
        })
        .map_err(value_error)
    }

    fn counts(&self, counts: usize, bins: usize) -> PyResult<()> {
        let (out, held) = (slice_mut::<u64>("counts", counts, bins)?, self.held());
        if out.len() != held.counts().len() {
            let (expected, got) = (held.counts().len().to_string(), out.len().to_string());
            return Err(value_error(Error::Mismatch { argument: "bins", expected, got }));
        }
        out.copy_from_slice(held.counts());
        Ok(())
    }

    fn zeros(&self) -> u64 {
        self.held().zeros()
    }

    fn total(&self) -> u64 {
        self.held().total()
    }

    fn extent(&self) -> Option<(f32, f32)> {
        self.held().extent()
    }

    fn grid(&self) -> (f64, f64) {
        self.held().grid()
    }

    fn percentile(&self, py: Python<'_>, p: f64, symmetric: bool) -> PyResult<(f64, f64)> {
        py.detach(|| self.held().percentile(p, symmetric)).map_err(value_error)
    }

    fn least_squares(&self, py: Python<'_>, qmax: i32, symmetric: bool) -> PyResult<(f64, f64)> {
        py.detach(|| self.held().least_squares(qmax, symmetric)).map_err(value_error)
    }

    fn entropy(&self, py: Python<'_>, qmax: i32, symmetric: bool) -> PyResult<(f64, f64)> {
        py.detach(|| self.held().entropy(qmax, symmetric)).map_err(value_error)
    }

    fn mean_squared_error(&self, lo: f64, hi: f64, qmax: i32, symmetric: bool) -> PyResult<f64> {
        self.held().mean_squared_error((lo, hi), qmax, symmetric).map_err(value_error)
    }

    fn kl_divergence(&self, lo: f64, hi: f64, qmax: i32, symmetric: bool) -> PyResult<f64> {
        self.held().kl_divergence((lo, hi), qmax, symmetric).map_err(value_error)
    }
}
