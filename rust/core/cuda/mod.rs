//! Kernels on NVIDIA GPUs, on memory and streams that somebody else owns.
//!
//! The sources are in this crate; NVRTC compiles those that are used, for the very GPU, and the result is kept on disk.
//! Nothing is linked: driver and NVRTC are opened when first needed, and without them there is an [`Error`], never a panic.
//! Launches are on the caller's stream and in the device's primary context, as torch's are; the context that was current
//! stays so. Nothing here allocates on the device or waits for it.

mod cache;
mod device;
mod error;
mod images;
mod launch;
mod modules;
mod nvrtc;

pub use device::{Device, driver_present};
pub use error::{Error, Result};
pub use images::{configure, precompile};
pub use launch::{Columns, Dtype, Output, Rows, Stream, Weight, ZeroPoint};
pub use modules::Module;
pub use nvrtc::{Image, Nvrtc};
