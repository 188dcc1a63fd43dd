//! The scales between a product's sums and the codes that follow, folded into a multiplier and a bias a channel.

use super::output::{COLS, Epilogue, encoding};
use crate::cpu::Isa;
use crate::cpu::lanes::{INF_BITS, Steps};
use crate::matrix::Scales;
use crate::prepack::{PackedRef, Panel};
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// Largest |a − z| · |q − Z|.
const PRODUCT: f64 = 254.0 * 255.0;
/// Values up to here are int32 when rounded, with room for their own rounding.
const FAR: f64 = (1 << 30) as f64;

static ONES: [f32; COLS] = [1.0; COLS];

/// `v = fma(sum, multiplier · factor, bias)` in steps of the output, of which the code is the nearest one.
pub(super) struct Requantization {
    /// `[channels]`: scales of the weight, where a channel has one, else 1; times `factors`, where there is one for all.
    multipliers: Vec<f32>,
    /// `[channels]`.
    bias: Vec<f32>,
    /// Steps of the output in one of the addend.
    addend: f32,
    pub steps: Steps,
    /// Scales of x over that of the output, one an image; none where there is one for all.
    pub factors: Vec<f32>,
    /// Whether no value is beyond int32.
    pub bounded: bool,
    single: bool,
}

impl Requantization {
    /// From the sums of `w` by an input with `scales` to codes under a scale and a zero point.
    pub(super) fn new(isa: &Isa, epilogue: &Epilogue, w: &PackedRef, scales: &[f32], (scale, zero): (f32, i8)) -> Self {
        let (n, single) = (w.n(), w.groups() == 1);
        let mut factors: Vec<f32> = scales.iter().map(|x| x / scale).collect();
        let mut multipliers = vec![1.0; n];
        if single {
            (0..w.panels()).for_each(|i| weight_scales(&w.panel(i), &mut multipliers));
        }
        if let [factor] = factors[..] {
            multipliers.iter_mut().for_each(|m| *m *= factor);
            factors.clear();
        }
        let bias = epilogue.bias.map_or_else(|| vec![0.0; n], |bias| bias.iter().map(|b| b / scale).collect());
        let addend = epilogue.addend.map_or(0.0, |addend| addend.scale / scale);
        let largest = |x: &[f32]| f64::from(f32::from_bits(isa.absmax_bits(x).min(INF_BITS)));
        let factor = if factors.is_empty() { 1.0 } else { largest(&factors) };
        let most = w.k() as f64 * PRODUCT * largest(&multipliers) * factor;
        let bounded = single && most + largest(&bias) + f64::from(addend) * 254.0 < FAR;
        let code = |v: f32| {
            let e = encoding(scale, zero);
            (v / scale).clamp(e.lo, e.hi).round_ties_even() as i32 + e.base
        };
        let steps = Steps { zero: zero.into(), lo: code(epilogue.lo), hi: code(epilogue.hi) };
        Self { multipliers, bias, addend, steps, factors, bounded, single }
    }

    /// Multipliers and bias of the channels `columns`.
    pub(super) fn channels(&self, columns: Range<usize>) -> (&[f32], &[f32]) {
        (&self.multipliers[columns.clone()], &self.bias[columns])
    }

    /// The addend with its scale in steps of the output, from element `at` on.
    pub(super) fn addend<'a>(&self, epilogue: &Epilogue<'a>, at: usize) -> Option<(&'a [i8], f32, i32)> {
        epilogue.addend.map(|a| (&a.q[at..], self.addend, i32::from(a.zero)))
    }

    /// A panel whose sums are the multipliers' business: without scales where there is one a channel.
    pub(super) fn unscaled<'p>(&self, panel: Panel<'p>) -> Panel<'p> {
        if !self.single {
            return panel;
        }
        Panel { scales: Scales::F32(&ONES[..panel.cols]), ..panel }
    }
}

/// Of the channels of a panel, to their places among all.
fn weight_scales(panel: &Panel, out: &mut [f32]) {
    let out = &mut out[panel.first..panel.first + panel.used];
    match panel.scales {
        Scales::F32(scales) => out.copy_from_slice(&scales[..panel.used]),
        Scales::F16(scales) => scales[..panel.used].convert_to_f32_slice(out),
    }
}
