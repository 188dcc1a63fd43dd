//! The float path (weight-only): activations stay float, weights are expanded on the way.

use super::{Tasks, bf16};
use crate::buffer::Scratch;
use crate::cpu::lanes::{Groups, INF_BITS};
use crate::cpu::{self, Isa, MAX_DOT_ROWS, block_bytes, block_steps};
use crate::epilogue::{PanelParams, Sums, write_rows};
use crate::error::Result;
use crate::executor::Executor;
use crate::floats::{Floats, SharedOut};
use crate::prepack::{PackedRef, Panel};
use std::ops::Range;
use std::sync::Mutex;

/// Steps of k that are summed in one float32 before the sum joins the others: rounding then stays below 1e-5 of the
/// terms' magnitudes even when all of it goes one way. 64 channels of as many expanded weights fill 96 KiB of cache.
pub(super) const STRETCH: usize = 384;
/// Activations from which on codes are scaled before they are summed, since the bare sum might overflow.
pub(super) const HUGE: f32 = 1e30;

/// Float activations, row by row, as float32; and which of them hold NaN or infinity.
struct Rows<'a> {
    m: usize,
    k: usize,
    mr: usize,
    values: Values<'a>,
    /// 1, or NaN for a row that holds NaN or infinity.
    factors: Vec<f32>,
    huge: bool,
}

enum Values<'a> {
    Given(&'a [f32]),
    Widened(Scratch),
}

impl<'a> Rows<'a> {
    fn new(x: Floats<'a>, m: usize, k: usize, mr: usize, isa: &Isa, executor: &dyn Executor) -> Self {
        let mut most = vec![0u32; m];
        let values = if let Floats::F32(x) = x {
            let parts: Vec<_> = most.chunks_mut(mr).zip(x.chunks(mr * k)).map(Mutex::new).collect();
            executor.run(parts.len(), &|i| {
                let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
                let (most, x) = &mut *part;
                most.iter_mut().zip(x.chunks(k)).for_each(|(most, row)| *most = isa.absmax_bits(row));
            });
            Values::Given(x)
        } else {
            let mut wide = Scratch::of::<f32>(m * k);
            let parts: Vec<_> =
                most.chunks_mut(mr).zip(wide.as_mut::<f32>().chunks_mut(mr * k)).map(Mutex::new).collect();
            executor.run(parts.len(), &|i| {
                let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
                let (most, wide) = &mut *part;
                let mut scratch = Vec::new();
                for (r, (most, wide)) in most.iter_mut().zip(wide.chunks_mut(k)).enumerate() {
                    wide.copy_from_slice(x.widen((i * mr + r) * k..(i * mr + r + 1) * k, &mut scratch));
                    *most = isa.absmax_bits(wide);
                }
            });
            drop(parts);
            Values::Widened(wide)
        };
        let factors = most.iter().map(|bits| if *bits >= INF_BITS { f32::NAN } else { 1.0 }).collect();
        let huge = most.iter().any(|bits| (HUGE.to_bits()..INF_BITS).contains(bits));
        Self { m, k, mr, values, factors, huge }
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

    /// Each block of rows as `a[k][row]`, k padded with zeros to `steps`.
    fn interleaved(&self, steps: usize) -> Scratch {
        let mut out = Scratch::of::<f32>(self.m * steps);
        for block in 0..self.blocks() {
            let (first, rows) = self.rows(block);
            let panel = &mut out.as_mut::<f32>()[first * steps..][..rows * steps];
            for r in 0..rows {
                let row = &self.from(first + r, 0)[..self.k];
                panel[r..].iter_mut().step_by(rows).zip(row).for_each(|(p, v)| *p = *v);
            }
            panel[self.k * rows..].fill(0.0);
        }
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
    if bf16::linear(x, m, w, bias, (out, isa), executor) {
        return Ok(());
    }
    let steps = w.k().next_multiple_of(block_steps(w.qtype()));
    let aligned = w.groups() <= 1 || w.group_size().is_multiple_of(block_steps(w.qtype()));
    let mut rows = Rows::new(x, m, w.k(), isa.float_mr, isa, executor);
    // float8 codes are always expanded
    let few = !w.qtype().is_float() && m <= isa.kernel(w.qtype()).dot_rows && aligned && !rows.huge;
    let stretches = if few { stretches(w) } else { Vec::new() };
    let terms = if few { stretches.len() } else { w.k().div_ceil(STRETCH) };
    if few {
        rows.mr = MAX_DOT_ROWS;
    }
    let interleaved = if few { rows.interleaved(steps) } else { Scratch::of::<f32>(0) };
    let tasks = Tasks::new(rows.blocks(), rows.mr, w.panels(), executor.threads());
    executor.run(tasks.count(), &|task| {
        let (index, blocks) = tasks.get(task);
        let panel = w.panel(index);
        let params = PanelParams::float(&panel, w.qtype());
        let first_row = rows.rows(blocks.start).0;
        let (last, count) = rows.rows(blocks.end - 1);
        let mut f = Sums::new((last + count - first_row) * panel.cols, terms);
        if few {
            for block in blocks.clone() {
                let (row, count) = rows.rows(block);
                let a = &interleaved.as_slice::<f32>()[row * steps..][..count * steps];
                let at = (row - first_row) * panel.cols..(row - first_row + count) * panel.cols;
                dot(isa, w, &panel, &params, &stretches, (a, count), &mut f, at);
            }
        } else {
            tiles(isa, w, &panel, &params, &rows, blocks, &mut f);
        }
        let factors = &rows.factors[first_row..last + count];
        // SAFETY: `out` lives as long as the call; this task alone has these rows of this panel's columns.
        unsafe { write_rows(isa, f.finish(isa), &panel, factors, bias, (out, w.n(), first_row)) };
    });
    Ok(())
}

/// The stretches of k that [`dot`] takes at once, each within a group: group, first step, end.
fn stretches(w: &PackedRef) -> Vec<(usize, usize, usize)> {
    let per_block = block_steps(w.qtype());
    let mut all = Vec::new();
    for group in 0..w.groups() {
        let start = group * w.group_size();
        let end = (start + w.group_size().min(w.k() - start)).next_multiple_of(per_block);
        all.extend((start..end).step_by(STRETCH).map(|from| (group, from, (from + STRETCH).min(end))));
    }
    all
}

/// Few rows: codes become floats in registers.
fn dot(
    isa: &Isa,
    w: &PackedRef,
    panel: &Panel,
    params: &PanelParams,
    stretches: &[(usize, usize, usize)],
    (a, rows): (&[f32], usize),
    f: &mut Sums,
    at: Range<usize>,
) {
    let (cols, per_block) = (panel.cols, block_steps(w.qtype()));
    let kernel = isa.kernel(w.qtype());
    for (term, &(group, start, end)) in stretches.iter().enumerate() {
        let b = &panel.weights[start / per_block * block_bytes(cols)..end / per_block * block_bytes(cols)];
        let (scales, zeros) = (params.group_scales(group), params.group_zeros(group));
        kernel.dot(&a[start * rows..end * rows], rows, b, cols, scales, zeros, f.running(at.clone()));
        f.added(isa, term, at.clone());
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
    f: &mut Sums,
) {
    let (cols, per_block) = (panel.cols, block_steps(w.qtype()));
    let first_row = rows.rows(blocks.start).0;
    let mut weights = Scratch::of::<f32>(STRETCH.min(w.k()) * cols);
    let mut acc = Scratch::of::<f32>(rows.mr * cols);
    for (term, start) in (0..w.k()).step_by(STRETCH).enumerate() {
        let end = (start + STRETCH).min(w.k());
        let b = &panel.weights[start / per_block * block_bytes(cols)..end.div_ceil(per_block) * block_bytes(cols)];
        let groups =
            Groups { first: start, size: w.group_size(), scales: params.scales(), zeros: params.plain_zeros() };
        let weights = &mut weights.as_mut::<f32>()[..(end - start) * cols];
        isa.expand(b, cols, w.qtype(), groups, weights);
        for block in blocks.clone() {
            let (row, count) = rows.rows(block);
            let at = (row - first_row) * cols..(row - first_row + count) * cols;
            let a = rows.from(row, start);
            if term == 0 {
                isa.float_tile(a, w.k(), count, weights, cols, f.running(at.clone()));
            } else {
                let acc = &mut acc.as_mut::<f32>()[..count * cols];
                acc.fill(0.0);
                isa.float_tile(a, w.k(), count, weights, cols, acc);
                isa.add(acc, f.running(at.clone()));
            }
            f.added(isa, term, at);
        }
    }
}
