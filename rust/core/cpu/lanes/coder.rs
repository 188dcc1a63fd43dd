//! Many values to int8 codes under one scale.

use super::{Encoding, MAGIC, encode};
use crate::cpu::Isa;

/// An [`Encoding`] without a shift, made ready for many values. Where the scale allows it and multiply-adds are fused, the
/// quotient comes of the scale's reciprocal, corrected by the remainder it leaves (Markstein 1990,
/// <https://doi.org/10.1147/rd.341.0111>): three multiplications in a division's place. The tests try the result against division beside every tie between codes: equal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coder {
    pub(super) exact: Encoding,
    /// None: divide.
    pub(super) by_reciprocal: Option<Reciprocal>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Reciprocal {
    scale: f32,
    inverse: f32,
    /// The values of the lowest and of the highest code: rounding cannot take them to another one.
    lo: f32,
    hi: f32,
    base: i32,
}

impl Coder {
    pub(crate) fn new(e: Encoding, isa: &Isa) -> Self {
        const FAR: f32 = 1.152_921_5e18; // 2^60: what is computed of such scales has exponents to spare
        let safe = (1.0 / FAR..=FAR).contains(&e.scale) && e.lo.abs().max(e.hi.abs()) <= 256.0;
        assert!(e.shift == 0.0);
        let by_reciprocal = (isa.fused && safe).then(|| Reciprocal {
            scale: e.scale,
            inverse: 1.0 / e.scale,
            lo: e.lo.round_ties_even() * e.scale,
            hi: e.hi.round_ties_even() * e.scale,
            base: e.base,
        });
        Self { exact: e, by_reciprocal }
    }

    /// The code of 0.0.
    pub(crate) fn zero(self) -> u8 {
        self.exact.base as u8
    }
}

impl Reciprocal {
    #[inline(always)]
    pub(super) fn code(self, v: f32) -> u8 {
        let v = if v > self.lo { v } else { self.lo };
        let v = if v < self.hi { v } else { self.hi };
        let near = v * self.inverse;
        let steps = (-near).mul_add(self.scale, v).mul_add(self.inverse, near);
        ((steps + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32).wrapping_add(self.base) as u8
    }
}

/// [`encode`], many times.
#[inline(always)]
pub(super) fn encode_by(x: &[f32], coder: Coder, out: &mut [u8]) {
    match coder.by_reciprocal {
        Some(reciprocal) => x.iter().zip(out).for_each(|(x, u)| *u = reciprocal.code(*x)),
        None => encode(x, coder.exact, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::detected;

    /// Wrong codes of a [`Coder`] among the values next to every tie, for every `step`th mantissa of a scale in `[2^at, 2^at+1)`.
    fn wrong_codes(isa: &Isa, step: usize, at: i32) -> usize {
        let mut values = Vec::new();
        let (mut got, mut want) = (Vec::new(), Vec::new());
        let first = ((127 + at) as u32) << 23;
        (first..first + (1 << 23)).step_by(step).fold(0, |wrong, bits| {
            let scale = f32::from_bits(bits);
            values.clear();
            for tie in -255..=255 {
                let near = ((tie as f32 + 0.5) * scale).to_bits();
                values.extend((near - 4..=near + 4).map(f32::from_bits));
            }
            got.resize(values.len(), 0);
            want.resize(values.len(), 0);
            // two stretches, so that every tie has a code
            for base in [-127, 127] {
                let (lo, hi) = ((-127 - base) as f32, (127 - base) as f32);
                let e = Encoding { scale, shift: 0.0, lo, hi, base };
                isa.encode_by(&values, Coder::new(e, isa), &mut got);
                isa.encode(&values, e, &mut want);
                assert!(want.iter().all(|u| *u as i8 >= -127));
                if got != want {
                    return wrong + 1;
                }
            }
            wrong
        })
    }

    #[test]
    fn codes_by_a_reciprocal_are_those_by_division() {
        for isa in detected() {
            for at in [-60, -8, -5, 0, 59] {
                assert_eq!(wrong_codes(isa, 9973, at), 0, "{} 2^{at}", isa.name);
            }
        }
    }

    /// The proof: two significands make a quotient, and the exponents do not matter. Minutes.
    #[test]
    #[ignore = "minutes, and what it shows does not change"]
    fn codes_by_any_reciprocal_are_those_by_division() {
        for isa in detected().filter(|isa| isa.fused) {
            assert_eq!(wrong_codes(isa, 1, 0), 0, "{}", isa.name);
        }
    }

    #[test]
    fn codes_by_a_reciprocal_of_odd_values_and_scales() {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, -1e-40, 0.0, -0.0, 1.0];
        for isa in detected() {
            for scale in [1e-45, 1e-38, f32::MIN_POSITIVE, 8e-19, 1e-10, 0.3, 1e10, 2e18, 3e38] {
                for (lo, hi, base) in [(-127.0, 127.0, 0), (0.0, 46.5, 0), (-254.0, 0.0, 127), (0.4, 45.5, -100)] {
                    let e = Encoding { scale, shift: 0.0, lo, hi, base };
                    let (mut got, mut want) = ([0; 10], [0; 10]);
                    isa.encode_by(&x, Coder::new(e, isa), &mut got);
                    isa.encode(&x, e, &mut want);
                    assert_eq!(got, want, "{} {e:?}", isa.name);
                }
            }
        }
    }
}
