//! The range that loses least information: Migacz 2017, "8-bit Inference with TensorRT",
//! <https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf>.
//!
//! P are the shares of the bins inside the range, with what lies beyond counted to the bins at its ends. Q is what is left of
//! them by the codes: the values of a code spread evenly over its bins that have any. Zeros are a bin of their own in both, as
//! no code changes them. All shares are float64.

use super::Histogram;
use super::grid::Codes;
use crate::error::Result;

impl Histogram {
    /// The range of the least KL(P‖Q) for codes `-qmax` to `qmax`, a search over parts of the whole range, which is never
    /// better, down to a bin for each code. `[-a, a]` if `symmetric`; else it contains 0.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for `qmax` outside of 1..=127.
    pub fn entropy(&self, qmax: i32, symmetric: bool) -> Result<(f64, f64)> {
        let codes = Codes::new(qmax, symmetric)?;
        let (bins, least) = (self.filled(), codes.count() * self.grid().0);
        Ok(codes.best(self.whole(), |(lo, hi)| {
            // with more codes than bins Q is P, and clipping would look free
            if hi - lo < least { f64::INFINITY } else { self.divergence(&bins, (lo, hi), codes) }
        }))
    }

    /// KL(P‖Q) of this range, in nats; infinite where a code that values are clipped to has no other. 0 without values.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for `qmax` outside of 1..=127.
    pub fn kl_divergence(&self, range: (f64, f64), qmax: i32, symmetric: bool) -> Result<f64> {
        let range = (range.0.min(0.0), range.1.max(0.0));
        Ok(self.divergence(&self.filled(), range, Codes::new(qmax, symmetric)?))
    }

    fn divergence(&self, bins: &[(f64, f64, f64)], range: (f64, f64), codes: Codes) -> f64 {
        let steps = codes.steps(range);
        let code = |(lo, hi, _): &(f64, f64, f64)| ((lo + hi) / (2.0 * steps.scale)).round_ties_even();
        let (low, high) =
            (bins.partition_point(|b| code(b) < steps.low), bins.partition_point(|b| code(b) <= steps.high));
        let zeros = self.zeros() as f64;
        let beyond = |bins: &[(f64, f64, f64)]| bins.iter().map(|b| b.2).sum::<f64>();
        let (below, above, inside) = (beyond(&bins[..low]), beyond(&bins[high..]), &bins[low..high]);
        let kept = beyond(inside) + zeros;
        let total = kept + below + above;
        if total == 0.0 {
            return 0.0;
        }
        // what is clipped to an end where no bin is goes to no bin's share
        let ends = |i: usize| (if i == 0 { below } else { 0.0 }) + if i + 1 == inside.len() { above } else { 0.0 };
        if inside.is_empty() && below + above > 0.0 {
            return f64::INFINITY;
        }
        let term = |p: f64, q: f64| if p > 0.0 { p / total * ((p / total) / (q / kept)).ln() } else { 0.0 };
        let (mut sum, mut first) = (term(zeros, zeros), 0);
        while first < inside.len() {
            let same = code(&inside[first]);
            let count = inside[first..].iter().take_while(|b| code(b) == same).count();
            let mean = beyond(&inside[first..first + count]) / count as f64;
            sum += (first..first + count).map(|i| term(inside[i].2 + ends(i), mean)).sum::<f64>();
            first += count;
        }
        sum.max(0.0) // of which rounding may leave a little less
    }
}

#[cfg(test)]
mod tests {
    use super::super::histogram::of_values as of;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_worse_than_the_whole_range(
            x in prop::collection::vec((-20i32..20, -1f32..1.0), 0..300), symmetric: bool, bits in 1u32..8,
        ) {
            let x: Vec<f32> = x.iter().map(|(e, v)| v * 1.3f32.powi(*e)).collect();
            let (made, qmax) = (of(&x), (1 << (bits - 1).max(1)) - 1);
            let found = made.entropy(qmax, symmetric).unwrap();
            let divergence = |range| made.kl_divergence(range, qmax, symmetric).unwrap();
            prop_assert!(divergence(found) <= divergence(made.whole()));
        }
    }

    #[test]
    fn rare_outliers_are_clipped() {
        let mut x: Vec<f32> = (0..200_000).map(|i| ((i * 7919 % 100_003) as f32 / 100_003.0 - 0.5) * 2.0).collect();
        x[77] = 12.0;
        let (lo, hi) = of(&x).entropy(127, false).unwrap();
        assert!(hi < 3.0 && lo <= -0.9, "{lo} {hi}");
        assert_eq!(of(&[0.0; 4]).entropy(127, true), Ok((0.0, 0.0)));
    }
}
