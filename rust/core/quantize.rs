//! Float matrices to codes, in three steps that others may stand between: ranges, then scales and zero points, then
//! codes. `x ≈ S·(q − Z)`, `q = clip(round_half_even(x / S) + Z)` (Jacob et al. 2018, <https://arxiv.org/abs/1712.05877>).

use crate::bitpack::{pack_row, row_bytes};
use crate::cpu;
use crate::cpu::lanes::{Encoding, INF_BITS};
use crate::error::{Error, Result, area, check_len};
use crate::executor::Executor;
use crate::floats::Floats;
use crate::matrix::{OwnedScales, OwnedZeroPoints, QuantizedMatrix, Scales, ZeroKind, ZeroPoints};
use crate::qtype::{QuantType, RangeRule, Scheme};
use crate::search::search;
use half::f16;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Elements of one task: long enough to be worth a thread, short enough to share one long row.
pub(crate) const CHUNK: usize = 1 << 16;

/// The smallest and largest of float16's normal range: outside it a scale would lose precision.
const HALF_NORMAL: std::ops::RangeInclusive<f32> = 6.103_515_6e-5..=65504.0;

/// Minimum and maximum of each group of each row of `x` (`[rows, cols]`), widened to contain 0, into `lo` and `hi`
/// (`[rows, groups]`).
///
/// # Errors
/// [`Error::NotFinite`] with the first NaN or infinity; [`Error::Mismatch`] for lengths.
pub fn ranges(
    x: Floats,
    rows: usize,
    cols: usize,
    group_size: usize,
    lo: &mut [f32],
    hi: &mut [f32],
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    check_len("x", area(rows, cols)?, x.len())?;
    if group_size == 0 {
        return Err(Error::mismatch("group_size", "at least 1", 0));
    }
    let groups = cols.div_ceil(group_size);
    check_len("lo", rows * groups, lo.len())?;
    check_len("hi", rows * groups, hi.len())?;
    let first_bad = AtomicUsize::new(usize::MAX);
    // one group, or a piece of a long one
    let scan = |start: usize, len: usize, scratch: &mut Vec<f32>| {
        let values = x.widen(start..start + len, scratch);
        if isa.absmax_bits(values) >= INF_BITS {
            let bad = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
            first_bad.fetch_min(start + bad, Relaxed);
            return (0.0, 0.0);
        }
        isa.min_max(values)
    };
    if cols > CHUNK && rows * groups < executor.threads().saturating_mul(4) {
        for (g, (lo, hi)) in lo.iter_mut().zip(hi.iter_mut()).enumerate() {
            let (row, first) = (g / groups, g % groups * group_size);
            let len = group_size.min(cols - first);
            let found = std::sync::Mutex::new((0f32, 0f32));
            executor.run(len.div_ceil(CHUNK), &|i| {
                let part = scan(row * cols + first + i * CHUNK, CHUNK.min(len - i * CHUNK), &mut Vec::new());
                let mut all = found.lock().unwrap_or_else(|e| e.into_inner());
                *all = (all.0.min(part.0), all.1.max(part.1));
            });
            (*lo, *hi) = found.into_inner().unwrap_or_else(|e| e.into_inner());
        }
    } else if groups > 0 {
        let per_task = CHUNK.div_ceil(cols);
        let parts = split(lo, hi, per_task * groups);
        executor.run(parts.len(), &|task| {
            let mut part = parts[task].lock().unwrap_or_else(|e| e.into_inner());
            let (lo, hi) = &mut *part;
            let mut scratch = Vec::new();
            for i in 0..lo.len() {
                let (row, first) = (task * per_task + i / groups, i % groups * group_size);
                (lo[i], hi[i]) = scan(row * cols + first, group_size.min(cols - first), &mut scratch);
            }
        });
    }
    match first_bad.into_inner() {
        usize::MAX => Ok(()),
        index => Err(Error::NotFinite { argument: "x", index }),
    }
}

pub(crate) type Parts<'a, A, B> = Vec<std::sync::Mutex<(&'a mut [A], &'a mut [B])>>;

/// Two outputs of equal length cut into tasks, each behind the lock of whoever runs it.
pub(crate) fn split<'a, A, B>(a: &'a mut [A], b: &'a mut [B], per_task: usize) -> Parts<'a, A, B> {
    a.chunks_mut(per_task).zip(b.chunks_mut(per_task)).map(std::sync::Mutex::new).collect()
}

/// Scales, and zero points unless symmetric (then `zeros` is empty), of ranges that contain 0.
///
/// Affine: `S = (hi − lo) / (2^bits − 1)`, `Z = round(qmin − lo / S)` with S as stored. Symmetric:
/// `S = max(−lo, hi) / (2^(bits−1) − 1)`, for float8 over its largest value. A constant zero group gets S = 1; S never underflows below float32's
/// smallest normal. With `half`, scales are rounded to float16 if every one lies in its normal range; returns whether
/// they were.
///
/// # Errors
/// [`Error::Mismatch`] for lengths; [`Error::NotFinite`] for a range that is not.
pub fn qparams(
    lo: &[f32],
    hi: &[f32],
    qtype: QuantType,
    symmetric: bool,
    half: bool,
    scales: &mut [f32],
    zeros: &mut [u8],
) -> Result<bool> {
    if qtype.is_float() && !symmetric {
        return Err(Error::mismatch("symmetric", "true for float8, which has no zero points", false));
    }
    check_len("hi", lo.len(), hi.len())?;
    check_len("scale", lo.len(), scales.len())?;
    check_len("zero_point", if symmetric { 0 } else { lo.len() }, zeros.len())?;
    for (argument, values) in [("lo", lo), ("hi", hi)] {
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite { argument, index });
        }
    }
    for ((&lo, &hi), scale) in lo.iter().zip(hi).zip(&mut *scales) {
        *scale = scale_of(lo, hi, qtype, symmetric);
    }
    let half = half && scales.iter().all(|s| half_of(*s).is_some());
    if half {
        scales.iter_mut().for_each(|s| *s = f16::from_f32(*s).to_f32());
    }
    for ((&lo, &s), zero) in lo.iter().zip(&*scales).zip(zeros) {
        let z = (f64::from(qtype.qmin()) - f64::from(lo.min(0.0)) / f64::from(s)).round_ties_even();
        let z = z.clamp(f64::from(qtype.qmin()), f64::from(qtype.qmax()));
        *zero = (z as i32 + qtype.offset()) as u8;
    }
    Ok(half)
}

/// The scale of one range, not yet rounded to float16.
pub(crate) fn scale_of(lo: f32, hi: f32, qtype: QuantType, symmetric: bool) -> f32 {
    // float64: hi − lo of two float32 cannot overflow, and one rounding remains
    let (lo, hi) = (f64::from(lo.min(0.0)), f64::from(hi.max(0.0)));
    let s = if symmetric {
        hi.max(-lo) / f64::from(qtype.largest())
    } else {
        (hi - lo) / f64::from(qtype.qmax() - qtype.qmin())
    };
    if s == 0.0 { 1.0 } else { (s as f32).clamp(f32::MIN_POSITIVE, f32::MAX) }
}

/// The scale as float16 stores it; `None` outside its normal range.
pub(crate) fn half_of(scale: f32) -> Option<f32> {
    Some(f16::from_f32(scale).to_f32()).filter(|s| HALF_NORMAL.contains(s))
}

/// Codes of `x` (`[rows, cols]`) under given scales and zero points, as canonical bytes `[rows, row_bytes]`. Without
/// zero points the lowest code is not produced. A value beyond its group's range takes the nearest code.
///
/// # Errors
/// [`Error::Mismatch`] for lengths and for a scale that is not positive and finite; [`Error::NotFinite`] for `x`.
pub fn encode(
    x: Floats,
    rows: usize,
    cols: usize,
    qtype: QuantType,
    group_size: usize,
    scales: Scales,
    zeros: ZeroPoints,
    codes: &mut [u8],
    executor: &dyn Executor,
) -> Result<()> {
    let isa = cpu::active()?;
    check_len("x", area(rows, cols)?, x.len())?;
    let stride = row_bytes(cols, qtype);
    crate::matrix::MatrixRef::new(rows, cols, qtype, group_size, codes, scales, zeros)?;
    if qtype.is_float() && zeros.kind() != ZeroKind::None {
        return Err(Error::mismatch("zero_point", "none for float8", "some"));
    }
    if let Some(i) = (0..scales.len()).find(|&i| !(scales.get(i) > 0.0 && scales.get(i).is_finite())) {
        return Err(Error::mismatch("scale", "positive and finite", format!("{} at {i}", scales.get(i))));
    }
    let groups = cols.div_ceil(group_size);
    let first_bad = AtomicUsize::new(usize::MAX);
    // columns [first, first + len) of a row; `first` starts a byte
    let piece = |row: usize, first: usize, len: usize, out: &mut [u8], scratch: &mut (Vec<f32>, Vec<u8>)| {
        let start = row * cols + first;
        let values = x.widen(start..start + len, &mut scratch.0);
        if isa.absmax_bits(values) >= INF_BITS {
            let bad = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
            first_bad.fetch_min(start + bad, Relaxed);
            return;
        }
        scratch.1.resize(len, 0);
        let mut at = 0;
        while at < len {
            let group = (first + at) / group_size;
            let end = ((group + 1) * group_size - first).min(len);
            let (values, codes, i) = (&values[at..end], &mut scratch.1[at..end], row * groups + group);
            if qtype.is_float() {
                isa.encode_float8(values, scales.get(i), qtype, codes);
            } else {
                isa.encode(values, encoding(qtype, scales, zeros, i), codes);
            }
            at = end;
        }
        pack_row(&scratch.1, qtype, out);
    };
    if cols == 0 {
        return Ok(());
    }
    if cols > CHUNK && rows < executor.threads().saturating_mul(4) {
        for (row, codes) in codes.chunks_mut(stride).enumerate() {
            let parts: Vec<_> = codes.chunks_mut(CHUNK / qtype.per_byte()).map(std::sync::Mutex::new).collect();
            executor.run(parts.len(), &|i| {
                let mut out = parts[i].lock().unwrap_or_else(|e| e.into_inner());
                if i * CHUNK < cols {
                    piece(row, i * CHUNK, CHUNK.min(cols - i * CHUNK), &mut out, &mut Default::default());
                }
            });
        }
    } else {
        let per_task = CHUNK.div_ceil(cols);
        let parts: Vec<_> = codes.chunks_mut(per_task * stride).map(std::sync::Mutex::new).collect();
        executor.run(parts.len(), &|task| {
            let mut part = parts[task].lock().unwrap_or_else(|e| e.into_inner());
            let mut scratch = Default::default();
            for (i, out) in part.chunks_mut(stride).enumerate() {
                piece(task * per_task + i, 0, cols, out, &mut scratch);
            }
        });
    }
    match first_bad.into_inner() {
        usize::MAX => Ok(()),
        index => Err(Error::NotFinite { argument: "x", index }),
    }
}

fn encoding(qtype: QuantType, scales: Scales, zeros: ZeroPoints, i: usize) -> Encoding {
    let (qmin, qmax) = (qtype.qmin(), qtype.qmax());
    let scale = scales.get(i);
    match zeros.kind() {
        ZeroKind::F16 => {
            let shift = zeros.get(i, qtype);
            Encoding { scale, shift, lo: qmin as f32, hi: qmax as f32, base: qtype.offset() }
        }
        kind => {
            let z = zeros.get(i, qtype) as i32;
            let lowest = if kind == ZeroKind::None { qmin + 1 } else { qmin };
            let (lo, hi) = ((lowest - z) as f32, (qmax - z) as f32);
            Encoding { scale, shift: 0.0, lo, hi, base: z + qtype.offset() }
        }
    }
}

/// Quantize `x` (`[rows, cols]`): ranges, scales, codes.
///
/// Scales are float32 for whole rows and float16 for groups, unless one leaves float16's normal range.
///
/// # Errors
/// As [`ranges`] and [`encode`].
pub fn quantize(
    x: Floats,
    rows: usize,
    cols: usize,
    scheme: &Scheme,
    executor: &dyn Executor,
) -> Result<QuantizedMatrix> {
    let group_size = scheme.group_size.unwrap_or(cols).max(usize::from(scheme.group_size.is_none()));
    if group_size == 0 {
        return Err(Error::mismatch("group_size", "at least 1", 0));
    }
    check_len("x", area(rows, cols)?, x.len())?;
    let count = area(rows, cols.div_ceil(group_size))?;
    let (mut lo, mut hi) = (vec![0f32; count], vec![0f32; count]);
    ranges(x, rows, cols, group_size, &mut lo, &mut hi, executor)?;
    let mut wants_half = scheme.group_size.is_some();
    match scheme.range {
        RangeRule::MinMax => {}
        RangeRule::AbsMax => {
            for (lo, hi) in lo.iter_mut().zip(&mut hi) {
                *hi = hi.max(-*lo);
                *lo = -*hi;
            }
        }
        RangeRule::LeastSquares => {
            let (qtype, symmetric) = (scheme.qtype, scheme.symmetric);
            wants_half = search(x, rows, cols, qtype, symmetric, group_size, wants_half, &mut lo, &mut hi, executor)?;
        }
    }
    let mut scales = lo.clone();
    let mut zeros = vec![0u8; if scheme.symmetric { 0 } else { count }];
    let half = qparams(&lo, &hi, scheme.qtype, scheme.symmetric, wants_half, &mut scales, &mut zeros)?;
    let mut codes = vec![0u8; rows * row_bytes(cols, scheme.qtype)];
    let z = if scheme.symmetric { ZeroPoints::None } else { ZeroPoints::U8(&zeros) };
    encode(x, rows, cols, scheme.qtype, group_size, Scales::F32(&scales), z, &mut codes, executor)?;
    let scales = match half {
        true => OwnedScales::F16(scales.iter().map(|s| f16::from_f32(*s)).collect()),
        false => OwnedScales::F32(scales),
    };
    let zeros = if scheme.symmetric { OwnedZeroPoints::None } else { OwnedZeroPoints::U8(zeros) };
    Ok(QuantizedMatrix { rows, cols, qtype: scheme.qtype, group_size, codes, scales, zeros })
}

/// Bring `axis` of a row-major array to the front: the matrix whose rows are that axis's channels, for a scale per
/// channel on any axis.
///
/// # Panics
/// If `axis` is not one of `shape`, or `x` is not of that shape.
pub fn channels_first<T: Copy>(x: &[T], shape: &[usize], axis: usize) -> Vec<T> {
    let outer: usize = shape[..axis].iter().product();
    let (channels, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    assert_eq!(x.len(), outer * channels * inner, "x is not of this shape");
    let pieces = (0..channels).flat_map(|c| (0..outer).map(move |o| (o * channels + c) * inner));
    pieces.flat_map(|at| &x[at..at + inner]).copied().collect()
}
