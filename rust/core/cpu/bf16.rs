//! What a CPU brings that multiplies bfloat16: the float path at twice the products an instruction.
//!
//! Codes are exact in bfloat16; so are activations that are bfloat16 already, and others as the sum of two or three.
//! Activations lie `a[quad][row]` as four bfloat16 in the order 0, 2, 1, 3; expanded codes likewise, as pairs
//! `b[quad][2][cols]`. A packed block comes apart into such pairs by shifts alone.

use super::{STRIP, UnpackFn, block_bytes, index};
use crate::matrix::{Scales, ZeroPoints};
use crate::qtype::QuantType;

/// `f[rows][cols] (+)= Σ_groups scale · (a · b − zero · Σa)`; see [`Bf16::grouped`].
type Bf16Fn = unsafe fn(a: &[u8], rows: usize, b: &[u8], cols: usize, run: FloatRun, f: &mut [f32]);

/// Consecutive groups of a panel, and what their sums are multiplied by.
#[derive(Clone, Copy)]
pub(crate) struct FloatRun<'a> {
    /// Quads of activations in a group; the last group takes all that are left.
    pub quads: usize,
    /// Whether f starts from zero, whatever is there.
    pub fresh: bool,
    /// `[groups][cols]`.
    pub scales: Scales<'a>,
    /// `[groups][cols]`.
    pub zeros: ZeroPoints<'a>,
    /// What stored integer zero points have more than plain ones.
    pub offset: i32,
    /// `[groups][rows]`: Σa.
    pub sums: &'a [f32],
}

/// Kernels that multiply in bfloat16 and sum in float32.
#[derive(Debug)]
pub(crate) struct Bf16 {
    /// Most rows in one call.
    pub mr: usize,
    /// By width: from packed blocks.
    pub(super) packed: [Option<Bf16Fn>; 3],
    pub(super) expanded: Bf16Fn,
    pub(super) expand: [UnpackFn; 3],
}

#[allow(unsafe_code)]
impl Bf16 {
    /// Whether packed blocks of this width can be read.
    pub(crate) fn reads_packed(&self, weight: QuantType) -> bool {
        self.packed[index(weight)].is_some()
    }

    /// `f[rows][cols] = fma(a · q − zero · Σa, scale, f)` for each group of the run in order (`fresh`: the first one starts
    /// from zero), from packed blocks, or with `expanded` from those that [`Bf16::expand`] made.
    pub(crate) fn grouped(
        &self,
        weight: QuantType,
        a: &[u8],
        rows: usize,
        (b, expanded): (&[u8], bool),
        cols: usize,
        run: FloatRun,
        f: &mut [f32],
    ) {
        let (bits, per) = if expanded { (16, 1) } else { (weight.bits(), weight.per_byte()) };
        let (quads, groups) = (b.len() * 8 / bits / 4 / cols, run.sums.len() / rows);
        assert!((1..=self.mr).contains(&rows) && cols > 0 && cols.is_multiple_of(STRIP) && cols <= 64);
        assert!(b.len() == quads * cols * bits / 2 && quads.is_multiple_of(per) && run.quads.is_multiple_of(per));
        assert!(a.len() == quads * rows * 8 && f.len() == rows * cols);
        assert!(groups > 0 && (groups - 1) * run.quads <= quads && run.sums.len() == groups * rows);
        assert!(run.scales.len() == groups * cols && run.zeros.len().is_none_or(|len| len == groups * cols));
        let kernel = if expanded { Some(self.expanded) } else { self.packed[index(weight)] };
        // SAFETY: an `Isa` that this CPU lacks is never reached; the lengths are asserted.
        unsafe { (kernel.expect("the caller asks reads_packed"))(a, rows, b, cols, run, f) }
    }

    /// Packed blocks to bfloat16, `32 / bits` steps to each `cols * 4` bytes.
    pub(crate) fn expand(&self, weight: QuantType, b: &[u8], cols: usize, out: &mut [u8]) {
        assert!(cols > 0 && cols.is_multiple_of(STRIP) && cols <= 64 && b.len().is_multiple_of(block_bytes(cols)));
        assert!(out.len() == b.len() * weight.per_byte() * 2);
        // SAFETY: an `Isa` that this CPU lacks is never reached; the lengths are asserted.
        unsafe { (self.expand[index(weight)])(b, cols, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{block_steps, detected};
    use half::{bf16, f16};

    fn noise(len: usize, seed: u32) -> Vec<u8> {
        (0..len as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    /// Signed code of a packed step.
    fn code(b: &[u8], cols: usize, weight: QuantType, step: usize, c: usize) -> f64 {
        let (block, at) = (step / block_steps(weight), step % block_steps(weight));
        let byte = b[block * block_bytes(cols) + c * 4 + at % 4];
        let u = u32::from(byte) >> (at / 4 * weight.bits()) & ((1 << weight.bits()) - 1);
        f64::from(u as i32 - weight.offset())
    }

    #[test]
    fn runs_of_groups_are_their_definition_from_both_forms() {
        for isa in detected() {
            let Some(kernels) = &isa.bf16 else { continue };
            for weight in QuantType::INTEGERS {
                for (rows, cols, blocks) in (1..=kernels.mr)
                    .flat_map(|r| [16, 32, 48, 64].into_iter().flat_map(move |c| [1, 2, 5].map(|b| (r, c, b))))
                {
                    let groups = 3;
                    let all = groups * blocks + 1; // the last one is longer
                    let packed = noise(all * block_bytes(cols), rows as u32);
                    let steps = all * block_steps(weight);
                    let x: Vec<bf16> =
                        noise(steps * rows, 7).iter().map(|v| bf16::from_f32(f32::from(*v as i8) / 32.0)).collect();
                    let mut a = vec![0; steps * rows * 2];
                    for (i, v) in x.iter().enumerate() {
                        let (r, k) = (i / steps, i % steps);
                        let at = (k / 4 * rows + r) * 4 + [0, 2, 1, 3][k % 4];
                        a[at * 2..][..2].copy_from_slice(&v.to_le_bytes());
                    }
                    let scales: Vec<f16> = (0..groups * cols).map(|i| f16::from_f32(0.01 + i as f32 / 512.0)).collect();
                    let stored: Vec<u8> = noise(groups * cols, 3).iter().map(|z| z >> (8 - weight.bits())).collect();
                    let halves: Vec<f16> = stored.iter().map(|z| f16::from_f32(f32::from(*z) / 3.0)).collect();
                    let group = |k: usize| (k / (blocks * block_steps(weight))).min(groups - 1);
                    let mut sums = vec![0f32; groups * rows];
                    x.iter().enumerate().for_each(|(i, v)| sums[group(i % steps) * rows + i / steps] += v.to_f32());
                    let mut codes = vec![0; packed.len() * weight.per_byte() * 2];
                    kernels.expand(weight, &packed, cols, &mut codes);
                    for zeros in [ZeroPoints::None, ZeroPoints::U8(&stored), ZeroPoints::F16(&halves)] {
                        for (b, fresh, expanded) in [(&codes, true, true), (&packed, false, false)] {
                            if !expanded && !kernels.reads_packed(weight) {
                                continue;
                            }
                            let quads = blocks * block_steps(weight) / 4;
                            let offset = weight.offset();
                            let run =
                                FloatRun { quads, fresh, scales: Scales::F16(&scales), zeros, offset, sums: &sums };
                            let mut f = vec![1f32; rows * cols];
                            kernels.grouped(weight, &a, rows, (b, expanded), cols, run, &mut f);
                            for (i, got) in f.iter().enumerate() {
                                let (r, c) = (i / cols, i % cols);
                                let (mut want, mut size) = (if fresh { 0.0 } else { 1.0 }, 1.0);
                                for k in 0..steps {
                                    let at = group(k) * cols + c;
                                    let q = code(&packed, cols, weight, k, c);
                                    let term = x[r * steps + k].to_f64() * scales[at].to_f64();
                                    want += term * (q - f64::from(zeros.get(at, weight)));
                                    size += (term * f64::from(weight.offset())).abs();
                                }
                                let error = (f64::from(*got) - want).abs();
                                assert!(
                                    error <= 1e-6 * size,
                                    "{} {weight:?} {rows}x{cols} {blocks}: {error}",
                                    isa.name
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
