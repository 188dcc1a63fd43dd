//! Ops on CPU tensors as torch's dispatcher calls them, without Python on the way: for a small layer Python takes longer than
//! the product. What is needed of torch are C functions that it keeps stable; they are looked up in the torch that is
//! loaded, so nothing is linked and any torch will do, or none.
//!
//! Only a call with nothing unusual is answered here. All others, errors among them, go to the Python kernel, an op of the
//! same schema whose name ends in `_python`: that is the one place that says what is wrong with arguments.
#![allow(unsafe_code)]

mod argument;
mod elementwise;
mod linear;
mod pool;
mod quantize;
mod static_product;
mod tensors;

use argument::{Argument, Kind, Slot};
use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use tensors::{Output, Torch};

/// The version whose functions, and whose reading of the stack, are used here: torch keeps both for later ones.
const ABI: u64 = 2 << 56 | 13 << 48;

static TORCH: OnceLock<Torch> = OnceLock::new();

/// An op whose results are tensors.
trait Op<const ARGUMENTS: usize, const RESULTS: usize> {
    const NAME: &CStr;
    /// The one that takes what `run` does not.
    const PYTHON: &CStr;
    const KINDS: [Kind; ARGUMENTS];

    /// The results, or `None`: let Python see.
    fn run<'a>(torch: &'a Torch, arguments: [Argument<'a>; ARGUMENTS]) -> Option<[Output<'a>; RESULTS]>;
}

/// Replaces the arguments by the results; false if an exception was caught instead.
///
/// # Safety
///
/// `stack` holds the arguments of the op, for the callee to own.
#[inline(never)] // for the sake of `kernel`
unsafe fn answer<O: Op<ARGUMENTS, RESULTS>, const ARGUMENTS: usize, const RESULTS: usize>(
    torch: &Torch,
    stack: *mut Slot,
) -> bool {
    const { assert!(RESULTS <= ARGUMENTS) }
    // SAFETY: as many slots as the schema has arguments.
    let slots = unsafe { &mut *stack.cast::<[Slot; ARGUMENTS]>() };
    // SAFETY: arguments of the op, which live until they are deleted below.
    let arguments = std::array::from_fn(|i| unsafe { Argument::new(torch, slots[i], O::KINDS[i]) });
    // a panic goes to Python like any other trouble, and shows itself there
    if let Ok(Some(results)) = catch_unwind(AssertUnwindSafe(|| O::run(torch, arguments))) {
        for (slot, kind) in slots.iter().zip(O::KINDS) {
            // SAFETY: nothing uses the arguments from here on.
            unsafe { torch.delete(*slot, kind) };
        }
        for (slot, result) in slots.iter_mut().zip(results) {
            *slot = result.into_tensor() as Slot;
        }
        return true;
    }
    // SAFETY: the schema is the same, so this is the stack that the operator wants; it takes the arguments over.
    unsafe { (torch.call)(O::PYTHON.as_ptr(), c"".as_ptr(), stack, ABI) == 0 }
}

/// Only here C++ unwinds through Rust. This frame has nothing to drop or catch, so no code of Rust's runs on the way: it
/// may have an unwinder of its own linked in (a build by zig has), which must not touch the state of C++'s.
unsafe extern "C-unwind" fn kernel<O: Op<ARGUMENTS, RESULTS>, const ARGUMENTS: usize, const RESULTS: usize>(
    stack: *mut Slot,
    _: u64,
    _: u64,
) {
    let Some(torch) = TORCH.get() else { return }; // it is there: `register` comes after
    // SAFETY: torch calls a kernel with the operator's arguments, which become the kernel's own.
    if !unsafe { answer::<O, ARGUMENTS, RESULTS>(torch, stack) } {
        // SAFETY: a terminated text, torch's own of the exception it just caught; it is copied.
        unsafe { (torch.throw)((torch.what)()) }
    }
}

/// Make these kernels those of their ops on the CPU. False if the loaded torch lacks what it takes.
pub(crate) fn register() -> bool {
    // SAFETY: finds a library only if it is loaded already, so none of its code runs.
    let library = unsafe { libc::dlopen(c"libtorch_cpu.so".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return false;
    }
    // SAFETY: the types are those of torch's headers.
    let Some(torch) = (unsafe { Torch::load(library) }) else { return false };
    let torch = TORCH.get_or_init(|| torch);
    let (file, mut made) = (c"torch_shim".as_ptr(), std::ptr::null_mut());
    // SAFETY: terminated names and a place for the result. It is never freed, nor is this module ever unloaded.
    if unsafe { (torch.library)(c"rquant".as_ptr(), c"CPU".as_ptr(), file, line!(), &mut made) } != 0 {
        return false;
    }
    add(linear::Linear, torch, made)
        && add(static_product::Linear, torch, made)
        && add(static_product::Conv, torch, made)
        && add(quantize::Quantize, torch, made)
        && add(quantize::QuantizeImages, torch, made)
        && add(quantize::Dequantize, torch, made)
        && add(elementwise::Add, torch, made)
        && add(elementwise::Requantize, torch, made)
        && add(pool::Max, torch, made)
        && add(pool::Average, torch, made)
        && add(pool::AdaptiveAverage, torch, made)
}

fn add<O: Op<ARGUMENTS, RESULTS>, const ARGUMENTS: usize, const RESULTS: usize>(
    _: O,
    torch: &Torch,
    library: *mut c_void,
) -> bool {
    // SAFETY: a library of torch's, a terminated name, and a kernel for as many arguments as the op has.
    unsafe { (torch.register)(library, O::NAME.as_ptr(), kernel::<O, ARGUMENTS, RESULTS>, ABI) == 0 }
}
