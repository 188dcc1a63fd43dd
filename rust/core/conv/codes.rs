//! Activations to codes and back.

use super::output::{check_scale, check_zero, encoding};
use crate::buffer::{Scratch, Shared};
use crate::cpu::lanes::{Coder, INF_BITS};
use crate::cpu::{self, Isa};
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;
use crate::floats::{Floats, FloatsMut};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Most elements of one task, the fewest that pay for a thread, and those that fit the first-level cache as float32.
const TASK: usize = 1 << 16;
const LEAST: usize = 1 << 13;
const PART: usize = 1 << 12;

/// Elements of a task, where there are so many.
fn each(count: usize, threads: usize) -> usize {
    if threads > 1 { count.div_ceil(threads * 2).clamp(LEAST, TASK) } else { TASK }
}

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
    let of_sample = x.len() / samples.max(1);
    let flags = Flags::new(samples);
    let (out, coder) = (Shared::bytes(codes), Coder::new(encoding(scale, zero), isa));
    let each = each(x.len(), executor.threads());
    executor.run(x.len().div_ceil(each), &|task| {
        let mut wide = Vec::new();
        let end = ((task + 1) * each).min(x.len());
        let mut at = task * each;
        while at < end {
            let sample = at / of_sample;
            let range = at..end.min(at + PART).min((sample + 1) * of_sample);
            at = range.end;
            // SAFETY: `codes` lives as long as the call, and each range is written by one task.
            let out = unsafe { out.slice(range.start, range.len()) };
            flags.note(sample, encode(isa, &x, range, &mut wide, coder, out));
        }
    });
    flags.read(finite);
    Ok(())
}

/// Images `[finite.len(), channels, pixels]`, their codes `[finite.len(), pixels, channels]`.
///
/// # Errors
/// As [`quantize_static`].
#[allow(unsafe_code)]
pub fn quantize_images(
    x: Floats,
    channels: usize,
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
    let images = finite.len();
    let planes = area(images, channels)?;
    if (planes == 0 && !x.is_empty()) || !x.len().is_multiple_of(planes.max(1)) {
        let expected = format!("images of {channels} channels that make {} elements", x.len());
        return Err(Error::mismatch("finite", expected, images));
    }
    let pixels = x.len() / planes.max(1);
    let flags = Flags::new(images);
    let (out, coder) = (Shared::bytes(codes), Coder::new(encoding(scale, zero), isa));
    let part = (PART / channels.max(1)).max(1);
    let each = (each(x.len(), executor.threads()) / channels.max(1)).next_multiple_of(part);
    let of_image = pixels.div_ceil(each);
    executor.run(images * of_image, &|task| {
        let (image, first) = (task / of_image, task % of_image * each);
        let (mut wide, mut planes) = (Vec::new(), Scratch::of::<u8>(part * channels));
        let end = (first + each).min(pixels);
        for at in (first..end).step_by(part) {
            let count = part.min(end - at);
            let planes = &mut planes.as_mut::<u8>()[..count * channels];
            for (channel, plane) in planes.chunks_exact_mut(count).enumerate() {
                let start = (image * channels + channel) * pixels + at;
                flags.note(image, encode(isa, &x, start..start + count, &mut wide, coder, plane));
            }
            // SAFETY: `codes` lives as long as the call, and each pixel is written by one task.
            let out = unsafe { out.slice((image * pixels + at) * channels, count * channels) };
            isa.interleave(planes, channels, out);
        }
    });
    flags.read(finite);
    Ok(())
}

/// Codes of some elements; whether all are finite.
fn encode(isa: &Isa, x: &Floats, range: Range<usize>, wide: &mut Vec<f32>, coder: Coder, out: &mut [u8]) -> bool {
    let x = x.widen(range, wide);
    isa.encode_by(x, coder, out);
    let finite = isa.absmax_bits(x) < INF_BITS;
    if !finite {
        x.iter().zip(out).filter(|(x, _)| !x.is_finite()).for_each(|(_, q)| *q = coder.zero());
    }
    finite
}

/// Whose samples are finite.
struct Flags(Vec<AtomicBool>);

impl Flags {
    fn new(samples: usize) -> Self {
        Self((0..samples).map(|_| AtomicBool::new(true)).collect())
    }

    fn note(&self, sample: usize, finite: bool) {
        if !finite {
            self.0[sample].store(false, Relaxed);
        }
    }

    fn read(&self, finite: &mut [bool]) {
        finite.iter_mut().zip(&self.0).for_each(|(f, flag)| *f = flag.load(Relaxed));
    }
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
    let each = each(q.len(), executor.threads());
    executor.run(q.len().div_ceil(each), &|task| {
        let mut values = Scratch::of::<f32>(PART);
        let part = &q[task * each..((task + 1) * each).min(q.len())];
        for (i, q) in part.chunks(PART).enumerate() {
            let values = &mut values.as_mut::<f32>()[..q.len()];
            isa.dequantize(q, scale, i32::from(zero), values);
            // SAFETY: `out` lives as long as the call, and each range is written by one task.
            unsafe { out.write(task * each + i * PART, values) };
        }
    });
    Ok(())
}
