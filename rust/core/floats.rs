//! Float buffers in the three dtypes users hold. Kernels see float32; the conversion lies here and nowhere else.

use crate::buffer::Shared;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;

/// Float elements to read.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// IEEE single.
    F32(&'a [f32]),
    /// IEEE half.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// Float elements to write.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// IEEE single.
    F32(&'a mut [f32]),
    /// IEEE half.
    F16(&'a mut [f16]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl<'a> Floats<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of them.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[range]),
            Self::F16(x) => Self::F16(&x[range]),
            Self::Bf16(x) => Self::Bf16(&x[range]),
        }
    }

    /// The elements of `range` as float32: in place, or widened (exactly) into `scratch`.
    pub(crate) fn widen<'s>(&self, range: Range<usize>, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        if let Self::F32(x) = self {
            return &x[range];
        }
        scratch.resize(scratch.len().max(range.len()), 0.0);
        let out = &mut scratch[..range.len()];
        match self {
            Self::F32(_) => {}
            Self::F16(x) => x[range].convert_to_f32_slice(out),
            // a shift, which the compiler vectorizes
            Self::Bf16(x) => {
                out.iter_mut().zip(&x[range]).for_each(|(o, v)| *o = f32::from_bits(u32::from(v.to_bits()) << 16))
            }
        }
        out
    }
}

impl FloatsMut<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every row of `row.len()` elements becomes `row`.
    #[allow(unsafe_code)]
    pub(crate) fn fill_rows(&mut self, row: &[f32]) {
        let rows = self.len() / row.len().max(1);
        let shared = self.share();
        // SAFETY: the buffer is borrowed here, by this thread alone.
        (0..rows).for_each(|r| unsafe { shared.write(r * row.len(), row) });
    }

    /// A writer that several threads may hold.
    pub(crate) fn share(&mut self) -> SharedOut {
        match self {
            Self::F32(x) => SharedOut { at: x.as_mut_ptr().cast(), len: x.len(), narrow: Narrow::F32 },
            Self::F16(x) => SharedOut { at: x.as_mut_ptr().cast(), len: x.len(), narrow: Narrow::F16 },
            Self::Bf16(x) => SharedOut { at: x.as_mut_ptr().cast(), len: x.len(), narrow: Narrow::Bf16 },
        }
    }
}

#[derive(Clone, Copy)]
enum Narrow {
    F32,
    F16,
    Bf16,
}

/// An output that threads write in disjoint pieces, each float32 rounded to the output's dtype.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut {
    at: *mut u8,
    len: usize,
    narrow: Narrow,
}

// SAFETY: a plain address; `write` asks its callers for disjoint ranges.
#[allow(unsafe_code)]
unsafe impl Send for SharedOut {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for SharedOut {}

#[allow(unsafe_code)]
impl SharedOut {
    /// The same output without its first `count` elements.
    pub(crate) fn skip(self, count: usize) -> Self {
        assert!(count <= self.len, "output range");
        let size = if matches!(self.narrow, Narrow::F32) { 4 } else { 2 };
        Self { at: self.at.wrapping_add(count * size), len: self.len - count, narrow: self.narrow }
    }

    /// The buffer, if it is float32.
    pub(crate) fn float32(self) -> Option<Shared<f32>> {
        // SAFETY: `at` is where `len` float32 begin; `Shared` asks its callers for the rest.
        matches!(self.narrow, Narrow::F32).then(|| unsafe { Shared::from_raw(self.at.cast(), self.len) })
    }

    /// The buffer, if it is bfloat16.
    pub(crate) fn bfloat16(self) -> Option<Shared<bf16>> {
        // SAFETY: `at` is where `len` bfloat16 begin; `Shared` asks its callers for the rest.
        matches!(self.narrow, Narrow::Bf16).then(|| unsafe { Shared::from_raw(self.at.cast(), self.len) })
    }

    /// Write `values` at element `start`.
    ///
    /// # Safety
    /// The buffer that was shared is still borrowed, and no other thread touches this range.
    pub(crate) unsafe fn write(&self, start: usize, values: &[f32]) {
        assert!(start + values.len() <= self.len, "output range");
        let count = values.len();
        match self.narrow {
            Narrow::F32 => {
                // SAFETY: in range (asserted), of this dtype, and the caller's alone.
                let out = unsafe { std::slice::from_raw_parts_mut(self.at.cast::<f32>().add(start), count) };
                out.copy_from_slice(values);
            }
            Narrow::F16 => {
                // SAFETY: as above.
                let out = unsafe { std::slice::from_raw_parts_mut(self.at.cast::<f16>().add(start), count) };
                out.convert_from_f32_slice(values);
            }
            Narrow::Bf16 => {
                // SAFETY: as above.
                let out = unsafe { std::slice::from_raw_parts_mut(self.at.cast::<bf16>().add(start), count) };
                out.convert_from_f32_slice(values);
            }
        }
    }
}
