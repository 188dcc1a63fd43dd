//! Storage types of weights and the scheme that maps floats to them.

use crate::error::{Error, Result};

/// What one element is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantType {
    /// 2 bits, −2..=1.
    Int2,
    /// 4 bits, −8..=7.
    Int4,
    /// 8 bits, −128..=127.
    Int8,
    /// float8 e4m3fn: 4 bits of exponent, 3 of mantissa, no infinity, up to 448 (Micikevicius et al. 2022,
    /// <https://arxiv.org/abs/2209.05433>). Symmetric, and multiplied in float arithmetic only.
    E4M3,
    /// float8 e5m2: 5 bits of exponent, 2 of mantissa, up to 57,344. As [`QuantType::E4M3`] otherwise.
    E5M2,
}

impl QuantType {
    /// The integers, narrowest first.
    pub const INTEGERS: [Self; 3] = [Self::Int2, Self::Int4, Self::Int8];
    /// The floats.
    pub const FLOATS: [Self; 2] = [Self::E4M3, Self::E5M2];

    /// The type that [`QuantType::kind`] gives this number.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for any other number.
    pub fn from_kind(kind: usize) -> Result<Self> {
        let found = Self::INTEGERS.into_iter().chain(Self::FLOATS).find(|qtype| qtype.kind() == kind);
        found.ok_or_else(|| Error::mismatch("kind", "2, 4 or 8 (bits of an integer), 43 or 52 (float8)", kind))
    }

    /// A number that stands for the type: its bits, 43 for e4m3fn, 52 for e5m2.
    pub const fn kind(self) -> usize {
        match self {
            Self::E4M3 => 43,
            Self::E5M2 => 52,
            integer => integer.bits(),
        }
    }

    /// Whether codes are floats, which neither have an offset nor become sums of integers.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::E4M3 | Self::E5M2)
    }

    /// The largest value of a code: what the largest magnitude of a symmetric group becomes.
    pub const fn largest(self) -> f32 {
        match self {
            Self::E4M3 => 448.0,
            Self::E5M2 => 57_344.0,
            integer => integer.qmax() as f32,
        }
    }

    /// Bits of one code.
    pub const fn bits(self) -> usize {
        match self {
            Self::Int2 => 2,
            Self::Int4 => 4,
            Self::Int8 | Self::E4M3 | Self::E5M2 => 8,
        }
    }

    /// Codes in one byte.
    pub const fn per_byte(self) -> usize {
        8 / self.bits()
    }

    /// Added to an integer code when it is stored: codes lie unsigned in memory. 0 for floats.
    pub const fn offset(self) -> i32 {
        if self.is_float() { 0 } else { 1 << (self.bits() - 1) }
    }

    /// The lowest code of an integer type.
    pub const fn qmin(self) -> i32 {
        -self.offset()
    }

    /// The highest code of an integer type.
    pub const fn qmax(self) -> i32 {
        self.offset() - 1
    }
}

/// Which range of a group becomes its scale. A symmetric scheme takes the larger magnitude of
/// either, so the two differ for affine schemes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRule {
    /// `[min, max]`.
    MinMax,
    /// `[-a, a]` with `a = max |x|`.
    AbsMax,
    /// The part of `[min, max]` whose codes come back with the least squared error: [`crate::search`].
    LeastSquares,
}

/// How a matrix is quantized: `x ≈ S·(q − Z)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheme {
    /// Storage type.
    pub qtype: QuantType,
    /// `Z = 0`, and the lowest code is not produced.
    pub symmetric: bool,
    /// Elements of a row that share one scale, at least 1; the last group of a row may be ragged. `None`: the row.
    pub group_size: Option<usize>,
    /// Range of a group.
    pub range: RangeRule,
}

impl Scheme {
    /// One scale per row, `Z = 0`.
    pub const fn symmetric(qtype: QuantType) -> Self {
        Self { qtype, symmetric: true, group_size: None, range: RangeRule::AbsMax }
    }

    /// A scale and an integer zero point per `group_size` elements of a row.
    pub const fn affine(qtype: QuantType, group_size: usize) -> Self {
        Self { qtype, symmetric: false, group_size: Some(group_size), range: RangeRule::MinMax }
    }

    /// The same with groups of `group_size`.
    pub const fn grouped(self, group_size: usize) -> Self {
        Self { group_size: Some(group_size), ..self }
    }
}
