//! Any function of a single code, as a table of its 256 values.

use super::{Clamp, PerTensor, pieces};
use crate::buffer::Shared;
use crate::cpu;
use crate::cpu::Isa;
use crate::cpu::lanes::{Encoding, Steps};
use crate::error::{Error, Result, check_len};
use crate::executor::Executor;

/// Elements that are worth a thread.
const LEAST: usize = 1 << 16;

/// `out = table[q + 128]`, element by element.
///
/// # Errors
/// [`Error::Mismatch`] for lengths.
pub fn lookup(x: &[i8], table: &[i8], out: &mut [i8], executor: &dyn Executor) -> Result<()> {
    let isa = cpu::active()?;
    let table: &[i8; 256] =
        table.try_into().map_err(|_| Error::mismatch("table", "256 codes", format!("{}", table.len())))?;
    check_len("out", x.len(), out.len())?;
    // the core's table goes by the code's bits: -128 is byte 128
    look_up(isa, x, &std::array::from_fn(|bits| table[bits ^ 0x80] as u8), out, executor);
    Ok(())
}

/// `out = clip(round(s / out s · (q − z)) + out z)`: the same values under another scale and zero point, clipped to the
/// codes of the clamp's ends.
///
/// # Errors
/// [`Error::Mismatch`] for lengths, scales, zero points or a clamp that do not fit.
pub fn requantize(
    x: &[i8],
    params: PerTensor,
    clamp: Clamp,
    out_params: PerTensor,
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    check_len("out", x.len(), out.len())?;
    look_up(isa, x, &requantization(isa, params, clamp, ["x", "out"], out_params)?, out, executor);
    Ok(())
}

/// The table of [`requantize`], by the code's bits.
pub(super) fn requantization(
    isa: &Isa,
    params: PerTensor,
    clamp: Clamp,
    [from, to]: [&'static str; 2],
    out_params: PerTensor,
) -> Result<[u8; 256]> {
    let (d, Steps { zero, lo, hi }) = (params.in_steps_of(out_params, from)?, out_params.steps(to, clamp)?);
    let encoding = Encoding { scale: 1.0, shift: 0.0, lo: (lo - zero) as f32, hi: (hi - zero) as f32, base: zero };
    let values: [f32; 256] = std::array::from_fn(|bits| (i32::from(bits as u8 as i8) - d.zero) as f32 * d.scale);
    let mut table = [0; 256];
    isa.encode(&values, encoding, &mut table);
    Ok(table)
}

#[allow(unsafe_code)]
fn look_up(isa: &Isa, x: &[i8], table: &[u8; 256], out: &mut [i8], executor: &dyn Executor) {
    let out = Shared::bytes(out);
    pieces(x.len(), LEAST, executor, &|range| {
        // SAFETY: the ranges are disjoint, and `out` is borrowed for this whole call.
        let out = unsafe { out.rectangle(range.start, range.len(), 1, range.len()) };
        isa.lookup(&x[range], table, out);
    });
}
