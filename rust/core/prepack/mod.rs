//! Panels: a weight as this machine's kernels read it, behind a header that says so.
//!
//! Bytes: 64 of header; the weight panels (`cpu`'s module head says how a panel lies); their scales; their zero points;
//! of int8 with one scale a channel, each channel's sum.
//! A panel is `nr` channels wide, the last one as many as are left, rounded up to 16. Scales and zero points lie
//! `[panel][group][channel]` in the dtype they were stored in. Each section starts on a cache line.
//!
//! A block spans as many steps as one 32-bit word of canonical bytes, so packing is a transposition of words with the
//! codes shuffled inside each, and needs no padding of k beyond the canonical one.

mod blocks;
mod header;
mod write;

use crate::bitpack::row_bytes;
use crate::buffer::{AlignedBytes, Plain, cast, cast_mut};
use crate::cpu::{self, STRIP};
use crate::error::{Error, Result, check_len};
use crate::executor::Executor;
use crate::matrix::{
    MatrixRef, OwnedScales, OwnedZeroPoints, QuantizedMatrix, ScaleDtype, Scales, ZeroKind, ZeroPoints,
};
use crate::qtype::QuantType;
use blocks::from_block;
use half::f16;
use header::{HEADER, Head};
use std::ops::Range;
use std::sync::Mutex;
use write::{columns, sum_columns, write_panel};

/// A packed weight `[n, k]` that someone else holds.
#[derive(Clone, Copy, Debug)]
pub struct PackedRef<'a> {
    head: Head,
    weights: &'a [u8],
    scales: &'a [u8],
    zeros: &'a [u8],
    sums: &'a [u8],
}

/// One panel of a packed weight.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// First channel.
    pub first: usize,
    /// Channels, padding included.
    pub cols: usize,
    /// Channels of the weight.
    pub used: usize,
    pub weights: &'a [u8],
    /// `[groups][cols]`.
    pub scales: Scales<'a>,
    /// `[groups][cols]`.
    pub zeros: ZeroPoints<'a>,
    /// Of int8 with one scale a channel `[cols]`, else empty: Σ (u − 128) of the panel's unsigned codes u, those that fill
    /// up the last word included.
    pub sums: &'a [i32],
}

impl<'a> PackedRef<'a> {
    /// View bytes that [`PackedMatrix::pack_into`] wrote. They start on a 4-byte boundary at least.
    ///
    /// # Errors
    /// [`Error::BadPanels`] if they are anything else.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let head = Head::read(bytes)?;
        let Some([weights, scales, zeros, sums]) = head.sections() else {
            return Err(Error::BadPanels("impossible sizes".into()));
        };
        if !bytes.as_ptr().addr().is_multiple_of(4) {
            return Err(Error::BadPanels("expected an address that is a multiple of 4".into()));
        }
        Ok(Self { head, weights: &bytes[weights], scales: &bytes[scales], zeros: &bytes[zeros], sums: &bytes[sums] })
    }

    /// Output channels.
    pub fn n(&self) -> usize {
        self.head.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.head.k
    }

    /// Storage type of the codes.
    pub fn qtype(&self) -> QuantType {
        self.head.qtype
    }

    /// Input features that share a scale.
    pub fn group_size(&self) -> usize {
        self.head.group_size
    }

    /// Scales of one channel.
    pub fn groups(&self) -> usize {
        self.head.groups()
    }

    /// Dtype of the scales.
    pub fn scale_dtype(&self) -> ScaleDtype {
        self.head.scales
    }

    /// Kind of the zero points.
    pub fn zero_kind(&self) -> ZeroKind {
        self.head.zeros
    }

    /// Channels of a full panel.
    pub fn nr(&self) -> usize {
        self.head.nr
    }

    /// Whether these are the panels that this process would pack for a convolution of so many groups (1: or for a
    /// matrix). Others are read correctly all the same.
    pub fn is_native(&self, groups: usize) -> bool {
        cpu::active().is_ok_and(|isa| panel_width(isa.nr, self.head.n, groups) == self.head.nr)
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.head.n.div_ceil(self.head.nr)
    }

    pub(crate) fn panel(&self, index: usize) -> Panel<'a> {
        let Head { n, k, nr, qtype, .. } = self.head;
        let first = index * nr;
        let cols = nr.min(self.head.n_padded() - first);
        let stride = row_bytes(k, qtype);
        let entries = first * self.groups()..(first + cols) * self.groups();
        fn part<T: Plain>(bytes: &[u8], entries: Range<usize>) -> &[T] {
            // sections start on a multiple of 64 bytes after a base that `parse` found aligned
            &cast(bytes).expect("sections are aligned")[entries]
        }
        Panel {
            first,
            cols,
            used: cols.min(n - first),
            weights: &self.weights[first * stride..(first + cols) * stride],
            scales: match self.head.scales {
                ScaleDtype::F32 => Scales::F32(part(self.scales, entries.clone())),
                ScaleDtype::F16 => Scales::F16(part(self.scales, entries.clone())),
            },
            zeros: match self.head.zeros {
                ZeroKind::None => ZeroPoints::None,
                ZeroKind::U8 => ZeroPoints::U8(part(self.zeros, entries)),
                ZeroKind::F16 => ZeroPoints::F16(part(self.zeros, entries)),
            },
            sums: if self.head.has_sums() { part(self.sums, first..first + cols) } else { &[] },
        }
    }

    /// The exact inverse of packing: canonical `codes` `[n, row_bytes]`, and the bytes of scales and zero points
    /// `[n, groups]` in their stored dtypes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a buffer of another size.
    pub fn unpack(&self, codes: &mut [u8], scales: &mut [u8], zeros: &mut [u8], executor: &dyn Executor) -> Result<()> {
        let Head { n, k, nr, qtype, .. } = self.head;
        let (stride, entries) = (row_bytes(k, qtype), n * self.groups());
        check_len("codes", n * stride, codes.len())?;
        check_len("scale bytes", entries * self.head.scale_bytes(), scales.len())?;
        check_len("zero_point bytes", entries * self.head.zero_bytes(), zeros.len())?;
        if codes.is_empty() {
            return Ok(());
        }
        let parts: Vec<_> = codes.chunks_mut(nr * stride).map(Mutex::new).collect();
        executor.run(parts.len(), &|i| {
            let mut rows = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            let panel = self.panel(i);
            for (c, row) in rows.chunks_exact_mut(stride).enumerate() {
                read_row(&panel, c, qtype, row);
            }
        });
        for i in 0..self.panels() {
            let panel = self.panel(i);
            let rows = panel.first * self.groups()..(panel.first + panel.used) * self.groups();
            let columns = |source: &[u8], out: &mut [u8], size: usize| {
                let panel_bytes = &source[panel.first * self.groups() * size..][..panel.cols * self.groups() * size];
                for (at, out) in out[rows.start * size..rows.end * size].chunks_exact_mut(size).enumerate() {
                    let (c, g) = (at / self.groups(), at % self.groups());
                    out.copy_from_slice(&panel_bytes[(g * panel.cols + c) * size..][..size]);
                }
            };
            columns(self.scales, scales, self.head.scale_bytes());
            if self.head.zero_bytes() > 0 {
                columns(self.zeros, zeros, self.head.zero_bytes());
            }
        }
        Ok(())
    }
}

/// Channel `c` of a panel as canonical bytes.
pub(crate) fn read_row(panel: &Panel, c: usize, qtype: QuantType, row: &mut [u8]) {
    let (words, _) = panel.weights.as_chunks::<4>();
    let (row, _) = row.as_chunks_mut::<4>();
    for (word, out) in words.iter().skip(c).step_by(panel.cols).zip(row) {
        *out = from_block(u32::from_le_bytes(*word), qtype).to_le_bytes();
    }
}

/// A packed weight `[n, k]` that holds its own panels.
#[derive(Clone)]
pub struct PackedMatrix {
    bytes: AlignedBytes,
}

impl PackedMatrix {
    /// Bytes of the panels of such a weight for the kernels in use.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if they are more than memory can be.
    pub fn packed_len(
        n: usize,
        k: usize,
        qtype: QuantType,
        group_size: usize,
        scales: ScaleDtype,
        zeros: ZeroKind,
    ) -> Result<usize> {
        let head = Head { n, k, group_size: group_size.max(1), nr: cpu::active()?.nr, qtype, scales, zeros };
        let sections =
            head.sections().ok_or_else(|| Error::mismatch("n, k", "a size in memory", format!("{n}, {k}")))?;
        Ok(sections[3].end)
    }

    /// Arrange `q` for the kernels in use.
    ///
    /// # Errors
    /// [`Error::UnsupportedIsa`].
    pub fn pack(q: &QuantizedMatrix, executor: &dyn Executor) -> Result<Self> {
        Self::pack_grouped(q, 1, executor)
    }

    /// The same for a convolution whose output channels come in so many groups: panels end where groups do, if they can.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if `groups` does not divide the rows of `q`.
    pub fn pack_grouped(q: &QuantizedMatrix, groups: usize, executor: &dyn Executor) -> Result<Self> {
        let q = q.view()?;
        let len = Self::packed_len(q.rows, q.cols, q.qtype, q.group_size, q.scales.dtype(), q.zeros.kind())?;
        let mut bytes = AlignedBytes::zeroed(len);
        Self::pack_into(&q, groups, &mut bytes, executor)?;
        Ok(Self { bytes })
    }

    /// Arrange `q` in `out`, whose length is [`PackedMatrix::packed_len`]; best on a 64-byte boundary. `groups` as in
    /// [`PackedMatrix::pack_grouped`], 1 for a matrix.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if `out` has another length, or `groups` does not divide the rows of `q`.
    pub fn pack_into(q: &MatrixRef, groups: usize, out: &mut [u8], executor: &dyn Executor) -> Result<()> {
        if groups == 0 || !q.rows.is_multiple_of(groups) {
            return Err(Error::mismatch("groups", format!("a divisor of {} output channels", q.rows), groups));
        }
        let head = Head {
            n: q.rows,
            k: q.cols,
            group_size: q.group_size,
            nr: panel_width(cpu::active()?.nr, q.rows, groups),
            qtype: q.qtype,
            scales: q.scales.dtype(),
            zeros: q.zeros.kind(),
        };
        let len = Self::packed_len(head.n, head.k, head.qtype, head.group_size, head.scales, head.zeros)?;
        check_len("panels", len, out.len())?;
        if !out.as_ptr().addr().is_multiple_of(4) {
            return Err(Error::mismatch("panels", "an address that is a multiple of 4", out.as_ptr().addr()));
        }
        let Some([_, scales, zeros, sums]) = head.sections() else { return Ok(()) };
        let (front, back) = out.split_at_mut(scales.start);
        let (header, weights) = front.split_at_mut(HEADER);
        head.write(header);
        let (back, sum_out) = back.split_at_mut(sums.start - scales.start);
        let (scale_out, zero_out) = back.split_at_mut(zeros.start - scales.start);
        let stride = row_bytes(q.cols, q.qtype);
        let weights = &mut weights[..head.n_padded() * stride];
        if !weights.is_empty() {
            let mut sums = cast_mut::<i32>(sum_out).unwrap_or_default().chunks_mut(head.nr);
            let panels = weights.chunks_mut(head.nr * stride);
            let parts: Vec<_> = panels.map(|panel| Mutex::new((panel, sums.next().unwrap_or_default()))).collect();
            executor.run(parts.len(), &|i| {
                let (panel, sums) = &mut *parts[i].lock().unwrap_or_else(|e| e.into_inner());
                write_panel(q, i * head.nr, panel);
                sum_columns(panel, sums);
            });
        }
        match q.scales {
            Scales::F32(s) => columns(&head, s, 0.0, scale_out),
            Scales::F16(s) => columns(&head, s, f16::ZERO, scale_out),
        }
        match q.zeros {
            ZeroPoints::None => {}
            ZeroPoints::U8(z) => columns(&head, z, 0, zero_out),
            ZeroPoints::F16(z) => columns(&head, z, f16::ZERO, zero_out),
        }
        Ok(())
    }

    /// Borrow it.
    pub fn view(&self) -> PackedRef<'_> {
        PackedRef::parse(&self.bytes).expect("written by pack")
    }

    /// The panels' bytes, header first: what [`PackedRef::parse`] reads.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes held, header included.
    pub fn nbytes(&self) -> usize {
        self.bytes.len()
    }

    /// The exact inverse of [`PackedMatrix::pack`].
    pub fn unpack(&self, executor: &dyn Executor) -> QuantizedMatrix {
        let view = self.view();
        let entries = view.n() * view.groups();
        let mut codes = vec![0u8; view.n() * row_bytes(view.k(), view.qtype())];
        let mut scales = vec![0u8; entries * view.head.scale_bytes()];
        let mut zeros = vec![0u8; entries * view.head.zero_bytes()];
        view.unpack(&mut codes, &mut scales, &mut zeros, executor).expect("sized above");
        let halves = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f16::from_ne_bytes(*b)).collect();
        QuantizedMatrix {
            rows: view.n(),
            cols: view.k(),
            qtype: view.qtype(),
            group_size: view.group_size(),
            codes,
            scales: match view.scale_dtype() {
                ScaleDtype::F32 => {
                    OwnedScales::F32(scales.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect())
                }
                ScaleDtype::F16 => OwnedScales::F16(halves(&scales)),
            },
            zeros: match view.zero_kind() {
                ZeroKind::None => OwnedZeroPoints::None,
                ZeroKind::U8 => OwnedZeroPoints::U8(zeros),
                ZeroKind::F16 => OwnedZeroPoints::F16(halves(&zeros)),
            },
        }
    }
}

/// The widest panel, up to `nr` channels, of which whole ones make a group; a single strip where none does.
fn panel_width(nr: usize, n: usize, groups: usize) -> usize {
    let each = n / groups.max(1);
    let fits = |width: &usize| groups <= 1 || (each > 0 && each.is_multiple_of(*width));
    (STRIP..=nr).rev().step_by(STRIP).find(fits).unwrap_or(STRIP)
}
