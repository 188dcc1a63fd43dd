//! The range of a group whose codes come back nearest to it: a grid search (Nagel et al. 2021, "A white paper on neural
//! network quantization", section 3.1, <https://arxiv.org/abs/2106.08295>). Clipping a few outliers makes every other
//! element's step smaller.

use crate::cpu::lanes::{Levels, TRIED};
use crate::cpu::{self, Isa};
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;
use crate::floats::Floats;
use crate::qtype::QuantType;
use crate::quantize::{CHUNK, half_of, scale_of, split};

/// The smallest part of the whole range that is tried.
const LEAST: f32 = 0.2;
/// A candidate must be better by this much: less is rounding in the sums that are compared.
const MARGIN: f64 = 1e-4;

/// Shrink the ranges `lo` and `hi` (`[rows, groups]`, as [`crate::ranges`] finds them) of `x` (`[rows, cols]`) to those of the
/// least squared error among parts of 1 to 0.2: both ends together, and unless symmetric then each end by itself.
///
/// The error is that of the scale as it will be stored, float16 with `half` as in [`crate::qparams`], and of the integer
/// zero point that follows. No group's error grows. Returns whether float16 holds every scale, as it then must, so that
/// the scales are to be stored as they were compared.
///
/// # Errors
/// [`Error::Mismatch`] for lengths.
pub fn search(
    x: Floats,
    rows: usize,
    cols: usize,
    qtype: QuantType,
    symmetric: bool,
    group_size: usize,
    half: bool,
    lo: &mut [f32],
    hi: &mut [f32],
    executor: &dyn Executor,
) -> Result<bool> {
    let isa = cpu::active()?;
    check_len("x", area(rows, cols)?, x.len())?;
    if group_size == 0 {
        return Err(Error::mismatch("group_size", "at least 1", 0));
    }
    if qtype.is_float() {
        return Err(Error::mismatch("kind", "a type of integers", format!("{qtype:?}")));
    }
    let groups = cols.div_ceil(group_size);
    check_len("lo", rows * groups, lo.len())?;
    check_len("hi", rows * groups, hi.len())?;
    if rows * groups == 0 {
        return Ok(half);
    }
    let half = half && lo.iter().zip(&*hi).all(|(lo, hi)| half_of(scale_of(*lo, *hi, qtype, symmetric)).is_some());
    let levels = Levels { qmin: qtype.qmin(), qmax: qtype.qmax(), symmetric, half };
    let per_task = (CHUNK / 16).div_ceil(cols); // a hundred times the work of finding the range
    let parts = split(lo, hi, per_task * groups);
    executor.run(parts.len(), &|task| {
        let mut part = parts[task].lock().unwrap_or_else(|e| e.into_inner());
        let (lo, hi) = &mut *part;
        let mut scratch = Vec::new();
        for i in 0..lo.len() {
            let (row, first) = (task * per_task + i / groups, i % groups * group_size);
            let start = row * cols + first;
            let x = x.widen(start..start + group_size.min(cols - first), &mut scratch);
            (lo[i], hi[i]) = least(isa, x, qtype, levels, (lo[i], hi[i]));
        }
    });
    Ok(half)
}

/// The best of the ranges around `(lo, hi)` for the group `x`.
fn least(isa: &Isa, x: &[f32], qtype: QuantType, levels: Levels, (lo, hi): (f32, f32)) -> (f32, f32) {
    let parts: [f32; TRIED] = std::array::from_fn(|i| 1.0 - (1.0 - LEAST) * i as f32 / (TRIED - 1) as f32);
    let mut best = ((lo, hi), f64::INFINITY);
    let mut grid = |shrink_lo: bool, shrink_hi: bool| {
        let ends = |end: f32, part: f32, shrink: bool| if shrink { end * part } else { end };
        let ((best_lo, best_hi), _) = best;
        // an end that stays is where the search has brought it by now
        let los = parts.map(|part| ends(if shrink_lo { lo } else { best_lo }, part, shrink_lo));
        let his = parts.map(|part| ends(if shrink_hi { hi } else { best_hi }, part, shrink_hi));
        let mut errors = [0f64; TRIED];
        isa.range_errors(x, &los, &his, levels, &mut errors);
        if best.1.is_infinite() {
            best.1 = errors[0]; // NaN if float16 lacks its scale: then nothing is better
        }
        for i in 0..TRIED {
            if errors[i] < best.1 * (1.0 - MARGIN) {
                best = ((los[i], his[i]), errors[i]);
            }
        }
    };
    grid(true, true);
    if !levels.symmetric && lo < 0.0 && hi > 0.0 {
        grid(true, false);
        grid(false, true);
    }
    // errors far below a step are mostly rounding in those sums
    if error(x, qtype, levels, best.0) <= error(x, qtype, levels, (lo, hi)) { best.0 } else { (lo, hi) }
}

/// `Σ (x − dequantized)²` in float64, every step as quantizing and dequantizing take it.
fn error(x: &[f32], qtype: QuantType, levels: Levels, (lo, hi): (f32, f32)) -> f64 {
    let scale = scale_of(lo, hi, qtype, levels.symmetric);
    let scale = if levels.half { half_of(scale).unwrap_or(f32::NAN) } else { scale };
    let (qmin, qmax) = (f64::from(levels.qmin), f64::from(levels.qmax));
    let z = if levels.symmetric { 0.0 } else { (qmin - f64::from(lo.min(0.0)) / f64::from(scale)).round_ties_even() };
    let z = z.clamp(qmin, qmax) as f32;
    let least = levels.qmin as f32 + f32::from(u8::from(levels.symmetric)) - z;
    let one = |x: &f32| {
        let q = (x / scale).max(least).min(levels.qmax as f32 - z).round_ties_even();
        (f64::from(*x) - f64::from(q * scale)).powi(2)
    };
    x.iter().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::forced::each_isa;
    use crate::executor::Serial;
    use crate::qtype::{RangeRule, Scheme};
    use crate::{FloatsMut, dequantize, quantize};
    use proptest::prelude::*;

    fn errors(x: &[f32], rows: usize, cols: usize, scheme: &Scheme) -> Vec<f64> {
        let q = quantize(Floats::F32(x), rows, cols, scheme, &Serial).unwrap();
        let mut back = vec![0f32; x.len()];
        dequantize(&q.view().unwrap(), FloatsMut::F32(&mut back), &Serial).unwrap();
        let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
        let rows = x.chunks(cols).zip(back.chunks(cols));
        let group = scheme.group_size.unwrap_or(cols);
        rows.flat_map(|(x, b)| x.chunks(group).zip(b.chunks(group)))
            .map(|(x, b)| x.iter().zip(b).map(square).sum())
            .collect()
    }

    proptest! {
        #[test]
        fn no_group_gets_worse(
            bits in 0usize..3, symmetric: bool, group in 1usize..40, cols in 1usize..70, size in -30i32..30,
            seed in prop::collection::vec(-1f32..1.0, 1..50),
        ) {
            let x: Vec<f32> = (0..3 * cols).map(|i| {
                let v = seed[i % seed.len()] * (1.0 + (i * i) as f32 % 7.0);
                v * v * v * 2f32.powi(size)
            }).collect();
            let whole = Scheme { qtype: QuantType::INTEGERS[bits], symmetric, group_size: Some(group), range: RangeRule::MinMax };
            let least = Scheme { range: RangeRule::LeastSquares, ..whole };
            each_isa(|isa| {
                for (whole, least) in errors(&x, 3, cols, &whole).iter().zip(errors(&x, 3, cols, &least)) {
                    assert!(least <= *whole, "{}: {least} > {whole}", isa.name);
                }
            });
        }
    }

    #[test]
    fn an_outlier_is_clipped() {
        let mut x: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        x[5] = 2.0;
        let scheme = Scheme::affine(QuantType::Int2, 64);
        let [whole, least] =
            [RangeRule::MinMax, RangeRule::LeastSquares].map(|range| errors(&x, 1, 64, &Scheme { range, ..scheme })[0]);
        assert!(least < 0.8 * whole, "{least} against {whole}");
    }
}
