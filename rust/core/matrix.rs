//! The canonical form of a weight: packed codes, scales and zero points, as they lie in a file.

use crate::bitpack::row_bytes;
use crate::error::{Error, Result, area, check_len};
use crate::qtype::QuantType;
use half::f16;
use std::ops::Range;

/// Scales, `[rows, groups]`.
#[derive(Clone, Copy, Debug)]
pub enum Scales<'a> {
    /// Per channel, and wherever a scale leaves float16's normal range.
    F32(&'a [f32]),
    /// Per group.
    F16(&'a [f16]),
}

/// Dtype of [`Scales`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleDtype {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
}

/// Zero points, `[rows, groups]`, or none (symmetric).
#[derive(Clone, Copy, Debug)]
pub enum ZeroPoints<'a> {
    /// Z = 0.
    None,
    /// Integer Z, stored with the codes' offset.
    U8(&'a [u8]),
    /// Fractional Z (HQQ, Q4_1), stored plainly.
    F16(&'a [f16]),
}

/// Kind of [`ZeroPoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroKind {
    /// Symmetric.
    None,
    /// One byte.
    U8,
    /// Two bytes.
    F16,
}

impl<'a> Scales<'a> {
    /// Some of them.
    pub(crate) fn slice(self, range: Range<usize>) -> Scales<'a> {
        match self {
            Self::F32(s) => Self::F32(&s[range]),
            Self::F16(s) => Self::F16(&s[range]),
        }
    }

    /// Number of scales.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(s) => s.len(),
            Self::F16(s) => s.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their dtype.
    pub fn dtype(&self) -> ScaleDtype {
        match self {
            Self::F32(_) => ScaleDtype::F32,
            Self::F16(_) => ScaleDtype::F16,
        }
    }

    /// Scale `i` as float32 (exact).
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(s) => s[i],
            Self::F16(s) => s[i].to_f32(),
        }
    }
}

impl<'a> ZeroPoints<'a> {
    /// Some of them.
    pub(crate) fn slice(self, range: Range<usize>) -> ZeroPoints<'a> {
        match self {
            Self::None => Self::None,
            Self::U8(z) => Self::U8(&z[range]),
            Self::F16(z) => Self::F16(&z[range]),
        }
    }

    /// Their kind.
    pub fn kind(&self) -> ZeroKind {
        match self {
            Self::None => ZeroKind::None,
            Self::U8(_) => ZeroKind::U8,
            Self::F16(_) => ZeroKind::F16,
        }
    }

    pub(crate) fn len(&self) -> Option<usize> {
        match self {
            Self::None => None,
            Self::U8(z) => Some(z.len()),
            Self::F16(z) => Some(z.len()),
        }
    }

    /// The plain Z of entry `i`.
    pub fn get(&self, i: usize, qtype: QuantType) -> f32 {
        match self {
            Self::None => 0.0,
            Self::U8(z) => (i32::from(z[i]) - qtype.offset()) as f32,
            Self::F16(z) => z[i].to_f32(),
        }
    }
}

/// A quantized matrix `[rows, cols]` that someone else holds.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) qtype: QuantType,
    pub(crate) group_size: usize,
    pub(crate) codes: &'a [u8],
    pub(crate) scales: Scales<'a>,
    pub(crate) zeros: ZeroPoints<'a>,
}

impl<'a> MatrixRef<'a> {
    /// View canonical buffers: `codes` `[rows, row_bytes(cols)]`, `scales` and `zeros` `[rows, ceil(cols / group_size)]`.
    /// A `group_size` of at least `cols` means one group per row.
    ///
    /// # Errors
    /// [`Error::Mismatch`] names the buffer of the wrong size.
    pub fn new(
        rows: usize,
        cols: usize,
        qtype: QuantType,
        group_size: usize,
        codes: &'a [u8],
        scales: Scales<'a>,
        zeros: ZeroPoints<'a>,
    ) -> Result<Self> {
        if group_size == 0 {
            return Err(Error::mismatch("group_size", "at least 1", 0));
        }
        let this = Self { rows, cols, qtype, group_size, codes, scales, zeros };
        check_len("codes", area(rows, row_bytes(cols, qtype))?, codes.len())?;
        check_len("scale", area(rows, this.groups())?, scales.len())?;
        if let Some(len) = zeros.len() {
            check_len("zero_point", rows * this.groups(), len)?;
        }
        Ok(this)
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Storage type.
    pub fn qtype(&self) -> QuantType {
        self.qtype
    }

    /// Elements of a row that share a scale.
    pub fn group_size(&self) -> usize {
        self.group_size
    }

    /// Canonical bytes `[rows, row_bytes(cols)]`.
    pub fn codes(&self) -> &'a [u8] {
        self.codes
    }

    /// `[rows, groups]`.
    pub fn scales(&self) -> Scales<'a> {
        self.scales
    }

    /// `[rows, groups]`, or none.
    pub fn zero_points(&self) -> ZeroPoints<'a> {
        self.zeros
    }

    /// Scales of one row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group_size)
    }

    pub(crate) fn row_codes(&self, row: usize) -> &'a [u8] {
        let stride = row_bytes(self.cols, self.qtype);
        &self.codes[row * stride..][..stride]
    }
}

/// A quantized matrix that holds its own canonical bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedMatrix {
    /// Output channels of a weight.
    pub rows: usize,
    /// Input features of a weight.
    pub cols: usize,
    /// Storage type.
    pub qtype: QuantType,
    /// Elements of a row that share a scale.
    pub group_size: usize,
    /// Canonical bytes `[rows, row_bytes(cols)]`.
    pub codes: Vec<u8>,
    /// `[rows, groups]`.
    pub scales: OwnedScales,
    /// `[rows, groups]`, or none.
    pub zeros: OwnedZeroPoints,
}

/// What [`Scales`] borrow.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedScales {
    /// See [`Scales::F32`].
    F32(Vec<f32>),
    /// See [`Scales::F16`].
    F16(Vec<f16>),
}

/// What [`ZeroPoints`] borrow.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedZeroPoints {
    /// See [`ZeroPoints::None`].
    None,
    /// See [`ZeroPoints::U8`].
    U8(Vec<u8>),
    /// See [`ZeroPoints::F16`].
    F16(Vec<f16>),
}

impl QuantizedMatrix {
    /// Borrow it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the fields do not fit each other.
    pub fn view(&self) -> Result<MatrixRef<'_>> {
        let scales = match &self.scales {
            OwnedScales::F32(s) => Scales::F32(s),
            OwnedScales::F16(s) => Scales::F16(s),
        };
        let zeros = match &self.zeros {
            OwnedZeroPoints::None => ZeroPoints::None,
            OwnedZeroPoints::U8(z) => ZeroPoints::U8(z),
            OwnedZeroPoints::F16(z) => ZeroPoints::F16(z),
        };
        MatrixRef::new(self.rows, self.cols, self.qtype, self.group_size, &self.codes, scales, zeros)
    }
}
