//! Storage types of weights and the scheme that maps floats to them.

use crate::error::{Error, Result};

/// Width of a stored integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantType {
    /// 2 bits, −2..=1.
    Int2,
    /// 4 bits, −8..=7.
    Int4,
    /// 8 bits, −128..=127.
    Int8,
}

impl QuantType {
    /// All of them, narrowest first.
    pub const ALL: [Self; 3] = [Self::Int2, Self::Int4, Self::Int8];

    /// The type of `bits` bits.
    pub fn from_bits(bits: usize) -> Result<Self> {
        match bits {
            2 => Ok(Self::Int2),
            4 => Ok(Self::Int4),
            8 => Ok(Self::Int8),
            _ => Err(Error::mismatch("bits", "2, 4 or 8", bits)),
        }
    }

    /// Bits of one code.
    pub const fn bits(self) -> usize {
        match self {
            Self::Int2 => 2,
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }

    /// Codes in one byte.
    pub const fn per_byte(self) -> usize {
        8 / self.bits()
    }

    /// Added to a code when it is stored: codes lie unsigned in memory.
    pub const fn offset(self) -> i32 {
        1 << (self.bits() - 1)
    }

    /// The lowest code.
    pub const fn qmin(self) -> i32 {
        -self.offset()
    }

    /// The highest code.
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
