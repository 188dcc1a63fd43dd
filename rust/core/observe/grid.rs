//! The search for the best range around 0: parts of the whole one, coarse and then fine.

use crate::error::{Error, Result};

/// Coarse parts to a halving, and halvings: from the whole range to 1/1024 of it, as outliers may be a thousand times as far.
const STEPS: i32 = 8;
const HALVINGS: i32 = 10;
/// Fine steps to a coarse one.
const FINE: i32 = 8;
/// A part must be better by this much: less is rounding in the sums that are compared.
const MARGIN: f64 = 1e-9;

/// What a range makes of the values: integer codes from `-qmax` to `qmax`, an integer zero point unless `symmetric`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codes {
    qmax: f64,
    symmetric: bool,
}

/// `x ≈ scale (q − zero)` with q from `-qmax` to `qmax`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    pub scale: f64,
    /// The lowest and the highest multiple of the scale.
    pub low: f64,
    pub high: f64,
}

impl Codes {
    /// # Errors
    /// [`Error::Mismatch`] for `qmax` outside of 1..=127.
    pub fn new(qmax: i32, symmetric: bool) -> Result<Self> {
        if !(1..=127).contains(&qmax) {
            return Err(Error::mismatch("qmax", "1 to 127", qmax));
        }
        Ok(Self { qmax: f64::from(qmax), symmetric })
    }

    /// Steps of the whole range.
    pub fn count(self) -> f64 {
        2.0 * self.qmax
    }

    /// Scale (as float32 stores it) and ends of a range that contains 0.
    pub fn steps(self, (lo, hi): (f64, f64)) -> Steps {
        let width = if self.symmetric { hi.max(-lo) / self.qmax } else { (hi - lo) / self.count() };
        let scale = f64::from((width as f32).clamp(f32::MIN_POSITIVE, f32::MAX));
        let zero = if self.symmetric { 0.0 } else { (-self.qmax - lo / scale).round_ties_even() };
        let zero = zero.clamp(-self.qmax, self.qmax);
        Steps { scale, low: -self.qmax - zero, high: self.qmax - zero }
    }

    /// The range of least `cost` among parts of `whole`: both ends together, then unless symmetric one after the other, twice.
    /// Of equal ones the whole range; its cost is never less.
    pub fn best(self, whole: (f64, f64), cost: impl Fn((f64, f64)) -> f64) -> (f64, f64) {
        let whole = if self.symmetric { (-whole.1.max(-whole.0), whole.1.max(-whole.0)) } else { whole };
        if whole.0 == whole.1 {
            return whole;
        }
        // of either end: how often it is halved, in fine steps
        let range = |(i, j): (i32, i32)| {
            let part = |i: i32| (-f64::from(i) / f64::from(STEPS * FINE)).exp2();
            (whole.0 * part(i), whole.1 * part(j))
        };
        let mut best = ((0, 0), cost(whole));
        let mut along = |way: fn((i32, i32), i32) -> (i32, i32), at: fn((i32, i32)) -> i32| {
            let before = best.0;
            for fine in [false, true] {
                let (from, near) = (best.0, at(best.0));
                let parts = if fine { near + 1 - FINE..near + FINE } else { 0..STEPS * HALVINGS * FINE + 1 };
                for i in parts.step_by(if fine { 1 } else { FINE as usize }).filter(|i| *i >= 0) {
                    let cost = cost(range(way(from, i)));
                    if cost < best.1 * (1.0 - MARGIN) {
                        best = (way(from, i), cost);
                    }
                }
            }
            best.0 != before
        };
        along(|_, i| (i, i), |(i, _)| i);
        if !self.symmetric && whole.0 < 0.0 && whole.1 > 0.0 {
            for _ in 0..2 {
                let moved = along(|(_, j), i| (i, j), |(i, _)| i) | along(|(i, _), j| (i, j), |(_, j)| j);
                if !moved {
                    break;
                }
            }
        }
        range(best.0)
    }
}
