//! `rquant::linear_static` and `rquant::conv_static`.

use super::tensors::{MAX_DIM, Memory, Output, Slot, Torch, View};
use super::{Kind, Op};
use crate::packed::float32;
use crate::threads;
use rquant::{Codes, Epilogue, Geometry, Input, PackedRef};
use std::ffi::CStr;

/// `x, x_scale, x_zero, panels, bias`.
const FIRST: [Kind; 5] = [Kind::Tensor, Kind::Tensor, Kind::Tensor, Kind::Tensor, Kind::OptionalTensor];
/// `addend, addend_scale, addend_zero, lo, hi, out_scale, out_zero, dtype`.
const LAST: [Kind; 8] = {
    use Kind::*;
    [OptionalTensor, OptionalTensor, OptionalTensor, Plain, Plain, OptionalTensor, OptionalTensor, Optional]
};

pub(super) struct Linear;

impl Op<14> for Linear {
    const NAME: &CStr = c"linear_static";
    const PYTHON: &CStr = c"rquant::linear_static_python";
    const KINDS: [Kind; 14] = kinds([Kind::Plain]);

    unsafe fn run<'a>(torch: &'a Torch, slots: &[Slot; 14]) -> Option<Output<'a>> {
        let (first, &[n], last) = split(slots)?;
        // SAFETY: owned by the caller.
        let x = unsafe { torch.view(first[0], Memory::Contiguous)? };
        let (&k, rows) = x.sizes.split_last()?;
        let (m, n) = (rows.iter().product::<i64>() as usize, usize::try_from(n as i64).ok()?);
        let mut shape = [0; MAX_DIM];
        let shape = shape.get_mut(..x.sizes.len())?;
        shape[..rows.len()].copy_from_slice(rows);
        shape[rows.len()] = n as i64;
        let geometry = Geometry::linear(m, k as usize, n);
        // SAFETY: owned by the caller.
        unsafe { product(torch, x, first, &geometry, last, shape, Memory::Contiguous) }
    }
}

pub(super) struct Conv;

impl Op<21> for Conv {
    const NAME: &CStr = c"conv_static";
    const PYTHON: &CStr = c"rquant::conv_static_python";
    const KINDS: [Kind; 21] = {
        use Kind::*;
        kinds([Plain, List, List, List, List, Plain, Plain, List])
    };

    unsafe fn run<'a>(torch: &'a Torch, slots: &[Slot; 21]) -> Option<Output<'a>> {
        let (first, &[n, kernel, stride, padding, dilation, groups, transposed, extra], last) = split(slots)?;
        // SAFETY: owned by the caller.
        let x = unsafe { torch.view(first[0], Memory::ChannelsLast)? };
        let &[batch, channels, height, width] = x.sizes else { return None };
        let size = |size: i64| usize::try_from(size).ok();
        // SAFETY: lists, owned by the caller.
        let geometry = unsafe {
            Geometry {
                batch: size(batch)?,
                size: [size(height)?, size(width)?],
                channels: size(channels)?,
                out_channels: size(n as i64)?,
                kernel: torch.integers(kernel)?,
                stride: torch.integers(stride)?,
                padding: torch.integers(padding)?,
                dilation: torch.integers(dilation)?,
                groups: size(groups as i64)?,
                transposed: if transposed as u8 == 0 { None } else { Some(torch.integers(extra)?) },
            }
        };
        let [height, width] = geometry.out_size().ok()?.map(|size| size as i64);
        let shape = [batch, n as i64, height, width];
        // SAFETY: owned by the caller.
        unsafe { product(torch, x, first, &geometry, last, &shape, Memory::ChannelsLast) }
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

fn split<const N: usize>(slots: &[Slot]) -> Option<(&[Slot; 5], &[Slot; N], &[Slot; 8])> {
    let (first, rest) = slots.split_first_chunk()?;
    let (own, rest) = rest.split_first_chunk()?;
    Some((first, own, rest.first_chunk()?))
}

/// # Safety
///
/// The slots hold what `FIRST` and `LAST` say; they stay the caller's.
unsafe fn product<'a>(
    torch: &'a Torch,
    x: View,
    &[_, x_scale, x_zero, panels, bias]: &[Slot; 5],
    geometry: &Geometry,
    &[addend, addend_scale, addend_zero, lo, hi, out_scale, out_zero, dtype]: &[Slot; 8],
    shape: &[i64],
    memory: Memory,
) -> Option<Output<'a>> {
    // SAFETY: by this function's contract.
    let view = |slot| unsafe { torch.view(slot, Memory::Contiguous) };
    // SAFETY: by this function's contract.
    let optional = |slot, memory| unsafe { torch.optional(slot, memory) };
    // a scale and its zero point, or neither
    let pair = |scale, zero| {
        let both = optional(scale, Memory::Contiguous)?.zip(optional(zero, Memory::Contiguous)?);
        let Some((scale, zero)) = both else { return Some(None) };
        match (scale.float32(torch)?, zero.codes(torch)?) {
            ([scale], [zero]) => Some(Some((*scale, *zero))),
            _ => None,
        }
    };
    let (panels, zero) = (view(panels)?, view(x_zero)?);
    let &[zero] = zero.codes(torch)? else { return None };
    let x = Input { q: x.codes(torch)?, scales: view(x_scale)?.float32(torch)?, zero };
    let bias = match optional(bias, Memory::Contiguous)? {
        None => None,
        Some(bias) if *bias.sizes != [shape[if memory == Memory::ChannelsLast { 1 } else { shape.len() - 1 }]] => {
            return None;
        }
        Some(bias) => Some(float32(bias.floats(torch)?)),
    };
    let added = match (optional(addend, memory)?, pair(addend_scale, addend_zero)?) {
        (None, _) => None,
        (Some(q), Some((scale, zero))) if q.sizes == shape => Some(Codes { q: q.codes(torch)?, scale, zero }),
        _ => return None,
    };
    let (lo, hi) = (f64::from_bits(lo) as f32, f64::from_bits(hi) as f32);
    let epilogue = Epilogue { bias: bias.as_deref(), addend: added, lo, hi };
    let w = PackedRef::parse(panels.bytes(torch)?).ok()?;
    let (len, allowed) = (shape.iter().product::<i64>() as usize, torch.threads()?);
    (len > 0).then_some(())?;
    let encoding = pair(out_scale, out_zero)?;
    let dtype = match (encoding, dtype as *const Slot) {
        (Some(_), _) => (torch.int8)(),
        (None, none) if none.is_null() || out_scale != 0 => return None,
        // SAFETY: by this function's contract it points to a slot.
        (None, slot) => unsafe { *slot as i32 },
    };
    let mut out = torch.empty(shape, dtype, memory)?;
    let result = match encoding {
        Some((scale, zero)) => rquant::Output::Codes(out.codes(len)?, scale, zero),
        None => rquant::Output::Floats(out.floats(torch.code(dtype)?, len)?),
    };
    threads::with(allowed, |executor| rquant::conv_static(x, geometry, w, epilogue, result, executor)).ok()?;
    Some(out)
}
