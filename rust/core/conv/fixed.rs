//! The same products finished without a float: int32 bias, and a multiplier and a shift a channel.

use super::output::{Columns, check_zero};
use crate::buffer::Shared;
use crate::cpu::Isa;
use crate::cpu::lanes::Fixed;
use crate::error::{Error, Result, check_len};
use crate::matrix::ZeroKind;
use crate::prepack::PackedRef;
use std::ops::Range;

/// How exact sums become codes in integers alone: `clamp(round((acc + bias) · multiplier / 2^shift) + zero, lo, hi)`.
///
/// The 64-bit product is exact and rounded once, half to even; `acc + bias` saturates to int32. A real factor m < 1 is
/// `multiplier = round(m · 2^shift)` with the largest shift for which that is below 2^31.
#[derive(Clone, Copy, Debug)]
pub struct FixedPoint<'a> {
    /// One a channel, in units of the product of the scales.
    pub bias: Option<&'a [i32]>,
    /// One a channel.
    pub multiplier: &'a [i32],
    /// One a channel, 1..=62.
    pub shift: &'a [i32],
    /// Zero point of the output, in `[-127, 127]`.
    pub zero: i8,
    /// Ends of the codes, in `[-127, 127]`: a ReLU is `lo` = the zero point.
    pub lo: i8,
    /// See `lo`.
    pub hi: i8,
}

impl FixedPoint<'_> {
    pub(super) fn check(&self, w: &PackedRef, longest: usize) -> Result<()> {
        let n = w.n();
        for (argument, len) in [
            ("multiplier", self.multiplier.len()),
            ("shift", self.shift.len()),
            ("bias", self.bias.map_or(n, <[i32]>::len)),
        ] {
            check_len(argument, n, len)?;
        }
        if let Some(shift) = self.shift.iter().find(|shift| !(1..=62).contains(*shift)) {
            return Err(Error::mismatch("shift", "1 to 62", shift));
        }
        for (argument, code) in [("out_zero", self.zero), ("lo", self.lo), ("hi", self.hi)] {
            check_zero(argument, code)?;
        }
        if w.groups() > 1 || w.zero_kind() == ZeroKind::F16 || w.k() > longest {
            let expected = format!("one scale a channel, integer zero points and at most {longest} steps");
            let got = format!("{} scales, {:?}, {} steps", w.groups(), w.zero_kind(), w.k());
            return Err(Error::mismatch("panels", expected, got));
        }
        Ok(())
    }

    /// The channels `columns` of one row.
    pub(super) fn finish(&self, isa: &Isa, acc: &[i32], columns: Range<usize>, out: &mut [u8]) {
        let fixed = Fixed {
            bias: self.bias.map(|bias| &bias[columns.clone()]),
            multiplier: &self.multiplier[columns.clone()],
            shift: &self.shift[columns],
            zero: i32::from(self.zero),
            lo: i32::from(self.lo),
            hi: i32::from(self.hi),
        };
        isa.requantize_fixed(acc, fixed, out);
    }

    /// A tile, whose rows begin at `at`.
    ///
    /// # Safety
    /// The output is still borrowed, and nobody else touches these channels of these rows.
    #[allow(unsafe_code)]
    pub(super) unsafe fn finish_tile(&self, isa: &Isa, acc: &[i32], of: &Columns, at: &[usize], out: Shared<u8>) {
        for (acc, at) in acc.chunks_exact(of.cols()).zip(at) {
            // SAFETY: the caller's promise.
            let out = unsafe { out.slice(at + of.skip, of.used) };
            self.finish(isa, &acc[of.first..of.first + of.used], of.skip..of.skip + of.used, out);
        }
    }
}
