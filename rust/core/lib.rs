//! Packed int2/int4/int8 matrices: quantize, pack, multiply with exact int32 accumulation.
//!
//! A weight has two forms. [`QuantizedMatrix`] is the canonical one: row-major packed codes, scales and zero points,
//! the same bytes on every machine and in every file. [`PackedMatrix`] is the same weight arranged in the panels that
//! this machine's kernels read; [`PackedMatrix::unpack`] is its exact inverse. [`linear`] multiplies float activations
//! by a packed weight, in integer or in float arithmetic; [`gemm_i32`] is the bare integer product.
//!
//! The crate never starts a thread: work runs on the [`Executor`] that the caller hands in.
//!
//! ```
//! use rquant::{Arithmetic, Floats, FloatsMut, PackedMatrix, QuantType, Scheme, Serial, linear, quantize};
//! let w: Vec<f32> = (0..6 * 40).map(|i| (i as f32).sin()).collect();
//! let scheme = Scheme::affine(QuantType::Int4, 32);
//! let q = quantize(Floats::F32(&w), 6, 40, &scheme, &Serial)?;
//! let packed = PackedMatrix::pack(&q, &Serial)?;
//! let (x, mut y) = (vec![0.5f32; 2 * 40], vec![0f32; 2 * 6]);
//! linear(Floats::F32(&x), 2, packed.view(), None, Arithmetic::Float, FloatsMut::F32(&mut y), &Serial)?;
//! # Ok::<(), rquant::Error>(())
//! ```

mod bitpack;
mod buffer;
mod conv;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dequantize;
pub mod elementwise;
mod epilogue;
mod error;
mod executor;
mod floats;
mod gemm;
mod half_quadratic;
mod matrix;
mod observe;
mod prepack;
mod qtype;
mod quantize;
mod search;

pub use bitpack::{pack_codes, row_bytes, unpack_codes};
pub use buffer::AlignedBytes;
pub use conv::{
    Codes, Epilogue, FixedPoint, Geometry, Input, Output, conv_fixed, conv_static, dequantize_static, linear_static,
    quantize_images, quantize_static,
};
pub use cpu::{Isa, Microkernel, active as active_isa, detected as detected_isas};
pub use dequantize::dequantize;
pub use error::{Error, Result};
pub use executor::{Executor, Pool, Serial};
pub use floats::{Floats, FloatsMut};
pub use gemm::{
    Arithmetic, MAX_GEMM_K, Outliers, gather_rows, gemm_i32, linear, linear_outliers, linear_scaled, quantize_rows,
};
pub use half_quadratic::{HalfQuadratic, half_quadratic};
pub use matrix::{MatrixRef, OwnedScales, OwnedZeroPoints, QuantizedMatrix, ScaleDtype, Scales, ZeroKind, ZeroPoints};
pub use observe::{Histogram, extent};
pub use prepack::{PackedMatrix, PackedRef};
pub use qtype::{QuantType, RangeRule, Scheme};
pub use quantize::{channels_first, encode, qparams, quantize, ranges};
pub use search::search;
