//! The range that all but a share of the values lie in.

use super::Histogram;
use crate::error::{Error, Result};

impl Histogram {
    /// The range of `p` percent of the values: with half of the rest on each side, or if `symmetric` `[-a, a]` with `a` that
    /// percentile of |x|. Exact to a bin, inside of which values are taken to lie evenly; widened to contain 0.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for `p` outside of 0..=100.
    pub fn percentile(&self, p: f64, symmetric: bool) -> Result<(f64, f64)> {
        if !(0.0..=100.0).contains(&p) {
            return Err(Error::mismatch("p", "a percentage, 0 to 100", p));
        }
        let bins = self.filled();
        let (below, above): (Vec<_>, Vec<_>) = bins.into_iter().partition(|(_, end, _)| *end <= 0.0);
        let zeros = (0.0, 0.0, self.zeros() as f64);
        if symmetric {
            let mirrored = below.into_iter().map(|(lo, hi, count)| (-hi, -lo, count));
            let mut sizes: Vec<_> = mirrored.chain(above).chain([zeros]).collect();
            sizes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
            let end = quantile(&merged(&sizes), p / 100.0);
            return Ok((-end, end));
        }
        let bins: Vec<_> = below.into_iter().chain([zeros]).chain(above).collect();
        let rest = (100.0 - p) / 200.0;
        Ok((quantile(&bins, rest).min(0.0), quantile(&bins, 1.0 - rest).max(0.0)))
    }
}

/// Bins of one place are one: those of |x| lie two by two.
fn merged(bins: &[(f64, f64, f64)]) -> Vec<(f64, f64, f64)> {
    let mut made: Vec<(f64, f64, f64)> = Vec::with_capacity(bins.len());
    for &(lo, hi, count) in bins {
        match made.last_mut() {
            // the last of one side may be cut short at its largest value
            Some(last) if last.0 == lo && lo < hi && last.1 > last.0 => *last = (lo, hi.max(last.1), last.2 + count),
            _ => made.push((lo, hi, count)),
        }
    }
    made
}

/// The value below which a share of the values lies.
fn quantile(bins: &[(f64, f64, f64)], share: f64) -> f64 {
    let total: f64 = bins.iter().map(|(_, _, count)| count).sum();
    let (wanted, mut before, mut end) = (share * total, 0.0, 0.0);
    for &(lo, hi, count) in bins.iter().filter(|(_, _, count)| *count > 0.0) {
        if before + count >= wanted {
            return lo + (hi - lo) * ((wanted - before) / count).clamp(0.0, 1.0);
        }
        (before, end) = (before + count, hi);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Serial;
    use crate::floats::Floats;

    fn of(x: &[f32]) -> Histogram {
        let mut made = Histogram::new(2048).unwrap();
        made.update(Floats::F32(x), &Serial).unwrap();
        made
    }

    #[test]
    fn all_of_it_is_the_whole_range() {
        let made = of(&[-1.0, 0.25, 3.0]);
        assert_eq!(made.percentile(100.0, false), Ok((-1.0, 3.0)));
        assert_eq!(made.percentile(100.0, true), Ok((-3.0, 3.0)));
        assert_eq!(of(&[2.0, 3.0]).percentile(100.0, false), Ok((0.0, 3.0)));
        assert_eq!(of(&[0.0; 5]).percentile(99.0, false), Ok((0.0, 0.0)));
        assert_eq!(of(&[]).percentile(99.0, true), Ok((0.0, 0.0)));
        assert!(made.percentile(100.1, false).is_err());
    }

    #[test]
    fn a_share_of_each_side_is_cut() {
        let x: Vec<f32> = (0..=1000).map(|i| i as f32 - 400.0).collect();
        let (lo, hi) = of(&x).percentile(90.0, false).unwrap();
        assert!((lo + 350.0).abs() < 2.0 && (hi - 550.0).abs() < 2.0, "{lo} {hi}");
        let (lo, hi) = of(&x).percentile(90.0, true).unwrap();
        assert!(lo == -hi && (hi - 500.0).abs() < 2.0, "{hi}");
    }
}
