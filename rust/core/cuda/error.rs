//! What can go wrong before a kernel runs.

use std::path::PathBuf;

/// Why a CUDA call did not happen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No `libcuda` on this machine.
    #[error("CUDA: no NVIDIA driver here (libcuda.so.1 not found)")]
    NoDriver,
    /// The driver refused.
    #[error("CUDA: {call}{of}: {message} (error {code})")]
    Driver {
        /// The function.
        call: &'static str,
        /// The kernel and the architecture, as " of k on sm_90a", where it was about one.
        of: String,
        /// Its `CUresult`.
        code: u32,
        /// The driver's words for it.
        message: String,
    },
    /// A kernel has to be compiled and nobody said where NVRTC is.
    #[error(
        "CUDA: NVRTC is needed to compile {module} for {arch}, and none was found: install torch's CUDA wheel or set RQUANT_NVRTC"
    )]
    NoNvrtc {
        /// What was to be compiled.
        module: String,
        /// The GPU's.
        arch: String,
    },
    /// NVRTC is not what it should be.
    #[error("CUDA: NVRTC at {}: {message}", path.display())]
    Nvrtc {
        /// The library.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A source that does not compile.
    #[error("CUDA: {file} {options} does not compile for {arch}:\n{log}")]
    Compile {
        /// Its name.
        file: String,
        /// What makes its variant.
        options: String,
        /// As given to NVRTC.
        arch: String,
        /// NVRTC's.
        log: String,
    },
    /// A GPU that a kernel is not for.
    #[error("CUDA: {module} needs compute capability {}.{} or later, got {arch}", needs.0, needs.1)]
    Architecture {
        /// The source and its variant.
        module: String,
        /// The first that would do.
        needs: (i32, i32),
        /// The GPU's.
        arch: String,
    },
    /// Nothing can be compiled or loaded while a stream records a graph.
    #[error(
        "CUDA: {module} for {arch} is not loaded yet and the stream is capturing a graph: call rquant.cuda.warmup(model) before it, or run the model once"
    )]
    Capturing {
        /// The source and its variant.
        module: String,
        /// The GPU's.
        arch: String,
    },
    /// An argument that kernels cannot take.
    #[error("{argument}: expected {expected}, got {got}")]
    Argument {
        /// The argument at fault.
        argument: &'static str,
        /// What would have fitted.
        expected: String,
        /// What came.
        got: String,
    },
    /// A file that cannot be written.
    #[error("{}: {message}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's words.
        message: String,
    },
}

/// Result with this module's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The same, with the kernel and the architecture that the driver was asked about.
    pub(super) fn of(self, kernel: impl std::fmt::Display, arch: &str) -> Self {
        match self {
            Self::Driver { call, code, message, .. } => {
                Self::Driver { call, of: format!(" of {kernel} on {arch}"), code, message }
            }
            other => other,
        }
    }

    pub(super) fn argument(
        argument: &'static str,
        expected: impl std::fmt::Display,
        got: impl std::fmt::Display,
    ) -> Self {
        Self::Argument { argument, expected: expected.to_string(), got: got.to_string() }
    }
}
