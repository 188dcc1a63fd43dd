//! Elementwise loops, written once and compiled once per instruction set by [`lanes!`].
//!
//! Each is plain Rust that vectorizes: no reduction that depends on order, rounding by the magic-number trick, and a
//! fused multiply-add wherever `mul_add` says so, so that every instruction set gives the same bits.

mod addresses;
mod coder;
mod codes;
mod encode;
mod expand;
mod interleave;
mod norm;
mod pool;
mod ranges;
mod requantize;
mod sums;

use crate::buffer::{Rectangle, Rows};
use crate::qtype::QuantType;
use addresses::{addresses, indices};
use coder::encode_by;
use codes::{add_codes, affine, affine_columns, clamp, fake_quantize, inside, lookup};
use encode::{absmax_bits, absmax_columns, decode, encode, encode_float8, min_max, round_bf16};
use expand::{add_product, expand, expand_step, transpose};
use half::bf16;
use interleave::interleave;
use norm::{moments, normalize};
use pool::{average, average_windows, max_windows, sum_window};
use ranges::{proximal, range_errors};
pub(crate) use requantize::{Finish, Fixed, Folded, Steps, Tile};
use requantize::{dequantize, requantize, requantize_fixed, subtract_zeros, tile_codes, tile_values, values};
use sums::{add, add_group, finish, fold, sum};

pub(crate) use coder::Coder;
pub(crate) use codes::{Addition, Decoding};
pub(crate) use pool::{Mean, Window, WindowRow};

/// `x + MAGIC` rounds x to an integer, half to even, for |x| < 2^22, and leaves that integer in the low bits.
const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23

/// Most rows of [`add_product`]: their sums of 16 channels are in as many registers.
pub(crate) const PRODUCT_ROWS: usize = 8;

/// Zero points of the channels of a panel, for one group.
#[derive(Clone, Copy)]
pub(crate) enum PanelZeros<'a> {
    /// Z = 0: every channel has the codes' offset.
    Offset(i32),
    /// Stored integer zero points (offset included).
    Stored(&'a [u8]),
    /// Plain fractional zero points, and the codes' offset.
    Fraction(&'a [f32], i32),
}

/// Scales and plain zero points of a panel, both `[groups][cols]`, and where in the row the panel's blocks begin.
#[derive(Clone, Copy)]
pub(crate) struct Groups<'a> {
    pub first: usize,
    pub size: usize,
    pub scales: &'a [f32],
    pub zeros: Option<&'a [f32]>,
}

/// How floats become codes: `u = round(clamp(x / scale + shift, lo, hi)) + base`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoding {
    pub scale: f32,
    /// A fractional zero point, else 0.
    pub shift: f32,
    pub lo: f32,
    pub hi: f32,
    /// Added after rounding: integer zero point plus storage offset.
    pub base: i32,
}

/// A turn of half-quadratic quantization: the ends of the codes, p, beta.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proximal {
    pub qmin: f32,
    pub qmax: f32,
    pub norm: f32,
    pub beta: f32,
}

/// Ranges that [`range_errors`] compares at once.
pub(crate) const TRIED: usize = 80;

/// What follows from a range besides its ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    pub qmin: i32,
    pub qmax: i32,
    pub symmetric: bool,
    /// Scales are stored as float16.
    pub half: bool,
}

/// Largest |x| as bits; at least `INF_BITS` if any element is NaN or infinite.
pub(crate) const INF_BITS: u32 = 0x7f80_0000;

macro_rules! table {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)?;)*) => {
        /// The loops of one instruction set.
        #[derive(Debug)]
        pub(super) struct Lanes {
            $(pub(in crate::cpu) $name: unsafe fn($($type),*) $(-> $ret)?,)*
        }

        /// What every file of this folder calls for its own `Lanes`.
        pub(in crate::cpu) mod body {
            use super::*;
            $(#[inline(always)]
            pub(in crate::cpu) fn $name($($arg: $type),*) $(-> $ret)? { super::$name($($arg),*) })*
        }

        #[allow(unsafe_code)]
        impl super::Isa {
            $(#[inline]
            pub(crate) fn $name(&self, $($arg: $type),*) $(-> $ret)? {
                // SAFETY: the loops are safe code compiled for features of an `Isa` that this CPU has (see `detected`).
                unsafe { (self.lanes.$name)($($arg),*) }
            })*
        }

        /// Compile the loops for a list of target features.
        macro_rules! lanes {
            ($features:literal) => {{
                #[allow(unused_imports)] // the types below
                use $crate::{buffer::{Rectangle, Rows}, cpu::lanes::{
                    Addition, Coder, Decoding, Encoding, Finish, Fixed, Folded, Groups, Levels, Mean, PanelZeros, Proximal,
                    Steps, TRIED, Tile, Window, WindowRow,
                }, qtype::QuantType};
                #[allow(unused_imports)]
                use half::bf16;
                $(#[target_feature(enable = $features)]
                fn $name($($arg: $type),*) $(-> $ret)? { $crate::cpu::lanes::body::$name($($arg),*) })*
                $crate::cpu::lanes::Lanes { $($name),* }
            }};
            () => {
                $crate::cpu::lanes::Lanes { $($name: $crate::cpu::lanes::body::$name),* }
            };
        }
    };
}

table! {
    addresses(first: *const u8, step: usize, out: &mut [*const u8]);
    indices(first: usize, step: usize, out: &mut [usize]);
    absmax_bits(x: &[f32]) -> u32;
    absmax_columns(x: &[f32], most: &mut [u32]);
    min_max(x: &[f32]) -> (f32, f32);
    encode(x: &[f32], e: Encoding, out: &mut [u8]);
    encode_by(x: &[f32], coder: Coder, out: &mut [u8]);
    range_errors(x: &[f32], lo: &[f32; TRIED], hi: &[f32; TRIED], levels: Levels, errors: &mut [f64; TRIED]);
    proximal(steps: &[f32], zero: f32, rule: Proximal) -> (f32, f32);
    sum(a: &[i8]) -> i32;
    encode_float8(x: &[f32], scale: f32, qtype: QuantType, out: &mut [u8]);
    decode(u: &[u8], qtype: QuantType, zero: f32, scale: f32, out: &mut [f32]);
    expand(b: &[u8], cols: usize, weight: QuantType, groups: Groups, out: &mut [f32]);
    expand_step(block: &[u8], step: usize, weight: QuantType, scales: &[f32], zeros: Option<&[f32]>, out: &mut [f32]);
    transpose(rows: &[f32], out: &mut [f32], cols: usize);
    add_product(a: &[f32], w: &[f32], out: &mut [f32], cols: usize);
    add_group(acc: &[i32], sum: i32, zeros: PanelZeros, scales: &[f32], f: &mut [f32]);
    finish(f: &[f32], cols: usize, factors: &[f32], bias: Option<&[f32]>, out: Rectangle<f32>);
    add(acc: &[f32], f: &mut [f32]);
    values(f: &[f32], finish: Finish, out: &mut [f32]);
    requantize(f: &[f32], folded: Folded, steps: Steps, out: &mut [u8]);
    requantize_fixed(acc: &[i32], fixed: Fixed, out: &mut [u8]);
    tile_values(acc: &[i32], t: Tile, ends: (f32, f32), out: Rows<f32>);
    tile_codes(acc: &[i32], t: Tile, steps: Steps, out: Rows<u8>);
    subtract_zeros(acc: &mut [i32], zeros: &[u8], offset: i32, sums: &[i32]);
    dequantize(q: &[i8], scale: f32, zero: i32, out: &mut [f32]);
    fold(f: &mut [f32], total: &mut [f32], carry: &mut [f32]);
    round_bf16(x: &[f32], out: &mut [bf16]);
    interleave(planes: &[u8], channels: usize, out: &mut [u8]);
    lookup(x: &[i8], table: &[u8; 256], out: Rectangle<u8>);
    add_codes(a: &[i8], b: &[i8], rule: Addition, steps: Steps, out: &mut [u8]);
    affine(x: &[i8], d: Decoding, mul: f32, add: f32, out: &mut [f32]);
    affine_columns(x: &[i8], d: Decoding, mul: &[f32], add: &[f32], out: &mut [f32]);
    clamp(x: &mut [f32], lo: f32, hi: f32);
    fake_quantize(x: &[f32], e: Encoding, out: &mut [f32]);
    inside(x: &[f32], e: Encoding, out: &mut [u8]);
    max_windows(x: &[i8], row: WindowRow, most: &mut [i8], out: &mut [u8]);
    average_windows(x: &[i8], row: WindowRow, part: &mut [i32], means: &[Mean], steps: Steps, out: &mut [u8]);
    sum_window(x: &[i8], window: Window, sums: &mut [i32]);
    average(sums: &[i32], mean: Mean, steps: Steps, out: &mut [u8]);
    moments(x: &[f32]) -> (f64, f64);
    normalize(x: &[f32], mean: f64, inverse: f64, weight: &[f32], bias: &[f32], out: &mut [f32]);
}
#[allow(clippy::single_component_path_imports)] // gives the macro a path
pub(super) use lanes;
