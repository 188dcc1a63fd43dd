//! The float path on bfloat16 products: codes are exact in bfloat16, and activations become as many bfloat16 rows
//! (*planes*) as hold all of their bits: one for bfloat16, two for float16, three for float32. Sums are float32.

use super::Tasks;
use super::float::{HUGE, STRETCH};
use super::plan::{Alignment, Plan};
use crate::buffer::{Scratch, Shared};
use crate::cpu::lanes::INF_BITS;
use crate::cpu::{Bf16, FloatRun, Isa, block_bytes};
use crate::epilogue::{FOLD, Sums, write_rows};
use crate::executor::Executor;
use crate::floats::{Floats, SharedOut};
use crate::prepack::{PackedRef, Panel};
use std::ops::Range;

/// Steps whose expanded codes (64 channels) stay in the second-level cache.
const CACHED: usize = 1024;
/// Rows up to which packed codes are expanded in registers, row block by row block.
const PACKED_ROWS: usize = 16;

/// Consecutive terms (groups, or stretches of a long one) that the kernel takes at once.
struct Run {
    terms: Range<usize>,
    /// The group of the first term.
    group: usize,
    first_quad: usize,
    /// Quads of all terms, and of one.
    quads: usize,
    each: usize,
}

/// How k is cut.
struct Cut {
    runs: Vec<Run>,
    terms: usize,
}

impl Cut {
    fn new(plan: &Plan, group_size: usize, expanded: bool) -> Self {
        let mut runs = Vec::new();
        if group_size > STRETCH {
            for segment in &plan.segments {
                for at in (0..segment.quads).step_by(STRETCH / 4) {
                    let quads = (STRETCH / 4).min(segment.quads - at);
                    let terms = runs.len()..runs.len() + 1;
                    let first_quad = segment.first_quad + at;
                    runs.push(Run { terms, group: segment.group, first_quad, quads, each: quads });
                }
            }
            return Self { terms: runs.len(), runs };
        }
        let groups = plan.segments.len();
        let fit = if expanded { (CACHED / group_size).max(1) } else { groups };
        let mut start = 0;
        while start < groups {
            let end = (start + fit).min((start / FOLD + 1) * FOLD).min(groups);
            let segments = &plan.segments[start..end];
            runs.push(Run {
                terms: start..end,
                group: start,
                first_quad: segments[0].first_quad,
                quads: segments.iter().map(|s| s.quads).sum(),
                each: segments[0].quads,
            });
            start = end;
        }
        Self { runs, terms: groups }
    }
}

/// Activations as the kernels read them.
struct Planes {
    m: usize,
    /// Rows of a block, and planes of a row.
    mr: usize,
    planes: usize,
    quads: usize,
    terms: usize,
    /// `[block][quad][row][plane][4]`, two bytes each.
    panels: Scratch,
    /// `[block][term][row][plane]`: Σa, all of it with the first plane.
    sums: Scratch,
    /// 1, or NaN for a row that holds NaN or infinity.
    factors: Scratch,
}

impl Planes {
    /// `None` if some activation is so large that sums might overflow.
    #[allow(unsafe_code)]
    fn new(
        x: Floats,
        (m, k, mr, planes): (usize, usize, usize, usize),
        quads: usize,
        cut: &Cut,
        isa: &Isa,
        executor: &dyn Executor,
    ) -> Option<Self> {
        let terms = cut.terms;
        let mut panels = Scratch::of::<u8>(m * planes * quads * 8);
        let mut sums = Scratch::of::<f32>(m * planes * terms);
        let mut factors = Scratch::of::<f32>(m);
        sums.as_mut::<f32>().fill(0.0);
        let shared = (Shared::new(panels.as_mut::<u8>()), Shared::new(sums.as_mut()), Shared::new(factors.as_mut()));
        let fill = |block: usize| {
            let (first, rows) = (block * mr, mr.min(m - block * mr));
            // SAFETY: each block's part is its task's alone, and the memory outlives the tasks.
            let (panel, sums, factors) = unsafe {
                (
                    shared.0.slice(first * planes * quads * 8, rows * planes * quads * 8),
                    shared.1.slice(first * planes * terms, rows * planes * terms),
                    shared.2.slice(first, rows),
                )
            };
            let (panel, _) = panel.as_chunks_mut::<8>();
            let mut scratch = Vec::new();
            let mut rest = vec![0f32; quads * 4];
            for (r, factor) in factors.iter_mut().enumerate() {
                let row = x.widen((first + r) * k..(first + r + 1) * k, &mut scratch);
                let most = isa.absmax_bits(row);
                *factor = f32::from_bits(most);
                let of_term = cut.runs.iter().flat_map(|run| {
                    run.terms.clone().map(move |t| {
                        let from = run.first_quad + (t - run.terms.start) * run.each;
                        let to = if t + 1 == run.terms.end { run.first_quad + run.quads } else { from + run.each };
                        (t, from * 4..to * 4)
                    })
                });
                for (term, steps) in of_term {
                    sums[(term * rows + r) * planes] = sum(&row[steps.start.min(k)..steps.end.min(k)]);
                }
                rest[..k].copy_from_slice(row);
                for p in 0..planes {
                    split(&mut rest, panel[r * planes + p..].iter_mut().step_by(rows * planes));
                }
            }
        };
        let blocks = m.div_ceil(mr);
        if blocks == 1 {
            fill(0)
        } else {
            executor.run(blocks, &fill)
        }
        let factors_mut = factors.as_mut::<f32>();
        let huge = factors_mut.iter().any(|most| (HUGE.to_bits()..INF_BITS).contains(&most.to_bits()));
        for most in factors_mut {
            *most = if most.to_bits() >= INF_BITS { f32::NAN } else { 1.0 };
        }
        (!huge).then_some(Self { m, mr, planes, quads, terms, panels, sums, factors })
    }

    fn blocks(&self) -> usize {
        self.m.div_ceil(self.mr)
    }

    /// First row and number of rows of block `i`.
    fn rows(&self, i: usize) -> (usize, usize) {
        (i * self.mr, self.mr.min(self.m - i * self.mr))
    }

    fn panel(&self, block: usize, run: &Run) -> &[u8] {
        let (first, rows) = self.rows(block);
        let at = first * self.planes * self.quads + run.first_quad * rows * self.planes;
        &self.panels.as_slice::<u8>()[at * 8..][..run.quads * rows * self.planes * 8]
    }

    fn sums(&self, block: usize, run: &Run) -> &[f32] {
        let (first, rows) = self.rows(block);
        let at = (first * self.terms + run.terms.start * rows) * self.planes;
        &self.sums.as_slice::<f32>()[at..][..run.terms.len() * rows * self.planes]
    }
}

/// The upper 16 bits of each value to the quads, in their order; what is left stays.
fn split<'a>(values: &mut [f32], quads: impl Iterator<Item = &'a mut [u8; 8]>) {
    let (values, _) = values.as_chunks_mut::<4>();
    for (v, out) in values.iter_mut().zip(quads) {
        let upper = v.map(|v| v.to_bits() & 0xffff_0000);
        for i in 0..4 {
            v[i] -= f32::from_bits(upper[i]);
        }
        let (low, high) = (upper[0] >> 16 | upper[2], upper[1] >> 16 | upper[3]);
        *out = (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    }
}

/// The sum, in sixteen parts.
fn sum(a: &[f32]) -> f32 {
    let mut parts = [0f32; 16];
    let (chunks, rest) = a.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            parts[i] += chunk[i];
        }
    }
    parts.iter().chain(rest).sum()
}

/// `out = x · dequantize(w)`, if these kernels are there and serve such a product best; else false, and nothing is done.
#[allow(unsafe_code)]
pub(super) fn linear(
    x: Floats,
    m: usize,
    w: &PackedRef,
    bias: Option<&[f32]>,
    (out, isa): (SharedOut, &Isa),
    executor: &dyn Executor,
) -> bool {
    let Some(kernels) = isa.bf16.as_ref().filter(|_| !w.qtype().is_float()) else { return false };
    let planes = match x {
        Floats::Bf16(_) => 1,
        Floats::F16(_) => 2,
        Floats::F32(_) => 3,
    };
    let plan = Plan::new(w.k(), w.group_size(), w.qtype());
    let packed = plan.alignment == Alignment::Block
        && kernels.reads_packed(w.qtype())
        && m <= if planes == 1 { PACKED_ROWS } else { kernels.mr / planes };
    if !packed && (planes > 1 || m <= isa.kernel(w.qtype()).dot_rows || plan.alignment == Alignment::None) {
        return false;
    }
    let cut = Cut::new(&plan, w.group_size().min(w.k()), !packed);
    let blocks = (m * planes).div_ceil(kernels.mr);
    let mr = m.div_ceil(blocks); // as even as can be
    let Some(acts) = Planes::new(x, (m, w.k(), mr, planes), plan.quads, &cut, isa, executor) else { return false };
    let tasks = Tasks::new(acts.blocks(), mr, w.panels(), executor.threads());
    executor.run(tasks.count(), &|task| {
        let (index, blocks) = tasks.get(task);
        let panel = w.panel(index);
        let first_row = acts.rows(blocks.start).0;
        let (last, count) = acts.rows(blocks.end - 1);
        let rows = last + count - first_row;
        let mut f = Sums::fresh(rows * planes * panel.cols, cut.terms);
        multiply(isa, kernels, w, &panel, &acts, &cut, (blocks, packed), &mut f);
        let f = f.finish(isa);
        let cols = panel.cols;
        for r in 0..if planes == 1 { 0 } else { rows } {
            for p in 1..planes {
                let (done, plane) = f.split_at_mut((r * planes + p) * cols);
                let first = &mut done[r * planes * cols..][..cols];
                first.iter_mut().zip(&plane[..cols]).for_each(|(f, p)| *f += p);
            }
            f.copy_within(r * planes * cols..(r * planes + 1) * cols, r * cols);
        }
        let factors = &acts.factors.as_slice::<f32>()[first_row..last + count];
        // SAFETY: `out` lives as long as the call; this task alone has these rows of this panel's columns.
        unsafe { write_rows(isa, &f[..rows * cols], &panel, factors, bias, (out, w.n(), first_row)) };
    });
    true
}

/// The row blocks `blocks` times one panel, into `f`.
fn multiply(
    isa: &Isa,
    kernels: &Bf16,
    w: &PackedRef,
    panel: &Panel,
    acts: &Planes,
    cut: &Cut,
    (blocks, packed): (Range<usize>, bool),
    f: &mut Sums,
) {
    let (cols, per, planes) = (panel.cols, w.qtype().per_byte(), acts.planes);
    let first_row = acts.rows(blocks.start).0;
    for run in &cut.runs {
        let span = run.first_quad / per..(run.first_quad + run.quads).div_ceil(per);
        let blocks_of_run = &panel.weights[span.start * block_bytes(cols)..span.end * block_bytes(cols)];
        let codes = (!packed).then(|| {
            let mut codes = Scratch::of::<u8>(blocks_of_run.len() * per * 2);
            kernels.expand(w.qtype(), blocks_of_run, cols, codes.as_mut());
            codes
        });
        let b = match &codes {
            None => blocks_of_run,
            Some(codes) => &codes.as_slice()[run.first_quad % per * cols * 8..][..run.quads * cols * 8],
        };
        let groups = run.group * cols..(run.group + run.terms.len()) * cols;
        for block in blocks.clone() {
            let (row, rows) = acts.rows(block);
            let at = (row - first_row) * planes * cols..(row - first_row + rows) * planes * cols;
            let of = FloatRun {
                quads: run.each,
                fresh: run.terms.start == 0,
                scales: panel.scales.slice(groups.clone()),
                zeros: panel.zeros.slice(groups.clone()),
                offset: w.qtype().offset(),
                sums: acts.sums(block, run),
            };
            let a = acts.panel(block, run);
            kernels.grouped(w.qtype(), a, rows * planes, (b, !packed), cols, of, f.running(at.clone()));
            f.added(isa, run.terms.end - 1, at);
        }
    }
}
