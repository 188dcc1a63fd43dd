//! Rows of int8 codes as the integer kernels read them: blocks of up to `mr` rows, step-quad by step-quad, and beside them
//! the sums of each row's segments.

use super::plan::{Alignment, Plan};
use crate::cpu::Microkernel;

/// Panels of `m` rows, and per block `[segment][row]` the sums of their codes.
pub(crate) struct RowPanels<'a> {
    m: usize,
    mr: usize,
    row_bytes: usize,
    quad_bytes: usize,
    segments: usize,
    panels: &'a [u8],
    sums: &'a [i32],
}

impl<'a> RowPanels<'a> {
    pub(crate) fn new(m: usize, plan: &Plan, kernel: &Microkernel, panels: &'a [u8], sums: &'a [i32]) -> Self {
        let quad_bytes = kernel.quad_bytes();
        let (row_bytes, segments) = (plan.quads * quad_bytes, plan.segments.len());
        Self { m, mr: kernel.mr, row_bytes, quad_bytes, segments, panels, sums }
    }

    /// Rows of block `i`, first and count.
    pub(crate) fn rows(&self, i: usize) -> (usize, usize) {
        (i * self.mr, self.mr.min(self.m - i * self.mr))
    }

    /// The quads `first..first + count` of block `i`.
    pub(crate) fn quads(&self, i: usize, first: usize, count: usize) -> &[u8] {
        let (row, rows) = self.rows(i);
        let quad = rows * self.quad_bytes;
        &self.panels[row * self.row_bytes + first * quad..][..count * quad]
    }

    /// Σa of `count` segments of block `i`, `[segment][row]`.
    pub(crate) fn sums(&self, i: usize, first: usize, count: usize) -> &[i32] {
        let (row, rows) = self.rows(i);
        &self.sums[row * self.segments + first * rows..][..count * rows]
    }
}

/// One row's codes (zero beyond k) into its place in a panel of `rows` rows.
pub(crate) fn place_row(codes: &[u8], k: usize, plan: &Plan, wide: bool, r: usize, rows: usize, panel: &mut [u8]) {
    if rows == 1 && !wide && plan.alignment != Alignment::None {
        return panel.copy_from_slice(&codes[..plan.quads * 4]);
    }
    let mut put = |quad: usize, q: [u8; 4]| {
        if wide {
            let w = q.map(|b| i16::from(b as i8).to_le_bytes());
            let bytes = [w[0][0], w[0][1], w[2][0], w[2][1], w[1][0], w[1][1], w[3][0], w[3][1]];
            panel[(quad * rows + r) * 8..][..8].copy_from_slice(&bytes);
        } else {
            panel[(quad * rows + r) * 4..][..4].copy_from_slice(&q);
        }
    };
    if plan.alignment == Alignment::None {
        for s in &plan.segments {
            for (i, q) in codes[s.start..s.start + s.len].chunks(4).enumerate() {
                let mut quad = [0; 4];
                quad[..q.len()].copy_from_slice(q);
                put(s.first_quad + i, quad);
            }
        }
    } else {
        debug_assert!(plan.quads * 4 <= codes.len() && plan.quads * 4 >= k);
        for (i, q) in codes.as_chunks::<4>().0[..plan.quads].iter().enumerate() {
            put(i, *q);
        }
    }
}
