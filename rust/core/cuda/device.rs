//! One GPU: its primary context, which torch uses too, and the functions that have been loaded.
#![allow(unsafe_code)]

use super::error::{Error, Result};
use super::images::{self, lock};
use super::modules::Module;
use super::nvrtc::arch_of;
use cudarc::driver::{DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, OnceLock};

/// Whether there is a driver to open. Of a machine without one nothing else here is asked.
pub fn driver_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: opens the driver's library.
    *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}

/// `code` of a driver call as a [`Result`].
fn check<T>(call: &'static str, outcome: std::result::Result<T, DriverError>) -> Result<T> {
    outcome.map_err(|error| Error::Driver {
        call,
        of: String::new(),
        code: error.0 as u32,
        message: error.error_string().map_or_else(|_| "unknown".into(), |text| text.to_string_lossy().into_owned()),
    })
}

/// A GPU, known once and for as long as the process lives.
pub struct Device {
    context: sys::CUcontext,
    capability: (i32, i32),
    multiprocessors: i32,
    shared_memory: i32,
    functions: Mutex<HashMap<(Module, &'static str), Function>>,
    modules: Mutex<HashMap<Module, usize>>,
}

/// A handle of the driver; valid in all threads.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: the driver's handles belong to the context, not to a thread.
unsafe impl Send for Function {}
// SAFETY: the context is a handle valid in all threads; the rest is behind locks.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Makes a context current, and what was current before when it goes.
struct Current(Option<sys::CUcontext>);

impl Current {
    fn new(context: sys::CUcontext) -> Result<Self> {
        let before = check("cuCtxGetCurrent", result::ctx::get_current())?;
        if before == Some(context) {
            return Ok(Self(None));
        }
        // SAFETY: a primary context that is never released.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(context) })?;
        Ok(Self(Some(before.unwrap_or(std::ptr::null_mut()))))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // SAFETY: what was current in this thread, or none.
            let _ = unsafe { result::ctx::set_current(before) };
        }
    }
}

impl Device {
    /// The device of this ordinal, as torch counts them. Its primary context is retained, and never released: the process's
    /// end does that.
    pub fn get(ordinal: i32) -> Result<&'static Self> {
        use sys::CUdevice_attribute::*;
        static DEVICES: Mutex<Option<HashMap<i32, &'static Device>>> = Mutex::new(None);
        if !driver_present() {
            return Err(Error::NoDriver);
        }
        let mut devices = lock(&DEVICES);
        let devices = devices.get_or_insert_default();
        if let Some(device) = devices.get(&ordinal) {
            return Ok(device);
        }
        check("cuInit", result::init())?;
        let device = check("cuDeviceGet", result::device::get(ordinal))?;
        let attribute = |name| {
            // SAFETY: a device of `get`.
            check("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, name) })
        };
        let new = Self {
            // SAFETY: a device of `get`.
            context: check("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?,
            capability: (
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            functions: Mutex::default(),
            modules: Mutex::default(),
        };
        let new: &'static Self = Box::leak(Box::new(new));
        devices.insert(ordinal, new);
        Ok(new)
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> i32 {
        self.multiprocessors
    }

    /// The architecture as NVRTC names it; of 9.0 with all it has.
    pub fn arch(&self) -> String {
        arch_of(self.capability)
    }

    /// Launch `kernel` of `module` on `stream` (0: the default one), with `shared` bytes of dynamic shared memory. Arguments
    /// are in 8 bytes each, whatever their size.
    ///
    /// # Safety
    ///
    /// The arguments are those of the kernel, addresses of live memory of this device as large as it wants, and stay so
    /// until the stream has come there.
    pub(super) unsafe fn launch(
        &self,
        stream: usize,
        module: Module,
        kernel: &'static str,
        grid: (u32, u32),
        threads: u32,
        shared: u32,
        arguments: &[u64],
    ) -> Result<()> {
        let _current = Current::new(self.context)?;
        let function = self.function(stream, module, kernel, shared)?;
        let mut pointers = [std::ptr::null_mut::<c_void>(); 24];
        let pointers = &mut pointers[..arguments.len()];
        for (pointer, argument) in pointers.iter_mut().zip(arguments) {
            *pointer = std::ptr::from_ref(argument).cast_mut().cast();
        }
        let stream = stream as sys::CUstream;
        // SAFETY: a function of this context and, by this function's contract, its arguments; the driver copies them.
        let launched = unsafe {
            result::launch_kernel(function.0, (grid.0, grid.1, 1), (threads, 1, 1), shared, stream, pointers)
        };
        check("cuLaunchKernel", launched)
            .map_err(|error| error.of(format_args!("{kernel}{}", module.variant()), &self.arch()))
    }

    fn function(&self, stream: usize, module: Module, kernel: &'static str, shared: u32) -> Result<Function> {
        if let Some(function) = lock(&self.functions).get(&(module, kernel)) {
            return Ok(*function);
        }
        if self.capability.0 < 8 && module.needs_ampere() {
            return Err(Error::Architecture { module: module.name(), needs: (8, 0), arch: self.arch() });
        }
        if shared as i32 > self.shared_memory {
            return Err(Error::argument("shared memory", format!("at most {}", self.shared_memory), shared));
        }
        // SAFETY: the caller's stream.
        let capturing = check("cuStreamIsCapturing", unsafe { result::stream::is_capturing(stream as sys::CUstream) })?;
        if capturing != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            return Err(Error::Capturing { module: module.name(), arch: self.arch() });
        }
        let loaded = self.load(module)? as sys::CUmodule;
        let function = get_function(loaded, format!("{kernel}{}", module.variant()), shared);
        let function =
            function.map_err(|error| error.of(format_args!("{kernel}{}", module.variant()), &self.arch()))?;
        lock(&self.functions).insert((module, kernel), function);
        Ok(function)
    }

    /// The module in this device's context, which is current.
    fn load(&self, module: Module) -> Result<usize> {
        if let Some(&loaded) = lock(&self.modules).get(&module) {
            return Ok(loaded);
        }
        images::load(&module, self.capability, |image| {
            let mut modules = lock(&self.modules);
            if let Some(&loaded) = modules.get(&module) {
                return Ok(loaded); // another thread was first
            }
            // SAFETY: a whole image, as the cache or NVRTC has it, and this device's context is current.
            let loaded = check("cuModuleLoadData", unsafe { result::module::load_data(image.as_ptr().cast()) })
                .map_err(|error| error.of(module.name(), &self.arch()))? as usize;
            modules.insert(module, loaded);
            Ok(loaded)
        })
    }
}

/// A kernel of a module of the current context, ready for `shared` bytes of dynamic shared memory.
fn get_function(module: sys::CUmodule, name: String, shared: u32) -> Result<Function> {
    let name = CString::new(name).map_err(|error| Error::argument("kernel", "a name", error))?;
    // SAFETY: a module of this context.
    let function = check("cuModuleGetFunction", unsafe { result::module::get_function(module, name) })?;
    if shared > 48 << 10 {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a function of this context.
        let set = unsafe { result::function::set_function_attribute(function, attribute, shared as i32) };
        check("cuFuncSetAttribute", set)?;
    }
    Ok(Function(function))
}
