//! A factor and an addend a channel: batch normalization that could not be folded into the layer before it.

use super::{Clamp, PerTensor, check_clamp, pieces};
use crate::buffer::{Scratch, Shared};
use crate::cpu;
use crate::cpu::Isa;
use crate::cpu::lanes::Decoding;
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;
use crate::floats::FloatsMut;
use std::ops::Range;

/// Elements that are worth a thread, and those that go through its cache at once.
const LEAST: usize = 1 << 14;
const BLOCK: usize = 1 << 12;

/// `mul` and `add` of each channel; a channel is `inner` consecutive elements (1: channels-last).
#[derive(Clone, Copy, Debug)]
pub struct Channels<'a> {
    /// One a channel.
    pub mul: &'a [f32],
    /// As many.
    pub add: &'a [f32],
    /// Consecutive elements of a channel.
    pub inner: usize,
}

/// Where [`affine`] writes.
#[derive(Debug)]
pub enum AffineOut<'a> {
    /// Codes under these parameters.
    Codes(PerTensor, &'a mut [i8]),
    /// Floats, rounded to their type.
    Floats(FloatsMut<'a>),
}

/// `v = fma(s · (q − z), mul[c], add[c])`, clamped; as codes or as floats. `x` is `[.., channels, inner]`.
///
/// # Errors
/// [`Error::Mismatch`] for lengths, scales, zero points or a clamp that do not fit.
#[allow(unsafe_code)]
pub fn affine(
    x: &[i8],
    params: PerTensor,
    channels: Channels,
    clamp: Clamp,
    out: AffineOut,
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    let decoding = params.decoding("x")?;
    check_len("add", channels.mul.len(), channels.add.len())?;
    let sample = area(channels.mul.len(), channels.inner)?;
    if sample == 0 && !x.is_empty() || sample > 0 && !x.len().is_multiple_of(sample) {
        return Err(Error::mismatch("x", format!("a multiple of {sample} elements"), x.len()));
    }
    let each = |range: Range<usize>, finish: &dyn Fn(&mut [f32], usize)| {
        let per_block = if channels.inner == 1 { (BLOCK / sample).max(1) * sample } else { BLOCK };
        let mut values = Scratch::of::<f32>(per_block);
        let mut at = range.start;
        while at < range.end {
            let end = (at + per_block).min(range.end);
            let values = &mut values.as_mut::<f32>()[..end - at];
            block(isa, &x[at..end], at, decoding, channels, values);
            finish(values, at);
            at = end;
        }
    };
    // whole samples where channels alternate
    let unit = if channels.inner == 1 { sample.max(1) } else { 1 };
    let (count, least) = (x.len() / unit, LEAST.div_ceil(unit));
    match out {
        AffineOut::Codes(out_params, out) => {
            check_len("out", x.len(), out.len())?;
            let coder = out_params.coder(isa, "out", clamp)?;
            let out = Shared::bytes(out);
            pieces(count, least, executor, &|range| {
                each(range.start * unit..range.end * unit, &|values, at| {
                    // SAFETY: the ranges are disjoint, and `out` is borrowed for this whole call.
                    isa.encode_by(values, coder, unsafe { out.slice(at, values.len()) });
                });
            });
        }
        AffineOut::Floats(mut out) => {
            check_len("out", x.len(), out.len())?;
            check_clamp(clamp)?;
            let out = out.share();
            pieces(count, least, executor, &|range| {
                each(range.start * unit..range.end * unit, &|values, at| {
                    isa.clamp(values, clamp.0, clamp.1);
                    // SAFETY: as above.
                    unsafe { out.write(at, values) };
                });
            });
        }
    }
    Ok(())
}

/// The values of `x`, which begins at element `at` of the whole.
fn block(isa: &Isa, x: &[i8], at: usize, decoding: Decoding, channels: Channels, values: &mut [f32]) {
    let Channels { mul, add, inner } = channels;
    if inner == 1 {
        return isa.affine_columns(x, decoding, mul, add, values);
    }
    let mut done = 0;
    while done < x.len() {
        let (channel, first) = ((at + done) / inner % mul.len(), (at + done) % inner);
        let end = (done + inner - first).min(x.len());
        isa.affine(&x[done..end], decoding, mul[channel], add[channel], &mut values[done..end]);
        done = end;
    }
}
