//! Row panels times one panel of weights, in as many kernel calls as the plan and the caches ask for.

use super::UNPACK_ROWS;
use super::plan::{Alignment, Piece, Plan};
use super::row_panels::RowPanels;
use crate::buffer::Scratch;
use crate::cpu::{GroupRun, Isa, Microkernel, Outputs, block_bytes};
use crate::epilogue::{FOLD, PanelParams, Sums};
use crate::matrix::ZeroPoints;
use crate::prepack::Panel;
use crate::qtype::QuantType;
use std::ops::Range;

/// What multiplies: the kernel of a weight's type, and how k is cut for it.
pub(crate) struct Multiplier<'a> {
    pub isa: &'static Isa,
    pub kernel: &'static Microkernel,
    plan: &'a Plan,
    /// Whether panels are unpacked first.
    unpack: bool,
}

impl<'a> Multiplier<'a> {
    /// For weights of `qtype` and calls of `m` rows.
    pub(crate) fn new(isa: &'static Isa, qtype: QuantType, plan: &'a Plan, m: usize) -> Self {
        let unpack = plan.alignment != Alignment::Block || (qtype.per_byte() > 1 && m > UNPACK_ROWS);
        Self { isa, kernel: isa.kernel(qtype), plan, unpack }
    }

    /// Multiply the row blocks `blocks` by one panel. `done(block, segment, acc)` gets each segment's sums.
    pub(crate) fn segments(
        &self,
        acts: &RowPanels,
        runs: &[Vec<Piece>],
        panel: &Panel,
        blocks: Range<usize>,
        mut done: impl FnMut(usize, usize, &[i32]),
    ) {
        let cols = panel.cols;
        let per = self.kernel.weight.per_byte();
        let first_row = acts.rows(blocks.start).0;
        let (last, count) = acts.rows(blocks.end - 1);
        let mut acc = Scratch::of::<i32>((last + count - first_row) * cols);
        let acc = acc.as_mut::<i32>();
        let regrouped = (self.plan.alignment == Alignment::None).then(|| self.regroup(panel));
        let mut codes = Scratch::of::<u8>(0);
        for run in runs {
            let Some(head) = run.first() else { continue };
            let quads: usize = run.iter().map(|p| p.quads).sum();
            // blocks that hold the run's quads, and the quad they start with
            let base = head.first_quad / per * per;
            if self.unpack && regrouped.is_none() {
                codes = self.unpack(panel, head.first_quad, quads);
            }
            for block in blocks.clone() {
                let (row, rows) = acts.rows(block);
                let acc = &mut acc[(row - first_row) * cols..][..rows * cols];
                for p in run {
                    let a = acts.quads(block, p.first_quad, p.quads);
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

    /// The same where the kernel does all that a group needs: sums in float of the row blocks `blocks`, or at once what
    /// `outputs` says of a block.
    pub(crate) fn groups<'o>(
        &self,
        acts: &RowPanels,
        panel: &Panel,
        offset: i32,
        blocks: Range<usize>,
        f: &mut Sums,
        outputs: impl Fn(usize) -> Option<Outputs<'o>>,
    ) {
        let (cols, per) = (panel.cols, self.kernel.weight.per_byte());
        let first_row = acts.rows(blocks.start).0;
        for groups in self.plan.group_runs(self.unpack, FOLD) {
            let segments = &self.plan.segments[groups.clone()];
            let (first, quads) = (segments[0].first_quad, segments.iter().map(|s| s.quads).sum::<usize>());
            let codes = self.unpack.then(|| self.unpack(panel, first, quads));
            let b = match &codes {
                Some(codes) => (&codes.as_slice::<u8>()[first % per * cols * 4..][..quads * cols * 4], true),
                None => (&panel.weights[first / per * block_bytes(cols)..][..quads / per * block_bytes(cols)], false),
            };
            let entries = groups.start * cols..groups.end * cols;
            for block in blocks.clone() {
                let (row, rows) = acts.rows(block);
                let run = GroupRun {
                    quads: segments[0].quads,
                    fresh: groups.start == 0,
                    scales: panel.scales.slice(entries.clone()),
                    zeros: match panel.zeros {
                        ZeroPoints::U8(z) => Some(&z[entries.clone()]),
                        _ => None,
                    },
                    offset: offset as u8,
                    sums: acts.sums(block, groups.start, groups.len()),
                };
                let at = (row - first_row) * cols..(row - first_row + rows) * cols;
                let outputs = if groups.end == self.plan.segments.len() { outputs(block) } else { None };
                let a = acts.quads(block, first, quads);
                self.kernel.grouped(a, rows, b, cols, run, f.running(at.clone()), outputs);
                f.added(self.isa, groups.end - 1, at);
            }
        }
    }

    /// One byte per code of the blocks that hold the quads from `first` on.
    fn unpack(&self, panel: &Panel, first: usize, quads: usize) -> Scratch {
        let per = self.kernel.weight.per_byte();
        let blocks = first / per..(first + quads).div_ceil(per);
        let packed = &panel.weights[blocks.start * block_bytes(panel.cols)..blocks.end * block_bytes(panel.cols)];
        let mut codes = Scratch::of::<u8>(packed.len() * per);
        self.kernel.unpack(packed, panel.cols, codes.as_mut());
        codes
    }

    /// All codes of a panel, one byte each, every segment starting with a quad.
    fn regroup(&self, panel: &Panel) -> Scratch {
        let cols = panel.cols;
        let codes = self.unpack(panel, 0, panel.weights.len() / block_bytes(cols) * self.kernel.weight.per_byte());
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

/// Sums beyond int32, per row block: Σ a·q over signed codes, and Σa.
#[derive(Default)]
pub(crate) struct DeepSums {
    blocks: Vec<(Vec<i64>, Vec<i64>)>,
}

impl DeepSums {
    pub(crate) fn add(&mut self, len: usize, block: usize, offset: i32, acc: &[i32], sums: &[i32]) {
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, Default::default());
        }
        let (dots, totals) = &mut self.blocks[block];
        dots.resize(len, 0);
        totals.resize(sums.len(), 0);
        let cols = len / sums.len();
        for (i, (dot, acc)) in dots.iter_mut().zip(acc).enumerate() {
            *dot += i64::from(acc.wrapping_sub(offset.wrapping_mul(sums[i / cols])));
        }
        totals.iter_mut().zip(sums).for_each(|(t, s)| *t += i64::from(*s));
    }

    pub(crate) fn finish(&mut self, block: usize, params: &PanelParams, group: usize, cols: usize, f: &mut [f32]) {
        let (dots, totals) = &mut self.blocks[block];
        for ((dots, total), f) in dots.chunks(cols).zip(totals.iter()).zip(f.chunks_mut(cols)) {
            params.add_deep_group(group, dots, *total, f);
        }
        dots.fill(0);
        totals.fill(0);
    }
}
