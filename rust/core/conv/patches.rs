//! The patches that outputs see, as rows of the integer kernels.

use super::geometry::Geometry;
use crate::buffer::{Scratch, cast};
use crate::cpu::{Isa, Microkernel};
use crate::gemm::{Plan, RowPanels, place_row};
use std::ops::Range;

/// The input, and how outputs see it.
pub(crate) struct Patches<'a> {
    pub x: &'a [i8],
    /// What stands where there is no input.
    pub zero: i8,
    pub geometry: &'a Geometry,
    pub out_size: [usize; 2],
}

/// Rows of one group of channels.
pub(crate) struct PatchRows {
    rows: usize,
    panels: Scratch,
    sums: Scratch,
}

impl Patches<'_> {
    /// Output positions: images times pixels.
    pub(crate) fn rows(&self) -> usize {
        self.geometry.batch * self.out_size[0] * self.out_size[1]
    }

    /// Whether an output can see padding.
    pub(crate) fn may_pad(&self) -> bool {
        self.geometry.transposed.is_some() || self.geometry.padding != [0; 4]
    }

    /// The codes that output position `row` sees in `group`, `[tap][channel]`.
    pub(super) fn gather(&self, row: usize, group: usize, codes: &mut [u8]) {
        let Geometry { size: [height, width], channels, kernel, .. } = *self.geometry;
        let [out_height, out_width] = self.out_size;
        let (image, y, x) = (row / (out_height * out_width), row / out_width % out_height, row % out_width);
        let each = self.geometry.group_channels();
        let mut taps = codes.chunks_exact_mut(each.max(1));
        for tap_y in 0..kernel[0] {
            let from_y = self.geometry.source(0, y, tap_y);
            for tap_x in 0..kernel[1] {
                let Some(codes) = taps.next() else { return };
                match (from_y, self.geometry.source(1, x, tap_x)) {
                    (Some(y), Some(x)) => {
                        let at = ((image * height + y) * width + x) * channels + group * each;
                        codes.iter_mut().zip(&self.x[at..at + each]).for_each(|(c, q)| *c = *q as u8);
                    }
                    _ => codes.fill(self.zero as u8),
                }
            }
        }
    }

    /// The rows `range` of a group, in panels; their segments' sums are of codes less the zero point.
    pub(crate) fn pack(
        &self,
        range: Range<usize>,
        group: usize,
        plan: &Plan,
        isa: &Isa,
        kernel: &Microkernel,
    ) -> PatchRows {
        let (k, m, segments) = (self.geometry.depth(), range.len(), plan.segments.len());
        let row_bytes = plan.quads * kernel.quad_bytes();
        let (mut panels, mut sums) = (Scratch::of::<u8>(m * row_bytes), Scratch::of::<i32>(m * segments));
        let mut codes = Scratch::of::<u8>(k.next_multiple_of(16));
        let codes = codes.as_mut::<u8>();
        codes[k..].fill(0);
        let blocks = panels.as_mut::<u8>().chunks_mut((kernel.mr * row_bytes).max(1));
        let block_sums = sums.as_mut::<i32>().chunks_mut((kernel.mr * segments).max(1));
        for (block, (panel, sums)) in blocks.zip(block_sums).enumerate() {
            let first = range.start + block * kernel.mr;
            let rows = kernel.mr.min(range.end - first);
            for r in 0..rows {
                self.gather(first + r, group, &mut codes[..k]);
                let signed = cast::<i8>(codes).unwrap_or(&[]);
                for (i, s) in plan.segments.iter().enumerate() {
                    sums[i * rows + r] =
                        isa.sum(&signed[s.start..s.start + s.len]) - i32::from(self.zero) * s.len as i32;
                }
                place_row(codes, k, plan, kernel.wide, r, rows, panel);
            }
        }
        PatchRows { rows: m, panels, sums }
    }
}

impl PatchRows {
    pub(crate) fn view<'a>(&'a self, plan: &Plan, kernel: &Microkernel) -> RowPanels<'a> {
        RowPanels::new(self.rows, plan, kernel, self.panels.as_slice(), self.sums.as_slice())
    }
}

/// One row that is 1 at every step: its product with a weight is what a zero point of the activations adds.
pub(crate) fn ones(k: usize, plan: &Plan, kernel: &Microkernel) -> PatchRows {
    let (mut panels, mut sums) =
        (Scratch::of::<u8>(plan.quads * kernel.quad_bytes()), Scratch::of::<i32>(plan.segments.len()));
    let mut codes = Scratch::of::<u8>(k.next_multiple_of(16));
    let codes = codes.as_mut::<u8>();
    codes[..k].fill(1);
    codes[k..].fill(0);
    place_row(codes, k, plan, kernel.wide, 0, 1, panels.as_mut());
    sums.as_mut::<i32>().fill(0);
    PatchRows { rows: 1, panels, sums }
}
