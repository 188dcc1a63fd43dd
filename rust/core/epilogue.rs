//! What turns a panel's sums into outputs: its scales and zero points as float32, and the fixed order in which they
//! are applied.
//!
//! Integer path, per output: `f = 0; for each group in order: f = fma(float(Σa·u − Z·Σa), scale, f)`, then
//! `y = fma(f, row scale, bias)`. After every [`FOLD`] groups f moves into a compensated total, so that rounding does not
//! grow with k. Of a fractional Z the whole part is in that integer, and the rest follows as `fma(−rest, Σa, ·)`. The integers are exact and every step is one IEEE operation, so the result has the
//! same bits on every instruction set, with any number of threads and on any tile path.

use crate::buffer::{Scratch, Shared};
use crate::cpu::Isa;
use crate::cpu::lanes::PanelZeros;
use crate::floats::SharedOut;
use crate::matrix::{Scales, ZeroPoints};
use crate::prepack::Panel;
use crate::qtype::QuantType;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// Terms that are added to one float32 before it moves into a compensated total.
pub(crate) const FOLD: usize = 64;

/// Sums `[rows][cols]` of many terms: a running one and, where there are more than [`FOLD`] terms, a compensated total.
pub(crate) struct Sums {
    running: Scratch,
    total: Option<(Scratch, Scratch)>,
}

impl Sums {
    /// Zeros, for `terms` terms each.
    pub(crate) fn new(len: usize, terms: usize) -> Self {
        let zeros = || {
            let mut zeros = Scratch::of::<f32>(len);
            zeros.as_mut::<f32>().fill(0.0);
            zeros
        };
        Self { running: zeros(), total: (terms > FOLD).then(|| (zeros(), zeros())) }
    }

    /// The same, but with whatever was there: the first term is stored, not added.
    pub(crate) fn fresh(len: usize, terms: usize) -> Self {
        let mut zeros = Self::new(if terms > FOLD { len } else { 0 }, terms);
        zeros.running = Scratch::of::<f32>(len);
        zeros
    }

    /// Where the next term of the elements `at` is added.
    pub(crate) fn running(&mut self, at: Range<usize>) -> &mut [f32] {
        &mut self.running.as_mut::<f32>()[at]
    }

    /// Say that term `index` of the elements `at` has been added.
    pub(crate) fn added(&mut self, isa: &Isa, index: usize, at: Range<usize>) {
        if let Some((total, carry)) = &mut self.total
            && index % FOLD == FOLD - 1
        {
            isa.fold(
                &mut self.running.as_mut::<f32>()[at.clone()],
                &mut total.as_mut::<f32>()[at.clone()],
                &mut carry.as_mut::<f32>()[at],
            );
        }
    }

    /// The sums, once all terms are added.
    pub(crate) fn finish(&mut self, isa: &Isa) -> &mut [f32] {
        match &mut self.total {
            None => self.running.as_mut(),
            Some((total, carry)) => {
                isa.fold(self.running.as_mut(), total.as_mut(), carry.as_mut());
                total.as_mut()
            }
        }
    }
}

/// Finished sums `f[rows][cols]` to their place: row `row` of the output on, columns `first..first + used` of `n`, each
/// row times its factor, plus bias (of the whole output).
///
/// # Safety
/// The output is still borrowed, and nobody else touches these rows of these columns.
#[allow(unsafe_code)]
pub(crate) unsafe fn write_rows(
    isa: &Isa,
    f: &[f32],
    panel: &Panel,
    factors: &[f32],
    bias: Option<&[f32]>,
    place: (SharedOut, usize, usize),
) {
    let bias = bias.map(|b| &b[panel.first..panel.first + panel.used]);
    // SAFETY: the caller's promise.
    unsafe { write_rows_plus(isa, f, panel, factors, bias, place) }
}

/// The same, with what is added given for the panel's columns alone.
///
/// # Safety
/// As [`write_rows`].
#[allow(unsafe_code)]
pub(crate) unsafe fn write_rows_plus(
    isa: &Isa,
    f: &[f32],
    panel: &Panel,
    factors: &[f32],
    bias: Option<&[f32]>,
    (out, n, row): (SharedOut, usize, usize),
) {
    let (cols, used) = (panel.cols, panel.used);
    let at = row * n + panel.first;
    if let Some(out) = out.float32() {
        // SAFETY: the caller's promise.
        return isa.finish(f, cols, factors, bias, unsafe { out.rectangle(at, n, factors.len(), used) });
    }
    let mut wide = Scratch::of::<f32>(used);
    let wide = wide.as_mut::<f32>();
    for (r, f) in f.chunks_exact(cols).enumerate() {
        // SAFETY: this function's own memory.
        let row = unsafe { Shared::new(wide).rectangle(0, used, 1, used) };
        isa.finish(f, cols, &factors[r..r + 1], bias, row);
        match out.bfloat16() {
            // SAFETY: the caller's promise.
            Some(out) => isa.round_bf16(wide, unsafe { out.slice(at + r * n, used) }),
            // SAFETY: the caller's promise.
            None => unsafe { out.write(at + r * n, wide) },
        }
    }
}

/// Scales and zero points of one panel, `[groups][cols]`.
pub(crate) struct PanelParams<'a> {
    cols: usize,
    offset: i32,
    scales: ScaleValues<'a>,
    zeros: ZeroPoints<'a>,
    /// Plain Z as float32, where someone asked for it or it was stored as a fraction.
    plain: Option<Scratch>,
}

enum ScaleValues<'a> {
    Stored(&'a [f32]),
    Widened(Scratch),
}

impl<'a> PanelParams<'a> {
    /// For the integer path.
    pub(crate) fn integer(panel: &Panel<'a>, qtype: QuantType) -> Self {
        Self::new(panel, qtype, matches!(panel.zeros, ZeroPoints::F16(_)))
    }

    /// For the float path, which subtracts plain zero points.
    pub(crate) fn float(panel: &Panel<'a>, qtype: QuantType) -> Self {
        Self::new(panel, qtype, !matches!(panel.zeros, ZeroPoints::None))
    }

    fn new(panel: &Panel<'a>, qtype: QuantType, plain: bool) -> Self {
        let scales = match panel.scales {
            Scales::F32(s) => ScaleValues::Stored(s),
            Scales::F16(s) => {
                let mut wide = Scratch::of::<f32>(s.len());
                s.convert_to_f32_slice(wide.as_mut());
                ScaleValues::Widened(wide)
            }
        };
        let plain = plain.then(|| {
            let mut z = Scratch::of::<f32>(panel.scales.len());
            match panel.zeros {
                ZeroPoints::None => z.as_mut().fill(0f32),
                ZeroPoints::U8(stored) => {
                    let out = z.as_mut::<f32>().iter_mut().zip(stored);
                    out.for_each(|(z, u)| *z = (i32::from(*u) - qtype.offset()) as f32);
                }
                ZeroPoints::F16(stored) => stored.convert_to_f32_slice(z.as_mut()),
            }
            z
        });
        Self { cols: panel.cols, offset: qtype.offset(), scales, zeros: panel.zeros, plain }
    }

    /// All scales, `[groups][cols]`.
    pub(crate) fn scales(&self) -> &[f32] {
        match &self.scales {
            ScaleValues::Stored(s) => s,
            ScaleValues::Widened(s) => s.as_slice(),
        }
    }

    /// All plain zero points, `[groups][cols]`, if there are any.
    pub(crate) fn plain_zeros(&self) -> Option<&[f32]> {
        self.plain.as_ref().map(Scratch::as_slice)
    }

    pub(crate) fn group_scales(&self, group: usize) -> &[f32] {
        &self.scales()[group * self.cols..][..self.cols]
    }

    pub(crate) fn group_zeros(&self, group: usize) -> Option<&[f32]> {
        self.plain_zeros().map(|z| &z[group * self.cols..][..self.cols])
    }

    /// Add one group's sums `acc[rows][cols]` to `f[rows][cols]`; `sums` are the rows' Σa over the group.
    pub(crate) fn add_group(&self, isa: &Isa, group: usize, acc: &[i32], sums: &[i32], f: &mut [f32]) {
        let at = group * self.cols..(group + 1) * self.cols;
        let zeros = match self.zeros {
            ZeroPoints::None => PanelZeros::Offset(self.offset),
            ZeroPoints::U8(z) => PanelZeros::Stored(&z[at.clone()]),
            ZeroPoints::F16(_) => PanelZeros::Fraction(self.group_zeros(group).unwrap_or(&[]), self.offset),
        };
        let scales = &self.scales()[at];
        let rows = acc.chunks_exact(self.cols).zip(f.chunks_exact_mut(self.cols));
        for ((acc, f), sum) in rows.zip(sums) {
            isa.add_group(acc, *sum, zeros, scales, f);
        }
    }

    /// The same for a group whose sums need int64: `acc` holds Σ a·q of one row, signed codes, and `sum` its Σa.
    pub(crate) fn add_deep_group(&self, group: usize, acc: &[i64], sum: i64, f: &mut [f32]) {
        for (c, (acc, f)) in acc.iter().zip(f).enumerate() {
            let at = group * self.cols + c;
            let v = match self.zeros {
                ZeroPoints::None => *acc as f32,
                ZeroPoints::U8(z) => (acc - i64::from(i32::from(z[at]) - self.offset) * sum) as f32,
                ZeroPoints::F16(z) => {
                    let z = z[at].to_f32();
                    let whole = z.clamp(-self.offset as f32, (self.offset - 1) as f32).round_ties_even();
                    (whole - z).mul_add(sum as f32, (acc - whole as i64 * sum) as f32)
                }
            };
            *f = v.mul_add(self.scales()[at], *f);
        }
    }
}
