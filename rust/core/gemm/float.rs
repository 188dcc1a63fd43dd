//! The float path (weight-only): activations stay float, weights are expanded on the way.

use super::Tasks;
use crate::buffer::Scratch;
use crate::cpu::lanes::{Groups, INF_BITS};
use crate::cpu::{self, Isa, MAX_DOT_ROWS, block_bytes, block_steps};
use crate::epilogue::PanelParams;
use crate::error::Result;
use crate::executor::Executor;
use crate::floats::{Floats, SharedOut};
use crate::prepack::{PackedRef, Panel};
use std::ops::Range;
use std::sync::Mutex;

/// Steps of k expanded at once: 64 channels of them fill a quarter of a second-level cache.
const EXPAND: usize = 512;
/// Float activations, row by row, as float32; and which rows hold NaN or infinity.
struct Rows<'a> {
    m: usize,
    k: usize,
    mr: usize,
    values: Values<'a>,
    bad: Vec<bool>,
}

enum Values<'a> {
    Given(&'a [f32]),
    Widened(Scratch),
}

impl<'a> Rows<'a> {
    fn new(x: Floats<'a>, m: usize, k: usize, mr: usize, isa: &Isa, executor: &dyn Executor) -> Self {
        let mut bad = vec![false; m];
        let values = if let Floats::F32(x) = x {
            let parts: Vec<_> = bad.chunks_mut(mr).zip(x.chunks(mr * k)).map(Mutex::new).collect();
            executor.run(parts.len(), &|i| {
                let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
                let (bad, x) = &mut *part;
                bad.iter_mut().zip(x.chunks(k)).for_each(|(bad, row)| *bad = isa.absmax_bits(row) >= INF_BITS);
            });
            Values::Given(x)
        } else {
            let mut wide = Scratch::of::<f32>(m * k);
            let parts: Vec<_> =
                bad.chunks_mut(mr).zip(wide.as_mut::<f32>().chunks_mut(mr * k)).map(Mutex::new).collect();
            executor.run(parts.len(), &|i| {
                let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
                let (bad, wide) = &mut *part;
                let mut scratch = Vec::new();
                for (r, (bad, wide)) in bad.iter_mut().zip(wide.chunks_mut(k)).enumerate() {
                    wide.copy_from_slice(x.widen((i * mr + r) * k..(i * mr + r + 1) * k, &mut scratch));
                    *bad = isa.absmax_bits(wide) >= INF_BITS;
                }
            });
            drop(parts);
            Values::Widened(wide)
        };
        Self { m, k, mr, values, bad }
    }

    fn blocks(&self) -> usize {
        self.m.div_ceil(self.mr)
    }

    /// First row and number of rows of block `i`.
    fn rows(&self, i: usize) -> (usize, usize) {
        (i * self.mr, self.mr.min(self.m - i * self.mr))
    }

    /// Everything from step `start` of row `row` on.
    fn from(&self, row: usize, start: usize) -> &[f32] {
        let all = match &self.values {
            Values::Given(x) => x,
            Values::Widened(x) => x.as_slice(),
        };
        &all[row * self.k + start..]
    }

    /// All rows as `a[k][row]`, k padded with zeros to `steps`.
    fn interleaved(&self, steps: usize) -> Scratch {
        let mut out = Scratch::of::<f32>(self.m * steps);
        let panel = out.as_mut::<f32>();
        for r in 0..self.m {
            let row = &self.from(r, 0)[..self.k];
            panel[r..].iter_mut().step_by(self.m).zip(row).for_each(|(p, v)| *p = *v);
        }
        panel[self.k * self.m..].fill(0.0);
        out
    }
}

/// `out = x · dequantize(w)`.
#[allow(unsafe_code)]
pub(super) fn linear(
    x: Floats,
    m: usize,
    w: &PackedRef,
    bias: Option<&[f32]>,
    out: SharedOut,
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    let steps = w.k().next_multiple_of(block_steps(w.qtype()));
    let aligned = w.groups() <= 1 || w.group_size().is_multiple_of(block_steps(w.qtype()));
    let few = m <= MAX_DOT_ROWS && aligned;
    let mr = if few { MAX_DOT_ROWS } else { isa.float_mr };
    let rows = Rows::new(x, m, w.k(), mr, isa, executor);
    let interleaved = if few { rows.interleaved(steps) } else { Scratch::of::<f32>(0) };
    let tasks = Tasks::new(rows.blocks(), mr, w.panels(), executor.threads());
    executor.run(tasks.count(), &|task| {
        let (index, blocks) = tasks.get(task);
        let panel = w.panel(index);
        let params = PanelParams::float(&panel, w.qtype());
        let first_row = rows.rows(blocks.start).0;
        let (last, count) = rows.rows(blocks.end - 1);
        let mut f = Scratch::of::<f32>((last + count - first_row) * panel.cols);
        let f = f.as_mut::<f32>();
        f.fill(0.0);
        if few {
            dot(isa, w, &panel, &params, (interleaved.as_slice(), m), f);
        } else {
            tiles(isa, w, &panel, &params, &rows, blocks, f);
        }
        for (r, f) in f.chunks_exact_mut(panel.cols).enumerate() {
            let (row, f) = (first_row + r, &mut f[..panel.used]);
            if rows.bad[row] {
                f.fill(f32::NAN);
            } else if let Some(bias) = bias {
                isa.finish(f, 1.0, Some(&bias[panel.first..][..panel.used]));
            }
            // SAFETY: `out` lives as long as the call; this task alone has these rows of this panel's columns.
            unsafe { out.write(row * w.n() + panel.first, f) };
        }
    });
    Ok(())
}

/// Few rows: codes become floats in registers.
fn dot(isa: &Isa, w: &PackedRef, panel: &Panel, params: &PanelParams, (a, rows): (&[f32], usize), f: &mut [f32]) {
    let (cols, per_block) = (panel.cols, block_steps(w.qtype()));
    let kernel = isa.kernel(w.qtype());
    let mut acc = [0f32; MAX_DOT_ROWS * 64];
    let acc = &mut acc[..rows * cols];
    for group in 0..w.groups() {
        let start = group * w.group_size();
        let end = (start + w.group_size().min(w.k() - start)).next_multiple_of(per_block);
        let b = &panel.weights[start / per_block * block_bytes(cols)..end / per_block * block_bytes(cols)];
        acc.fill(0.0);
        kernel.dot(&a[start * rows..end * rows], rows, b, cols, params.group_zeros(group), acc);
        for (acc, f) in acc.chunks_exact(cols).zip(f.chunks_exact_mut(cols)) {
            isa.add_scaled(acc, params.group_scales(group), f);
        }
    }
}

/// Many rows: a stretch of the panel is expanded to floats once, then multiplied with every row block.
fn tiles(
    isa: &Isa,
    w: &PackedRef,
    panel: &Panel,
    params: &PanelParams,
    rows: &Rows,
    blocks: Range<usize>,
    f: &mut [f32],
) {
    let (cols, per_block) = (panel.cols, block_steps(w.qtype()));
    let first_row = rows.rows(blocks.start).0;
    for start in (0..w.k()).step_by(EXPAND) {
        let end = (start + EXPAND).min(w.k());
        let b = &panel.weights[start / per_block * block_bytes(cols)..end.div_ceil(per_block) * block_bytes(cols)];
        let groups =
            Groups { first: start, size: w.group_size(), scales: params.scales(), zeros: params.plain_zeros() };
        let mut weights = Scratch::of::<f32>((end - start) * cols);
        isa.expand(b, cols, w.qtype(), groups, weights.as_mut());
        for block in blocks.clone() {
            let (row, count) = rows.rows(block);
            let f = &mut f[(row - first_row) * cols..][..count * cols];
            isa.float_tile(rows.from(row, start), w.k(), count, weights.as_slice(), cols, f);
        }
    }
}
