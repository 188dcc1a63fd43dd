//! NVRTC, from a path that somebody found: source to machine code of one architecture.
#![allow(unsafe_code)]

use super::error::{Error, Result};
use super::modules::Module;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

type Program = *mut c_void;
type Code = c_int;

/// The library, opened.
pub struct Nvrtc {
    path: PathBuf,
    version: (i32, i32),
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
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    what: unsafe extern "C" fn(Code) -> *const c_char,
    _libraries: Vec<Library>,
}

/// Machine code, and what the compiler said: registers and spills of each kernel.
pub struct Cubin {
    /// An ELF image.
    pub bytes: Vec<u8>,
    /// The assembler's report.
    pub log: String,
}

impl Nvrtc {
    /// Open the library at `path`, and the `libnvrtc-builtins` beside it: not every build finds that by itself.
    pub fn open(path: &Path) -> Result<Self> {
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
        let found = Self {
            path: path.to_path_buf(),
            version: (major, minor),
            create: function!(b"nvrtcCreateProgram\0"),
            compile: function!(b"nvrtcCompileProgram\0"),
            destroy: function!(b"nvrtcDestroyProgram\0"),
            cubin_size: function!(b"nvrtcGetCUBINSize\0"),
            cubin: function!(b"nvrtcGetCUBIN\0"),
            log_size: function!(b"nvrtcGetProgramLogSize\0"),
            log: function!(b"nvrtcGetProgramLog\0"),
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

    /// The options of every compilation but the architecture and what makes a variant.
    pub(super) const OPTIONS: [&str; 3] = ["--std=c++17", "-default-device", "--ptxas-options=-v"];

    /// Compile `source`, called `name` in messages, for `arch` as in "sm_90a". `defines` as in `-DNAME=VALUE`.
    pub fn compile(&self, name: &str, source: &str, defines: &[String], arch: &str) -> Result<Cubin> {
        let failed = |log: String| Error::Compile { module: name.into(), arch: arch.into(), log };
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
        let log = program.read(self.log_size, self.log)?;
        let log = String::from_utf8_lossy(log.strip_suffix(b"\0").unwrap_or(&log)).trim().to_string();
        if code != 0 {
            return Err(failed(format!("{}\n{log}", self.message(code))));
        }
        Ok(Cubin { bytes: program.read(self.cubin_size, self.cubin)?, log })
    }

    fn message(&self, code: Code) -> String {
        // SAFETY: the library's own terminated text, for any code.
        unsafe { CStr::from_ptr((self.what)(code)) }.to_string_lossy().into_owned()
    }
}

/// A program, destroyed in the end.
struct Compilation<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Compilation<'_> {
    fn read(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> Code,
        get: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    ) -> Result<Vec<u8>> {
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
