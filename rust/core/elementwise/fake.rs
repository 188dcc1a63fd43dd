//! Fake quantization: what codes would read as, for training. The encoding is the deployed one.

use super::{PerTensor, UNCLAMPED, pieces};
use crate::buffer::{Scratch, Shared};
use crate::cpu;
use crate::cpu::Isa;
use crate::cpu::lanes::Encoding;
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;
use crate::floats::{Floats, FloatsMut, SharedOut};
use std::ops::Range;

/// Elements that are worth a thread, and those that go through its cache at once.
const LEAST: usize = 1 << 14;
const BLOCK: usize = 1 << 12;

/// `out = s · (q − z)` with `q = clip(round(x / s) + z)`, rounded to `out`'s type; NaN where x is not finite. `inside` gets
/// 1 for each element whose code rounding alone gave, and 0 for those that were clipped or are not finite.
///
/// # Errors
/// [`Error::Mismatch`] for lengths, a scale or a zero point that do not fit.
pub fn fake_quantize(
    x: Floats,
    params: PerTensor,
    out: FloatsMut,
    inside: Option<&mut [u8]>,
    executor: &dyn Executor,
) -> Result<()> {
    let inner = x.len().max(1);
    fake_quantize_channels(x, &[params.scale], &[params.zero], inner, out, inside, executor)
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
    mut out: FloatsMut,
    inside: Option<&mut [u8]>,
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    check_len("zero", scales.len(), zeros.len())?;
    check_len("out", x.len(), out.len())?;
    if let Some(inside) = &inside {
        check_len("inside", x.len(), inside.len())?;
    }
    let sample = area(scales.len(), inner)?;
    if sample == 0 && !x.is_empty() || sample > 0 && !x.len().is_multiple_of(sample) {
        return Err(Error::mismatch("x", format!("a multiple of {sample} elements"), x.len()));
    }
    let encodings = scales.iter().zip(zeros);
    let encodings = encodings.map(|(&scale, &zero)| PerTensor { scale, zero }.encoding("scale, zero", UNCLAMPED));
    let encodings = encodings.collect::<Result<Vec<_>>>()?;
    let (out, inside) = (out.share(), inside.map(Shared::new));
    pieces(x.len(), LEAST, executor, &|range| {
        let (mut wide, mut scratch) = (Vec::new(), Scratch::of::<f32>(BLOCK.min(range.len())));
        let mut at = range.start;
        while at < range.end {
            let end = (at + BLOCK).min(range.end);
            let values = x.widen(at..end, &mut wide);
            // SAFETY: the ranges are disjoint, and both outputs are borrowed for this whole call.
            unsafe { block(isa, values, at, (&encodings, inner), out, scratch.as_mut(), inside) };
            at = end;
        }
    });
    Ok(())
}

/// # Safety
/// These elements of both outputs, which are still borrowed, are the caller's alone.
#[allow(unsafe_code)]
unsafe fn block(
    isa: &Isa,
    x: &[f32],
    at: usize,
    (encodings, inner): (&[Encoding], usize),
    out: SharedOut,
    scratch: &mut [f32],
    inside: Option<Shared<u8>>,
) {
    // SAFETY: the caller's promise.
    let direct = out.float32().map(|out| unsafe { out.slice(at, x.len()) });
    let in_place = direct.is_some();
    let values = direct.unwrap_or(&mut scratch[..x.len()]);
    // SAFETY: as above.
    let mut inside = inside.map(|inside| unsafe { inside.slice(at, x.len()) });
    for (channel, run) in runs(at, x.len(), inner, encodings.len()) {
        let e = encodings[channel];
        isa.fake_quantize(&x[run.clone()], e, &mut values[run.clone()]);
        if let Some(inside) = &mut inside {
            isa.inside(&x[run.clone()], e, &mut inside[run]);
        }
    }
    if !in_place {
        // SAFETY: as above.
        unsafe { out.write(at, values) };
    }
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
