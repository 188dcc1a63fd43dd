//! `rquant::linear_static` and `rquant::conv_static`.

use super::argument::{clamp, optional_pair};
use super::tensors::{MAX_DIM, Memory, Output, Torch, View};
use super::{Argument, Kind, Op};
use crate::packed::float32;
use rquant::{Codes, Epilogue, Geometry, Input, PackedRef};
use std::ffi::CStr;

/// `x, x_scale, x_zero, panels, bias`.
const FIRST: [Kind; 5] = [Kind::Tensor, Kind::Tensor, Kind::Tensor, Kind::Tensor, Kind::OptionalTensor];
/// `addend, addend_scale, addend_zero, lo, hi, out_scale, out_zero, dtype`.
const LAST: [Kind; 8] = {
    use Kind::*;
    [OptionalTensor, OptionalTensor, OptionalTensor, Optional, Optional, OptionalTensor, OptionalTensor, Optional]
};

pub(super) struct Linear;

impl Op<14, 1> for Linear {
    const NAME: &CStr = c"linear_static";
    const PYTHON: &CStr = c"rquant::linear_static_python";
    const KINDS: [Kind; 14] = kinds([Kind::Plain]);

    fn run<'a>(torch: &'a Torch, arguments: [Argument<'a>; 14]) -> Option<[Output<'a>; 1]> {
        let (first, &[n], last) = split(&arguments)?;
        let x = first[0].arranged(Memory::Contiguous)?;
        let x = x.view()?;
        let (&k, rows) = x.sizes.split_last()?;
        let (m, n) = (rows.iter().product::<i64>() as usize, n.integer());
        let mut shape = [0; MAX_DIM];
        let shape = shape.get_mut(..x.sizes.len())?;
        shape[..rows.len()].copy_from_slice(rows);
        shape[rows.len()] = n;
        let geometry = Geometry::linear(m, k as usize, n.try_into().ok()?);
        product(torch, x, first, &geometry, last, shape, Memory::Contiguous)
    }
}

pub(super) struct Conv;

impl Op<21, 1> for Conv {
    const NAME: &CStr = c"conv_static";
    const PYTHON: &CStr = c"rquant::conv_static_python";
    const KINDS: [Kind; 21] = {
        use Kind::*;
        kinds([Plain, List, List, List, List, Plain, Plain, List])
    };

    fn run<'a>(torch: &'a Torch, arguments: [Argument<'a>; 21]) -> Option<[Output<'a>; 1]> {
        let (first, &[n, kernel, stride, padding, dilation, groups, transposed, extra], last) = split(&arguments)?;
        let x = first[0].arranged(Memory::ChannelsLast)?;
        let x = x.view()?;
        let [batch, height, width, channels] = x.image()?;
        let geometry = Geometry {
            batch,
            size: [height, width],
            channels,
            out_channels: n.integer().try_into().ok()?,
            kernel: kernel.integers()?,
            stride: stride.integers()?,
            padding: padding.integers()?,
            dilation: dilation.integers()?,
            groups: groups.integer().try_into().ok()?,
            transposed: if transposed.flag() { Some(extra.integers()?) } else { None },
        };
        let [height, width] = geometry.out_size().ok()?;
        let shape = [batch, geometry.out_channels, height, width].map(|size| size as i64);
        product(torch, x, first, &geometry, last, &shape, Memory::ChannelsLast)
    }
}

/// Those of `FIRST`, of the op itself and of `LAST`.
const fn kinds<const N: usize, const ALL: usize>(own: [Kind; N]) -> [Kind; ALL] {
    let mut all = [Kind::Plain; ALL];
    let mut i = 0;
    while i < ALL {
        all[i] = match i {
            _ if i < FIRST.len() => FIRST[i],
            _ if i < FIRST.len() + N => own[i - FIRST.len()],
            _ => LAST[i - FIRST.len() - N],
        };
        i += 1;
    }
    all
}

type Parts<'s, 'a, const N: usize> = (&'s [Argument<'a>; 5], &'s [Argument<'a>; N], &'s [Argument<'a>; 8]);

fn split<'s, 'a, const N: usize>(arguments: &'s [Argument<'a>]) -> Option<Parts<'s, 'a, N>> {
    let (first, rest) = arguments.split_first_chunk()?;
    let (own, rest) = rest.split_first_chunk()?;
    Some((first, own, rest.first_chunk()?))
}

/// Of what `FIRST` and `LAST` say.
fn product<'a>(
    torch: &'a Torch,
    x: View,
    &[_, x_scale, x_zero, panels, bias]: &[Argument<'a>; 5],
    geometry: &Geometry,
    &[addend, addend_scale, addend_zero, lo, hi, out_scale, out_zero, dtype]: &[Argument<'a>; 8],
    shape: &[i64],
    memory: Memory,
) -> Option<[Output<'a>; 1]> {
    let view = |argument: Argument<'a>| argument.tensor(Memory::Contiguous);
    let (panels, zero) = (view(panels)?, view(x_zero)?);
    let &[zero] = zero.codes()? else { return None };
    let x = Input { q: x.codes()?, scales: view(x_scale)?.float32()?, zero };
    let bias = match bias.optional(Memory::Contiguous)? {
        None => None,
        Some(bias) if *bias.sizes != [shape[if memory == Memory::ChannelsLast { 1 } else { shape.len() - 1 }]] => {
            return None;
        }
        Some(bias) => Some(float32(bias.floats()?)),
    };
    let addend = match (addend.optional(memory)?, optional_pair(addend_scale, addend_zero)?) {
        (None, _) => None,
        (Some(q), Some(of)) if q.sizes == shape => Some(Codes { q: q.codes()?, scale: of.scale, zero: of.zero }),
        _ => return None,
    };
    let (lo, hi) = clamp(lo, hi);
    let epilogue = Epilogue { bias: bias.as_deref(), addend, lo, hi };
    let w = PackedRef::parse(panels.bytes()?).ok()?;
    (!shape.contains(&0)).then_some(())?;
    let encoding = optional_pair(out_scale, out_zero)?;
    let dtype = if encoding.is_some() { (torch.int8)() } else { dtype.given()?.dtype() };
    let mut out = torch.empty(shape, dtype, memory)?;
    let result = match encoding {
        Some(to) => rquant::Output::Codes(out.codes()?, to.scale, to.zero),
        None => rquant::Output::Floats(out.floats()?),
    };
    torch.run(|executor| rquant::conv_static(x, geometry, w, epilogue, result, executor))?;
    Some([out])
}
