//! Fake quantization: what codes would read as, for training. The encoding is the deployed one.

use super::{PerTensor, UNCLAMPED, pieces};
use crate::buffer::{Scratch, Shared};
use crate::cpu;
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;
use crate::floats::{Floats, FloatsMut};
use std::ops::Range;

/// Elements that are worth a thread, and those that go through its cache at once.
const LEAST: usize = 1 << 14;
const BLOCK: usize = 1 << 12;

/// `out = s · (q − z)` with `q = clip(round(x / s) + z)`, rounded to `out`'s type; NaN stays NaN. `inside` gets 1 for each
/// element whose code rounding alone gave, and 0 for those that were clipped or are NaN. Either may be left out.
///
/// # Errors
/// [`Error::Mismatch`] for lengths, a scale or a zero point that do not fit.
pub fn fake_quantize(
    x: Floats,
    params: PerTensor,
    out: Option<FloatsMut>,
    inside: Option<&mut [u8]>,
    executor: &dyn Executor,
) -> Result<()> {
    fake_quantize_channels(x, &[params.scale], &[params.zero], x.len().max(1), out, inside, executor)
}

/// The same with a scale and a zero point a channel; `x` is `[.., channels, inner]`.
///
/// # Errors
/// As [`fake_quantize`].
#[allow(unsafe_code)]
pub fn fake_quantize_channels(
    x: Floats,
    scales: &[f32],
    zeros: &[i8],
    inner: usize,
    mut out: Option<FloatsMut>,
    inside: Option<&mut [u8]>,
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    check_len("zero", scales.len(), zeros.len())?;
    check_len("out", x.len(), out.as_ref().map_or(x.len(), FloatsMut::len))?;
    check_len("inside", x.len(), inside.as_ref().map_or(x.len(), |inside| inside.len()))?;
    let sample = area(scales.len(), inner)?;
    if sample == 0 && !x.is_empty() || sample > 0 && !x.len().is_multiple_of(sample) {
        return Err(Error::mismatch("x", format!("a multiple of {sample} elements"), x.len()));
    }
    let encodings = scales.iter().zip(zeros);
    let encodings = encodings.map(|(&scale, &zero)| PerTensor { scale, zero }.encoding("scale, zero", UNCLAMPED));
    let encodings = encodings.collect::<Result<Vec<_>>>()?;
    let (out, inside) = (out.as_mut().map(FloatsMut::share), inside.map(Shared::new));
    pieces(x.len(), LEAST, executor, &|range| {
        let (mut wide, mut values) = (Vec::new(), Scratch::of::<f32>(BLOCK.min(range.len())));
        let mut at = range.start;
        while at < range.end {
            let end = (at + BLOCK).min(range.end);
            let x = x.widen(at..end, &mut wide);
            for (channel, run) in runs(at, x.len(), inner, scales.len()) {
                let (e, x) = (encodings[channel], &x[run.clone()]);
                if out.is_some() {
                    isa.fake_quantize(x, e, &mut values.as_mut()[run.clone()]);
                }
                if let Some(inside) = inside {
                    // SAFETY: the ranges are disjoint, and `inside` is borrowed for this whole call.
                    isa.inside(x, e, unsafe { inside.slice(at + run.start, run.len()) });
                }
            }
            if let Some(out) = out {
                // SAFETY: as above.
                unsafe { out.write(at, &values.as_slice()[..end - at]) };
            }
            at = end;
        }
    });
    Ok(())
}

/// Stretches of one channel in the `len` elements from `at` on.
fn runs(at: usize, len: usize, inner: usize, channels: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let start = done;
        done = len.min(start + inner - (at + start) % inner);
        (start < len).then_some(((at + start) / inner % channels, start..done))
    })
}
