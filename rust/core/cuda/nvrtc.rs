//! NVRTC, from a path that somebody found: source to machine code of one architecture, or to PTX for later ones.
#![allow(unsafe_code)]

use super::error::{Error, Result};
use super::modules::Module;
use libloading::Library;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

type Program = *mut c_void;
type Code = c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Code;
type Bytes = unsafe extern "C" fn(Program, *mut c_char) -> Code;

/// The library, opened.
pub struct Nvrtc {
    path: PathBuf,
    version: (i32, i32),
    /// Compute capabilities that it has machine code for, as 90 for 9.0.
    known: Vec<i32>,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Code,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Code,
    destroy: unsafe extern "C" fn(*mut Program) -> Code,
    cubin: (Size, Bytes),
    ptx: (Size, Bytes),
    log: (Size, Bytes),
    what: unsafe extern "C" fn(Code) -> *const c_char,
    _libraries: Vec<Library>,
}

/// What a driver loads, and what the compiler said: registers and spills of each kernel.
pub struct Image {
    /// Machine code, an ELF image; or PTX, a text that ends in 0.
    pub bytes: Vec<u8>,
    /// The assembler's report.
    pub log: String,
}

impl Nvrtc {
    /// The library at `path`, opened once in a process.
    pub fn get(path: &Path) -> Result<&'static Self> {
        static OPENED: Mutex<Option<HashMap<PathBuf, &'static Nvrtc>>> = Mutex::new(None);
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.get_or_insert_default();
        if let Some(nvrtc) = opened.get(path) {
            return Ok(nvrtc);
        }
        let nvrtc: &'static Self = Box::leak(Box::new(Self::open(path)?));
        opened.insert(path.to_path_buf(), nvrtc);
        Ok(nvrtc)
    }

    /// Open the library at `path`, and the `libnvrtc-builtins` beside it: not every build finds that by itself.
    fn open(path: &Path) -> Result<Self> {
        let bad = |message: String| Error::Nvrtc { path: path.to_path_buf(), message };
        let beside = path.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        let builtins = beside.map(|entry| entry.path()).filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc-builtins.so."))
        });
        // SAFETY: NVIDIA's libraries; their initialisers have no conditions.
        let mut libraries: Vec<_> = builtins.filter_map(|path| unsafe { Library::new(path) }.ok()).collect();
        // SAFETY: as above.
        let library = unsafe { Library::new(path) }.map_err(|error| bad(error.to_string()))?;
        macro_rules! function {
            ($symbol:literal) => {
                // SAFETY: the type is that of nvrtc.h, the same in all versions, and `library` lives as long as `Self`.
                *unsafe { library.get($symbol) }.map_err(|error| bad(error.to_string()))?
            };
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code = function!(b"nvrtcVersion\0");
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two places for numbers.
        unsafe { version(&mut major, &mut minor) };
        let count: unsafe extern "C" fn(*mut c_int) -> Code = function!(b"nvrtcGetNumSupportedArchs\0");
        let list: unsafe extern "C" fn(*mut c_int) -> Code = function!(b"nvrtcGetSupportedArchs\0");
        let mut length = 0;
        // SAFETY: a place for a number.
        unsafe { count(&mut length) };
        let mut known = vec![0; length.max(0) as usize];
        // SAFETY: places for as many numbers as it has.
        unsafe { list(known.as_mut_ptr()) };
        let found = Self {
            path: path.to_path_buf(),
            version: (major, minor),
            known,
            create: function!(b"nvrtcCreateProgram\0"),
            compile: function!(b"nvrtcCompileProgram\0"),
            destroy: function!(b"nvrtcDestroyProgram\0"),
            cubin: (function!(b"nvrtcGetCUBINSize\0"), function!(b"nvrtcGetCUBIN\0")),
            ptx: (function!(b"nvrtcGetPTXSize\0"), function!(b"nvrtcGetPTX\0")),
            log: (function!(b"nvrtcGetProgramLogSize\0"), function!(b"nvrtcGetProgramLog\0")),
            what: function!(b"nvrtcGetErrorString\0"),
            _libraries: Vec::new(),
        };
        libraries.push(library);
        Ok(Self { _libraries: libraries, ..found })
    }

    /// Major and minor.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// What to compile for on a GPU of this compute capability: its own machine code, or where this NVRTC is older than
    /// the GPU, the PTX of the latest that it knows, which the driver finishes. An error on a GPU older than all of them.
    pub fn target(&self, capability: (i32, i32), module: &Module) -> Result<String> {
        let number = capability.0 * 10 + capability.1;
        if self.known.contains(&number) {
            return Ok(arch_of(capability));
        }
        let latest = self.known.iter().filter(|&&known| known <= number).max();
        latest.map(|known| format!("compute_{known}")).ok_or_else(|| Error::Architecture {
            module: module.name(),
            needs: self.known.iter().min().map_or((0, 0), |known| (known / 10, known % 10)),
            arch: arch_of(capability),
        })
    }

    /// The options of every compilation but the architecture and what makes a variant.
    pub(super) const OPTIONS: [&str; 3] = ["--std=c++17", "-default-device", "--ptxas-options=-v"];

    /// Compile a variant of a source for `arch`: machine code for one as "sm_90a", PTX for one as "compute_90".
    pub fn compile(&self, module: &Module, arch: &str) -> Result<Image> {
        self.compile_text(&module.file(), module.source(), &module.defines(), arch)
    }

    /// The same of any source that includes our headers, called `name` in messages. `defines` as in `-DNAME=VALUE`.
    pub fn compile_text(&self, name: &str, source: &str, defines: &[String], arch: &str) -> Result<Image> {
        let failed =
            |log: String| Error::Compile { file: name.into(), options: defines.join(" "), arch: arch.into(), log };
        let text = |text: &str| CString::new(text).map_err(|error| failed(error.to_string()));
        let options = [format!("--gpu-architecture={arch}")];
        let options = options.iter().map(String::as_str).chain(Self::OPTIONS).chain(defines.iter().map(String::as_str));
        let options = options.map(text).collect::<Result<Vec<_>>>()?;
        let names = Module::headers().iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>>>()?;
        let headers = Module::headers().iter().map(|(_, header)| text(header)).collect::<Result<Vec<_>>>()?;
        let (source, file) = (text(source)?, text(name)?);
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();

        let mut program = Compilation { nvrtc: self, program: std::ptr::null_mut() };
        // SAFETY: terminated texts, as many headers as names, all alive beyond the call.
        let code = unsafe {
            let (headers, names) = (pointers(&headers), pointers(&names));
            let count = headers.len() as c_int;
            (self.create)(&mut program.program, source.as_ptr(), file.as_ptr(), count, headers.as_ptr(), names.as_ptr())
        };
        if code != 0 {
            return Err(Error::Nvrtc { path: self.path.clone(), message: self.message(code) });
        }
        // SAFETY: a program that was created, and terminated texts.
        let code = unsafe { (self.compile)(program.program, options.len() as c_int, pointers(&options).as_ptr()) };
        let log = program.read(self.log)?;
        let log = String::from_utf8_lossy(log.strip_suffix(b"\0").unwrap_or(&log)).trim().to_string();
        if code != 0 {
            return Err(failed(format!("{}\n{log}", self.message(code))));
        }
        Ok(Image { bytes: program.read(if arch.starts_with("sm_") { self.cubin } else { self.ptx })?, log })
    }

    fn message(&self, code: Code) -> String {
        // SAFETY: the library's own terminated text, for any code.
        unsafe { CStr::from_ptr((self.what)(code)) }.to_string_lossy().into_owned()
    }
}

/// The architecture of a GPU as NVRTC names it; of 9.0 with all it has.
pub(super) fn arch_of((major, minor): (i32, i32)) -> String {
    format!("sm_{major}{minor}{}", if (major, minor) == (9, 0) { "a" } else { "" })
}

/// A program, destroyed in the end.
struct Compilation<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Compilation<'_> {
    fn read(&self, (size, get): (Size, Bytes)) -> Result<Vec<u8>> {
        let mut length = 0;
        // SAFETY: a live program, and a place for a number.
        let mut code = unsafe { size(self.program, &mut length) };
        let mut bytes = vec![0; length];
        if code == 0 {
            // SAFETY: as many bytes as it asked for.
            code = unsafe { get(self.program, bytes.as_mut_ptr().cast()) };
        }
        let failed = || Error::Nvrtc { path: self.nvrtc.path.clone(), message: self.nvrtc.message(code) };
        if code == 0 { Ok(bytes) } else { Err(failed()) }
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created by `create`, and not used again.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}
