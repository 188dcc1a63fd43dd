//! Columns of the activations that are multiplied in float, the rest in int8: LLM.int8(), Dettmers et al. 2022
//! (<https://arxiv.org/abs/2208.07339>). A few features of a large model are so much larger than the others that they
//! would have the int8 range of their row to themselves.
//!
//! The product is one, over all of k: in the int8 rows these columns are 0, and what they contribute joins the bias, `o =
//! bias; for each column in order: o = fma(w, x, o)`, in the task that has the panel in cache anyway.

use crate::buffer::Scratch;
use crate::cpu::lanes::{INF_BITS, PRODUCT_ROWS};
use crate::cpu::{self, Isa, block_bytes, block_steps};
use crate::epilogue::{PanelParams, write_rows_plus};
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;
use crate::floats::{Floats, SharedOut};
use crate::prepack::{PackedRef, Panel};
use std::sync::Mutex;

/// Elements that one task looks at.
const TASK: usize = 1 << 16;

/// Which columns of x [`super::linear_outliers`] multiplies in float.
#[derive(Clone, Copy, Debug)]
pub enum Outliers<'a> {
    /// Those in which some |x| of the batch is at least this; rows with NaN or infinity do not count.
    Above(f32),
    /// These, ascending; their weights `[n, columns]`, or `None` to read them out of the codes.
    Columns(&'a [i64], Option<Floats<'a>>),
}

/// The columns of one product.
#[derive(Default)]
pub(super) struct FloatColumns<'a> {
    columns: Vec<usize>,
    kept: Option<Floats<'a>>,
}

impl<'a> FloatColumns<'a> {
    pub(super) fn new(
        x: Floats,
        m: usize,
        w: &PackedRef,
        outliers: Outliers<'a>,
        executor: &dyn Executor,
    ) -> Result<Self> {
        match outliers {
            Outliers::Above(threshold) => {
                if threshold.is_nan() || threshold <= 0.0 {
                    return Err(Error::mismatch("threshold", "a number above 0", threshold));
                }
                let columns = find(x, m, w.k(), threshold, executor)?;
                Ok(Self { columns, kept: None })
            }
            Outliers::Columns(columns, kept) => {
                let mut next = 0;
                for &column in columns {
                    if !(next..w.k() as i64).contains(&column) {
                        return Err(Error::mismatch("columns", format!("ascending, in [0, {})", w.k()), column));
                    }
                    next = column + 1;
                }
                if let Some(kept) = kept {
                    check_len("column_weight", area(columns.len(), w.n())?, kept.len())?;
                }
                Ok(Self { columns: columns.iter().map(|c| *c as usize).collect(), kept })
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.columns.len()
    }

    /// Their values out of a row, where 0 takes their place. NaN and infinity stay, so that the row is known by them.
    pub(super) fn take(&self, row: &mut [f32], values: &mut [f32]) {
        for (&column, value) in self.columns.iter().zip(values) {
            *value = row[column];
            if value.is_finite() {
                row[column] = 0.0;
            }
        }
    }

    /// Their weights in one panel, `[columns][cols]`.
    fn weights(&self, isa: &Isa, w: &PackedRef, panel: &Panel) -> Scratch {
        let (cols, steps) = (panel.cols, block_steps(w.qtype()));
        let mut out = Scratch::of::<f32>(self.columns.len() * cols);
        let weights = out.as_mut::<f32>();
        if let Some(kept) = self.kept {
            let (count, mut wide) = (self.len(), Vec::new());
            let kept = kept.widen(panel.first * count..(panel.first + panel.used) * count, &mut wide);
            weights.fill(0.0); // beyond n
            isa.transpose(kept, weights, cols);
        } else {
            let params = PanelParams::float(panel, w.qtype());
            for (column, row) in self.columns.iter().zip(weights.chunks_exact_mut(cols)) {
                let block = &panel.weights[column / steps * block_bytes(cols)..][..block_bytes(cols)];
                let group = column / w.group_size();
                let (scales, zeros) = (params.group_scales(group), params.group_zeros(group));
                isa.expand_step(block, column % steps, w.qtype(), scales, zeros, row);
            }
        }
        out
    }

    /// Finished sums `f` of the other columns, each row times its factor, to their place in the output, with these
    /// columns' `values` `[rows, columns]` times their weights, and the bias.
    ///
    /// # Safety
    /// As [`crate::epilogue::write_rows`].
    #[allow(unsafe_code)]
    pub(super) unsafe fn write(
        &self,
        isa: &Isa,
        (w, panel): (&PackedRef, &Panel),
        (f, factors, values): (&[f32], &[f32], &[f32]),
        bias: Option<&[f32]>,
        (out, n, first_row): (SharedOut, usize, usize),
    ) {
        let (cols, count) = (panel.cols, self.len());
        let weights = self.weights(isa, w, panel);
        let mut plus = Scratch::of::<f32>(PRODUCT_ROWS * cols);
        let blocks = f.chunks(PRODUCT_ROWS * cols).zip(factors.chunks(PRODUCT_ROWS));
        for (block, ((f, factors), values)) in blocks.zip(values.chunks(PRODUCT_ROWS * count)).enumerate() {
            let plus = &mut plus.as_mut::<f32>()[..f.len()];
            plus.fill(0.0);
            if let Some(bias) = bias {
                let bias = &bias[panel.first..][..panel.used];
                plus.chunks_exact_mut(cols).for_each(|row| row[..panel.used].copy_from_slice(bias));
            }
            isa.add_product(values, weights.as_slice(), plus, cols);
            for (r, factor) in factors.iter().enumerate() {
                let at = r * cols..(r + 1) * cols;
                let place = (out, n, first_row + block * PRODUCT_ROWS + r);
                // SAFETY: the caller's promise.
                unsafe {
                    write_rows_plus(isa, &f[at.clone()], panel, &[*factor], Some(&plus[at][..panel.used]), place)
                };
            }
        }
    }
}

/// The columns in which some |x| of a row without NaN or infinity is at least `threshold`, ascending.
fn find(x: Floats, m: usize, k: usize, threshold: f32, executor: &dyn Executor) -> Result<Vec<usize>> {
    let (isa, bits) = (cpu::active()?, threshold.to_bits());
    let per_task = TASK.div_ceil(k.max(1));
    let found = Mutex::new(Vec::new());
    executor.run(m.div_ceil(per_task), &|task| {
        let (mut wide, mut most) = (Vec::new(), Vec::new());
        for row in task * per_task..((task + 1) * per_task).min(m) {
            let row = x.widen(row * k..(row + 1) * k, &mut wide);
            if (bits..INF_BITS).contains(&isa.absmax_bits(row)) {
                most.resize(k, 0);
                isa.absmax_columns(row, &mut most);
            }
        }
        let columns = most.iter().enumerate().filter(|(_, most)| **most >= bits).map(|(column, _)| column);
        found.lock().unwrap_or_else(|e| e.into_inner()).extend(columns);
    });
    let mut columns = found.into_inner().unwrap_or_else(|e| e.into_inner());
    columns.sort_unstable();
    columns.dedup();
    Ok(columns)
}
