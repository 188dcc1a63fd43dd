//! What a kernel is called with.

use super::tensors::{Memory, Output, Tensor, Torch, View};
use crate::arguments;
use rquant::elementwise::PerTensor;
use std::ffi::c_void;

/// A place on torch's stack: a number in its low bytes, an owned `Tensor` or list, or for what is optional an owned pointer
/// (or null) to a slot with the value. Results replace the first ones.
pub(super) type Slot = u64;

/// What a slot holds, as far as the callee owns something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// A number in its bytes.
    Plain,
    Tensor,
    /// A `Tensor?`.
    OptionalTensor,
    /// Of a number.
    Optional,
    /// Of numbers. Of tensors there is none: torch moves them out of a list that a program may use again.
    List,
}

/// A slot and its kind. Where something else than a plain value is expected the answer is `None`: let Python see.
#[derive(Clone, Copy)]
pub(super) struct Argument<'a> {
    torch: &'a Torch,
    slot: Slot,
    kind: Kind,
}

impl<'a> Argument<'a> {
    /// # Safety
    ///
    /// `slot` is of this kind, and what it owns lives for `'a`.
    pub(super) unsafe fn new(torch: &'a Torch, slot: Slot, kind: Kind) -> Self {
        Self { torch, slot, kind }
    }

    fn of(self, kind: Kind) -> Slot {
        assert_eq!(self.kind, kind);
        self.slot
    }

    /// A tensor that lies so.
    pub(super) fn tensor(self, memory: Memory) -> Option<View<'a>> {
        let tensor = self.of(Kind::Tensor) as Tensor;
        // SAFETY: a tensor by its kind, and live.
        unsafe { View::new(self.torch, tensor, |sizes, strides| memory.holds(sizes, strides)) }
    }

    /// A tensor as it is if it lies so, else a copy that does.
    pub(super) fn arranged(self, memory: Memory) -> Option<Arranged<'a>> {
        if let Some(x) = self.tensor(memory) {
            return Some(Arranged::Own(x));
        }
        // SAFETY: as in `tensor`.
        unsafe { self.torch.copied(self.of(Kind::Tensor) as Tensor, memory) }.map(Arranged::Copy)
    }

    /// A tensor without gaps, in whatever order.
    pub(super) fn dense(self) -> Option<View<'a>> {
        // SAFETY: as in `tensor`.
        unsafe { View::new(self.torch, self.of(Kind::Tensor) as Tensor, dense) }
    }

    /// A `Tensor?` that lies so, if there is one.
    pub(super) fn optional(self, memory: Memory) -> Option<Option<View<'a>>> {
        match self.of(Kind::OptionalTensor) as *const Slot {
            none if none.is_null() => Some(None),
            some => {
                // SAFETY: a slot with a tensor by this one's kind, both live.
                unsafe { Self::new(self.torch, *some, Kind::Tensor) }.tensor(memory).map(Some)
            }
        }
    }

    pub(super) fn integer(self) -> i64 {
        self.of(Kind::Plain) as i64
    }

    fn float(self) -> f32 {
        f64::from_bits(self.of(Kind::Plain)) as f32
    }

    pub(super) fn flag(self) -> bool {
        self.of(Kind::Plain) as u8 != 0
    }

    pub(super) fn dtype(self) -> i32 {
        self.of(Kind::Plain) as i32
    }

    /// An optional number as a plain one, if it is given.
    pub(super) fn given(self) -> Option<Self> {
        let slot = self.of(Kind::Optional) as *const Slot;
        // SAFETY: points to a slot with a number by its kind, and lives.
        (!slot.is_null()).then(|| unsafe { Self::new(self.torch, *slot, Kind::Plain) })
    }

    /// The integers of a list of so many, none of them negative.
    pub(super) fn integers<const N: usize>(self) -> Option<[usize; N]> {
        let (list, mut size) = (self.of(Kind::List) as *mut c_void, 0);
        // SAFETY: a list by its kind, live, and a place for the result.
        (unsafe { (self.torch.list_size)(list, &mut size) } == 0 && size == N).then_some(())?;
        let mut items = [0; N];
        for (i, item) in items.iter_mut().enumerate() {
            let mut value = 0;
            // SAFETY: as above, and the list has this item.
            (unsafe { (self.torch.list_item)(list, i, &mut value) } == 0).then_some(())?;
            *item = usize::try_from(value as i64).ok()?;
        }
        Some(items)
    }
}

/// See `Argument::arranged`.
pub(super) enum Arranged<'a> {
    Own(View<'a>),
    Copy(Output<'a>),
}

impl Arranged<'_> {
    pub(super) fn view(&self) -> Option<View<'_>> {
        match self {
            Self::Own(x) => Some(*x),
            Self::Copy(x) => x.view(),
        }
    }
}

/// The ends of a clamp; where one is not given there is none.
pub(super) fn clamp(lo: Argument, hi: Argument) -> (f32, f32) {
    arguments::clamp(lo.given().map(Argument::float), hi.given().map(Argument::float))
}

/// A scale and its zero point, of one element each.
pub(super) fn pair(scale: Argument, zero: Argument) -> Option<PerTensor> {
    one_pair(scale.tensor(Memory::Contiguous)?, zero.tensor(Memory::Contiguous)?)
}

/// The same, or neither.
pub(super) fn optional_pair(scale: Argument, zero: Argument) -> Option<Option<PerTensor>> {
    match (scale.optional(Memory::Contiguous)?, zero.optional(Memory::Contiguous)?) {
        (None, None) => Some(None),
        (Some(scale), Some(zero)) => one_pair(scale, zero).map(Some),
        _ => None,
    }
}

fn one_pair(scale: View, zero: View) -> Option<PerTensor> {
    match (scale.float32()?, zero.codes()?) {
        (&[scale], &[zero]) => Some(PerTensor { scale, zero }),
        _ => None,
    }
}

/// Whether elements lie side by side. Dimensions of one element have any stride.
fn dense(sizes: &[i64], strides: &[i64]) -> bool {
    let mut len = 1;
    while let Some(next) = (0..sizes.len()).find(|&dim| sizes[dim] > 1 && strides[dim] == len) {
        len *= sizes[next];
    }
    len == sizes.iter().product::<i64>()
}
