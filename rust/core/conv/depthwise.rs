//! The driver for int8 convolutions of each channel by itself: a strip of 16 channels at a time, one or two lines of the
//! output at a time.

use super::output::{Columns, Sink};
use super::patches::Patches;
use super::phases::Phase;
use super::places::{Places, TileRows};
use crate::buffer::{AlignedBytes, Scratch, cast_mut};
use crate::cpu::depthwise::{COLUMN, Depthwise, Line, Lines};
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
struct Strip<'s> {
    first: usize,
    channels: usize,
    columns: Columns<'s>,
    /// `[line][four][column][channel][4]`, signed: per four of the rows that the lines see, 0 where a line has no tap.
    weights: AlignedBytes,
    /// Where its sums start.
    start: [i32; STRIP],
}

/// Lines of an image that are computed at once.
#[derive(Clone, Copy)]
struct Block {
    image: usize,
    y: usize,
    lines: usize,
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
        let g = self.patches.geometry;
        let lines = g.batch * self.patches.out_size[0];
        // lines apart where there are enough; strips share cache lines of the output, so only several go apart
        let parts = [threads * 2, threads].into_iter().min_by_key(|parts| lines.div_ceil(*parts) * parts).unwrap_or(1);
        let (by_strip, by_line) = match threads {
            1 => (strips, lines),
            _ if lines >= threads * 4 => (strips, lines.div_ceil(parts)),
            _ => (strips.div_ceil(threads * 2).next_multiple_of(4), lines),
        };
        let across = strips.div_ceil(by_strip);
        // lines next to each other see the same rows but one: their quads serve both
        let most = if self.at_once(sink) && (g.stride[0], g.dilation[0]) == (1, 1) { 2 } else { 1 };
        executor.run(across * lines.div_ceil(by_line), &|task| {
            let (strip, line) = (task % across * by_strip, task / across * by_line);
            let lines = line..(line + by_line).min(lines);
            let width = self.patches.out_size[1];
            let pixels = lines.start * width..lines.end * width;
            let rows = TileRows::new(self.isa, self.patches, &self.whole, scales, pixels);
            let strips: Vec<_> =
                (strip..(strip + by_strip).min(strips)).map(|i| self.lay_out(i * STRIP, most, sink)).collect();
            self.lines(&strips, lines, most, &rows, sink);
        });
    }

    /// Whether sums become codes in the kernel.
    fn at_once(&self, sink: &Sink) -> bool {
        self.kernels.has_codes() && sink.is_codes()
    }

    /// Fours of rows that so many lines see.
    fn fours(&self, lines: usize) -> usize {
        (self.patches.geometry.kernel[0] + lines - 1).div_ceil(4)
    }

    /// Some lines of the output: all strips of each, which share its cache lines.
    fn lines(&self, strips: &[Strip], lines: Range<usize>, most: usize, rows: &TileRows, sink: &Sink) {
        let (g, [height, width]) = (self.patches.geometry, self.patches.out_size);
        let span = (width - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1;
        let mut quads = Scratch::of::<u8>(self.fours(most) * span * COLUMN);
        let mut acc = Scratch::of::<i32>(if self.at_once(sink) { 0 } else { width * STRIP });
        let (quads, acc) = (quads.as_mut::<u8>(), acc.as_mut::<i32>());
        quads.fill(self.patches.zero as u8 ^ 0x80);
        // the columns that are input: those around them stay as they are
        let left = g.padding[1].min(span);
        let inside = left * COLUMN..(left + g.size[1]).min(span) * COLUMN;
        let mut line = lines.start;
        while line < lines.end {
            let (image, y) = (line / height, line % height);
            let block = Block { image, y, lines: most.min(lines.end - line).min(height - y) };
            let places = rows.of((line - lines.start) * width, block.lines * width);
            let quads = &mut quads[..self.fours(block.lines) * span * COLUMN];
            for strip in strips {
                self.block(strip, block, quads, inside.clone(), acc, places, sink);
            }
            line += block.lines;
        }
    }

    /// Lines of a strip.
    #[allow(unsafe_code)]
    fn block(
        &self,
        strip: &Strip,
        block: Block,
        quads: &mut [u8],
        inside: Range<usize>,
        acc: &mut [i32],
        places: Places,
        sink: &Sink,
    ) {
        let (g, fours) = (self.patches.geometry, self.fours(block.lines));
        let (span, of_four, steps) = (quads.len() / fours, g.kernel[1] * COLUMN, [g.stride[1], g.dilation[1]]);
        let all = g.kernel[0] + block.lines - 1;
        let start = &strip.start;
        for (four, quads) in quads.chunks_exact_mut(span).enumerate() {
            self.columns(strip, block, four * 4..(four * 4 + 4).min(all), &mut quads[inside.clone()]);
        }
        // SAFETY: the output lives as long as the call; this task alone has these lines of these channels.
        let at_once = unsafe { sink.codes(&strip.columns, places) }.filter(|_| self.kernels.has_codes());
        if let Some((tile, encoding, out)) = at_once {
            let weights = &strip.weights[..block.lines * fours * of_four];
            let lines = Lines { lines: block.lines, columns: quads, fours, weights, steps, start };
            return self.kernels.codes(&lines, tile, encoding, out);
        }
        for (four, (quads, w)) in quads.chunks_exact(span).zip(strip.weights.chunks_exact(of_four)).enumerate() {
            self.kernels.products(quads, w, steps, (four == 0).then_some(start), acc);
        }
        // SAFETY: as above.
        unsafe { sink.write_tile(self.isa, acc, &strip.columns, places) };
    }

    /// Quads of the rows `taps` that the lines see, counted from the first one's first tap.
    #[allow(unsafe_code)]
    fn columns(&self, strip: &Strip, Block { image, y, .. }: Block, taps: Range<usize>, quads: &mut [u8]) {
        let (g, padding) = (self.patches.geometry, [self.patches.zero; STRIP]);
        let mut from = [Line { at: padding.as_ptr().cast(), step: 0 }; 4];
        let from = &mut from[..taps.len()];
        for (tap, from) in taps.zip(&mut *from) {
            if let Some(y) = g.source(0, y, tap) {
                let at = (image * g.size[0] + y) * g.size[1] * g.channels + strip.first;
                *from = Line { at: self.patches.x[at..].as_ptr().cast(), step: g.channels };
            }
        }
        // SAFETY: a line of the input has as many columns as are inside; these channels are its own.
        unsafe { self.kernels.columns(from, strip.channels, quads) };
    }

    /// The 16 channels from `first` on, for up to so many lines at once.
    fn lay_out<'s>(&self, first: usize, lines: usize, sink: &'s Sink) -> Strip<'s> {
        let panel = self.w.panel(first / self.w.nr());
        let (column, kernel) = (first - panel.first, self.patches.geometry.kernel);
        let words = panel.weights.as_chunks::<4>().0;
        let fours = self.fours(lines);
        let mut weights = AlignedBytes::zeroed(lines * fours * kernel[1] * COLUMN);
        let quads = cast_mut::<i32>(&mut weights).expect("a cache line is aligned").as_chunks_mut::<STRIP>().0;
        let mut sums = [0i32; STRIP];
        for (y, x) in (0..kernel[0]).flat_map(|y| (0..kernel[1]).map(move |x| (y, x))) {
            let tap = y * kernel[1] + x;
            let from = &words[tap / 4 * panel.cols + column..][..STRIP];
            let mut codes = [0u32; STRIP];
            for c in 0..STRIP {
                codes[c] = (u32::from_le_bytes(from[c]) >> (tap % 4 * 8)) & 0xff ^ 0x80;
                sums[c] += i32::from(codes[c] as u8 as i8);
            }
            for line in 0..lines {
                let row = y + line;
                let quads = &mut quads[(line * fours + row / 4) * kernel[1] + x];
                (0..STRIP).for_each(|c| quads[c] |= (codes[c] << (row % 4 * 8)) as i32);
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
