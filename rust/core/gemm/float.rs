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
/// Elements below which the calling thread arranges the rows alone.
const SERIAL_ELEMENTS: usize = 1 << 15;

/// Float activations as `a[k][row]` in blocks of up to `mr` rows, k padded with zeros to whole blocks of weights.
struct Rows {
    m: usize,
    mr: usize,
    steps: usize,
    panels: Scratch,
    /// Rows with NaN or infinity: 1.
    bad: Scratch,
}

impl Rows {
    fn new(x: Floats, m: usize, k: usize, steps: usize, mr: usize, isa: &Isa, executor: &dyn Executor) -> Self {
        let (mut panels, mut bad) = (Scratch::of::<f32>(m * steps), Scratch::of::<u8>(m));
        let parts: Vec<_> = panels
            .as_mut::<f32>()
            .chunks_mut((mr * steps).max(1))
            .zip(bad.as_mut::<u8>().chunks_mut(mr))
            .map(Mutex::new)
            .collect();
        let task = |i: usize| {
            let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            let (panel, bad) = &mut *part;
            let rows = bad.len();
            let mut wide = Vec::new();
            for r in 0..rows {
                let row = x.widen((i * mr + r) * k..(i * mr + r + 1) * k, &mut wide);
                bad[r] = (isa.absmax_bits(row) >= INF_BITS).into();
                panel.iter_mut().skip(r).step_by(rows).zip(row).for_each(|(p, v)| *p = *v);
            }
            panel[k * rows..].fill(0.0);
        };
        if m * k <= SERIAL_ELEMENTS {
            (0..parts.len()).for_each(task)
        } else {
            executor.run(parts.len(), &task)
        }
        drop(parts);
        Self { m, mr, steps, panels, bad }
    }

    fn blocks(&self) -> usize {
        self.m.div_ceil(self.mr)
    }

    /// First row and number of rows of block `i`.
    fn rows(&self, i: usize) -> (usize, usize) {
        (i * self.mr, self.mr.min(self.m - i * self.mr))
    }

    fn steps(&self, block: usize, steps: Range<usize>) -> &[f32] {
        let (row, rows) = self.rows(block);
        &self.panels.as_slice::<f32>()[row * self.steps + steps.start * rows..row * self.steps + steps.end * rows]
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
    let rows = Rows::new(x, m, w.k(), steps, mr, isa, executor);
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
            dot(isa, w, &panel, &params, &rows, f);
        } else {
            tiles(isa, w, &panel, &params, &rows, blocks, f);
        }
        for (r, f) in f.chunks_exact_mut(panel.cols).enumerate() {
            let (row, f) = (first_row + r, &mut f[..panel.used]);
            if rows.bad.as_slice::<u8>()[row] != 0 {
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
fn dot(isa: &Isa, w: &PackedRef, panel: &Panel, params: &PanelParams, rows: &Rows, f: &mut [f32]) {
    let (cols, per_block) = (panel.cols, block_steps(w.qtype()));
    let kernel = isa.kernel(w.qtype());
    let mut acc = [0f32; MAX_DOT_ROWS * 64];
    let acc = &mut acc[..rows.m * cols];
    for group in 0..w.groups() {
        let start = group * w.group_size();
        let end = (start + w.group_size().min(w.k() - start)).next_multiple_of(per_block);
        let b = &panel.weights[start / per_block * block_bytes(cols)..end / per_block * block_bytes(cols)];
        acc.fill(0.0);
        kernel.dot(rows.steps(0, start..end), rows.m, b, cols, params.group_zeros(group), acc);
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
            isa.float_tile(rows.steps(block, start..end), count, weights.as_slice(), cols, f);
        }
    }
}
