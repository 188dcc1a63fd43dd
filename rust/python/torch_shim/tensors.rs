//! Torch's C functions, and tensors by them.

use super::argument::{Kind, Slot};
use crate::arguments::{BFLOAT16, FLOAT16, FLOAT32, floats, floats_mut, slice, slice_mut};
use crate::threads::{self, allowed};
use rquant::{Executor, Floats, FloatsMut};
use std::ffi::{c_char, c_int, c_void};

/// An `at::Tensor` on the heap.
pub(super) type Tensor = *mut c_void;
/// 0, or a C++ exception was caught. None comes through as such.
pub(super) type Status = c_int;
type Get<T> = unsafe extern "C" fn(Tensor, *mut T) -> Status;
type Do<T> = unsafe extern "C" fn(T) -> Status;
type Code = extern "C" fn() -> i32;
type Kernel = unsafe extern "C-unwind" fn(*mut Slot, u64, u64);

/// Dimensions of a tensor: more are unusual.
pub(super) const MAX_DIM: usize = 8;
/// Dimensions of an image in channels-last memory, from the fastest on.
const CHANNELS_LAST: [usize; 4] = [1, 3, 2, 0];

macro_rules! functions {
    ($($name:ident: $kind:ty = $symbol:literal;)*) => {
        pub(super) struct Torch { $(pub(super) $name: $kind,)* }

        impl Torch {
            /// `None` if `library` and those it depends on lack a symbol.
            ///
            /// # Safety
            ///
            /// `library` is of `dlopen`, and its symbols have the types in the table.
            pub(super) unsafe fn load(library: *mut c_void) -> Option<Self> {
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
    device: Get<i32> = c"aoti_torch_get_device_type";
    dtype: Get<i32> = c"aoti_torch_get_dtype";
    dim: Get<i64> = c"aoti_torch_get_dim";
    sizes: Get<*const i64> = c"aoti_torch_get_sizes";
    strides: Get<*const i64> = c"aoti_torch_get_strides";
    data: Get<*const c_void> = c"torch_get_const_data_ptr";
    data_mut: Get<*mut c_void> = c"torch_get_mutable_data_ptr";
    empty: unsafe extern "C" fn(i64, *const i64, *const i64, i32, i32, i32, *mut Tensor) -> Status
        = c"aoti_torch_empty_strided";
    copy: unsafe extern "C" fn(Tensor, Tensor, i32) -> Status = c"aoti_torch_copy_";
    delete_tensor: Do<Tensor> = c"aoti_torch_delete_tensor_object";
    delete_optional: Do<*mut Slot> = c"torch_delete_stable_ivalue"; // the youngest of all: torch 2.13
    list_size: unsafe extern "C" fn(*mut c_void, *mut usize) -> Status = c"torch_list_size";
    list_item: unsafe extern "C" fn(*mut c_void, usize, *mut Slot) -> Status = c"torch_list_get_item";
    delete_list: Do<*mut c_void> = c"torch_delete_list";
    threads: Do<*mut u32> = c"torch_get_num_threads";
    cpu: Code = c"aoti_torch_device_type_cpu";
    float32: Code = c"aoti_torch_dtype_float32";
    float16: Code = c"aoti_torch_dtype_float16";
    bfloat16: Code = c"aoti_torch_dtype_bfloat16";
    int8: Code = c"aoti_torch_dtype_int8";
    uint8: Code = c"aoti_torch_dtype_uint8";
    bool: Code = c"aoti_torch_dtype_bool";
    library: unsafe extern "C" fn(*const c_char, *const c_char, *const c_char, u32, *mut *mut c_void) -> Status
        = c"aoti_torch_library_init_impl";
    register: unsafe extern "C" fn(*mut c_void, *const c_char, Kernel, u64) -> Status = c"torch_library_impl";
    call: unsafe extern "C" fn(*const c_char, *const c_char, *mut Slot, u64) -> Status = c"torch_call_dispatcher";
    what: extern "C" fn() -> *const c_char = c"torch_exception_get_what_without_backtrace";
    throw: unsafe extern "C-unwind" fn(*const c_char) -> ! = c"_ZSt21__throw_runtime_errorPKc"; // libstdc++'s
}

/// # Safety
///
/// The tensor is live.
unsafe fn get<T>(function: Get<T>, tensor: Tensor, mut value: T) -> Option<T> {
    // SAFETY: by this function's contract, and a place for the result.
    (unsafe { function(tensor, &mut value) } == 0).then_some(value)
}

/// What is read of a CPU tensor in dense memory.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    torch: &'a Torch,
    pub dtype: i32,
    pub sizes: &'a [i64],
    pub strides: &'a [i64],
    pub len: usize,
    address: usize,
}

impl<'a> View<'a> {
    /// A CPU tensor, if `dense` says of its sizes and strides that it lies as it should.
    ///
    /// # Safety
    ///
    /// The tensor is live for `'a`, and `dense` is false for one with gaps.
    pub(super) unsafe fn new(
        torch: &'a Torch,
        tensor: Tensor,
        dense: impl FnOnce(&[i64], &[i64]) -> bool,
    ) -> Option<Self> {
        // SAFETY: by this function's contract.
        let (sizes, strides) = unsafe { torch.layout(tensor)? };
        dense(sizes, strides).then_some(())?;
        // SAFETY: as above.
        let (dtype, address) = unsafe { (get(torch.dtype, tensor, 0)?, get(torch.data, tensor, std::ptr::null())?) };
        let len = sizes.iter().product::<i64>() as usize;
        Some(View { torch, dtype, sizes, strides, len, address: address as usize })
    }

    /// Sizes of images in the order of channels-last memory.
    pub(super) fn image(&self) -> Option<[usize; 4]> {
        let sizes: [i64; 4] = self.sizes.try_into().ok()?;
        let [n, c, h, w] = sizes.map(|size| size as usize);
        Some([n, h, w, c])
    }

    /// Whether the other's elements lie in the same order.
    pub(super) fn lies_as(&self, other: &View) -> bool {
        let alike = |dim: usize| self.strides[dim] == other.strides[dim] || self.sizes[dim] == 1;
        self.sizes == other.sizes && (0..self.sizes.len()).all(alike)
    }

    pub(super) fn codes(&self) -> Option<&'a [i8]> {
        (self.dtype == (self.torch.int8)()).then(|| slice("codes", self.address, self.len).ok())?
    }

    pub(super) fn bytes(&self) -> Option<&'a [u8]> {
        (self.dtype == (self.torch.uint8)()).then(|| slice("bytes", self.address, self.len).ok())?
    }

    pub(super) fn float32(&self) -> Option<&'a [f32]> {
        (self.dtype == (self.torch.float32)()).then(|| slice("floats", self.address, self.len).ok())?
    }

    pub(super) fn floats(&self) -> Option<Floats<'a>> {
        floats("floats", self.address, self.torch.code(self.dtype)?, self.len).ok()
    }
}

/// A new tensor, to be deleted if it is not handed on.
pub(super) struct Output<'a> {
    torch: &'a Torch,
    tensor: Tensor,
    dtype: i32,
    len: usize,
    address: usize,
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `strided`, and owned.
        unsafe { (self.torch.delete_tensor)(self.tensor) };
    }
}

impl Output<'_> {
    pub(super) fn into_tensor(self) -> Tensor {
        std::mem::ManuallyDrop::new(self).tensor
    }

    pub(super) fn view(&self) -> Option<View<'_>> {
        // SAFETY: live as long as `self`; it is made dense.
        unsafe { View::new(self.torch, self.tensor, |_, _| true) }
    }

    pub(super) fn codes(&mut self) -> Option<&mut [i8]> {
        (self.dtype == (self.torch.int8)()).then(|| slice_mut("out", self.address, self.len).ok())?
    }

    pub(super) fn floats(&mut self) -> Option<FloatsMut<'_>> {
        floats_mut("out", self.address, self.torch.code(self.dtype)?, self.len).ok()
    }

    /// Of bool: true, until something else is written.
    pub(super) fn flags(&mut self) -> Option<&mut [bool]> {
        (self.dtype == (self.torch.bool)()).then_some(())?;
        slice_mut("out", self.address, self.len).ok()?.fill(u8::from(true));
        slice_mut("out", self.address, self.len).ok()
    }
}

/// How a tensor's elements lie.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Memory {
    Contiguous,
    /// `[N, C, H, W]` as `[N, H, W, C]`.
    ChannelsLast,
}

impl Memory {
    /// Strides of a dense tensor.
    fn strides(self, sizes: &[i64]) -> Option<[i64; MAX_DIM]> {
        let (mut strides, mut next) = ([1; MAX_DIM], 1);
        let mut put = |dim: usize| {
            *strides.get_mut(dim)? = next;
            next *= if self == Self::Contiguous { sizes[dim].max(1) } else { sizes[dim] }; // as torch does
            Some(())
        };
        match self {
            Self::Contiguous => (0..sizes.len()).rev().try_for_each(&mut put)?,
            Self::ChannelsLast if sizes.len() == 4 => CHANNELS_LAST.into_iter().try_for_each(&mut put)?,
            Self::ChannelsLast => return None,
        }
        Some(strides)
    }

    /// Whether a tensor lies so. Dimensions of one element have any stride, and a tensor without elements any at all.
    pub(super) fn holds(self, sizes: &[i64], strides: &[i64]) -> bool {
        let Some(dense) = self.strides(sizes) else { return false };
        sizes.contains(&0) || (0..sizes.len()).all(|i| strides[i] == dense[i] || sizes[i] == 1)
    }
}

impl Torch {
    /// Sizes and strides of a CPU tensor.
    ///
    /// # Safety
    ///
    /// The tensor is live for `'a`.
    unsafe fn layout<'a>(&self, tensor: Tensor) -> Option<(&'a [i64], &'a [i64])> {
        // SAFETY: live by this function's contract.
        let (device, dim) = unsafe { (get(self.device, tensor, 0)?, get(self.dim, tensor, 0)? as usize) };
        (device == (self.cpu)()).then_some(())?;
        let [sizes, strides] = [self.sizes, self.strides].map(|function| {
            // SAFETY: as above.
            let found = unsafe { get(function, tensor, std::ptr::null())? };
            // SAFETY: the tensor's own `dim` numbers, which it keeps; of no dimensions they may be anywhere.
            Some(if dim == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(found, dim) } })
        });
        sizes.zip(strides)
    }

    /// A copy of a CPU tensor that lies so.
    ///
    /// # Safety
    ///
    /// The tensor is live.
    pub(super) unsafe fn copied(&self, tensor: Tensor, memory: Memory) -> Option<Output<'_>> {
        // SAFETY: by this function's contract.
        let ((sizes, _), dtype) = unsafe { (self.layout(tensor)?, get(self.dtype, tensor, 0)?) };
        let out = self.empty(sizes, dtype, memory)?;
        // SAFETY: both are live, and of one size.
        (unsafe { (self.copy)(out.tensor, tensor, 0) } == 0).then_some(out)
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

    /// An uninitialised dense CPU tensor.
    pub(super) fn empty(&self, sizes: &[i64], dtype: i32, memory: Memory) -> Option<Output<'_>> {
        self.strided(sizes, &memory.strides(sizes)?, dtype)
    }

    /// The same of the sizes and the strides of another.
    pub(super) fn like(&self, x: &View, dtype: i32) -> Option<Output<'_>> {
        self.strided(x.sizes, x.strides, dtype)
    }

    fn strided(&self, sizes: &[i64], strides: &[i64], dtype: i32) -> Option<Output<'_>> {
        let len = sizes.iter().try_fold(1, |len: usize, &size| len.checked_mul(size.try_into().ok()?))?;
        let (mut tensor, dim) = (std::ptr::null_mut(), sizes.len() as i64);
        let (sizes, strides) = (sizes.as_ptr(), strides.as_ptr());
        // SAFETY: `dim` sizes and strides, and a place for the result.
        let status = unsafe { (self.empty)(dim, sizes, strides, dtype, (self.cpu)(), 0, &mut tensor) };
        (status == 0).then_some(())?;
        let (mut out, mut address) = (Output { torch: self, tensor, dtype, len, address: 0 }, std::ptr::null_mut());
        // SAFETY: a live tensor and a place for the result.
        (unsafe { (self.data_mut)(tensor, &mut address) } == 0).then_some(())?;
        out.address = address as usize;
        Some(out)
    }

    /// `work` on as many threads as a call may use; an error is Python's to tell.
    pub(super) fn run<T>(&self, work: impl FnOnce(&dyn Executor) -> rquant::Result<T>) -> Option<T> {
        let mut torch = 0;
        // SAFETY: a place for the result.
        (unsafe { (self.threads)(&mut torch) } == 0).then_some(())?;
        threads::with(allowed(torch as usize), work).ok()
    }

    /// # Safety
    ///
    /// The slot is of this kind, owned, and used no more.
    pub(super) unsafe fn delete(&self, slot: Slot, kind: Kind) {
        // SAFETY: each is owned; an optional one's slot is read before its end.
        unsafe {
            match kind {
                Kind::Plain => {}
                Kind::Tensor => _ = (self.delete_tensor)(slot as Tensor),
                Kind::List => _ = (self.delete_list)(slot as *mut c_void),
                Kind::Optional | Kind::OptionalTensor if slot == 0 => {}
                Kind::Optional => _ = (self.delete_optional)(slot as *mut Slot),
                Kind::OptionalTensor => {
                    (self.delete_tensor)(*(slot as *const Slot) as Tensor);
                    (self.delete_optional)(slot as *mut Slot);
                }
            }
        }
    }
}
