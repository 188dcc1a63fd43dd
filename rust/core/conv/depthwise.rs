//! The driver for int8 convolutions of each channel by itself: a strip of 16 channels at a time, line by line.

use super::output::{Columns, Places, Sink, TileRows};
use super::patches::Patches;
use super::phases::Phase;
use crate::buffer::Scratch;
use crate::cpu::depthwise::{COLUMN, Depthwise, Line};
use crate::cpu::{self, Isa, STRIP};
use crate::executor::Executor;
use crate::matrix::ZeroKind;
use crate::prepack::PackedRef;
use crate::qtype::QuantType;
use std::ops::Range;

/// A product whose weight this driver takes.
pub(super) struct Channels<'a> {
    isa: &'static Isa,
    kernels: &'static Depthwise,
    patches: &'a Patches<'a>,
    w: PackedRef<'a>,
    whole: Phase,
}

/// Up to 16 channels.
struct Strip {
    first: usize,
    channels: usize,
    columns: Columns,
    /// Per four rows of the kernel: `[column][channel][4]`, signed, 0 where there is no row.
    weights: Vec<u8>,
    /// Where its sums start.
    start: [i32; STRIP],
}

impl<'a> Channels<'a> {
    /// `None`: another driver's.
    pub(super) fn new(patches: &'a Patches<'a>, w: &PackedRef<'a>) -> Option<Self> {
        let isa = cpu::active().ok()?;
        let (kernels, g) = (isa.depthwise(), patches.geometry);
        let single = g.groups == g.channels && g.groups == g.out_channels && g.transposed.is_none();
        let plain = w.qtype() == QuantType::Int8 && w.groups() == 1 && w.zero_kind() == ZeroKind::None;
        let short = w.k() <= 1 << 15;
        (single && plain && short).then(|| Self { isa, kernels, patches, w: *w, whole: Phase::whole(patches.out_size) })
    }

    pub(super) fn multiply(&self, scales: &[f32], sink: &Sink, executor: &dyn Executor) {
        let (strips, threads) = (self.w.n().div_ceil(STRIP), executor.threads());
        let lines = self.patches.geometry.batch * self.patches.out_size[0];
        // lines apart where there are enough; strips share cache lines of the output, so only several go apart
        let parts = [threads * 2, threads].into_iter().min_by_key(|parts| lines.div_ceil(*parts) * parts).unwrap_or(1);
        let (by_strip, by_line) = match threads {
            1 => (strips, lines),
            _ if lines >= threads * 4 => (strips, lines.div_ceil(parts)),
            _ => (strips.div_ceil(threads * 2).next_multiple_of(4), lines),
        };
        let across = strips.div_ceil(by_strip);
        executor.run(across * lines.div_ceil(by_line), &|task| {
            let (strip, line) = (task % across * by_strip, task / across * by_line);
            let lines = line..(line + by_line).min(lines);
            let width = self.patches.out_size[1];
            let rows = TileRows::new(self.patches, &self.whole, scales, lines.start * width..lines.end * width, sink);
            let strips: Vec<_> =
                (strip..(strip + by_strip).min(strips)).map(|i| self.lay_out(i * STRIP, sink)).collect();
            self.lines(&strips, lines, &rows, sink);
        });
    }

    /// Some lines of the output: all strips of each, which share its cache lines.
    fn lines(&self, strips: &[Strip], lines: Range<usize>, rows: &TileRows, sink: &Sink) {
        let (g, [height, width]) = (self.patches.geometry, self.patches.out_size);
        let span = (width - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1;
        let (mut quads, mut acc) = (Scratch::of::<u8>(span * COLUMN), Scratch::of::<i32>(width * STRIP));
        let (quads, acc) = (quads.as_mut::<u8>(), acc.as_mut::<i32>());
        quads.fill(self.patches.zero as u8 ^ 0x80);
        // the columns that are input: those around them stay as they are
        let left = g.padding[1].min(span);
        let inside = left * COLUMN..(left + g.size[1]).min(span) * COLUMN;
        for (i, line) in lines.enumerate() {
            let places = rows.of(i * width, width);
            for strip in strips {
                self.line(strip, [line / height, line % height], quads, inside.clone(), acc, places, sink);
            }
        }
    }

    /// One line of a strip.
    #[allow(unsafe_code)]
    fn line(
        &self,
        strip: &Strip,
        [image, y]: [usize; 2],
        quads: &mut [u8],
        inside: Range<usize>,
        acc: &mut [i32],
        places: Places,
        sink: &Sink,
    ) {
        let g = self.patches.geometry;
        let (steps, padding) = ([g.stride[1], g.dilation[1]], [self.patches.zero; STRIP]);
        for (four, weights) in strip.weights.chunks_exact(g.kernel[1] * COLUMN).enumerate() {
            let mut from = [Line { at: padding.as_ptr().cast(), step: 0 }; 4];
            for (tap, from) in (four * 4..g.kernel[0]).zip(&mut from) {
                if let Some(y) = g.source(0, y, tap) {
                    let at = (image * g.size[0] + y) * g.size[1] * g.channels + strip.first;
                    *from = Line { at: self.patches.x[at..].as_ptr().cast(), step: g.channels };
                }
            }
            let from = &from[..4.min(g.kernel[0] - four * 4)];
            // SAFETY: a line of the input has as many columns as are inside; these channels are its own.
            unsafe { self.kernels.columns(from, strip.channels, &mut quads[inside.clone()]) };
            if self.kernels.has_codes(g.kernel[1]) && g.kernel[0] <= 4 {
                // SAFETY: the output lives as long as the call; this task alone has these lines of these channels.
                if let Some((tile, encoding, out)) = unsafe { sink.codes(&strip.columns, places) } {
                    return self.kernels.codes(quads, weights, steps, &strip.start, tile, encoding, out);
                }
            }
            self.kernels.products(quads, weights, steps, (four == 0).then_some(&strip.start), acc);
        }
        // SAFETY: as above.
        unsafe { sink.write_tile(self.isa, acc, &strip.columns, places) };
    }

    /// The 16 channels from `first` on.
    fn lay_out(&self, first: usize, sink: &Sink) -> Strip {
        let panel = self.w.panel(first / self.w.nr());
        let (column, kernel) = (first - panel.first, self.patches.geometry.kernel);
        let (words, _) = panel.weights.as_chunks::<4>();
        let mut weights = vec![0; kernel[0].div_ceil(4) * kernel[1] * COLUMN];
        let mut sums = [0i32; STRIP];
        for (y, x) in (0..kernel[0]).flat_map(|y| (0..kernel[1]).map(move |x| (y, x))) {
            let tap = y * kernel[1] + x;
            let from = &words[tap / 4 * panel.cols + column..][..STRIP];
            let to = &mut weights[(y / 4 * kernel[1] + x) * COLUMN..][..COLUMN];
            for (c, (word, to)) in from.iter().zip(to.as_chunks_mut::<4>().0).enumerate() {
                to[y % 4] = word[tap % 4] ^ 0x80;
                sums[c] += i32::from(to[y % 4] as i8);
            }
        }
        Strip {
            first,
            channels: STRIP.min(self.patches.geometry.channels - first),
            columns: sink.columns(&panel, column..column + STRIP, 0..panel.used),
            weights,
            start: sums.map(|sum| -sum * (128 + i32::from(self.patches.zero))),
        }
    }
}
