//! One error type: every variant names the argument, what was expected and what came.

/// What can be wrong with a call.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer or shape that does not fit the others.
    #[error("{argument}: expected {expected}, got {got}")]
    Mismatch {
        /// The argument at fault.
        argument: &'static str,
        /// What would have fitted.
        expected: String,
        /// What came.
        got: String,
    },
    /// NaN or infinity where only finite numbers make sense.
    #[error("{argument}: NaN or infinity at flat index {index}")]
    NotFinite {
        /// The argument at fault.
        argument: &'static str,
        /// Row-major index of the first such element.
        index: usize,
    },
    /// A product too deep for an int32 accumulator.
    #[error("k: expected at most {max} (128 * 128 * k must fit int32), got {k}")]
    TooDeep {
        /// The depth that came.
        k: usize,
        /// The deepest that fits.
        max: usize,
    },
    /// `RQUANT_ISA` names a level that does not exist or that this CPU lacks.
    #[error("RQUANT_ISA: expected one of {available:?} on this CPU, got {wanted:?}")]
    UnsupportedIsa {
        /// What the variable says.
        wanted: String,
        /// What this CPU has.
        available: Vec<&'static str>,
    },
    /// Bytes that are not panels of this crate.
    #[error("panels: {0}")]
    BadPanels(String),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A [`Error::Mismatch`] from anything printable.
    pub(crate) fn mismatch(
        argument: &'static str,
        expected: impl std::fmt::Display,
        got: impl std::fmt::Display,
    ) -> Self {
        Self::Mismatch { argument, expected: expected.to_string(), got: got.to_string() }
    }
}

/// `rows * cols`, if that can be a size.
pub(crate) fn area(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols).ok_or_else(|| Error::mismatch("rows * cols", "a size in memory", format!("{rows} * {cols}")))
}

/// `Err` unless `got == expected`.
pub(crate) fn check_len(argument: &'static str, expected: usize, got: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::mismatch(argument, format!("length {expected}"), got)) }
}
