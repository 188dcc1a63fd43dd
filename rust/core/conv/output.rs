//! Where a convolution's values go: the next layer's codes, or floats.

use crate::buffer::{Scratch, Shared};
use crate::cpu::Isa;
use crate::cpu::lanes::{Encoding, Finish};
use crate::error::{Error, Result, check_len};
use crate::floats::{FloatsMut, SharedOut};
use std::ops::Range;

/// int8 codes in `[-127, 127]` under one scale and zero point: `x ≈ scale · (q − zero)`.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    /// The codes.
    pub q: &'a [i8],
    /// Finite and positive.
    pub scale: f32,
    /// In `[-127, 127]`.
    pub zero: i8,
}

/// What is done to `v = Σ… · scale + bias` before it is written.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// One a channel.
    pub bias: Option<&'a [f32]>,
    /// Added after the bias; of the output's shape.
    pub addend: Option<Codes<'a>>,
    /// Then clamped: `max(v, lo)`, and `min` of that and `hi`.
    pub lo: f32,
    /// See `lo`.
    pub hi: f32,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self { bias: None, addend: None, lo: f32::NEG_INFINITY, hi: f32::INFINITY }
    }
}

/// What the values become.
#[derive(Debug)]
pub enum Output<'a> {
    /// int8 codes under a scale (finite and positive) and a zero point (in `[-127, 127]`).
    Codes(&'a mut [i8], f32, i8),
    /// Floats, rounded.
    Floats(FloatsMut<'a>),
}

impl Output<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Codes(q, ..) => q.len(),
            Self::Floats(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

pub(super) fn check_scale(argument: &'static str, scale: f32) -> Result<()> {
    if scale.is_finite() && scale > 0.0 {
        return Ok(());
    }
    Err(Error::mismatch(argument, "a finite positive number", scale))
}

pub(super) fn check_zero(argument: &'static str, zero: i8) -> Result<()> {
    if zero == i8::MIN { Err(Error::mismatch(argument, "at least -127", zero)) } else { Ok(()) }
}

/// Codes of a value under a scale and a zero point: at most 127 from 0 whatever the zero point.
pub(super) fn encoding(scale: f32, zero: i8) -> Encoding {
    let zero = i32::from(zero);
    Encoding { scale, shift: 0.0, lo: (-127 - zero) as f32, hi: (127 - zero) as f32, base: zero }
}

/// The epilogue and the output of a call whose tasks write disjoint pieces.
pub(super) struct Sink<'a> {
    epilogue: Epilogue<'a>,
    channels: usize,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Codes(Shared<u8>, Encoding),
    Floats(SharedOut),
}

impl<'a> Sink<'a> {
    /// For an output `[rows, channels]`.
    pub(super) fn new(epilogue: Epilogue<'a>, out: &'a mut Output, rows: usize, channels: usize) -> Result<Self> {
        check_len("out", rows * channels, out.len())?;
        if let Some(bias) = epilogue.bias {
            check_len("bias", channels, bias.len())?;
        }
        if let Some(addend) = epilogue.addend {
            check_len("addend", out.len(), addend.q.len())?;
            check_scale("addend_scale", addend.scale)?;
            check_zero("addend_zero", addend.zero)?;
        }
        if epilogue.lo.is_nan() || epilogue.hi.is_nan() {
            return Err(Error::mismatch("lo, hi", "numbers", format!("{}, {}", epilogue.lo, epilogue.hi)));
        }
        let place = match out {
            Output::Codes(q, scale, zero) => {
                check_scale("out_scale", *scale)?;
                check_zero("out_zero", *zero)?;
                Place::Codes(Shared::bytes(q), encoding(*scale, *zero))
            }
            Output::Floats(x) => Place::Floats(x.share()),
        };
        Ok(Self { epilogue, channels, place })
    }

    /// Finish the sums `f` of one row's channels `columns`; `factor` is the row's scale.
    ///
    /// # Safety
    /// The output is still borrowed, and nobody else touches these channels of this row.
    #[allow(unsafe_code)]
    pub(super) unsafe fn write(&self, isa: &Isa, f: &[f32], row: usize, columns: Range<usize>, factor: f32) {
        let (at, len) = (row * self.channels + columns.start, columns.len());
        let Epilogue { bias, addend, lo, hi } = self.epilogue;
        let finish = Finish {
            factor,
            bias: bias.map(|bias| &bias[columns]),
            addend: addend.map(|a| (&a.q[at..at + len], a.scale, i32::from(a.zero))),
            lo,
            hi,
        };
        match self.place {
            // SAFETY: the caller's promise.
            Place::Codes(out, encoding) => isa.requantize(f, finish, encoding, unsafe { out.slice(at, len) }),
            Place::Floats(out) => {
                let mut values = Scratch::of::<f32>(len);
                isa.values(f, finish, values.as_mut());
                // SAFETY: the caller's promise.
                unsafe { out.write(at, values.as_slice()) }
            }
        }
    }
}
