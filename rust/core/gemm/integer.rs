//! The integer path: int8 activations times packed codes, summed exactly.

use super::Tasks;
use super::activations::{Activations, Source};
use super::multiplier::{DeepSums, Multiplier};
use super::plan::{Alignment, Plan};
use crate::buffer::Shared;
use crate::cpu::{self, MAX_GROUPED, Outputs};
use crate::epilogue::{FOLD, PanelParams, Sums, write_rows};
use crate::error::Result;
use crate::executor::Executor;
use crate::floats::SharedOut;
use crate::matrix::ZeroKind;
use crate::prepack::PackedRef;

/// Longest group that a kernel takes at once however many rows there are: its unpacked panel stays in cache.
const CACHED_GROUP: usize = 4096;

/// Outputs that the second-level cache does not hold: kernels ask for their memory ahead, and write them themselves. Fewer
/// are written faster all together, once a panel.
const AT_ONCE: usize = if cfg!(test) { 300 } else { 1 << 18 };

/// A product in progress: everything that its tasks share.
struct Product<'a> {
    multiplier: Multiplier<'a>,
    acts: Activations<'a>,
}

impl<'a> Product<'a> {
    fn new(source: Source<'a>, m: usize, w: &PackedRef, plan: &'a Plan, grouped: bool) -> Result<Self> {
        let multiplier = Multiplier::new(cpu::active()?, w.qtype(), plan, m);
        let acts = Activations::new(source, (m, w.k()), plan, multiplier.isa, multiplier.kernel, grouped);
        Ok(Self { multiplier, acts })
    }
}

/// `out = quantize(x) · w`, dequantized.
#[allow(unsafe_code)]
pub(super) fn linear(
    x: Source,
    m: usize,
    w: &PackedRef,
    bias: Option<&[f32]>,
    out: SharedOut,
    executor: &dyn Executor,
) -> Result<()> {
    let plan = Plan::new(w.k(), w.group_size(), w.qtype());
    let kernel = cpu::active()?.kernel(w.qtype());
    let longest = w.group_size().min(w.k());
    let grouped = kernel.has_grouped()
        && plan.alignment != Alignment::None
        && w.zero_kind() != ZeroKind::F16
        && longest <= if m <= kernel.mr { MAX_GROUPED } else { CACHED_GROUP };
    let product = Product::new(x, m, w, &plan, grouped)?;
    let runs = if grouped { Vec::new() } else { plan.runs() };
    let tasks = Tasks::new(product.acts.blocks(), product.multiplier.kernel.mr, w.panels(), executor.threads());
    let plain = w.groups() <= FOLD && !matches!(x, Source::Outliers(..));
    let at_once = if plain && m * w.n() >= AT_ONCE { out.float32() } else { None };
    executor.run(tasks.count(), &|task| {
        let (index, blocks) = tasks.get(task);
        let panel = w.panel(index);
        let (multiplier, acts) = (&product.multiplier, product.acts.quantized());
        let (isa, at_rows) = (multiplier.isa, &acts.rows);
        let first_row = at_rows.rows(blocks.start).0;
        let (last, count) = at_rows.rows(blocks.end - 1);
        let len = (last + count - first_row) * panel.cols;
        let mut f = if grouped { Sums::fresh(len, w.groups()) } else { Sums::new(len, w.groups()) };
        if grouped {
            multiplier.groups(at_rows, &panel, w.qtype().offset(), blocks.clone(), &mut f, |block| {
                let (row, rows) = at_rows.rows(block);
                let out = at_once?;
                // SAFETY: `out` lives as long as the call; this task alone has these rows of this panel's columns.
                let out = unsafe { out.rectangle(row * w.n() + panel.first, w.n(), rows, panel.used) };
                let bias = bias.map(|bias| &bias[panel.first..panel.first + panel.used]);
                Some(Outputs { factors: acts.scales(row, rows), bias, out })
            });
            if at_once.is_some() {
                return;
            }
        } else {
            let params = PanelParams::integer(&panel, w.qtype());
            let mut deep = DeepSums::default();
            multiplier.segments(at_rows, &runs, &panel, blocks.clone(), |block, segment, acc| {
                let s = &plan.segments[segment];
                let (row, rows) = at_rows.rows(block);
                let at = (row - first_row) * panel.cols..(row - first_row + rows) * panel.cols;
                let running = f.running(at.clone());
                let sums = at_rows.sums(block, segment, 1);
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
        }
        let rows = last + count - first_row;
        let (f, factors, place) = (f.finish(isa), acts.scales(first_row, rows), (out, w.n(), first_row));
        // SAFETY: `out` lives as long as the call; this task alone has these rows of this panel's columns.
        unsafe {
            match x {
                Source::Outliers(_, columns) => {
                    let values = acts.values(first_row, rows);
                    columns.write(isa, (w, &panel), (f, factors, values), bias, place);
                }
                _ => write_rows(isa, f, &panel, factors, bias, place),
            }
        }
    });
    Ok(())
}

/// `out[m, n] = a · q`, the bare int32 product.
#[allow(unsafe_code)]
pub(super) fn product(a: &[i8], m: usize, w: &PackedRef, out: &mut [i32], executor: &dyn Executor) -> Result<()> {
    let plan = Plan::whole(w.k(), w.qtype());
    let product = Product::new(Source::Codes(a), m, w, &plan, false)?;
    let (runs, shared) = (plan.runs(), Shared::new(out));
    let tasks = Tasks::new(product.acts.blocks(), product.multiplier.kernel.mr, w.panels(), executor.threads());
    executor.run(tasks.count(), &|task| {
        let (index, blocks) = tasks.get(task);
        let (panel, acts) = (w.panel(index), product.acts.quantized().rows);
        product.multiplier.segments(&acts, &runs, &panel, blocks, |block, _, acc| {
            let (first, _) = acts.rows(block);
            for (r, (acc, sum)) in acc.chunks_exact(panel.cols).zip(acts.sums(block, 0, 1)).enumerate() {
                let shift = w.qtype().offset().wrapping_mul(*sum);
                // SAFETY: `out` lives as long as the call; this task alone has these rows of this panel's columns.
                let out = unsafe { shared.slice((first + r) * w.n() + panel.first, panel.used) };
                out.iter_mut().zip(acc).for_each(|(o, v)| *o = v.wrapping_sub(shift));
            }
        });
    });
    Ok(())
}
