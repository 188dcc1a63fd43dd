//! What lies between integer layers, on int8 codes: sums, requantization, concatenation, pooling, normalization, any
//! function of one code; and the fake quantization that training sees.
//!
//! A tensor of codes has one [`PerTensor`] scale and zero point. Memory is dense; where a dimension matters it is given as
//! rows and columns, channels innermost (channels-last). Each function is one fixed order of IEEE operations, so its codes
//! are the same on every instruction set and with any number of threads. Those that know codes alone have the output's
//! steps for their unit: r = s / out s, and a clamp is to the codes of its ends. The others end in the encoding of
//! [`crate::quantize()`].

mod add;
mod affine;
mod concat;
mod fake;
mod lookup;
mod norm;
mod pool;
#[cfg(test)]
mod tests;

pub use add::add;
pub use affine::{AffineOut, Channels, affine};
pub use concat::{Part, concat};
pub use fake::{fake_quantize, fake_quantize_channels};
pub use lookup::{lookup, requantize};
pub use norm::{Norm, layer_norm, layer_norm_codes};
pub use pool::{Average, Pool2d, adaptive_avg_pool, avg_pool, max_pool};

use crate::cpu::Isa;
use crate::cpu::lanes::{Coder, Decoding, Encoding, Steps};
use crate::error::{Error, Result};
use crate::executor::Executor;
use std::ops::Range;

/// The lowest code that is ever produced: −128 is left out, also under a zero point.
const LOWEST: i32 = -127;
const HIGHEST: i32 = 127;

/// Scale and zero point of a whole tensor of int8 codes: `x = scale · (q − zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerTensor {
    /// Positive and finite.
    pub scale: f32,
    /// In −127..=127.
    pub zero: i8,
}

/// Values between which an output is held before it becomes a code: ReLU is `(0, inf)`.
pub type Clamp = (f32, f32);

/// No clamp.
pub const UNCLAMPED: Clamp = (f32::NEG_INFINITY, f32::INFINITY);

impl PerTensor {
    fn decoding(self, argument: &'static str) -> Result<Decoding> {
        if self.scale > 0.0 && self.scale.is_finite() && i32::from(self.zero) >= LOWEST {
            return Ok(Decoding { scale: self.scale, zero: i32::from(self.zero) });
        }
        Err(Error::mismatch(
            argument,
            "a positive, finite scale and a zero point in [-127, 127]",
            format!("scale {} and zero point {}", self.scale, self.zero),
        ))
    }

    /// The same in steps of another scale, which is found to be one elsewhere.
    fn in_steps_of(self, out: Self, argument: &'static str) -> Result<Decoding> {
        let Decoding { scale, zero } = self.decoding(argument)?;
        Ok(Decoding { scale: scale / out.scale, zero })
    }

    /// Codes of values in steps of this scale; the ends are the codes of a clamp's.
    fn steps(self, argument: &'static str, clamp: Clamp) -> Result<Steps> {
        let Encoding { lo, hi, base: zero, .. } = self.encoding(argument, clamp)?;
        let code = |end: f32| end.round_ties_even() as i32 + zero;
        Ok(Steps { zero, lo: code(lo), hi: code(hi) })
    }

    /// [`Self::encoding`], for many values.
    fn coder(self, isa: &Isa, argument: &'static str, clamp: Clamp) -> Result<Coder> {
        Ok(Coder::new(self.encoding(argument, clamp)?, isa))
    }

    /// Codes of values held to a clamp. Division is monotone: what the clamp holds back, these limits do.
    fn encoding(self, argument: &'static str, clamp: Clamp) -> Result<Encoding> {
        let Decoding { scale, zero } = self.decoding(argument)?;
        check_clamp(clamp)?;
        let (lo, hi) = ((LOWEST - zero) as f32, (HIGHEST - zero) as f32);
        let (least, most) = ((clamp.0 / scale).clamp(lo, hi), (clamp.1 / scale).clamp(lo, hi));
        Ok(Encoding { scale, shift: 0.0, lo: least, hi: most, base: zero })
    }
}

fn check_clamp((lo, hi): Clamp) -> Result<()> {
    if lo <= hi { Ok(()) } else { Err(Error::mismatch("lo, hi", "lo <= hi", format!("{lo} and {hi}"))) }
}

/// Call `task` for ranges that make up `0..count`: one a thread, or fewer that no range has less than `least`.
fn pieces(count: usize, least: usize, executor: &dyn Executor, task: &(dyn Fn(Range<usize>) + Sync)) {
    let step = count.div_ceil(executor.threads().max(1)).max(least).next_multiple_of(64.min(least));
    executor.run(count.div_ceil(step), &|i| task(i * step..((i + 1) * step).min(count)));
}
