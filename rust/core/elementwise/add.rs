//! The sum of two tensors of codes: a residual connection that no product could take along.

use super::{Clamp, PerTensor, pieces};
use crate::buffer::Shared;
use crate::cpu;
use crate::cpu::lanes::Addition;
use crate::error::{Result, check_len};
use crate::executor::Executor;

/// Elements that are worth a thread.
const LEAST: usize = 1 << 14;

/// `out = clip(round(fma(r_b, q_b − z_b, r_a · (q_a − z_a))) + z)` with `r = s / out s`, element by element; clipped to
/// the codes of the clamp's ends.
///
/// # Errors
/// [`crate::Error::Mismatch`] for lengths, scales, zero points or a clamp that do not fit.
#[allow(unsafe_code)]
pub fn add(
    a: &[i8],
    a_params: PerTensor,
    b: &[i8],
    b_params: PerTensor,
    clamp: Clamp,
    out_params: PerTensor,
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    check_len("b", a.len(), b.len())?;
    check_len("out", a.len(), out.len())?;
    let rule = Addition { a: a_params.in_steps_of(out_params, "a")?, b: b_params.in_steps_of(out_params, "b")? };
    let steps = out_params.steps("out", clamp)?;
    let out = Shared::bytes(out);
    pieces(a.len(), LEAST, executor, &|range| {
        // SAFETY: the ranges are disjoint, and `out` is borrowed for this whole call.
        let out = unsafe { out.slice(range.start, range.len()) };
        isa.add_codes(&a[range.clone()], &b[range], rule, steps, out);
    });
    Ok(())
}
