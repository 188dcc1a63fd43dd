//! Activations to codes and back.

use super::output::{check_scale, check_zero, encoding};
use crate::buffer::{Scratch, Shared};
use crate::cpu;
use crate::cpu::lanes::INF_BITS;
use crate::error::{Error, Result, check_len};
use crate::executor::Executor;
use crate::floats::{Floats, FloatsMut};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Elements of one task, and those that fit the first-level cache as float32.
const TASK: usize = 1 << 16;
const PART: usize = 1 << 12;

/// `q = clip(round_half_even(x / scale) + zero, -127, 127)` for `finite.len()` samples of equally many elements. NaN and
/// infinity become the zero point, and their sample is not `finite`.
///
/// # Errors
/// [`Error::Mismatch`] for lengths, a scale that is not a positive number, a zero point below -127.
#[allow(unsafe_code)]
pub fn quantize_static(
    x: Floats,
    scale: f32,
    zero: i8,
    codes: &mut [i8],
    finite: &mut [bool],
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    check_len("codes", x.len(), codes.len())?;
    check_scale("scale", scale)?;
    check_zero("zero", zero)?;
    let samples = finite.len();
    if (samples == 0 && !x.is_empty()) || !x.len().is_multiple_of(samples.max(1)) {
        return Err(Error::mismatch("finite", format!("a divisor of {} elements", x.len()), samples));
    }
    let each = x.len() / samples.max(1);
    let flags: Vec<AtomicBool> = (0..samples).map(|_| AtomicBool::new(true)).collect();
    let (out, encoding) = (Shared::bytes(codes), encoding(scale, zero));
    executor.run(x.len().div_ceil(TASK), &|task| {
        let mut wide = Vec::new();
        let end = ((task + 1) * TASK).min(x.len());
        let mut at = task * TASK;
        while at < end {
            let sample = at / each;
            let range = at..end.min(at + PART).min((sample + 1) * each);
            at = range.end;
            // SAFETY: `codes` lives as long as the call, and each range is written by one task.
            let out = unsafe { out.slice(range.start, range.len()) };
            let x = x.widen(range, &mut wide);
            isa.encode(x, encoding, out);
            if isa.absmax_bits(x) >= INF_BITS {
                flags[sample].store(false, Relaxed);
                let bad = x.iter().zip(out).filter(|(x, _)| !x.is_finite());
                bad.for_each(|(_, q)| *q = zero as u8);
            }
        }
    });
    finite.iter_mut().zip(&flags).for_each(|(f, flag)| *f = flag.load(Relaxed));
    Ok(())
}

/// `x = scale · (q − zero)`, rounded to the dtype of `out`.
///
/// # Errors
/// [`Error::Mismatch`] for lengths, a scale that is not a positive number, a zero point below -127.
#[allow(unsafe_code)]
pub fn dequantize_static(q: &[i8], scale: f32, zero: i8, mut out: FloatsMut, executor: &dyn Executor) -> Result<()> {
    let isa = cpu::active()?;
    check_len("out", q.len(), out.len())?;
    check_scale("scale", scale)?;
    check_zero("zero", zero)?;
    let out = out.share();
    executor.run(q.len().div_ceil(TASK), &|task| {
        let mut values = Scratch::of::<f32>(PART);
        let part = &q[task * TASK..((task + 1) * TASK).min(q.len())];
        for (i, q) in part.chunks(PART).enumerate() {
            let values = &mut values.as_mut::<f32>()[..q.len()];
            isa.dequantize(q, scale, i32::from(zero), values);
            // SAFETY: `out` lives as long as the call, and each range is written by one task.
            unsafe { out.write(task * TASK + i * PART, values) };
        }
    });
    Ok(())
}
