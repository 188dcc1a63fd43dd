//! The scales between a product's sums and the codes that follow, folded into a multiplier and a bias a channel.

use super::output::{Epilogue, encoding};
use crate::cpu::lanes::{INF_BITS, Steps};
use crate::cpu::{Isa, STRIP};
use crate::matrix::Scales;
use crate::prepack::{PackedRef, Panel};
use half::slice::HalfFloatSliceExt;

/// Largest |a − z| · |q − Z|.
const PRODUCT: f64 = 254.0 * 255.0;
/// Values up to here are int32 when rounded, with room for their own rounding.
const FAR: f64 = (1 << 30) as f64;

static ONES: [f32; 64] = [1.0; 64];

/// `v = fma(sum, multiplier · factor, bias)` in steps of the output, of which the code is the nearest one.
pub(super) struct Requantization {
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
    /// From the sums of `w` by an input with `scales` to codes under a scale and a zero point. The scales of the channels
    /// become their multipliers, with that of the input where there is one for all; the bias comes to be in steps.
    pub(super) fn new(
        isa: &Isa,
        epilogue: &Epilogue,
        w: &PackedRef,
        scales: &[f32],
        (scale, zero): (f32, i8),
        multipliers: &mut [f32],
        bias: &mut [f32],
    ) -> Self {
        let single = w.groups() == 1;
        let mut factors: Vec<f32> = scales.iter().map(|x| x / scale).collect();
        if let [factor] = factors[..] {
            multipliers.iter_mut().for_each(|m| *m *= factor);
            factors.clear();
        }
        bias.iter_mut().for_each(|b| *b /= scale);
        let addend = epilogue.addend.map_or(0.0, |addend| addend.scale / scale);
        let largest = |x: &[f32]| f64::from(f32::from_bits(isa.absmax_bits(x).min(INF_BITS)));
        let factor = if factors.is_empty() { 1.0 } else { largest(&factors) };
        let most = w.k() as f64 * PRODUCT * largest(multipliers) * factor;
        let bounded = single && most + largest(bias) + f64::from(addend) * 254.0 < FAR;
        let code = |v: f32| {
            let e = encoding(scale, zero);
            (v / scale).clamp(e.lo, e.hi).round_ties_even() as i32 + e.base
        };
        let steps = Steps { zero: zero.into(), lo: code(epilogue.lo), hi: code(epilogue.hi) };
        Self { addend, steps, factors, bounded, single }
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

/// Of all columns of all panels, where each has one, else 1.
pub(super) fn weight_scales(w: &PackedRef) -> Vec<f32> {
    let mut out = vec![1.0; w.n().next_multiple_of(STRIP)];
    if w.groups() == 1 {
        for panel in (0..w.panels()).map(|i| w.panel(i)) {
            let out = &mut out[panel.first..panel.first + panel.used];
            match panel.scales {
                Scales::F32(scales) => out.copy_from_slice(&scales[..panel.used]),
                Scales::F16(scales) => scales[..panel.used].convert_to_f32_slice(out),
            }
        }
    }
    out
}
