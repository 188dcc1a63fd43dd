//! A convolution as products: tasks, each some output positions of one group, times all panels of that group.

use super::geometry::Geometry;
use super::output::Sink;
use super::patches::{PatchRows, Patches, ones};
use crate::buffer::Scratch;
use crate::cpu;
use crate::epilogue::{PanelParams, Sums};
use crate::error::Result;
use crate::executor::Executor;
use crate::gemm::{DeepSums, Multiplier, PART, Plan};
use crate::matrix::ZeroPoints;
use crate::prepack::{PackedRef, Panel};
use std::ops::Range;

/// Longest sum of (a − z)(q − Z) that int32 holds: 33,155 · 254 · 255 < 2^31. Longer ones are cut.
pub(super) const LONGEST: usize = PART;

/// Output positions of one task: their patches stay in the second-level cache.
const ROWS: usize = if cfg!(test) { 24 } else { 192 };

/// Sums, epilogue and all.
#[allow(unsafe_code)]
pub(super) fn multiply(
    patches: &Patches,
    factors: &[f32],
    w: &PackedRef,
    sink: &Sink,
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    let geometry = patches.geometry;
    let plan = Plan::within(LONGEST, w.k(), w.group_size(), w.qtype());
    let (rows, pixels) = (patches.rows(), patches.out_size[0] * patches.out_size[1]);
    let each = ROWS.min(rows.div_ceil(executor.threads())).max(1);
    let product = Product {
        multiplier: Multiplier::new(isa, w.qtype(), &plan, each),
        plan: &plan,
        ones: (patches.zero != 0).then(|| ones(w.k(), &plan, isa.kernel(w.qtype()))),
        zero: i32::from(patches.zero),
        w,
    };
    let blocks = rows.div_ceil(each);
    executor.run(blocks * geometry.groups, &|task| {
        let (group, first) = (task % geometry.groups, task / geometry.groups * each);
        let range = first..(first + each).min(rows);
        let packed = patches.pack(range.clone(), group, &plan, isa, product.multiplier.kernel);
        for (panel, used) in panels_of(w, geometry, group) {
            if sink.is_fixed() {
                let acc = product.integers(&packed, range.len(), &panel);
                for (row, acc) in range.clone().zip(acc.as_slice::<i32>().chunks_exact(panel.cols)) {
                    let columns = panel.first + used.start..panel.first + used.end;
                    // SAFETY: the output lives as long as the call; this task alone has these rows of these channels.
                    unsafe { sink.write_integers(isa, &acc[used.clone()], row, columns) };
                }
                continue;
            }
            let mut f = product.sums(&packed, range.len(), &sink.prepared(panel));
            let f = f.finish(isa);
            for (row, f) in range.clone().zip(f.chunks_exact(panel.cols)) {
                let factor = match factors {
                    [] => 1.0,
                    [factor] => *factor,
                    factors => factors[row / pixels],
                };
                let columns = panel.first + used.start..panel.first + used.end;
                // SAFETY: the output lives as long as the call; this task alone has these rows of this group's channels.
                unsafe { sink.write(isa, &f[used.clone()], row, columns, factor) };
            }
        }
    });
    Ok(())
}

/// The panels that hold a group's channels, and which of a panel's channels those are.
pub(super) fn panels_of<'a>(
    w: &PackedRef<'a>,
    geometry: &Geometry,
    group: usize,
) -> impl Iterator<Item = (Panel<'a>, Range<usize>)> + use<'a> {
    let channels = geometry.group_outputs(group);
    let w = *w;
    (channels.start / w.nr()..channels.end.div_ceil(w.nr())).map(move |index| {
        let panel = w.panel(index);
        let end = channels.end.min(panel.first + panel.used) - panel.first;
        (panel, channels.start.max(panel.first) - panel.first..end)
    })
}

/// What all tasks share.
struct Product<'a> {
    multiplier: Multiplier<'a>,
    plan: &'a Plan,
    /// For what the activations' zero point contributes.
    ones: Option<PatchRows>,
    zero: i32,
    w: &'a PackedRef<'a>,
}

impl Product<'_> {
    /// `f[rows][cols]` of one panel.
    fn sums(&self, packed: &PatchRows, count: usize, panel: &Panel) -> Sums {
        let (isa, cols) = (self.multiplier.isa, panel.cols);
        let (rows, runs) = (packed.view(self.plan, self.multiplier.kernel), self.plan.runs());
        let params = PanelParams::integer(panel, self.w.qtype());
        let shifts = self.shifts(panel);
        let (mut f, mut deep) = (Sums::new(count * cols, self.w.groups()), DeepSums::default());
        let mut shifted = Scratch::of::<i32>(self.multiplier.kernel.mr * cols);
        let blocks = 0..count.div_ceil(self.multiplier.kernel.mr);
        self.multiplier.segments(&rows, &runs, panel, blocks, |block, segment, acc| {
            let s = &self.plan.segments[segment];
            let (row, rows_here) = rows.rows(block);
            let (at, sums) = (row * cols..(row + rows_here) * cols, rows.sums(block, segment, 1));
            let acc = match &shifts {
                None => acc,
                Some(shifts) => {
                    let shift = &shifts.as_slice::<i32>()[segment * cols..][..cols];
                    let out = &mut shifted.as_mut::<i32>()[..acc.len()];
                    for (out, acc) in out.chunks_exact_mut(cols).zip(acc.chunks_exact(cols)) {
                        out.iter_mut().zip(acc).zip(shift).for_each(|((o, a), s)| *o = a.wrapping_sub(*s));
                    }
                    out
                }
            };
            let running = f.running(at.clone());
            if s.deep {
                deep.add(running.len(), block, self.w.qtype().offset(), acc, sums);
                if s.ends_group {
                    deep.finish(block, &params, s.group, cols, running);
                }
            } else {
                params.add_group(isa, s.group, acc, sums, running);
            }
            if s.ends_group {
                f.added(isa, s.group, at);
            }
        });
        f
    }

    /// `Σ (a − z)(q − Z)` `[rows][cols]` of one panel, where all steps share a scale and int32 holds their sum.
    fn integers(&self, packed: &PatchRows, count: usize, panel: &Panel) -> Scratch {
        let (cols, offset) = (panel.cols, self.w.qtype().offset());
        let (rows, shifts) = (packed.view(self.plan, self.multiplier.kernel), self.shifts(panel));
        let mut out = Scratch::of::<i32>(count * cols);
        let blocks = 0..count.div_ceil(self.multiplier.kernel.mr);
        self.multiplier.segments(&rows, &self.plan.runs(), panel, blocks, |block, segment, acc| {
            let (row, rows_here) = rows.rows(block);
            let out = &mut out.as_mut::<i32>()[row * cols..(row + rows_here) * cols];
            let of_rows = out.chunks_exact_mut(cols).zip(acc.chunks_exact(cols)).zip(rows.sums(block, segment, 1));
            for ((out, acc), sum) in of_rows {
                for c in 0..cols {
                    let zero = if let ZeroPoints::U8(z) = panel.zeros { i32::from(z[c]) } else { offset };
                    let shift = shifts.as_ref().map_or(0, |shifts| shifts.as_slice::<i32>()[c]);
                    out[c] = acc[c].wrapping_sub(shift).wrapping_sub(zero.wrapping_mul(*sum));
                }
            }
        });
        out
    }

    /// `[segment][cols]`: the activations' zero point times the sum of the unsigned codes.
    fn shifts(&self, panel: &Panel) -> Option<Scratch> {
        let ones = self.ones.as_ref()?.view(self.plan, self.multiplier.kernel);
        let mut shifts = Scratch::of::<i32>(self.plan.segments.len() * panel.cols);
        self.multiplier.segments(&ones, &self.plan.runs(), panel, 0..1, |_, segment, acc| {
            let out = &mut shifts.as_mut::<i32>()[segment * panel.cols..][..panel.cols];
            out.iter_mut().zip(acc).for_each(|(o, a)| *o = a.wrapping_mul(self.zero));
        });
        Some(shifts)
    }
}
