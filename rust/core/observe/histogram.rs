//! Counts of values in bins whose width is a power of two.
//!
//! Bin i of the positive numbers is `[i w, (i + 1) w)`, those of the negative ones mirror them, and exact zeros are counted
//! apart: they cost no scheme anything. The width is the least power of two with which the bins reach from the least to the
//! largest value and 0. When the range grows past that, the width doubles as often as it must and neighbours become one bin:
//! every value is then where it would be, had the wider bins been there from the start.

use super::extent;
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::floats::Floats;
use std::sync::Mutex;

/// Elements of one task at least: many times the bins that it adds to the others in the end.
const CHUNK: usize = 1 << 18;
/// Elements whose bins are computed at once.
const BLOCK: usize = 1024;
/// Counters of zeros, so that a run of them need not wait for one counter.
const ZEROS: usize = 16;
/// Width of the narrowest bins is 2 to this: the smallest normal float32.
const NARROWEST: i32 = -126;

/// A streaming histogram of float32 values. `update` takes O(n); no value is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// log2 of the width of a bin.
    exponent: i32,
    /// Bins of negative numbers; they come first, those next to 0 last.
    negative: usize,
    counts: Vec<u64>,
    zeros: u64,
    least: f32,
    most: f32,
}

impl Histogram {
    /// An empty histogram of so many bins, of which at least half will be in use.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for fewer than 4 bins, or more than 2^20.
    pub fn new(bins: usize) -> Result<Self> {
        if !(4..=1 << 20).contains(&bins) {
            return Err(Error::mismatch("bins", "4 to 1048576", bins));
        }
        let counts = vec![0; bins];
        Ok(Self { exponent: NARROWEST, negative: 0, counts, zeros: 0, least: f32::INFINITY, most: f32::NEG_INFINITY })
    }

    /// A histogram from what [`Histogram::counts`] and the other readers said of it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for numbers that no histogram has.
    pub fn from_parts(counts: Vec<u64>, zeros: u64, least: f32, most: f32) -> Result<Self> {
        let mut made = Self::new(counts.len())?;
        let total = counts.iter().try_fold(zeros, |sum, count| sum.checked_add(*count));
        if total.is_none_or(|total| total > 1 << 62) {
            return Err(Error::mismatch("counts", "a sum of at most 2^62", "more"));
        }
        if total == Some(0) {
            return Ok(made);
        }
        if !(least.is_finite() && most.is_finite() && least <= most) {
            return Err(Error::mismatch("least, most", "finite ends of a range", format!("{least}, {most}")));
        }
        made.cover(least, most);
        let used = made.used();
        if let Some(bin) = counts.iter().position(|c| *c > 0).filter(|first| *first < used.start) {
            return Err(Error::mismatch("counts", format!("no values before bin {}", used.start), bin));
        }
        if let Some(bin) = counts.iter().rposition(|c| *c > 0).filter(|last| *last >= used.end) {
            return Err(Error::mismatch("counts", format!("no values from bin {} on", used.end), bin));
        }
        Ok(Self { counts, zeros, ..made })
    }

    /// Count the values of `x`. Returns their minimum and maximum, if there are any.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first NaN or infinity: then nothing was counted.
    pub fn update(&mut self, x: Floats, executor: &dyn Executor) -> Result<Option<(f32, f32)>> {
        let Some((lo, hi)) = extent(x, executor)? else {
            return Ok(None);
        };
        self.cover(lo, hi);
        let scale = f64::from(-self.exponent).exp2() as f32; // at least 2^-127: exact
        let (negative, bins) = (self.negative as i32, self.counts.len());
        let share = x.len().div_ceil(executor.threads() * 2).clamp(CHUNK, 1 << 26);
        let total = Mutex::new((&mut self.counts, &mut self.zeros));
        executor.run(x.len().div_ceil(share), &|task| {
            let end = x.len().min((task + 1) * share);
            let mut local = vec![0u32; bins + ZEROS];
            let mut scratch = Vec::new();
            for start in (task * share..end).step_by(BLOCK) {
                let values = x.widen(start..end.min(start + BLOCK), &mut scratch);
                let mut places = [0u32; BLOCK];
                place(values, scale, negative, bins as u32, &mut places[..values.len()]);
                places[..values.len()].iter().for_each(|place| local[*place as usize] += 1);
            }
            let mut total = total.lock().unwrap_or_else(|e| e.into_inner());
            let (counts, zeros) = &mut *total;
            counts.iter_mut().zip(&local).for_each(|(sum, count)| *sum += u64::from(*count));
            **zeros += local[bins..].iter().map(|count| u64::from(*count)).sum::<u64>();
        });
        Ok(Some((lo, hi)))
    }

    /// Add what another histogram has counted: the same as one that saw both data.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another number of bins.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.counts.len() != self.counts.len() {
            return Err(Error::mismatch("other", format!("{} bins", self.counts.len()), other.counts.len()));
        }
        if other.total() > 0 {
            let mut other = other.clone();
            self.cover(other.least, other.most);
            other.cover(self.least, self.most);
            self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
            self.zeros += other.zeros;
        }
        Ok(())
    }

    /// Widen the bins until they hold `lo..=hi` as well.
    fn cover(&mut self, lo: f32, hi: f32) {
        (self.least, self.most) = (self.least.min(lo), self.most.max(hi));
        let mut exponent = self.exponent;
        while reach(-self.least, exponent).saturating_add(reach(self.most, exponent)) > self.counts.len() {
            exponent += 1;
        }
        let negative = reach(-self.least, exponent);
        if (exponent, negative) != (self.exponent, self.negative) {
            let mut counts = vec![0; self.counts.len()];
            for (i, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                // the shift rounds down, which mirrors the negative bins
                let bin = (i as i64 - self.negative as i64) >> (exponent - self.exponent).min(62);
                counts[(bin + negative as i64) as usize] += count;
            }
            (self.counts, self.exponent, self.negative) = (counts, exponent, negative);
        }
    }

    /// The bins from the least to the largest value.
    fn used(&self) -> std::ops::Range<usize> {
        self.negative - reach(-self.least, self.exponent)..self.negative + reach(self.most, self.exponent)
    }

    /// Values in each bin, from the lowest; zeros are in none.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Values that are 0.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// All values.
    pub fn total(&self) -> u64 {
        self.zeros + self.counts.iter().sum::<u64>()
    }

    /// The least and the largest value, if there are any.
    pub fn extent(&self) -> Option<(f32, f32)> {
        (self.least <= self.most).then_some((self.least, self.most))
    }

    /// The width of a bin, and the lower end of the first one.
    pub fn grid(&self) -> (f64, f64) {
        let width = f64::from(self.exponent).exp2();
        (width, -(self.negative as f64) * width)
    }

    /// The range of all values and 0.
    pub(super) fn whole(&self) -> (f64, f64) {
        self.extent().map_or((0.0, 0.0), |(lo, hi)| (f64::from(lo.min(0.0)), f64::from(hi.max(0.0))))
    }

    /// `(lower end, upper end, count)` of each bin that has values, in order; no bin reaches beyond the values.
    pub(super) fn filled(&self) -> Vec<(f64, f64, f64)> {
        let ((width, first), (lo, hi)) = (self.grid(), self.whole());
        let bins = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        bins.map(|(i, count)| {
            let start = first + i as f64 * width;
            (start.max(lo), (start + width).min(hi), *count as f64)
        })
        .collect()
    }
}

/// Bins of this width from 0 to `end`, that with `end` in it included.
fn reach(end: f32, exponent: i32) -> usize {
    if end > 0.0 { ((f64::from(end) * f64::from(-exponent).exp2()) as usize).saturating_add(1) } else { 0 }
}

/// The counter of each value: its bin, or past the bins one of the zeros'. A product with a power of two is exact.
fn place(x: &[f32], scale: f32, negative: i32, bins: u32, places: &mut [u32]) {
    for (i, (x, place)) in x.iter().zip(places).enumerate() {
        let size = (x.abs() * scale) as i32;
        let bin = if *x < 0.0 { negative - 1 - size } else { negative + size };
        *place = if *x == 0.0 { bins + (i % ZEROS) as u32 } else { bin as u32 };
    }
}

/// What the searches' tests look at.
#[cfg(test)]
pub(super) fn of_values(x: &[f32]) -> Histogram {
    let mut made = Histogram::new(4096).unwrap();
    made.update(Floats::F32(x), &crate::executor::Serial).unwrap();
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{Pool, Serial};
    use proptest::prelude::*;

    fn of(batches: &[&[f32]], bins: usize) -> Histogram {
        let mut made = Histogram::new(bins).unwrap();
        batches.iter().for_each(|x| assert_eq!(made.update(Floats::F32(x), &Serial).unwrap().is_some(), !x.is_empty()));
        made
    }

    fn values() -> impl Strategy<Value = Vec<f32>> {
        let any = prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO;
        let near = (-30i32..30, -1f32..1.0).prop_map(|(e, v)| v * 2f32.powi(e));
        prop::collection::vec(prop_oneof![1 => any, 8 => near], 0..60)
    }

    proptest! {
        #[test]
        fn order_batches_and_merging_change_nothing(x in values(), cut in 0usize..60, bins in 4usize..70) {
            let cut = cut.min(x.len());
            let (a, b) = x.split_at(cut);
            let whole = of(&[&x], bins);
            prop_assert_eq!(&of(&[a, b], bins), &whole);
            prop_assert_eq!(&of(&[b, a], bins), &whole);
            let (mut merged, other) = (of(&[a], bins), of(&[b], bins));
            merged.merge(&other).unwrap();
            prop_assert_eq!(&merged, &whole);
            prop_assert_eq!(whole.total(), x.len() as u64);
            let parts = Histogram::from_parts(whole.counts.clone(), whole.zeros, whole.least, whole.most).unwrap();
            prop_assert_eq!(parts, whole);
        }

        #[test]
        fn every_value_is_in_its_bin(x in values(), bins in 4usize..70) {
            let made = of(&[&x], bins);
            let (width, first) = made.grid();
            let mut want = vec![0u64; bins];
            for v in x.iter().filter(|v| **v != 0.0) {
                let size = (f64::from(v.abs()) / width).floor();
                let start = if *v < 0.0 { -(size + 1.0) * width } else { size * width };
                want[((start - first) / width) as usize] += 1;
            }
            prop_assert_eq!(made.counts(), &want[..]);
            // no narrower bins would do, so that half of them are in use
            if made.exponent > NARROWEST {
                let narrower = made.exponent - 1;
                prop_assert!(reach(-made.least, narrower).saturating_add(reach(made.most, narrower)) > bins);
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let x: Vec<f32> =
            (0..1_100_003).map(|i| ((i as f32 * 0.1).sin() * 9.0).max(-0.5).round_ties_even() * 0.3).collect();
        let mut made = Histogram::new(2048).unwrap();
        made.update(Floats::F32(&x), &Pool::new(3).unwrap()).unwrap();
        assert_eq!(made, of(&[&x], 2048));
        assert_eq!(made.zeros(), x.iter().filter(|v| **v == 0.0).count() as u64);
    }

    #[test]
    fn a_bad_batch_counts_nothing() {
        let mut made = of(&[&[1.0, -2.0]], 8);
        let before = made.clone();
        assert!(made.update(Floats::F32(&[7.0, f32::NAN]), &Serial).is_err());
        assert_eq!(made, before);
    }

    #[test]
    fn parts_that_are_none_are_named() {
        let parts = |counts: &[u64], zeros, lo, hi| Histogram::from_parts(counts.to_vec(), zeros, lo, hi);
        for (made, argument) in [
            (parts(&[0; 3], 0, 0.0, 0.0), "bins"),
            (parts(&[1; 4], 0, 1.0, f32::NAN), "least, most"),
            (parts(&[u64::MAX, 1, 0, 0], 0, -1.0, 1.0), "counts"),
            (parts(&[0, 0, 0, 1], 0, 0.0, 2.0), "counts"),
        ] {
            assert!(made.unwrap_err().to_string().starts_with(argument), "{argument}");
        }
        assert_eq!(parts(&[0; 4], 0, f32::NAN, 0.0).unwrap(), Histogram::new(4).unwrap());
    }
}
