//! A convolution whose channels make no whole quads, such as that of an image's three: with the input padded, each row of
//! the kernel is one run of codes in memory, and so one tap. Its last quad reads on into what follows, with weights of 0.

use super::geometry::Geometry;
use super::patches::Patches;
use crate::buffer::Scratch;
use crate::cpu::block_bytes;
use crate::matrix::ZeroKind;
use crate::prepack::PackedRef;

/// The same convolution with a kernel one column wide.
pub(super) struct Merged {
    pub geometry: Geometry,
    /// Quads of a tap.
    pub quads: usize,
    x: Scratch,
    /// Per panel `[tap][quad][column][4]`.
    panels: Vec<Vec<u8>>,
}

impl Merged {
    /// `None` where rows are no runs, or what they read beyond would count.
    pub(super) fn new(patches: &Patches, w: &PackedRef) -> Option<Self> {
        let g = *patches.geometry;
        if g.groups != 1 || g.transposed.is_some() || g.dilation[1] != 1 || w.zero_kind() != ZeroKind::None {
            return None;
        }
        let [top, left, bottom, right] = g.padding;
        let (size, run) = ([top + g.size[0] + bottom, left + g.size[1] + right], g.kernel[1] * g.channels);
        let padded = g.batch * size[0] * size[1] * g.channels;
        let mut x = Scratch::of::<i8>(padded + 4);
        pad(patches, size, &mut x.as_mut()[..padded]);
        let panels = (0..w.panels()).map(|i| w.panel(i));
        let panels = panels.map(|panel| merge(panel.weights, panel.cols, g.kernel[0], run)).collect();
        let geometry = Geometry { size, kernel: [g.kernel[0], 1], padding: [0; 4], ..g };
        Some(Self { geometry, quads: run.div_ceil(4), x, panels })
    }

    /// What outputs see of the padded input.
    pub(super) fn patches(&self, zero: i8, out_size: [usize; 2]) -> Patches<'_> {
        Patches { x: self.x.as_slice(), zero, geometry: &self.geometry, out_size }
    }

    pub(super) fn panel(&self, index: usize) -> &[u8] {
        &self.panels[index]
    }
}

/// The input amid its zero point.
fn pad(patches: &Patches, [height, width]: [usize; 2], out: &mut [i8]) {
    let g = patches.geometry;
    let (len, lines) = (g.size[1] * g.channels, out.chunks_exact_mut((width * g.channels).max(1)));
    for (i, out) in lines.enumerate() {
        let (image, y) = (i / height, (i % height).wrapping_sub(g.padding[0]));
        if y >= g.size[0] {
            out.fill(patches.zero); // above it or below
            continue;
        }
        let (left, rest) = out.split_at_mut(g.padding[1] * g.channels);
        let (inside, right) = rest.split_at_mut(len);
        left.fill(patches.zero);
        inside.copy_from_slice(&patches.x[(image * g.size[0] + y) * len..][..len]);
        right.fill(patches.zero);
    }
}

/// Panels whose `rows` runs of `run` steps each begin with a quad of their own; what is added stands for 0.
fn merge(panel: &[u8], cols: usize, rows: usize, run: usize) -> Vec<u8> {
    let (words, _) = panel.as_chunks::<4>();
    let quads = run.div_ceil(4);
    let mut out = vec![0x80; rows * quads * block_bytes(cols)];
    for (i, out) in out.chunks_exact_mut(cols * 4).enumerate() {
        let (step, count) = (i / quads * run + i % quads * 4, (run - i % quads * 4).min(4));
        let keep = u32::MAX >> (8 * (4 - count));
        let low = &words[step / 4 * cols..][..cols];
        // the next quad, if this one goes on there
        let high = if step % 4 + count > 4 { &words[(step / 4 + 1) * cols..][..cols] } else { low };
        for ((out, low), high) in out.as_chunks_mut::<4>().0.iter_mut().zip(low).zip(high) {
            let both = u64::from(u32::from_le_bytes(*low)) | u64::from(u32::from_le_bytes(*high)) << 32;
            let word = (both >> (8 * (step % 4))) as u32;
            *out = (word & keep | 0x8080_8080 & !keep).to_le_bytes();
        }
    }
    out
}
