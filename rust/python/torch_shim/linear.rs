//! `rquant::linear`.

use super::tensors::{MAX_DIM, Memory::Contiguous, Output, Torch};
use super::{Argument, Kind, Op};
use crate::packed::multiply;
use rquant::PackedRef;
use std::ffi::CStr;

pub(super) struct Linear;

impl Op<7, 1> for Linear {
    const NAME: &CStr = c"linear";
    const PYTHON: &CStr = c"rquant::linear_python";
    const KINDS: [Kind; 7] = {
        use Kind::*;
        [Tensor, Tensor, OptionalTensor, Plain, Plain, Plain, OptionalTensor]
    };

    fn run<'a>(
        torch: &'a Torch,
        [x, panels, bias, k, n, integer, scale]: [Argument<'a>; 7],
    ) -> Option<[Output<'a>; 1]> {
        let (x, panels) = (x.tensor(Contiguous)?, panels.tensor(Contiguous)?);
        let (k, n, integer) = (k.integer(), n.integer(), integer.flag());
        let bias = match bias.optional(Contiguous)? {
            None => None,
            Some(bias) if *bias.sizes != [n] => return None,
            Some(bias) => Some(bias.floats()?),
        };
        let scales = match scale.optional(Contiguous)? {
            None => None,
            Some(_) if !integer => return None,
            Some(scale) => Some(scale.float32()?),
        };
        let (&last, rows) = x.sizes.split_last()?;
        let m = rows.iter().product::<i64>() as usize;
        let mut shape = [0; MAX_DIM];
        let shape = shape.get_mut(..x.sizes.len())?;
        shape[..rows.len()].copy_from_slice(rows);
        shape[rows.len()] = n;
        let w = PackedRef::parse(panels.bytes()?).ok()?;
        if last != k || (w.k() as i64, w.n() as i64) != (k, n) {
            return None;
        }
        let input = x.floats()?;
        let mut out = torch.empty(shape, x.dtype, Contiguous)?;
        let result = out.floats()?;
        torch.run(|executor| multiply(input, m, w, bias, result, integer, scales, executor))?;
        Some([out])
    }
}
