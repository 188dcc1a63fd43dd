//! `rquant::add_static` and `requantize_static`: codes in any dense memory, and results that lie as they do.

use super::argument::{clamp, pair};
use super::tensors::{Output, Torch};
use super::{Argument, Kind, Op};
use rquant::elementwise as core;
use std::ffi::CStr;

pub(super) struct Add;

impl Op<10, 1> for Add {
    const NAME: &CStr = c"add_static";
    const PYTHON: &CStr = c"rquant::add_static_python";
    const KINDS: [Kind; 10] = {
        use Kind::*;
        [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Optional, Optional, Tensor, Tensor]
    };

    fn run<'a>(
        torch: &'a Torch,
        [a, a_scale, a_zero, b, b_scale, b_zero, lo, hi, out_scale, out_zero]: [Argument<'a>; 10],
    ) -> Option<[Output<'a>; 1]> {
        let (x, y) = (a.dense()?, b.dense()?);
        y.lies_as(&x).then_some(())?;
        let (of_x, of_y, to) = (pair(a_scale, a_zero)?, pair(b_scale, b_zero)?, pair(out_scale, out_zero)?);
        let (a, b, clamp) = (x.codes()?, y.codes()?, clamp(lo, hi));
        let mut out = torch.like(&x, x.dtype)?;
        let codes = out.codes()?;
        torch.run(|executor| core::add(a, of_x, b, of_y, clamp, to, codes, executor))?;
        Some([out])
    }
}

pub(super) struct Requantize;

impl Op<7, 1> for Requantize {
    const NAME: &CStr = c"requantize_static";
    const PYTHON: &CStr = c"rquant::requantize_static_python";
    const KINDS: [Kind; 7] = {
        use Kind::*;
        [Tensor, Tensor, Tensor, Optional, Optional, Tensor, Tensor]
    };

    fn run<'a>(
        torch: &'a Torch,
        [x, scale, zero, lo, hi, out_scale, out_zero]: [Argument<'a>; 7],
    ) -> Option<[Output<'a>; 1]> {
        let (x, of_x, to) = (x.dense()?, pair(scale, zero)?, pair(out_scale, out_zero)?);
        let (given, clamp) = (x.codes()?, clamp(lo, hi));
        let mut out = torch.like(&x, x.dtype)?;
        let codes = out.codes()?;
        torch.run(|executor| core::requantize(given, of_x, clamp, to, codes, executor))?;
        Some([out])
    }
}
