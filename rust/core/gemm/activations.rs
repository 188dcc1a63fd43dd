//! Activations as the integer kernels read them: int8 rows in quads, a scale per row, a sum per row and segment.

use super::plan::{Alignment, Plan};
use crate::buffer::Scratch;
use crate::cpu::lanes::{Encoding, INF_BITS};
use crate::cpu::{Isa, Microkernel};
use crate::executor::Executor;
use crate::floats::Floats;
use std::sync::Mutex;

/// Rows below this are quantized by the calling thread: waking another costs more.
const SERIAL_ELEMENTS: usize = 1 << 14;

/// Symmetric int8 codes of one row into `codes`; returns the scale, `max |x| / 127`. A row with NaN or infinity gets
/// scale NaN and codes 0, a row of zeros scale 1.
pub(super) fn quantize_row(isa: &Isa, x: &[f32], codes: &mut [u8]) -> f32 {
    let bits = isa.absmax_bits(x);
    if bits >= INF_BITS {
        codes.fill(0);
        return f32::NAN;
    }
    let scale = match f32::from_bits(bits) / 127.0 {
        0.0 if bits == 0 => 1.0,
        scale => scale.max(f32::MIN_POSITIVE),
    };
    isa.encode(x, Encoding { scale, shift: 0.0, lo: -127.0, hi: 127.0, base: 0 }, codes);
    scale
}

/// Where the rows come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Quantized here.
    Floats(Floats<'a>),
    /// int8 already.
    Codes(&'a [i8]),
}

/// Activation panels of `m` rows.
pub(super) struct Activations {
    m: usize,
    mr: usize,
    row_bytes: usize,
    segments: usize,
    panels: Scratch,
    scales: Scratch,
    sums: Scratch,
}

impl Activations {
    pub(super) fn new(
        source: Source,
        m: usize,
        k: usize,
        plan: &Plan,
        isa: &Isa,
        kernel: &Microkernel,
        executor: &dyn Executor,
    ) -> Self {
        let (mr, segments) = (kernel.mr, plan.segments.len());
        let row_bytes = plan.quads * kernel.quad_bytes();
        let mut panels = Scratch::of::<u8>(m * row_bytes);
        let (mut scales, mut sums) = (Scratch::of::<f32>(m), Scratch::of::<i32>(m * segments));
        let blocks: Vec<_> = panels
            .as_mut::<u8>()
            .chunks_mut((mr * row_bytes).max(1))
            .zip(scales.as_mut::<f32>().chunks_mut(mr))
            .zip(sums.as_mut::<i32>().chunks_mut(mr * segments))
            .map(Mutex::new)
            .collect();
        let task = |i: usize| {
            let mut block = blocks[i].lock().unwrap_or_else(|e| e.into_inner());
            let ((panel, scales), sums) = &mut *block;
            let rows = scales.len();
            let (mut wide, mut codes) = (Vec::new(), Scratch::of::<u8>(k.next_multiple_of(16)));
            let codes = codes.as_mut::<u8>();
            codes[k..].fill(0);
            for r in 0..rows {
                let row = (i * mr + r) * k..(i * mr + r + 1) * k;
                scales[r] = match source {
                    Source::Floats(x) => quantize_row(isa, x.widen(row, &mut wide), &mut codes[..k]),
                    Source::Codes(q) => {
                        codes.iter_mut().zip(&q[row]).for_each(|(c, q)| *c = *q as u8);
                        1.0
                    }
                };
                let signed = crate::buffer::cast::<i8>(codes).unwrap_or(&[]);
                for (s, sum) in plan.segments.iter().zip(&mut sums[r * segments..]) {
                    *sum = isa.sum(&signed[s.start..s.start + s.len]);
                }
                place_row(codes, k, plan, kernel.wide, r, rows, panel);
            }
        };
        if m * k <= SERIAL_ELEMENTS {
            (0..blocks.len()).for_each(task);
        } else {
            executor.run(blocks.len(), &task);
        }
        drop(blocks);
        Self { m, mr, row_bytes, segments, panels, scales, sums }
    }

    /// Row blocks: up to `mr` rows each.
    pub(super) fn blocks(&self) -> usize {
        self.m.div_ceil(self.mr)
    }

    /// Rows of block `i`, first and count.
    pub(super) fn rows(&self, i: usize) -> (usize, usize) {
        (i * self.mr, self.mr.min(self.m - i * self.mr))
    }

    /// The quads `first..first + count` of block `i`.
    pub(super) fn quads(&self, i: usize, first: usize, count: usize, quad_bytes: usize) -> &[u8] {
        let (row, rows) = self.rows(i);
        &self.panels.as_slice::<u8>()[row * self.row_bytes + first * rows * quad_bytes..][..count * rows * quad_bytes]
    }

    pub(super) fn scale(&self, row: usize) -> f32 {
        self.scales.as_slice::<f32>()[row]
    }

    /// Σa of a segment.
    pub(super) fn sum(&self, row: usize, segment: usize) -> i32 {
        self.sums.as_slice::<i32>()[row * self.segments + segment]
    }
}

/// One row's codes (zero beyond k) into its place in a panel of `rows` rows.
fn place_row(codes: &[u8], k: usize, plan: &Plan, wide: bool, r: usize, rows: usize, panel: &mut [u8]) {
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
