//! Layer normalization (Ba et al. 2016, <https://arxiv.org/abs/1607.06450>) of floats or codes, to codes.

use super::{PerTensor, UNCLAMPED, pieces};
use crate::buffer::{Scratch, Shared};
use crate::cpu;
use crate::cpu::Isa;
use crate::cpu::lanes::Coder;
use crate::error::{Error, Result, check_len};
use crate::executor::Executor;
use crate::floats::Floats;

/// Elements that are worth a thread.
const LEAST: usize = 1 << 13;

/// How rows of `features` elements are normalized.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Elements of a row.
    pub features: usize,
    /// A factor for each of them; 1 without.
    pub weight: Option<&'a [f32]>,
    /// An addend for each of them; 0 without.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance: not negative.
    pub eps: f64,
}

/// What is done to each row: statistics in float64, by the order of summation of `lanes::moments`, then
/// `v = fma(float32((x − mean) / sqrt(variance + eps)), weight, bias)`.
struct Rows<'a> {
    isa: &'static Isa,
    features: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f64,
    coder: Coder,
    executor: &'a dyn Executor,
}

/// `x`, rows of floats, normalized; a row with NaN or infinity in it becomes the code of zero.
///
/// # Errors
/// [`Error::Mismatch`] for lengths, eps, scales or zero points that do not fit.
pub fn layer_norm(x: Floats, norm: Norm, out_params: PerTensor, out: &mut [i8], executor: &dyn Executor) -> Result<()> {
    let rows = Rows::new(norm, x.len(), out_params, out, executor)?;
    rows.run(out, &|row, scratch, normalize| {
        let mut wide = std::mem::take(scratch);
        normalize(x.widen(row, &mut wide));
        *scratch = wide;
    });
    Ok(())
}

/// [`layer_norm`] of the values `s · (q − z)`.
///
/// # Errors
/// As [`layer_norm`].
pub fn layer_norm_codes(
    x: &[i8],
    params: PerTensor,
    norm: Norm,
    out_params: PerTensor,
    out: &mut [i8],
    executor: &dyn Executor,
) -> Result<()> {
    let rows = Rows::new(norm, x.len(), out_params, out, executor)?;
    let (isa, decoding) = (rows.isa, params.decoding("x")?);
    rows.run(out, &|row, scratch, normalize| {
        scratch.resize(row.len(), 0.0);
        isa.dequantize(&x[row], decoding.scale, decoding.zero, scratch);
        normalize(scratch);
    });
    Ok(())
}

/// Makes row `range` floats, with the help of some memory, and hands them on.
type Read<'a> = &'a (dyn Fn(std::ops::Range<usize>, &mut Vec<f32>, &mut dyn FnMut(&[f32])) + Sync);

impl<'a> Rows<'a> {
    fn new(norm: Norm, len: usize, out_params: PerTensor, out: &[i8], executor: &'a dyn Executor) -> Result<Self> {
        let Norm { features, weight, bias, eps } = norm;
        if features == 0 && len > 0 || features > 0 && !len.is_multiple_of(features) {
            return Err(Error::mismatch("x", format!("a multiple of {features} features"), len));
        }
        check_len("weight", features, weight.map_or(features, <[f32]>::len))?;
        check_len("bias", features, bias.map_or(features, <[f32]>::len))?;
        check_len("out", len, out.len())?;
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(Error::mismatch("eps", "a finite number, not negative", eps));
        }
        let isa = cpu::active()?;
        let coder = out_params.coder(isa, "out", UNCLAMPED)?;
        let weight = weight.map_or_else(|| vec![1.0; features], <[f32]>::to_vec);
        let bias = bias.map_or_else(|| vec![0.0; features], <[f32]>::to_vec);
        Ok(Self { isa, features, weight, bias, eps, coder, executor })
    }

    #[allow(unsafe_code)]
    fn run(&self, out: &mut [i8], read: Read) {
        let Self { isa, features, coder, .. } = *self;
        if out.is_empty() {
            return;
        }
        let count = out.len() / features;
        let out = Shared::bytes(out);
        pieces(count, LEAST.div_ceil(features), self.executor, &|rows| {
            let (mut wide, mut values) = (Vec::new(), Scratch::of::<f32>(features));
            for row in rows {
                let range = row * features..(row + 1) * features;
                // SAFETY: each row is one task's, and `out` is borrowed for this whole call.
                let out = unsafe { out.slice(range.start, features) };
                read(range, &mut wide, &mut |x| {
                    let (mean, variance) = isa.moments(x);
                    let inverse = 1.0 / (variance + self.eps).sqrt();
                    if !inverse.is_finite() || !variance.is_finite() {
                        return out.fill(coder.zero());
                    }
                    let values = values.as_mut::<f32>();
                    isa.normalize(x, mean, inverse, &self.weight, &self.bias, values);
                    isa.encode_by(values, coder, out);
                });
            }
        });
    }
}
