//! The integer path: int8 activations times packed codes, summed exactly.

use super::activations::{Activations, Source};
use super::plan::{Alignment, Piece, Plan};
use super::{Tasks, unpack_rows};
use crate::buffer::Scratch;
use crate::cpu::{self, Isa, Microkernel, block_bytes};
use crate::epilogue::{PanelParams, Sums};
use crate::error::Result;
use crate::executor::Executor;
use crate::floats::{Floats, SharedOut};
use crate::prepack::{PackedRef, Panel};

/// A product in progress: everything that its tasks share.
struct Product<'a> {
    isa: &'static Isa,
    kernel: &'static Microkernel,
    plan: &'a Plan,
    runs: Vec<Vec<Piece>>,
    acts: Activations,
    /// Whether panels are unpacked first.
    unpack: bool,
}

impl<'a> Product<'a> {
    fn new(source: Source, m: usize, w: &PackedRef, plan: &'a Plan, executor: &dyn Executor) -> Result<Self> {
        let isa = cpu::active()?;
        let kernel = isa.kernel(w.qtype());
        let acts = Activations::new(source, m, w.k(), plan, isa, kernel, executor);
        let unpack = plan.alignment != Alignment::Block || (w.qtype().per_byte() > 1 && m > unpack_rows(kernel.mr));
        Ok(Self { isa, kernel, plan, runs: plan.runs(), acts, unpack })
    }

    /// Multiply the row blocks `blocks` by one panel. `done(block, segment, acc)` gets each segment's sums.
    fn panel(&self, panel: &Panel, blocks: std::ops::Range<usize>, mut done: impl FnMut(usize, usize, &[i32])) {
        let (cols, quad_bytes) = (panel.cols, self.kernel.quad_bytes());
        let per = self.kernel.weight.per_byte();
        let first_row = self.acts.rows(blocks.start).0;
        let (last, count) = self.acts.rows(blocks.end - 1);
        let mut acc = Scratch::of::<i32>((last + count - first_row) * cols);
        let acc = acc.as_mut::<i32>();
        let regrouped = (self.plan.alignment == Alignment::None).then(|| self.regroup(panel));
        let mut codes = Scratch::of::<u8>(0);
        for run in &self.runs {
            let Some(head) = run.first() else { continue };
            let quads: usize = run.iter().map(|p| p.quads).sum();
            // blocks that hold the run's quads, and the quad they start with
            let base = head.first_quad / per * per;
            if self.unpack && regrouped.is_none() {
                let blocks = head.first_quad / per..(head.first_quad + quads).div_ceil(per);
                let packed = &panel.weights[blocks.start * block_bytes(cols)..blocks.end * block_bytes(cols)];
                codes = Scratch::of::<u8>(packed.len() * per);
                self.kernel.unpack(packed, cols, codes.as_mut());
            }
            for block in blocks.clone() {
                let (row, rows) = self.acts.rows(block);
                let acc = &mut acc[(row - first_row) * cols..][..rows * cols];
                for p in run {
                    let a = self.acts.quads(block, p.first_quad, p.quads, quad_bytes);
                    if let Some(all) = &regrouped {
                        let b = &all.as_slice::<u8>()[p.first_quad * cols * 4..][..p.quads * cols * 4];
                        self.kernel.tile_unpacked(a, rows, b, cols, acc, !p.starts);
                    } else if self.unpack {
                        let b = &codes.as_slice::<u8>()[(p.first_quad - base) * cols * 4..][..p.quads * cols * 4];
                        self.kernel.tile_unpacked(a, rows, b, cols, acc, !p.starts);
                    } else {
                        let b = &panel.weights[p.first_quad / per * block_bytes(cols)..];
                        self.kernel.tile(a, rows, &b[..p.quads / per * block_bytes(cols)], cols, acc, !p.starts);
                    }
                    if p.ends {
                        done(block, p.segment, acc);
                    }
                }
            }
        }
    }

    /// All codes of a panel, one byte each, every segment starting with a quad.
    fn regroup(&self, panel: &Panel) -> Scratch {
        let cols = panel.cols;
        let mut codes = Scratch::of::<u8>(panel.weights.len() * self.kernel.weight.per_byte());
        self.kernel.unpack(panel.weights, cols, codes.as_mut());
        let codes = codes.as_slice::<u8>();
        let mut out = Scratch::of::<u8>(self.plan.quads * cols * 4);
        out.as_mut::<u8>().fill(0);
        for s in &self.plan.segments {
            for i in 0..s.len {
                let (from, to) = (s.start + i, s.first_quad * 4 + i);
                let source = &codes[from / 4 * cols * 4 + from % 4..];
                let target = &mut out.as_mut::<u8>()[to / 4 * cols * 4 + to % 4..];
                for (t, s) in target.iter_mut().step_by(4).zip(source.iter().step_by(4)).take(cols) {
                    *t = *s;
                }
            }
        }
        out
    }
}

/// `out = quantize(x) · w`, dequantized.
#[allow(unsafe_code)]
pub(super) fn linear(
    x: Floats,
    m: usize,
    w: &PackedRef,
    bias: Option<&[f32]>,
    out: SharedOut,
    executor: &dyn Executor,
) -> Result<()> {
    let plan = Plan::new(w.k(), w.group_size(), w.qtype());
    let product = Product::new(Source::Floats(x), m, w, &plan, executor)?;
    let tasks = Tasks::new(product.acts.blocks(), product.kernel.mr, w.panels(), executor.threads());
    executor.run(tasks.count(), &|task| {
        let (index, blocks) = tasks.get(task);
        let panel = w.panel(index);
        let (isa, acts) = (product.isa, &product.acts);
        let params = PanelParams::integer(&panel, w.qtype());
        let first_row = acts.rows(blocks.start).0;
        let (last, count) = acts.rows(blocks.end - 1);
        let mut f = Sums::new((last + count - first_row) * panel.cols, w.groups());
        let mut deep = DeepSums::default();
        product.panel(&panel, blocks.clone(), |block, segment, acc| {
            let s = &plan.segments[segment];
            let (row, rows) = acts.rows(block);
            let at = (row - first_row) * panel.cols..(row - first_row + rows) * panel.cols;
            let running = f.running(at.clone());
            let sums = (row..row + rows).map(|r| acts.sum(r, segment));
            if s.deep {
                deep.add(running.len(), block - blocks.start, w.qtype().offset(), acc, sums);
                if s.ends_group {
                    deep.finish(block - blocks.start, &params, s.group, panel.cols, running);
                }
            } else {
                params.add_group(isa, s.group, acc, sums, running);
            }
            if s.ends_group {
                f.added(isa, s.group, at);
            }
        });
        for (r, f) in f.finish(isa).chunks_exact_mut(panel.cols).enumerate() {
            let row = first_row + r;
            let bias = bias.map(|b| &b[panel.first..panel.first + panel.used]);
            isa.finish(&mut f[..panel.used], acts.scale(row), bias);
            // SAFETY: `out` lives as long as the call; this task alone has these rows of this panel's columns.
            unsafe { out.write(row * w.n() + panel.first, &f[..panel.used]) };
        }
    });
    Ok(())
}

/// Sums beyond int32, per row block: Σ a·q over signed codes, and Σa.
#[derive(Default)]
struct DeepSums {
    blocks: Vec<(Vec<i64>, Vec<i64>)>,
}

impl DeepSums {
    fn add(&mut self, len: usize, block: usize, offset: i32, acc: &[i32], sums: impl Iterator<Item = i32>) {
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, Default::default());
        }
        let (dots, totals) = &mut self.blocks[block];
        dots.resize(len, 0);
        let sums: Vec<i32> = sums.collect();
        totals.resize(sums.len(), 0);
        let cols = len / sums.len();
        for (i, (dot, acc)) in dots.iter_mut().zip(acc).enumerate() {
            *dot += i64::from(acc.wrapping_sub(offset.wrapping_mul(sums[i / cols])));
        }
        totals.iter_mut().zip(&sums).for_each(|(t, s)| *t += i64::from(*s));
    }

    fn finish(&mut self, block: usize, params: &PanelParams, group: usize, cols: usize, f: &mut [f32]) {
        let (dots, totals) = &mut self.blocks[block];
        for ((dots, total), f) in dots.chunks(cols).zip(totals.iter()).zip(f.chunks_mut(cols)) {
            params.add_deep_group(group, dots, *total, f);
        }
        dots.fill(0);
        totals.fill(0);
    }
}

/// `out[m, n] = a · q`, the bare int32 product.
#[allow(unsafe_code)]
pub(super) fn product(a: &[i8], m: usize, w: &PackedRef, out: &mut [i32], executor: &dyn Executor) -> Result<()> {
    let plan = Plan::whole(w.k(), w.qtype());
    let product = Product::new(Source::Codes(a), m, w, &plan, executor)?;
    let tasks = Tasks::new(product.acts.blocks(), product.kernel.mr, w.panels(), executor.threads());
    let shared = SharedInts { at: out.as_mut_ptr(), len: out.len() };
    executor.run(tasks.count(), &|task| {
        let (index, blocks) = tasks.get(task);
        let panel = w.panel(index);
        product.panel(&panel, blocks, |block, _, acc| {
            let (first, _) = product.acts.rows(block);
            for (r, acc) in acc.chunks_exact(panel.cols).enumerate() {
                let shift = w.qtype().offset().wrapping_mul(product.acts.sum(first + r, 0));
                let at = (first + r) * w.n() + panel.first;
                // SAFETY: `out` lives as long as the call; this task alone has these rows of this panel's columns.
                let out = unsafe { shared.slice(at, panel.used) };
                out.iter_mut().zip(acc).for_each(|(o, v)| *o = v.wrapping_sub(shift));
            }
        });
    });
    Ok(())
}

/// An output that tasks write in disjoint pieces.
#[derive(Clone, Copy)]
struct SharedInts {
    at: *mut i32,
    len: usize,
}
// SAFETY: a plain address; `slice` asks its callers for disjoint ranges.
#[allow(unsafe_code)]
unsafe impl Sync for SharedInts {}
#[allow(unsafe_code)]
impl SharedInts {
    /// # Safety
    /// The buffer is still borrowed, and nobody else touches this range meanwhile.
    unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [i32] {
        assert!(start + len <= self.len, "output range");
        // SAFETY: in range (asserted) and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(start), len) }
    }
}
