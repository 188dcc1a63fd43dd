//! Activations as the integer kernels read them: int8 rows in quads, a scale per row, and per block `[segment][row]` the
//! sums of the codes.
//!
//! They are quantized inside the tasks of the product, so that a call is one parallel region: whoever comes first takes
//! the row blocks that nobody has taken yet, then waits for those that another thread is still at.

use super::outliers::FloatColumns;
use super::plan::Plan;
use super::row_panels::{RowPanels, place_row};
use crate::buffer::{Scratch, Shared};
use crate::cpu::lanes::{Encoding, INF_BITS};
use crate::cpu::{Isa, Microkernel, split_sum};
use crate::floats::Floats;
use std::sync::atomic::{AtomicUsize, Ordering::*};

/// Symmetric int8 codes of one row into `codes`; returns the scale: the given one, which clips what lies beyond 127 of it,
/// else `max |x| / 127`. A row with NaN or infinity gets scale NaN and codes 0, as does one whose given scale is no number;
/// a row of zeros gets scale 1 if none is given.
pub(super) fn quantize_row(isa: &Isa, x: &[f32], given: Option<f32>, codes: &mut [u8]) -> f32 {
    let bits = isa.absmax_bits(x);
    if bits >= INF_BITS || given.is_some_and(|scale| !scale.is_finite()) {
        codes.fill(0);
        return f32::NAN;
    }
    let scale = given.unwrap_or(match f32::from_bits(bits) / 127.0 {
        0.0 if bits == 0 => 1.0,
        scale => scale.max(f32::MIN_POSITIVE),
    });
    isa.encode(x, Encoding { scale, shift: 0.0, lo: -127.0, hi: 127.0, base: 0 }, codes);
    scale
}

/// Where the rows come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Quantized here, each row by a scale of its own.
    Floats(Floats<'a>),
    /// Quantized here by given scales: one a row, or a single one for all.
    Scaled(Floats<'a>, &'a [f32]),
    /// Quantized here, all but the columns that stay float.
    Outliers(Floats<'a>, &'a FloatColumns<'a>),
    /// int8 already.
    Codes(&'a [i8]),
}

/// `m` rows, to be quantized by the tasks that need them.
pub(super) struct Activations<'a> {
    source: Source<'a>,
    m: usize,
    k: usize,
    plan: &'a Plan,
    isa: &'static Isa,
    kernel: &'static Microkernel,
    /// Whether the sums are written as [`split_sum`] does.
    split: bool,
    panels: Shared<u8>,
    scales: Shared<f32>,
    sums: Shared<i32>,
    /// What stays float, `[m][outliers]`.
    values: Shared<f32>,
    outliers: usize,
    /// Row blocks taken, and done.
    taken: AtomicUsize,
    done: AtomicUsize,
    _memory: [Scratch; 4],
}

impl<'a> Activations<'a> {
    pub(super) fn new(
        source: Source<'a>,
        (m, k): (usize, usize),
        plan: &'a Plan,
        isa: &'static Isa,
        kernel: &'static Microkernel,
        split: bool,
    ) -> Self {
        let mut panels = Scratch::of::<u8>(m * plan.quads * kernel.quad_bytes());
        let (mut scales, mut sums) = (Scratch::of::<f32>(m), Scratch::of::<i32>(m * plan.segments.len()));
        let outliers = if let Source::Outliers(_, columns) = source { columns.len() } else { 0 };
        let mut values = Scratch::of::<f32>(m * outliers);
        Self {
            source,
            m,
            k,
            plan,
            isa,
            kernel,
            split,
            panels: Shared::new(panels.as_mut()),
            scales: Shared::new(scales.as_mut()),
            sums: Shared::new(sums.as_mut()),
            values: Shared::new(values.as_mut()),
            outliers,
            taken: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            _memory: [panels, scales, sums, values],
        }
    }

    /// Row blocks: up to `mr` rows each.
    pub(super) fn blocks(&self) -> usize {
        self.m.div_ceil(self.kernel.mr)
    }

    /// All rows, quantized.
    #[allow(unsafe_code)]
    pub(super) fn quantized(&self) -> Quantized<'_> {
        let blocks = self.blocks();
        while self.taken.load(Relaxed) < blocks {
            let block = self.taken.fetch_add(1, Relaxed);
            if block < blocks {
                let _done = CountOnDrop(&self.done); // a panic must not leave the others waiting
                self.quantize(block);
            }
        }
        let mut turns = 0u32;
        while self.done.load(Acquire) < blocks {
            turns += 1;
            if turns < 10_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let (panels, scales, sums, values) =
            // SAFETY: every block is done, so nobody writes any more; the memory lives as long as `self`.
            unsafe { (self.panels.all(), self.scales.all(), self.sums.all(), self.values.all()) };
        Quantized {
            rows: RowPanels::new(self.m, self.plan, self.kernel, panels, sums),
            scales,
            values,
            outliers: self.outliers,
        }
    }

    #[allow(unsafe_code)]
    fn quantize(&self, block: usize) {
        let (isa, k, plan, mr) = (self.isa, self.k, self.plan, self.kernel.mr);
        let (first, segments) = (block * mr, plan.segments.len());
        let rows = mr.min(self.m - first);
        let row_bytes = plan.quads * self.kernel.quad_bytes();
        // SAFETY: each block is taken once, and these ranges are its own; the memory lives as long as `self`.
        let (panel, scales, sums, values) = unsafe {
            (
                self.panels.slice(first * row_bytes, rows * row_bytes),
                self.scales.slice(first, rows),
                self.sums.slice(first * segments, rows * segments),
                self.values.slice(first * self.outliers, rows * self.outliers),
            )
        };
        let (mut wide, mut cleared) = (Vec::new(), Vec::new());
        let mut codes = Scratch::of::<u8>(k.next_multiple_of(16));
        let codes = codes.as_mut::<u8>();
        codes[k..].fill(0);
        for r in 0..rows {
            let row = (first + r) * k..(first + r + 1) * k;
            scales[r] = match self.source {
                Source::Floats(x) => quantize_row(isa, x.widen(row, &mut wide), None, &mut codes[..k]),
                Source::Scaled(x, scales) => {
                    let scale = scales[if scales.len() == 1 { 0 } else { first + r }];
                    quantize_row(isa, x.widen(row, &mut wide), Some(scale), &mut codes[..k])
                }
                Source::Outliers(x, outliers) => {
                    cleared.clear();
                    cleared.extend_from_slice(x.widen(row, &mut wide));
                    outliers.take(&mut cleared, &mut values[r * self.outliers..][..self.outliers]);
                    quantize_row(isa, &cleared, None, &mut codes[..k])
                }
                Source::Codes(q) => {
                    codes.iter_mut().zip(&q[row]).for_each(|(c, q)| *c = *q as u8);
                    1.0
                }
            };
            let signed = crate::buffer::cast::<i8>(codes).unwrap_or(&[]);
            for (i, s) in plan.segments.iter().enumerate() {
                let sum = isa.sum(&signed[s.start..s.start + s.len]);
                sums[i * rows + r] = if self.split { split_sum(sum) } else { sum };
            }
            place_row(codes, k, plan, self.kernel.wide, r, rows, panel);
        }
    }
}

struct CountOnDrop<'a>(&'a AtomicUsize);

impl Drop for CountOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Release);
    }
}

/// Quantized rows.
pub(super) struct Quantized<'a> {
    pub rows: RowPanels<'a>,
    scales: &'a [f32],
    values: &'a [f32],
    outliers: usize,
}

impl Quantized<'_> {
    /// The scales of `count` rows.
    pub(super) fn scales(&self, first: usize, count: usize) -> &[f32] {
        &self.scales[first..first + count]
    }

    /// What stays float of `count` rows, `[row][column]`.
    pub(super) fn values(&self, first: usize, count: usize) -> &[f32] {
        &self.values[first * self.outliers..][..count * self.outliers]
    }
}
