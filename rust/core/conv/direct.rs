//! The driver for int8 weights with one scale a channel: tiles that read the input where it lies, and finish their sums
//! at once.

use super::addresses::Addresses;
use super::driver::{LONGEST, panels_of};
use super::geometry::Geometry;
use super::merged::Merged;
use super::output::Sink;
use super::patches::Patches;
use super::phases::Phase;
use super::places::TileRows;
use crate::cpu::{self, Isa, TapRows, Taps, block_bytes};
use crate::error::Result;
use crate::executor::Executor;
use crate::matrix::{ZeroKind, ZeroPoints};
use crate::prepack::{PackedRef, Panel};
use crate::qtype::QuantType;
use std::ops::Range;
use std::sync::OnceLock;

/// Most columns of a panel.
const COLS: usize = 64;
/// Sums at a time, where they are not finished in registers: those of a tile of any width.
const SUMS: usize = 384;
/// Most rows of a task, and the fewest of one among several threads: neighbours see the same lines of the input, so long
/// tasks read fewer of them twice.
const ROWS: usize = if cfg!(test) { 17 } else { 768 };
const FEWEST: usize = if cfg!(test) { 4 } else { 48 };

/// A product whose weight this driver takes.
pub(super) struct Direct<'a> {
    isa: &'static Isa,
    taps: &'static Taps,
    patches: &'a Patches<'a>,
    w: PackedRef<'a>,
    /// Whether taps are read from copies.
    copied: bool,
    /// See [`TapRows::each`].
    each: usize,
    phases: Vec<Phase>,
    pairs: Vec<Pair<'a>>,
    /// `[phase][tap]`: which of the weight's they are.
    indices: Vec<Vec<usize>>,
    /// `[phase][pair]`: what `a + 128` instead of `a − z` contributes to each column, with the sign that takes it away.
    starts: Vec<OnceLock<[i32; COLS]>>,
    /// What stands for padding, for all channels.
    zeros: Vec<i8>,
    /// Quads of a tap.
    quads: usize,
    /// As long as what a tile reads of a tap: what the kernel takes for 1.
    ones: Vec<i8>,
}

/// A group, one of its panels, and which of the panel's columns are the group's.
struct Pair<'a> {
    group: usize,
    panel: Panel<'a>,
    used: Range<usize>,
}

/// Work on some rows of a phase and some panels.
struct Task {
    phase: usize,
    rows: Range<usize>,
    pairs: Range<usize>,
}

impl<'a> Direct<'a> {
    /// Whether this driver takes a weight.
    pub(super) fn takes(w: &PackedRef) -> bool {
        let of_channels = w.qtype() == QuantType::Int8 && w.groups() == 1 && w.zero_kind() != ZeroKind::F16;
        of_channels && w.k() <= LONGEST && cpu::active().is_ok_and(|isa| isa.taps().is_some())
    }

    /// For a weight that [`Direct::takes`]. `patches` are those of `merged`, if there is one.
    pub(super) fn new(patches: &'a Patches, w: &PackedRef<'a>, merged: Option<&'a Merged>) -> Result<Self> {
        let isa = cpu::active()?;
        let taps = isa.taps().expect("the caller asks takes");
        let geometry = patches.geometry;
        let copied = merged.is_none() && !geometry.group_channels().is_multiple_of(4);
        let each = if copied || merged.is_some() { 0 } else { narrow(geometry, w) };
        let steps = if copied { w.k() } else { geometry.group_channels() };
        let quads = merged.map_or(steps.div_ceil(4), |merged| merged.quads);
        let ones = vec![-127; TapRows::bytes(quads, each)];
        let phases = if copied { vec![Phase::whole(patches.out_size)] } else { Phase::all(geometry, patches.out_size) };
        let zeros = vec![patches.zero; if patches.may_pad() { geometry.channels } else { 0 }];
        let of = |group| panels_of(w, geometry, group).map(move |(panel, used)| Pair { group, panel, used });
        let of_groups = (0..geometry.groups).flat_map(of);
        let mut pairs: Vec<_> = match each {
            0 => of_groups.collect(),
            _ => of_groups
                .filter(|pair| pair.used.start == 0)
                .map(|pair| Pair { used: 0..pair.panel.used, ..pair })
                .collect(),
        };
        debug_assert!(each == 0 || pairs.iter().all(|pair| pair.group == pair.panel.first / each));
        if let Some(merged) = merged {
            pairs
                .iter_mut()
                .enumerate()
                .for_each(|(i, Pair { panel, .. })| (panel.weights, panel.sums) = (merged.panel(i), &[]));
        }
        let starts = (0..phases.len() * pairs.len()).map(|_| OnceLock::new()).collect();
        let indices = phases.iter().map(|phase| phase.taps.iter().map(|tap| tap.index).collect()).collect();
        let of = Self { isa, taps, patches, w: *w, copied, each, quads, phases, pairs, indices, starts, zeros, ones };
        Ok(of)
    }

    pub(super) fn multiply(&self, scales: &[f32], sink: &Sink, executor: &dyn Executor) {
        let tasks = self.tasks(executor.threads());
        executor.run(tasks.len(), &|i| self.run(&tasks[i], scales, sink));
    }

    fn tasks(&self, threads: usize) -> Vec<Task> {
        let (batch, pairs) = (self.patches.geometry.batch, self.pairs.len());
        let count = |phase: &Phase| batch * phase.grid[0] * phase.grid[1];
        let all: usize = self.phases.iter().map(count).sum();
        let most = self.taps.most(self.w.nr().min(self.w.n().next_multiple_of(cpu::STRIP)));
        // rows for a few tasks a thread where there are many, and panels apart where there are few
        let wanted = if threads > 1 { all.div_ceil(threads * 3).clamp(FEWEST, ROWS) } else { ROWS };
        // blocks of equal size: one of few rows would read all panels for those, and have a thread wait
        let blocks = |phase: &Phase| match (count(phase) + wanted / 2) / wanted {
            blocks if threads == 1 => blocks.max(1),
            0 | 1 if pairs >= threads * 4 || count(phase) < threads * most * 2 => 1,
            blocks => blocks.next_multiple_of(threads),
        };
        let all: usize = self.phases.iter().map(blocks).sum();
        let splits = if all < threads * 2 { (threads * 4).div_ceil(all).min(pairs) } else { 1 };
        let split = (pairs / splits.max(1)).max(1);
        let mut tasks = Vec::new();
        for (phase, of) in self.phases.iter().enumerate() {
            let each = count(of).div_ceil(blocks(of)).next_multiple_of(most);
            for first in (0..count(of)).step_by(each) {
                for pair in (0..pairs).step_by(split) {
                    let rows = first..(first + each).min(count(of));
                    tasks.push(Task { phase, rows, pairs: pair..(pair + split).min(pairs) });
                }
            }
        }
        tasks
    }

    fn run(&self, task: &Task, scales: &[f32], sink: &Sink) {
        let (phase, patches) = (&self.phases[task.phase], self.patches);
        let pairs = &self.pairs[task.pairs.clone()];
        let rows = TileRows::new(self.isa, patches, phase, scales, task.rows.clone());
        let shared =
            (!self.copied).then(|| Addresses::of_input(self.isa, patches, phase, &self.zeros, task.rows.clone()));
        let mut first = task.phase * self.pairs.len() + task.pairs.start;
        for of_group in pairs.chunk_by(|a, b| a.group == b.group) {
            let group = of_group[0].group;
            let copies;
            let (addresses, offset) = match &shared {
                Some(addresses) => (addresses, group * patches.geometry.group_channels()),
                None => {
                    copies = Addresses::of_copies(self.isa, patches, group, task.rows.clone());
                    (&copies, 0)
                }
            };
            let sums = matches!(of_group[0].panel.zeros, ZeroPoints::U8(_))
                .then(|| self.row_sums(addresses, offset, task.rows.len(), phase.taps.len()));
            for pair in of_group {
                self.pair(first, pair, (addresses, offset), sums.as_deref(), &rows, sink);
                first += 1;
            }
        }
    }

    /// Of each row: Σ (a − z).
    #[allow(unsafe_code)]
    fn row_sums(&self, addresses: &Addresses, offset: usize, rows: usize, taps: usize) -> Vec<i32> {
        let mut sums = vec![0; rows];
        // SAFETY: each address is that of a tap of the input, of the zeros or of a copy, as long as a tap.
        unsafe { self.taps.row_sums(addresses.at(), addresses.stride, offset, self.ones.len(), &mut sums) };
        sums.iter_mut().for_each(|sum| *sum -= i32::from(self.patches.zero) * (taps * self.ones.len()) as i32);
        sums
    }

    /// The rows of a task times one panel.
    #[allow(unsafe_code)]
    fn pair(
        &self,
        index: usize,
        Pair { panel, used, .. }: &Pair,
        (addresses, offset): (&Addresses, usize),
        sums: Option<&[i32]>,
        rows: &TileRows,
        sink: &Sink,
    ) {
        let (made, taps) = (self.starts[index].get(), &self.indices[index / self.pairs.len()]);
        // two threads at once both make it: to wait would be to sleep
        let start = made.copied().unwrap_or_else(|| self.start(panel, taps));
        if made.is_none() {
            _ = self.starts[index].set(start);
        }
        let columns = sink.columns(panel, 0..panel.cols, used.clone());
        let count = addresses.stride - Taps::SPARE;
        let mut t = TapRows {
            at: addresses.at(),
            rows: 0..count,
            offset,
            quads: self.quads,
            each: self.each,
            panel: panel.weights,
            cols: panel.cols,
            taps,
            start: &start[..panel.cols],
        };
        // SAFETY: each address is that of a tap of the input, of the zeros or of a copy, as long as a tap; the output lives
        // as long as the call, and this task alone has these rows of this panel's channels.
        if sums.is_none() && unsafe { sink.try_rows(self.taps, &t, &columns, rows.of(0, count)) } {
            return;
        }
        let mut acc = [0i32; SUMS];
        for first in (0..count).step_by(SUMS / panel.cols) {
            t.rows = first..(first + SUMS / panel.cols).min(count);
            let acc = &mut acc[..t.rows.len() * panel.cols];
            // SAFETY: as above.
            unsafe { self.taps.sums(&t, acc) };
            if let (ZeroPoints::U8(zeros), Some(sums)) = (panel.zeros, sums) {
                self.isa.subtract_zeros(acc, zeros, self.w.qtype().offset(), &sums[t.rows.clone()]);
            }
            // SAFETY: as above.
            unsafe { sink.write_tile(self.isa, acc, &columns, rows.of(first, t.rows.len())) };
        }
    }

    /// See `starts`.
    #[allow(unsafe_code)]
    fn start(&self, panel: &Panel, taps: &[usize]) -> [i32; COLS] {
        let mut sums = [0; COLS];
        let finish = |sums: [i32; COLS]| sums.map(|sum| sum.wrapping_mul(-128 - i32::from(self.patches.zero)));
        let whole = taps.len() * self.quads * block_bytes(panel.cols) == panel.weights.len();
        if whole && !panel.sums.is_empty() {
            sums[..panel.cols].copy_from_slice(panel.sums);
            return finish(sums);
        }
        let at = vec![self.ones.as_ptr().cast::<u8>(); taps.len() * (1 + Taps::SPARE)];
        let t = TapRows {
            at: &at,
            rows: 0..1,
            offset: 0,
            quads: self.quads,
            each: self.each,
            panel: panel.weights,
            cols: panel.cols,
            taps,
            start: &[0; COLS][..panel.cols],
        };
        // SAFETY: `ones` is as long as a tap.
        unsafe { self.taps.sums(&t, &mut sums[..panel.cols]) };
        finish(sums)
    }
}

/// Columns of a group, where a strip holds several groups and a kernel takes them at once; else 0.
fn narrow(geometry: &Geometry, w: &PackedRef) -> usize {
    let (each, channels) = (geometry.out_channels / geometry.groups, geometry.group_channels());
    let fits = (1..cpu::STRIP).contains(&each) && cpu::STRIP.is_multiple_of(each) && w.nr() == cpu::STRIP;
    let whole = geometry.out_channels.is_multiple_of(cpu::STRIP) && w.zero_kind() == ZeroKind::None;
    if fits && whole && cpu::STRIP / each * channels <= 64 { each } else { 0 }
}
