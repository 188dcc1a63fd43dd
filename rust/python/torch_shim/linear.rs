//! `rquant::linear`.

use super::tensors::{MAX_DIM, Memory::Contiguous, Output, Slot, Torch};
use super::{Kind, Op};
use crate::packed::multiply;
use crate::threads;
use rquant::PackedRef;
use std::ffi::CStr;

pub(super) struct Linear;

impl Op<7> for Linear {
    const NAME: &CStr = c"linear";
    const PYTHON: &CStr = c"rquant::linear_python";
    const KINDS: [Kind; 7] = {
        use Kind::*;
        [Tensor, Tensor, OptionalTensor, Plain, Plain, Plain, OptionalTensor]
    };

    unsafe fn run<'a>(torch: &'a Torch, &[x, panels, bias, k, n, integer, scale]: &[Slot; 7]) -> Option<Output<'a>> {
        // SAFETY: owned by the caller.
        let (x, panels) = unsafe { (torch.view(x, Contiguous)?, torch.view(panels, Contiguous)?) };
        // SAFETY: owned by the caller.
        let (bias, scale) = unsafe { (torch.optional(bias, Contiguous)?, torch.optional(scale, Contiguous)?) };
        let bias = match bias {
            None => None,
            Some(bias) if *bias.sizes != [n as i64] => return None,
            Some(bias) => Some(bias.floats(torch)?),
        };
        let scales = match scale {
            None => None,
            Some(_) if integer as u8 == 0 => return None,
            Some(scale) => Some(scale.float32(torch)?),
        };
        let (&last, rows) = x.sizes.split_last()?;
        let m = rows.iter().product::<i64>() as usize;
        let mut shape = [0; MAX_DIM];
        let shape = shape.get_mut(..x.sizes.len())?;
        shape[..rows.len()].copy_from_slice(rows);
        shape[rows.len()] = n as i64;
        let w = PackedRef::parse(panels.bytes(torch)?).ok()?;
        if last as u64 != k || (w.k() as u64, w.n() as u64) != (k, n) {
            return None;
        }
        let (code, input, allowed) = (torch.code(x.dtype)?, x.floats(torch)?, torch.threads()?);
        let mut out = torch.empty(shape, x.dtype, Contiguous)?;
        let result = out.floats(code, m.checked_mul(n as usize)?)?;
        threads::with(allowed, |executor| multiply(input, m, w, bias, result, integer as u8 != 0, scales, executor))
            .ok()?;
        Some(out)
    }
}
