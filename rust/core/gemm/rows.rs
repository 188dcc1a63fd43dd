//! Row-wise calls: an embedding's rows out of a packed weight, and activation quantization by itself.

use super::activations::quantize_row;
use crate::bitpack::{row_bytes, unpack_row};
use crate::cpu;
use crate::error::{Error, Result, check_len};
use crate::executor::Executor;
use crate::floats::{Floats, FloatsMut};
use crate::prepack::{PackedRef, read_row};
use std::sync::Mutex;

/// Elements of one task.
const TASK: usize = 1 << 14;

/// `out[i] = S·(q − Z)` of row `ids[i]` of `w`: `out` is `[ids.len(), k]`.
///
/// # Errors
/// [`Error::Mismatch`] for an id outside `0..n`, or for `out`'s length.
#[allow(unsafe_code)]
pub fn gather_rows(w: PackedRef, ids: &[i64], mut out: FloatsMut, executor: &dyn Executor) -> Result<()> {
    let isa = cpu::active()?;
    let (k, qtype) = (w.k(), w.qtype());
    check_len("out", ids.len() * k, out.len())?;
    if let Some(id) = ids.iter().find(|id| !(0..w.n() as i64).contains(*id)) {
        return Err(Error::mismatch("ids", format!("ids in [0, {})", w.n()), id));
    }
    if k == 0 {
        return Ok(());
    }
    let out = out.share();
    let per_task = TASK.div_ceil(k);
    executor.run(ids.len().div_ceil(per_task), &|task| {
        let mut bytes = vec![0u8; row_bytes(k, qtype)];
        let (mut codes, mut values) = (vec![0u8; k], vec![0f32; k]);
        let first = task * per_task;
        for (i, &id) in ids.iter().enumerate().skip(first).take(per_task) {
            let panel = w.panel(id as usize / w.nr());
            let c = id as usize % w.nr();
            read_row(&panel, c, qtype, &mut bytes);
            unpack_row(&bytes, qtype, &mut codes);
            let groups = codes.chunks(w.group_size()).zip(values.chunks_mut(w.group_size()));
            for (g, (codes, values)) in groups.enumerate() {
                let at = g * panel.cols + c;
                isa.decode(codes, qtype, panel.zeros.get(at, qtype), panel.scales.get(at), values);
            }
            // SAFETY: `out` lives as long as the call, and each row is written by one task.
            unsafe { out.write(i * k, &values) };
        }
    });
    Ok(())
}

/// Activation quantization as [`super::linear`] does it: `q` int8 `[m, k]` and one scale per row, `max |x| / 127`.
/// A row with NaN or infinity gets scale NaN and codes 0; a row of zeros gets scale 1.
///
/// # Errors
/// [`Error::Mismatch`] for lengths.
pub fn quantize_rows(
    x: Floats,
    m: usize,
    k: usize,
    q: &mut [i8],
    scales: &mut [f32],
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    check_len("x", m * k, x.len())?;
    check_len("q", m * k, q.len())?;
    check_len("scale", m, scales.len())?;
    let per_task = TASK.div_ceil(k.max(1));
    let parts: Vec<_> = q.chunks_mut((per_task * k).max(1)).zip(scales.chunks_mut(per_task)).map(Mutex::new).collect();
    executor.run(parts.len(), &|task| {
        let mut part = parts[task].lock().unwrap_or_else(|e| e.into_inner());
        let (q, scales) = &mut *part;
        let (mut wide, mut codes) = (Vec::new(), vec![0u8; k]);
        for (r, scale) in scales.iter_mut().enumerate() {
            let row = (task * per_task + r) * k;
            *scale = quantize_row(isa, x.widen(row..row + k, &mut wide), None, &mut codes);
            q[r * k..][..k].iter_mut().zip(&codes).for_each(|(q, c)| *q = *c as i8);
        }
    });
    Ok(())
}
