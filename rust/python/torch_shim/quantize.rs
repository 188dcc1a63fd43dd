//! `rquant::quantize_static`, `quantize_images_static` and `dequantize_static`: from floats to codes and back.

use super::argument::pair;
use super::tensors::{Memory, Output, Torch, View};
use super::{Argument, Kind, Op};
use rquant::elementwise::PerTensor;
use std::ffi::CStr;

/// Channels of a picture, which are laid out anew and rounded in one; as in `static_cpu.py`.
const FEW: usize = 4;

pub(super) struct Quantize;

impl Op<3, 2> for Quantize {
    const NAME: &CStr = c"quantize_static";
    const PYTHON: &CStr = c"rquant::quantize_static_python";
    const KINDS: [Kind; 3] = [Kind::Tensor; 3];

    fn run<'a>(torch: &'a Torch, [x, scale, zero]: [Argument<'a>; 3]) -> Option<[Output<'a>; 2]> {
        samples(torch, x.dense()?, pair(scale, zero)?)
    }
}

pub(super) struct QuantizeImages;

impl Op<3, 2> for QuantizeImages {
    const NAME: &CStr = c"quantize_images_static";
    const PYTHON: &CStr = c"rquant::quantize_images_static_python";
    const KINDS: [Kind; 3] = [Kind::Tensor; 3];

    fn run<'a>(torch: &'a Torch, [x, scale, zero]: [Argument<'a>; 3]) -> Option<[Output<'a>; 2]> {
        let to = pair(scale, zero)?;
        let planes = x.tensor(Memory::Contiguous).filter(|x| x.image().is_some_and(|[.., c]| c <= FEW));
        let Some(x) = planes else { return samples(torch, x.arranged(Memory::ChannelsLast)?.view()?, to) };
        let ([.., channels], floats) = (x.image()?, x.floats()?);
        let mut out = torch.empty(x.sizes, (torch.int8)(), Memory::ChannelsLast)?;
        let mut finite = torch.empty(&x.sizes[..1], (torch.bool)(), Memory::Contiguous)?;
        let (codes, flags) = (out.codes()?, finite.flags()?);
        torch.run(|executor| rquant::quantize_images(floats, channels, to.scale, to.zero, codes, flags, executor))?;
        Some([out, finite])
    }
}

/// Where one sample (an index of the first dimension) lies after the other: its codes, and whether they are all of numbers.
fn samples<'a>(torch: &'a Torch, x: View, to: PerTensor) -> Option<[Output<'a>; 2]> {
    let (&samples, &stride) = (x.sizes.first()?, x.strides.first()?);
    (samples == 1 || samples * stride == x.len as i64).then_some(())?;
    let floats = x.floats()?;
    let mut out = torch.like(&x, (torch.int8)())?;
    let mut finite = torch.empty(&[samples], (torch.bool)(), Memory::Contiguous)?;
    let (codes, flags) = (out.codes()?, finite.flags()?);
    torch.run(|executor| rquant::quantize_static(floats, to.scale, to.zero, codes, flags, executor))?;
    Some([out, finite])
}

pub(super) struct Dequantize;

impl Op<4, 1> for Dequantize {
    const NAME: &CStr = c"dequantize_static";
    const PYTHON: &CStr = c"rquant::dequantize_static_python";
    const KINDS: [Kind; 4] = {
        use Kind::*;
        [Tensor, Tensor, Tensor, Plain]
    };

    fn run<'a>(torch: &'a Torch, [x, scale, zero, dtype]: [Argument<'a>; 4]) -> Option<[Output<'a>; 1]> {
        let (x, of_x) = (x.dense()?, pair(scale, zero)?);
        let codes = x.codes()?;
        let mut out = torch.like(&x, dtype.dtype())?;
        let floats = out.floats()?;
        torch.run(|executor| rquant::dequantize_static(codes, of_x.scale, of_x.zero, floats, executor))?;
        Some([out])
    }
}
