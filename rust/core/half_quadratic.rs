//! Half-quadratic quantization: fractional zero points that make a group's error sparse, without data.
//!
//! Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
//! <https://mobiusml.github.io/hqq_blog/>. The error is split into a sparse part E, the few weights that may be far off, and
//! a Gaussian one. In turns E is the proximal operator of |e|^p at the error e, `sign(e) · max(|e| − |e|^(p−1) / β, 0)`, and
//! Z the mean of `q − (W − E) / S`; β grows by κ.

use crate::cpu::{self, lanes::Proximal};
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;
use crate::floats::Floats;
use crate::matrix::Scales;
use crate::qtype::QuantType;
use half::f16;
use std::sync::Mutex;

/// Elements of one task.
const TASK: usize = 1 << 14;

/// The parameters of the method; the default is the paper's.
#[derive(Clone, Copy, Debug)]
pub struct HalfQuadratic {
    /// p, above 0 and at most 1.
    pub norm: f32,
    /// β of the first turn.
    pub beta: f32,
    /// What β grows by.
    pub kappa: f32,
    /// Turns at most; a group stops when its Z stays.
    pub turns: usize,
}

impl Default for HalfQuadratic {
    fn default() -> Self {
        Self { norm: 0.7, beta: 10.0, kappa: 1.01, turns: 20 }
    }
}

/// Zero points `[rows, groups]` of `x` (`[rows, cols]`) for given scales: of all those that the turns pass through, as
/// float16 has them, the one with the least `Σ |e|^p`. The first is the better one of the range's Z, whole or not.
///
/// # Errors
/// [`Error::Mismatch`] for lengths and for parameters out of their range.
pub fn half_quadratic(
    x: Floats,
    rows: usize,
    cols: usize,
    qtype: QuantType,
    group_size: usize,
    scales: Scales,
    method: HalfQuadratic,
    zeros: &mut [f16],
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    check_len("x", area(rows, cols)?, x.len())?;
    if group_size == 0 {
        return Err(Error::mismatch("group_size", "at least 1", 0));
    }
    if !(method.norm > 0.0 && method.norm <= 1.0) {
        return Err(Error::mismatch("lp_norm", "above 0 and at most 1", method.norm));
    }
    for (argument, value) in [("beta", method.beta), ("kappa", method.kappa)] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(Error::mismatch(argument, "a positive number", value));
        }
    }
    if qtype.is_float() {
        return Err(Error::mismatch("kind", "a type of integers", format!("{qtype:?}")));
    }
    let groups = cols.div_ceil(group_size);
    check_len("scale", area(rows, groups)?, scales.len())?;
    check_len("zero_point", rows * groups, zeros.len())?;
    if zeros.is_empty() {
        return Ok(());
    }
    let (qmin, qmax) = (qtype.qmin() as f32, qtype.qmax() as f32);
    let per_task = TASK.div_ceil(cols);
    let parts: Vec<_> = zeros.chunks_mut(per_task * groups).map(Mutex::new).collect();
    executor.run(parts.len(), &|task| {
        let mut zeros = parts[task].lock().unwrap_or_else(|e| e.into_inner());
        let (mut wide, mut steps) = (Vec::new(), Vec::new());
        for (i, zero) in zeros.iter_mut().enumerate() {
            let (row, first) = (task * per_task + i / groups, i % groups * group_size);
            let start = row * cols + first;
            let x = x.widen(start..start + group_size.min(cols - first), &mut wide);
            let scale = scales.get(row * groups + i % groups);
            steps.clear();
            steps.extend(x.iter().map(|x| x / scale)); // as `encode` does
            let lowest = steps.iter().fold(0f32, |least, v| least.min(*v));
            let fraction = f16::from_f32(qmin - lowest).to_f32();
            let whole = (qmin - lowest).round_ties_even();
            let turn = |zero: f32, beta: f32| {
                let rule = Proximal { qmin, qmax, norm: method.norm, beta };
                let (loss, mean) = isa.proximal(&steps, zero, rule);
                (loss, f16::from_f32(mean).to_f32())
            };
            // for errors in steps: |eS| − |eS|^(p−1) / β is S (|e| − |e|^(p−1) / (β S^(2−p)))
            let mut beta = method.beta * scale.powf(2.0 - method.norm);
            let [mut best, other] = [whole, fraction].map(|zero| (zero, turn(zero, beta)));
            if other.1.0 < best.1.0 {
                best = other;
            }
            let (mut current, (mut least, mut next)) = best;
            let mut chosen = current;
            for _ in 0..method.turns {
                if next == current {
                    break;
                }
                beta *= method.kappa;
                current = next;
                let loss;
                (loss, next) = turn(current, beta);
                if loss < least {
                    (chosen, least) = (current, loss);
                }
            }
            *zero = f16::from_f32(chosen);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::forced::each_isa;
    use crate::executor::Serial;
    use crate::{encode, ranges};
    use proptest::prelude::*;

    /// `Σ |e|^p` in float64 of what the codes under these zero points read as, a group each.
    fn loss(x: &[f32], cols: usize, group: usize, scales: &[f32], zeros: &[f16], norm: f64) -> Vec<f64> {
        let (rows, qtype) = (x.len() / cols, QuantType::Int4);
        let mut codes = vec![0u8; rows * crate::row_bytes(cols, qtype)];
        let (s, z) = (Scales::F32(scales), crate::ZeroPoints::F16(zeros));
        encode(Floats::F32(x), rows, cols, qtype, group, s, z, &mut codes, &Serial).unwrap();
        let mut q = vec![0i8; x.len()];
        crate::unpack_codes(&codes, rows, cols, qtype, &mut q).unwrap();
        let groups = cols.div_ceil(group);
        let mut sums = vec![0f64; rows * groups];
        for (i, (x, q)) in x.iter().zip(&q).enumerate() {
            let g = i / cols * groups + i % cols / group;
            let e = f64::from(*x) / f64::from(scales[g]) - (f64::from(*q) - zeros[g].to_f64());
            sums[g] += e.abs().powf(norm);
        }
        sums
    }

    proptest! {
        #[test]
        fn no_group_ends_worse_than_it_began(
            group in 1usize..80, cols in 1usize..90, size in -20i32..20, norm in 0.3f32..1.0,
            seed in prop::collection::vec(-1f32..1.0, 1..60),
        ) {
            let x: Vec<f32> = (0..2 * cols).map(|i| seed[i % seed.len()] * (1.0 + i as f32 % 3.0) * 2f32.powi(size)).collect();
            let groups = cols.div_ceil(group);
            let (mut lo, mut hi) = (vec![0f32; 2 * groups], vec![0f32; 2 * groups]);
            ranges(Floats::F32(&x), 2, cols, group, &mut lo, &mut hi, &Serial).unwrap();
            let mut scales = lo.clone();
            let mut whole = vec![0u8; lo.len()];
            crate::qparams(&lo, &hi, QuantType::Int4, false, false, &mut scales, &mut whole).unwrap();
            let start: Vec<f16> = whole.iter().map(|z| f16::from_f32(f32::from(*z) - 8.0)).collect();
            let mut results = Vec::new();
            each_isa(|_| {
                let mut zeros = vec![f16::ZERO; start.len()];
                let method = HalfQuadratic { norm, ..Default::default() };
                half_quadratic(Floats::F32(&x), 2, cols, QuantType::Int4, group, Scales::F32(&scales), method, &mut zeros, &Serial)
                    .unwrap();
                results.push(zeros);
            });
            for zeros in &results {
                assert_eq!(zeros, &results[0], "the same on every instruction set");
            }
            let norm = f64::from(norm);
            let before = loss(&x, cols, group, &scales, &start, norm);
            for (after, before) in loss(&x, cols, group, &scales, &results[0], norm).iter().zip(before) {
                // an error of 0 in steps is known to 1e-6, whose root is what it is
                assert!(*after <= before * 1.001 + group as f64 * 2e-6f64.powf(norm), "{after} after {before}");
            }
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let method = HalfQuadratic { norm: 0.0, ..Default::default() };
        let scales = Scales::F32(&[1.0]);
        let mut zeros = [f16::ZERO];
        let err = half_quadratic(Floats::F32(&[1.0]), 1, 1, QuantType::Int4, 1, scales, method, &mut zeros, &Serial);
        assert!(err.unwrap_err().to_string().starts_with("lp_norm"));
    }
}
