//! Tensors side by side, brought to one scale.

use super::lookup::requantization;
use super::{PerTensor, UNCLAMPED, pieces};
use crate::buffer::Shared;
use crate::cpu;
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;

/// Bytes that are worth a thread.
const LEAST: usize = 1 << 16;

/// One of the tensors: `rows` rows of `cols` codes.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// `[rows, cols]`.
    pub codes: &'a [i8],
    /// Columns of this part.
    pub cols: usize,
    /// What the codes stand for.
    pub params: PerTensor,
}

/// `out[rows, Σ cols]`: the parts' rows one after the other, each requantized; copied where the parameters are the output's.
///
/// # Errors
/// [`Error::Mismatch`] for lengths, scales or zero points that do not fit.
#[allow(unsafe_code)]
pub fn concat(
    parts: &[Part],
    rows: usize,
    out_params: PerTensor,
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    let width = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.cols));
    let width = width.ok_or_else(|| Error::mismatch("cols", "sizes in memory", "more"))?;
    check_len("out", area(rows, width)?, out.len())?;
    let mut tables = Vec::with_capacity(parts.len());
    for part in parts {
        check_len("xs", area(rows, part.cols)?, part.codes.len())?;
        let same = part.params == out_params;
        let table = requantization(isa, part.params, UNCLAMPED, ["xs", "out"], out_params)?;
        tables.push((!same).then_some(table));
    }
    if out.is_empty() {
        return Ok(());
    }
    let out = Shared::bytes(out);
    pieces(rows, LEAST.div_ceil(width), executor, &|range| {
        let mut first = 0;
        for (part, table) in parts.iter().zip(&tables) {
            let codes = &part.codes[range.start * part.cols..range.end * part.cols];
            // SAFETY: these rows are this task's, and `out` is borrowed for this whole call.
            let mut place = unsafe { out.rectangle(range.start * width + first, width, range.len(), part.cols) };
            match table {
                Some(table) => isa.lookup(codes, table, place),
                None => {
                    for (r, codes) in codes.chunks_exact(part.cols.max(1)).enumerate() {
                        place.row(r).iter_mut().zip(codes).for_each(|(u, q)| *u = *q as u8);
                    }
                }
            }
            first += part.cols;
        }
    });
    Ok(())
}
