//! `rquant::max_pool_static`, `avg_pool_static` and `adaptive_avg_pool_static`: images, best in channels-last memory.

use super::argument::pair;
use super::tensors::{Memory, Output, Torch};
use super::{Argument, Kind, Op};
use rquant::elementwise::{self as core, Pool2d};
use std::ffi::CStr;

pub(super) struct Max;

impl Op<6, 1> for Max {
    const NAME: &CStr = c"max_pool_static";
    const PYTHON: &CStr = c"rquant::max_pool_static_python";
    const KINDS: [Kind; 6] = {
        use Kind::*;
        [Tensor, List, List, List, List, Plain]
    };

    fn run<'a>(
        torch: &'a Torch,
        [x, kernel, stride, padding, dilation, ceil]: [Argument<'a>; 6],
    ) -> Option<[Output<'a>; 1]> {
        let (x, pool) = (x.arranged(Memory::ChannelsLast)?, pool(kernel, stride, padding, Some(dilation), ceil)?);
        let x = x.view()?;
        let (shape @ [n, h, w, c], given) = (x.image()?, x.codes()?);
        let mut out = images(torch, n, pool.out_size([h, w]).ok()?, c)?;
        let codes = out.codes()?;
        torch.run(|executor| core::max_pool(given, shape, pool, codes, executor))?;
        Some([out])
    }
}

pub(super) struct Average;

impl Op<11, 1> for Average {
    const NAME: &CStr = c"avg_pool_static";
    const PYTHON: &CStr = c"rquant::avg_pool_static_python";
    const KINDS: [Kind; 11] = {
        use Kind::*;
        [Tensor, Tensor, Tensor, List, List, List, Plain, Plain, Optional, Tensor, Tensor]
    };

    fn run<'a>(
        torch: &'a Torch,
        [x, scale, zero, kernel, stride, padding, ceil, padded, divisor, out_scale, out_zero]: [Argument<'a>; 11],
    ) -> Option<[Output<'a>; 1]> {
        let (x, pool) = (x.arranged(Memory::ChannelsLast)?, pool(kernel, stride, padding, None, ceil)?);
        let x = x.view()?;
        let (shape @ [n, h, w, c], given) = (x.image()?, x.codes()?);
        let (of_x, to) = (pair(scale, zero)?, pair(out_scale, out_zero)?);
        let average = match divisor.given() {
            Some(divisor) => core::Average::By(divisor.integer().try_into().ok()?),
            None if padded.flag() => core::Average::Padded,
            None => core::Average::Inside,
        };
        let mut out = images(torch, n, pool.out_size([h, w]).ok()?, c)?;
        let codes = out.codes()?;
        torch.run(|executor| core::avg_pool(given, of_x, shape, pool, average, to, codes, executor))?;
        Some([out])
    }
}

pub(super) struct AdaptiveAverage;

impl Op<6, 1> for AdaptiveAverage {
    const NAME: &CStr = c"adaptive_avg_pool_static";
    const PYTHON: &CStr = c"rquant::adaptive_avg_pool_static_python";
    const KINDS: [Kind; 6] = {
        use Kind::*;
        [Tensor, Tensor, Tensor, List, Tensor, Tensor]
    };

    fn run<'a>(
        torch: &'a Torch,
        [x, scale, zero, size, out_scale, out_zero]: [Argument<'a>; 6],
    ) -> Option<[Output<'a>; 1]> {
        let (x, of_x, to) = (x.arranged(Memory::ChannelsLast)?, pair(scale, zero)?, pair(out_scale, out_zero)?);
        let x = x.view()?;
        let (shape @ [n, .., c], given, size) = (x.image()?, x.codes()?, size.integers()?);
        let mut out = images(torch, n, size, c)?;
        let codes = out.codes()?;
        torch.run(|executor| core::adaptive_avg_pool(given, of_x, shape, size, to, codes, executor))?;
        Some([out])
    }
}

fn pool(
    kernel: Argument,
    stride: Argument,
    padding: Argument,
    dilation: Option<Argument>,
    ceil: Argument,
) -> Option<Pool2d> {
    Some(Pool2d {
        kernel: kernel.integers()?,
        stride: stride.integers()?,
        padding: padding.integers()?,
        dilation: dilation.map_or(Some([1, 1]), Argument::integers)?,
        ceil_mode: ceil.flag(),
    })
}

/// Images for codes.
fn images(torch: &Torch, n: usize, [h, w]: [usize; 2], c: usize) -> Option<Output<'_>> {
    let sizes = [n, c, h, w].map(|size| size as i64);
    torch.empty(&sizes, (torch.int8)(), Memory::ChannelsLast)
}
