//! The 64 bytes in front of panels, and the sizes that follow from them.

use crate::cpu::STRIP;
use crate::error::{Error, Result};
use crate::matrix::{ScaleDtype, ZeroKind};
use crate::qtype::QuantType;
use std::ops::Range;

const MAGIC: [u8; 4] = *b"rqPL";
/// Goes up with any change of the bytes.
const LAYOUT: u8 = 2;
pub(super) const HEADER: usize = 64;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Head {
    pub n: usize,
    pub k: usize,
    pub group_size: usize,
    pub nr: usize,
    pub qtype: QuantType,
    pub scales: ScaleDtype,
    pub zeros: ZeroKind,
}

impl Head {
    pub fn groups(&self) -> usize {
        self.k.div_ceil(self.group_size)
    }

    pub fn n_padded(&self) -> usize {
        self.n.next_multiple_of(STRIP)
    }

    pub fn scale_bytes(&self) -> usize {
        if self.scales == ScaleDtype::F32 { 4 } else { 2 }
    }

    pub fn zero_bytes(&self) -> usize {
        match self.zeros {
            ZeroKind::None => 0,
            ZeroKind::U8 => 1,
            ZeroKind::F16 => 2,
        }
    }

    /// Whether channels have sums: those of the integer products that finish a channel at once.
    pub fn has_sums(&self) -> bool {
        self.qtype == QuantType::Int8 && self.groups() == 1
    }

    /// Where weights, scales, zero points and sums lie; `None` if they are more than memory can be.
    pub fn sections(&self) -> Option<[Range<usize>; 4]> {
        let rows = self.n.checked_next_multiple_of(STRIP)?;
        let row = self.k.checked_mul(self.qtype.bits())?.div_ceil(32) * 4;
        let entries = rows.checked_mul(self.k.div_ceil(self.group_size))?;
        let mut at = HEADER;
        let mut section = |len: usize| {
            let start = at.checked_next_multiple_of(64)?;
            at = start.checked_add(len)?;
            Some(start..at)
        };
        Some([
            section(rows.checked_mul(row)?)?,
            section(entries.checked_mul(self.scale_bytes())?)?,
            section(entries.checked_mul(self.zero_bytes())?)?,
            section(if self.has_sums() { rows.checked_mul(4)? } else { 0 })?,
        ])
    }

    pub fn write(&self, out: &mut [u8]) {
        out.fill(0);
        out[..4].copy_from_slice(&MAGIC);
        out[4] = LAYOUT;
        out[5] = self.qtype.kind() as u8;
        out[6] = self.scale_bytes() as u8;
        out[7] = self.zero_bytes() as u8;
        for (i, v) in [self.n, self.k, self.group_size, self.nr].into_iter().enumerate() {
            out[8 + 8 * i..][..8].copy_from_slice(&(v as u64).to_le_bytes());
        }
    }

    pub fn read(bytes: &[u8]) -> Result<Self> {
        let bad = |what: String| Err(Error::BadPanels(what));
        let Some(head) = bytes.first_chunk::<HEADER>() else {
            return bad(format!("expected a header of {HEADER} bytes, got {}", bytes.len()));
        };
        if head[..4] != MAGIC {
            return bad(format!("expected the mark {MAGIC:?}, got {:?}", &head[..4]));
        }
        if head[4] != LAYOUT {
            return bad(format!("expected layout {LAYOUT}, got {}", head[4]));
        }
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| head[8 + 8 * i + b])) as usize;
        let head = Self {
            n: word(0),
            k: word(1),
            group_size: word(2),
            nr: word(3),
            qtype: match QuantType::from_kind(head[5].into()) {
                Ok(qtype) => qtype,
                Err(_) => return bad(format!("expected codes of a known kind, got {}", head[5])),
            },
            scales: match head[6] {
                4 => ScaleDtype::F32,
                2 => ScaleDtype::F16,
                other => return bad(format!("expected scales of 2 or 4 bytes, got {other}")),
            },
            zeros: match head[7] {
                0 => ZeroKind::None,
                1 => ZeroKind::U8,
                2 => ZeroKind::F16,
                other => return bad(format!("expected zero points of 0, 1 or 2 bytes, got {other}")),
            },
        };
        if head.k == 0 && u32::try_from(head.n).is_err() {
            return bad(format!("n = {} without any bytes is impossible", head.n));
        }
        if head.group_size == 0 || head.nr == 0 || !head.nr.is_multiple_of(STRIP) || head.nr > 64 {
            return bad(format!("group size {} or panel width {} is impossible", head.group_size, head.nr));
        }
        match head.sections() {
            Some([.., end]) if end.end == bytes.len() => Ok(head),
            Some([.., end]) => bad(format!("expected {} bytes for this header, got {}", end.end, bytes.len())),
            None => bad(format!("n = {} and k = {} are impossible", head.n, head.k)),
        }
    }
}
