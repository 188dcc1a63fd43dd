//! The range of the least squared error.

use super::Histogram;
use super::grid::{Codes, Steps};
use crate::error::Result;

impl Histogram {
    /// The range of the least mean squared error between values and what their codes, `-qmax` to `qmax`, stand for: a search
    /// over parts of the whole range, which is never better. `[-a, a]` if `symmetric`; else it contains 0.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for `qmax` outside of 1..=127.
    pub fn least_squares(&self, qmax: i32, symmetric: bool) -> Result<(f64, f64)> {
        let (codes, bins) = (Codes::new(qmax, symmetric)?, self.filled());
        Ok(codes.best(self.whole(), |range| sum_of_squares(&bins, codes.steps(range))))
    }

    /// The mean squared error of this range, with values taken to lie evenly in their bin. 0 without values.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for `qmax` outside of 1..=127.
    pub fn mean_squared_error(&self, range: (f64, f64), qmax: i32, symmetric: bool) -> Result<f64> {
        let steps = Codes::new(qmax, symmetric)?.steps((range.0.min(0.0), range.1.max(0.0)));
        Ok(sum_of_squares(&self.filled(), steps) / self.total().max(1) as f64)
    }
}

/// Of each bin its count times the mean of the squared error over the bin: the integral's difference by the width.
fn sum_of_squares(bins: &[(f64, f64, f64)], steps: Steps) -> f64 {
    let Steps { scale, low, high } = steps;
    // the integral of the squared error from 0 to t, in steps: r^3 / 3 of the last rounding, 1/12 of each before it
    let integral = |t: f64| {
        let q = t.clamp(low, high).round_ties_even();
        q / 12.0 + (t - q).powi(3) / 3.0
    };
    let (mut sum, mut previous) = (0.0, (f64::NAN, 0.0));
    for &(lo, hi, count) in bins {
        let start = if previous.0 == lo { previous.1 } else { integral(lo / scale) };
        let end = integral(hi / scale);
        previous = (hi, end);
        let width = (hi - lo) / scale;
        let mean = if width > 1e-9 {
            (end - start) / width
        } else {
            let t = hi / scale;
            (t - t.clamp(low, high).round_ties_even()).powi(2)
        };
        sum += count * mean;
    }
    sum * scale * scale
}

#[cfg(test)]
mod tests {
    use super::super::histogram::of_values as of;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_worse_than_the_whole_range(
            x in prop::collection::vec((-20i32..20, -1f32..1.0), 1..300), symmetric: bool, bits in 1u32..8,
        ) {
            let x: Vec<f32> = x.iter().map(|(e, v)| v * 1.3f32.powi(*e)).collect();
            let (made, qmax) = (of(&x), (1 << (bits - 1).max(1)) - 1);
            let found = made.least_squares(qmax, symmetric).unwrap();
            let error = |range| made.mean_squared_error(range, qmax, symmetric).unwrap();
            prop_assert!(error(found) <= error(made.whole()), "{found:?} {:?}", made.whole());
        }
    }

    #[test]
    fn the_error_is_that_of_the_values() {
        let x: Vec<f32> = (0..100_000).map(|i| ((i * 7919 % 100_003) as f32 / 100_003.0).powi(2) * 3.0 - 0.4).collect();
        let made = of(&x);
        for (range, symmetric) in [((-0.4, 2.6), false), ((-0.1, 1.0), false), ((-0.7, 0.7), true)] {
            let steps = Codes::new(127, symmetric).unwrap().steps(range);
            let square = |x: &f32| {
                let t = f64::from(*x) / steps.scale;
                ((t - t.clamp(steps.low, steps.high).round_ties_even()) * steps.scale).powi(2)
            };
            let want = x.iter().map(square).sum::<f64>() / x.len() as f64;
            let got = made.mean_squared_error(range, 127, symmetric).unwrap();
            assert!((got / want - 1.0).abs() < 0.01, "{got} {want}");
        }
    }

    #[test]
    fn an_outlier_is_clipped() {
        for far in [10.0, 100.0] {
            let mut x: Vec<f32> = (0..1_000_000).map(|i| (i as f32 * 0.7).sin()).collect();
            x[5] = far;
            let (lo, hi) = of(&x).least_squares(7, false).unwrap();
            assert!(hi < 0.3 * f64::from(far) && lo <= -0.8, "{lo} {hi}");
        }
    }

    #[test]
    fn nothing_divides_by_nothing() {
        for x in [vec![], vec![0.0; 3], vec![5.0; 9], vec![1e-45, -1e-45], vec![f32::MAX, f32::MIN]] {
            for symmetric in [false, true] {
                let (lo, hi) = of(&x).least_squares(127, symmetric).unwrap();
                assert!(lo.is_finite() && hi.is_finite() && lo <= 0.0 && hi >= 0.0, "{x:?}");
                assert!(of(&x).mean_squared_error((lo, hi), 127, symmetric).unwrap().is_finite(), "{x:?}");
            }
        }
    }
}
