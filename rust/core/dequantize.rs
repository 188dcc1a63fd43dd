//! Codes back to floats: `x = S·(q − Z)`, one multiplication in float32, then one rounding to the output's dtype.

use crate::bitpack::unpack_row;
use crate::cpu;
use crate::error::{Result, check_len};
use crate::executor::Executor;
use crate::floats::FloatsMut;
use crate::matrix::MatrixRef;

/// Rows of one task hold about this many elements.
const TASK: usize = 1 << 16;

/// `out[rows, cols] = S·(q − Z)`.
///
/// # Errors
/// [`crate::Error::Mismatch`] if `out` has another length.
#[allow(unsafe_code)]
pub fn dequantize(q: &MatrixRef, mut out: FloatsMut, executor: &dyn Executor) -> Result<()> {
    let isa = cpu::active()?;
    check_len("out", q.rows * q.cols, out.len())?;
    if q.cols == 0 {
        return Ok(());
    }
    let out = out.share();
    let (per_task, groups) = (TASK.div_ceil(q.cols), q.groups());
    executor.run(q.rows.div_ceil(per_task), &|task| {
        let (mut codes, mut values) = (vec![0u8; q.cols], vec![0f32; q.cols]);
        for row in task * per_task..((task + 1) * per_task).min(q.rows) {
            unpack_row(q.row_codes(row), q.qtype, &mut codes);
            let pieces = codes.chunks(q.group_size).zip(values.chunks_mut(q.group_size));
            for (g, (codes, values)) in pieces.enumerate() {
                let (zero, scale) = (q.zeros.get(row * groups + g, q.qtype), q.scales.get(row * groups + g));
                isa.decode(codes, q.qtype, zero, scale, values);
            }
            // SAFETY: `out` lives to the end of this call, and each row is written by one task.
            unsafe { out.write(row * q.cols, &values) };
        }
    });
    Ok(())
}
