//! `rquant::linear` on CPU tensors as torch's dispatcher calls it, without Python on the way: for a small layer Python
//! takes longer than the product. What is needed of torch are C functions that it keeps stable; they are looked up in
//! the torch that is loaded, so nothing is linked and any torch will do, or none.
//!
//! Only a call with nothing unusual is answered here. All others, errors among them, go to the Python kernel,
//! `rquant::linear_python`: that is the one place that says what is wrong with arguments.
#![allow(unsafe_code)]

use crate::arguments::{BFLOAT16, FLOAT16, FLOAT32, floats, floats_mut, slice};
use crate::{packed::multiply, threads};
use rquant::PackedRef;
use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// An `at::Tensor` on the heap.
type Tensor = *mut c_void;
/// 0, or a C++ exception was caught. None comes through as such.
type Status = c_int;
type Get<T> = unsafe extern "C" fn(Tensor, *mut T) -> Status;
type Do<T> = unsafe extern "C" fn(T) -> Status;
type Code = extern "C" fn() -> i32;
/// A slot of the stack: an integer or bool in its low bytes, an owned `Tensor`, or for `Tensor?` an owned pointer (or
/// null) to a slot with the tensor. The result replaces the first.
type Slot = u64;
/// Those of `rquant::linear`.
type Arguments = [Slot; 7];
type Kernel = unsafe extern "C-unwind" fn(*mut Slot, u64, u64);

/// The version whose functions, and whose reading of the stack, are used here: torch keeps both for later ones.
const ABI: u64 = 2 << 56 | 13 << 48;
/// Dimensions of x: more are unusual.
const MAX_DIM: usize = 8;

macro_rules! functions {
    ($($name:ident: $kind:ty = $symbol:literal;)*) => {
        struct Torch { $($name: $kind,)* }

        impl Torch {
            /// `None` if `library` and those it depends on lack a symbol.
            ///
            /// # Safety
            ///
            /// `library` is of `dlopen`, and its symbols have the types in the table.
            unsafe fn load(library: *mut c_void) -> Option<Self> {
                Some(Self { $($name: {
                    // SAFETY: a lookup by a terminated name in a library that is loaded.
                    let found = unsafe { libc::dlsym(library, $symbol.as_ptr()) };
                    // SAFETY: a null pointer is `None`, any other a function of this type by this function's contract.
                    unsafe { std::mem::transmute::<*mut c_void, Option<$kind>>(found) }?
                },)* })
            }
        }
    };
}

functions! {
    is_contiguous: Get<bool> = c"aoti_torch_is_contiguous";
    device: Get<i32> = c"aoti_torch_get_device_type";
    dtype: Get<i32> = c"aoti_torch_get_dtype";
    dim: Get<i64> = c"aoti_torch_get_dim";
    sizes: Get<*const i64> = c"aoti_torch_get_sizes";
    data: Get<*const c_void> = c"torch_get_const_data_ptr";
    data_mut: Get<*mut c_void> = c"torch_get_mutable_data_ptr";
    empty: unsafe extern "C" fn(i64, *const i64, *const i64, i32, i32, i32, *mut Tensor) -> Status
        = c"aoti_torch_empty_strided";
    delete: Do<Tensor> = c"aoti_torch_delete_tensor_object";
    delete_optional: Do<*mut Slot> = c"torch_delete_stable_ivalue"; // the youngest of all: torch 2.13
    threads: Do<*mut u32> = c"torch_get_num_threads";
    cpu: Code = c"aoti_torch_device_type_cpu";
    float32: Code = c"aoti_torch_dtype_float32";
    float16: Code = c"aoti_torch_dtype_float16";
    bfloat16: Code = c"aoti_torch_dtype_bfloat16";
    uint8: Code = c"aoti_torch_dtype_uint8";
    library: unsafe extern "C" fn(*const c_char, *const c_char, *const c_char, u32, *mut *mut c_void) -> Status
        = c"aoti_torch_library_init_impl";
    register: unsafe extern "C" fn(*mut c_void, *const c_char, Kernel, u64) -> Status = c"torch_library_impl";
    call: unsafe extern "C" fn(*const c_char, *const c_char, *mut Slot, u64) -> Status = c"torch_call_dispatcher";
    what: extern "C" fn() -> *const c_char = c"torch_exception_get_what_without_backtrace";
    throw: unsafe extern "C-unwind" fn(*const c_char) -> ! = c"_ZSt21__throw_runtime_errorPKc"; // libstdc++'s
}

static TORCH: OnceLock<Torch> = OnceLock::new();

/// What is read of a contiguous CPU tensor.
struct View<'a> {
    dtype: i32,
    sizes: &'a [i64],
    len: usize,
    address: usize,
}

/// A tensor to be deleted if it is not handed on.
struct Output<'a>(&'a Torch, Tensor);

impl Drop for Output<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `empty`, and owned.
        unsafe { (self.0.delete)(self.1) };
    }
}

impl Torch {
    /// # Safety
    ///
    /// `tensor` is live for `'a`.
    unsafe fn view<'a>(&self, tensor: Tensor) -> Option<View<'a>> {
        fn get<T>(function: Get<T>, tensor: Tensor, mut value: T) -> Option<T> {
            // SAFETY: a live tensor by `view`'s contract, and a place for the result.
            (unsafe { function(tensor, &mut value) } == 0).then_some(value)
        }
        if get(self.device, tensor, 0)? != (self.cpu)() || !get(self.is_contiguous, tensor, false)? {
            return None;
        }
        let (dim, sizes) = (get(self.dim, tensor, 0)?, get(self.sizes, tensor, std::ptr::null())?);
        // SAFETY: the tensor's own `dim` sizes, which it keeps; of no dimensions they may be anywhere.
        let sizes = if dim == 0 { &[] } else { unsafe { std::slice::from_raw_parts(sizes, dim as usize) } };
        Some(View {
            dtype: get(self.dtype, tensor, 0)?,
            sizes,
            len: sizes.iter().product::<i64>() as usize,
            address: get(self.data, tensor, std::ptr::null())? as usize,
        })
    }

    /// A `Tensor?`, if `view` can read it.
    ///
    /// # Safety
    ///
    /// `slot` is null or points to a slot with a tensor, both live for `'a`.
    unsafe fn optional<'a>(&self, slot: Slot) -> Option<Option<View<'a>>> {
        match slot as *const Slot {
            none if none.is_null() => Some(None),
            // SAFETY: by this function's contract.
            slot => unsafe { self.view(*slot as Tensor) }.map(Some),
        }
    }

    /// A dtype as `arguments` has it.
    fn code(&self, dtype: i32) -> Option<u8> {
        match dtype {
            _ if dtype == (self.float32)() => Some(FLOAT32),
            _ if dtype == (self.float16)() => Some(FLOAT16),
            _ if dtype == (self.bfloat16)() => Some(BFLOAT16),
            _ => None,
        }
    }

    /// An uninitialised contiguous CPU tensor.
    fn empty(&self, sizes: &[i64], dtype: i32) -> Option<Output<'_>> {
        let mut strides = [1; MAX_DIM];
        for i in (1..sizes.len()).rev() {
            strides[i - 1] = strides[i] * sizes[i].max(1);
        }
        let (dim, mut made) = (sizes.len() as i64, std::ptr::null_mut());
        // SAFETY: `dim` sizes and strides, and a place for the result.
        let status = unsafe { (self.empty)(dim, sizes.as_ptr(), strides.as_ptr(), dtype, (self.cpu)(), 0, &mut made) };
        (status == 0).then(|| Output(self, made))
    }

    /// The product, or `None`: let Python see. Every `?` is a call with something unusual.
    ///
    /// # Safety
    ///
    /// The slots are arguments of `rquant::linear`; they stay the caller's.
    unsafe fn linear(&self, &[x, panels, bias, k, n, integer, scale]: &Arguments) -> Option<Tensor> {
        // SAFETY: owned by the caller.
        let (x, panels) = unsafe { (self.view(x as Tensor)?, self.view(panels as Tensor)?) };
        // SAFETY: owned by the caller.
        let (bias, scale) = unsafe { (self.optional(bias)?, self.optional(scale)?) };
        let bias = match bias {
            None => None,
            Some(bias) if *bias.sizes != [n as i64] => return None,
            Some(bias) => Some(floats("bias", bias.address, self.code(bias.dtype)?, bias.len).ok()?),
        };
        let scales = match scale {
            None => None,
            Some(scale) if integer as u8 == 0 || scale.dtype != (self.float32)() => return None,
            Some(scale) => Some(slice("scale", scale.address, scale.len).ok()?),
        };
        let (&last, rows) = x.sizes.split_last()?;
        let m = rows.iter().product::<i64>() as usize;
        let mut shape = [0; MAX_DIM];
        let shape = shape.get_mut(..x.sizes.len())?;
        shape[..rows.len()].copy_from_slice(rows);
        shape[rows.len()] = n as i64;
        let w = PackedRef::parse(slice("panels", panels.address, panels.len).ok()?).ok()?;
        if panels.dtype != (self.uint8)() || last as u64 != k || (w.k() as u64, w.n() as u64) != (k, n) {
            return None;
        }
        let (code, mut torch_threads) = (self.code(x.dtype)?, 0);
        let input = floats("x", x.address, code, x.len).ok()?;
        // SAFETY: a place for the result.
        (unsafe { (self.threads)(&mut torch_threads) } == 0).then_some(())?;
        let out = self.empty(shape, x.dtype)?;
        let mut address = std::ptr::null_mut();
        // SAFETY: a live tensor, owned until the end of this function, and a place for the result.
        (unsafe { (self.data_mut)(out.1, &mut address) } == 0).then_some(())?;
        let result = floats_mut("out", address as usize, code, m.checked_mul(n as usize)?).ok()?;
        threads::with(threads::allowed(torch_threads as usize), |executor| {
            multiply(input, m, w, bias, result, integer as u8 != 0, scales, executor)
        })
        .ok()?;
        Some(std::mem::ManuallyDrop::new(out).1)
    }

    /// # Safety
    ///
    /// The slots are arguments of `rquant::linear`, the callee's own; nothing uses them later.
    unsafe fn delete_arguments(&self, &[x, panels, bias, .., scale]: &Arguments) {
        // SAFETY: each is owned; an optional one's slot is read before its end.
        unsafe {
            (self.delete)(x as Tensor);
            (self.delete)(panels as Tensor);
            for optional in [bias, scale] {
                if optional != 0 {
                    (self.delete)(*(optional as *const Slot) as Tensor);
                    (self.delete_optional)(optional as *mut Slot);
                }
            }
        }
    }
}

/// Replaces the arguments by the result; false if an exception was caught instead.
///
/// # Safety
///
/// `stack` holds the arguments of `rquant::linear`, for the callee to own.
#[inline(never)] // for the sake of `kernel`
unsafe fn answer(torch: &Torch, stack: *mut Slot) -> bool {
    // SAFETY: as many slots as the schema has arguments.
    let arguments = unsafe { &mut *stack.cast::<Arguments>() };
    // SAFETY: arguments of `rquant::linear`. A panic goes to Python like any other trouble, and shows itself there.
    if let Ok(Some(out)) = catch_unwind(AssertUnwindSafe(|| unsafe { torch.linear(arguments) })) {
        // SAFETY: nothing uses the arguments from here on.
        unsafe { torch.delete_arguments(arguments) };
        arguments[0] = out as Slot;
        return true;
    }
    // SAFETY: the schema is the same, so this is the stack that the operator wants; it takes the arguments over.
    unsafe { (torch.call)(c"rquant::linear_python".as_ptr(), c"".as_ptr(), stack, ABI) == 0 }
}

/// Only here C++ unwinds through Rust. This frame has nothing to drop or catch, so no code of Rust's runs on the way: it
/// may have an unwinder of its own linked in (a build by zig has), which must not touch the state of C++'s.
unsafe extern "C-unwind" fn kernel(stack: *mut Slot, _arguments: u64, _results: u64) {
    let Some(torch) = TORCH.get() else { return }; // it is there: `register` comes after
    // SAFETY: torch calls a kernel with the operator's arguments, which become the kernel's own.
    if !unsafe { answer(torch, stack) } {
        // SAFETY: a terminated text, torch's own of the exception it just caught; it is copied.
        unsafe { (torch.throw)((torch.what)()) }
    }
}

/// Make this kernel that of `rquant::linear` on the CPU. False if the loaded torch lacks what it takes.
pub(crate) fn register() -> bool {
    // SAFETY: finds a library only if it is loaded already, so none of its code runs.
    let library = unsafe { libc::dlopen(c"libtorch_cpu.so".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return false;
    }
    // SAFETY: the types are those of torch's headers.
    let Some(torch) = (unsafe { Torch::load(library) }) else { return false };
    let torch = TORCH.get_or_init(|| torch);
    let (file, mut made) = (c"torch_shim.rs".as_ptr(), std::ptr::null_mut());
    // SAFETY: terminated names and a place for the result. It is never freed, nor is this module ever unloaded.
    unsafe {
        (torch.library)(c"rquant".as_ptr(), c"CPU".as_ptr(), file, line!(), &mut made) == 0
            && (torch.register)(made, c"linear".as_ptr(), kernel, ABI) == 0
    }
}
