//! Where a convolution's values go: the next layer's codes, or floats.

use super::fixed::FixedPoint;
use super::places::Places;
use super::requantization::{Requantization, weight_scales};
use crate::buffer::{Rows, Scratch, Shared};
use crate::cpu::lanes::{Encoding, Finish, Folded, Steps, Tile};
use crate::cpu::{self, Isa, STRIP, TapRows, Taps};
use crate::error::{Error, Result, check_len};
use crate::floats::{FloatsMut, SharedOut};
use crate::prepack::{PackedRef, Panel};
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

/// What is done to `v = Σ… · scale + bias` before it is written. Where the output is codes,
/// scales are folded: see [`conv_static`](super::conv_static).
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
    /// Scales of the weight, where a channel has one, else 1; of codes, their multipliers. For all columns of all panels.
    scales: Vec<f32>,
    /// As many; of codes, in their steps.
    bias: Vec<f32>,
    place: Place<'a>,
}

enum Place<'a> {
    Codes(Shared<u8>, Requantization),
    Floats(SharedOut),
    Fixed(Shared<u8>, FixedPoint<'a>),
}

impl<'a> Sink<'a> {
    /// For an output of `rows` rows and the channels of `w`, of an input with `scales`.
    pub(super) fn new(
        epilogue: Epilogue<'a>,
        out: &'a mut Output,
        rows: usize,
        w: &PackedRef,
        scales: &[f32],
    ) -> Result<Self> {
        let channels = w.n();
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
        let mut bias = vec![0.0; channels.next_multiple_of(STRIP)];
        if let Some(given) = epilogue.bias {
            bias[..channels].copy_from_slice(given);
        }
        let mut of_channels = weight_scales(w);
        let place = match out {
            Output::Codes(q, scale, zero) => {
                check_scale("out_scale", *scale)?;
                check_zero("out_zero", *zero)?;
                let (isa, to) = (cpu::active()?, (*scale, *zero));
                let rule = Requantization::new(isa, &epilogue, w, scales, to, &mut of_channels, &mut bias);
                Place::Codes(Shared::bytes(q), rule)
            }
            Output::Floats(x) => Place::Floats(x.share()),
        };
        Ok(Self { epilogue, channels, scales: of_channels, bias, place })
    }

    /// For one that is finished in integers.
    pub(super) fn fixed(fixed: FixedPoint<'a>, out: &'a mut [i8], rows: usize, channels: usize) -> Result<Self> {
        check_len("out", rows * channels, out.len())?;
        let none = vec![0.0; channels.next_multiple_of(STRIP)];
        let (scales, bias, place) = (none.clone(), none, Place::Fixed(Shared::bytes(out), fixed));
        Ok(Self { epilogue: Epilogue::default(), channels, scales, bias, place })
    }

    /// Whether it takes sums as integers.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.place, Place::Fixed(..))
    }

    /// Finish the exact sums of one row's channels `columns`, where [`Sink::is_fixed`].
    ///
    /// # Safety
    /// The output is still borrowed, and nobody else touches these channels of this row.
    #[allow(unsafe_code)]
    pub(super) unsafe fn write_integers(&self, isa: &Isa, acc: &[i32], row: usize, columns: Range<usize>) {
        if let Place::Fixed(out, fixed) = &self.place {
            // SAFETY: the caller's promise.
            let out = unsafe { out.slice(row * self.channels + columns.start, columns.len()) };
            fixed.finish(isa, acc, columns, out);
        }
    }

    /// The rows' factors, one an image, where an input with `scales` has several or values need one; else none.
    pub(super) fn factors<'s>(&'s self, scales: &'s [f32]) -> &'s [f32] {
        if let Place::Codes(_, rule) = &self.place { &rule.factors } else { scales }
    }

    /// A panel as [`Sink::write`] takes its sums.
    pub(super) fn prepared<'p>(&self, panel: Panel<'p>) -> Panel<'p> {
        if let Place::Codes(_, rule) = &self.place { rule.unscaled(panel) } else { panel }
    }

    /// Finish the sums `f` of one row's channels `columns`, of a panel as [`Sink::prepared`] gives it; `factor` is the row's.
    ///
    /// # Safety
    /// The output is still borrowed, and nobody else touches these channels of this row.
    #[allow(unsafe_code)]
    pub(super) unsafe fn write(&self, isa: &Isa, f: &[f32], row: usize, columns: Range<usize>, factor: f32) {
        let (at, len) = (row * self.channels + columns.start, columns.len());
        let Epilogue { bias, addend, lo, hi } = self.epilogue;
        match &self.place {
            Place::Codes(out, rule) => {
                let (multipliers, bias) = (&self.scales[columns.clone()], &self.bias[columns]);
                let folded = Folded { multipliers, factor, bias, addend: rule.addend(&self.epilogue, at) };
                // SAFETY: the caller's promise.
                isa.requantize(f, folded, rule.steps, unsafe { out.slice(at, len) });
            }
            Place::Floats(out) => {
                let bias = bias.map(|bias| &bias[columns]);
                let addend = addend.map(|a| (&a.q[at..at + len], a.scale, i32::from(a.zero)));
                let mut values = Scratch::of::<f32>(len);
                isa.values(f, Finish { factor, bias, addend, lo, hi }, values.as_mut());
                // SAFETY: the caller's promise.
                unsafe { out.write(at, values.as_slice()) }
            }
            Place::Fixed(..) => unreachable!("the caller asks is_fixed"),
        }
    }

    /// Whether [`Sink::write_tile`] takes the sums: no code's value is beyond int32.
    pub(super) fn is_plain(&self) -> bool {
        !matches!(&self.place, Place::Codes(_, rule) if !rule.bounded)
    }

    /// The columns `columns` of a panel, of which `used` (of the panel's) are outputs.
    pub(super) fn columns(&self, panel: &Panel, columns: Range<usize>, used: Range<usize>) -> Columns<'_> {
        let used = used.start.max(columns.start)..used.end.min(columns.end);
        let channels = panel.first + columns.start..panel.first + columns.end;
        Columns {
            first: used.start - columns.start,
            used: used.len(),
            skip: panel.first + used.start,
            scales: &self.scales[channels.clone()],
            bias: &self.bias[channels],
        }
    }

    /// Compute and finish rows of a panel in one, if a kernel does that; else say so.
    ///
    /// # Safety
    /// Those of [`Taps::sums`] and [`Sink::write_tile`].
    #[allow(unsafe_code)]
    pub(super) unsafe fn try_rows(&self, taps: &Taps, t: &TapRows, of: &Columns, rows: Places) -> bool {
        // SAFETY: the caller's promise.
        let codes = unsafe { self.codes(of, rows) }.filter(|_| of.used > of.cols() - STRIP);
        let Some((tile, steps, out)) = codes else { return false };
        // SAFETY: as above.
        unsafe { taps.codes(t, tile, steps, out) };
        true
    }

    fn tile<'t>(&self, of: &Columns<'t>, rows: Places<'t>, addend: Option<(&'t [i8], f32, i32)>) -> Tile<'t> {
        Tile {
            cols: of.cols(),
            first: of.first,
            used: of.used,
            scales: of.scales,
            bias: of.bias,
            factors: rows.factors,
            addend,
            at: rows.at,
            skip: of.skip,
        }
    }

    /// Whether [`Sink::codes`] says how, for columns whose first is an output.
    pub(super) fn is_codes(&self) -> bool {
        matches!(&self.place, Place::Codes(_, rule) if rule.factors.is_empty())
    }

    /// Where a kernel finishes codes at once, and how: if they need no factors, and the panel's first column is an output.
    ///
    /// # Safety
    /// That of [`Sink::write_tile`].
    #[allow(unsafe_code)]
    pub(super) unsafe fn codes<'t>(
        &'t self,
        of: &'t Columns,
        rows: Places<'t>,
    ) -> Option<(Tile<'t>, Steps, Rows<'t, u8>)> {
        let Place::Codes(out, rule) = &self.place else { return None };
        let plain = of.first == 0 && rows.factors.is_empty();
        let tile = self.tile(of, rows, rule.addend(&self.epilogue, 0));
        // SAFETY: the caller's promise.
        plain.then(|| (tile, rule.steps, unsafe { out.rows(rows.filled, rows.last, of.skip, of.used) }))
    }

    /// Finish the exact sums `acc` `[rows][cols]`.
    ///
    /// # Safety
    /// The output is still borrowed, and nobody else touches these channels of these rows.
    #[allow(unsafe_code)]
    pub(super) unsafe fn write_tile(&self, isa: &Isa, acc: &[i32], of: &Columns, rows: Places) {
        let Places { at, last, .. } = rows;
        let out = match &self.place {
            Place::Floats(out) => out,
            Place::Codes(out, rule) => {
                let tile = self.tile(of, rows, rule.addend(&self.epilogue, 0));
                // SAFETY: the caller's promise.
                return isa.tile_codes(acc, tile, rule.steps, unsafe { out.rows(at, last, of.skip, of.used) });
            }
            // SAFETY: as above.
            Place::Fixed(out, fixed) => return unsafe { fixed.finish_tile(isa, acc, of, at, *out) },
        };
        let Epilogue { addend, lo, hi, .. } = self.epilogue;
        let tile = self.tile(of, rows, addend.map(|a| (a.q, a.scale, i32::from(a.zero))));
        if let Some(out) = out.float32() {
            // SAFETY: as above.
            return isa.tile_values(acc, tile, (lo, hi), unsafe { out.rows(at, last, of.skip, of.used) });
        }
        let mut values = Scratch::of::<f32>(at.len() * of.used);
        let here: Vec<usize> = (0..at.len()).map(|r| r * of.used).collect();
        // SAFETY: this function's own memory.
        let rows = unsafe { Shared::new(values.as_mut()).rows(&here, here[here.len() - 1], 0, of.used) };
        isa.tile_values(acc, tile, (lo, hi), rows);
        for (at, values) in at.iter().zip(values.as_slice().chunks_exact(of.used)) {
            // SAFETY: the caller's promise.
            unsafe { out.write(at + of.skip, values) }
        }
    }
}

/// Columns of a panel, and what finishing them takes.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    /// Those that are outputs, and where in a row of the output they lie.
    pub first: usize,
    pub used: usize,
    pub skip: usize,
    scales: &'a [f32],
    bias: &'a [f32],
}

impl Columns<'_> {
    pub(super) fn cols(&self) -> usize {
        self.scales.len()
    }
}
