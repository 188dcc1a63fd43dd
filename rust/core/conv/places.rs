//! Where the rows of a task go in the output.

use super::patches::Patches;
use super::phases::Phase;
use crate::buffer::Scratch;
use crate::cpu::{Isa, Taps};
use std::ops::Range;

/// Where the rows of a task are written, and their factors.
pub(super) struct TileRows {
    /// With [`Taps::SPARE`] more, as `Places::filled`.
    at: Scratch,
    last: usize,
    factors: Vec<f32>,
}

/// Some of them.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    /// Where in the output each row begins; none after `last`.
    pub at: &'a [usize],
    /// The same and those behind it: after the last of all rows [`Taps::SPARE`] with its place.
    pub filled: &'a [usize],
    pub last: usize,
    /// None where columns have them.
    pub factors: &'a [f32],
}

impl TileRows {
    /// Rows `range` of a phase; `factors` as [`super::output::Sink::factors`] gives them.
    pub(super) fn new(isa: &Isa, patches: &Patches, phase: &Phase, factors: &[f32], range: Range<usize>) -> Self {
        let channels = patches.geometry.out_channels;
        let (places, pixels) = (phase.grid[0] * phase.grid[1], patches.out_size[0] * patches.out_size[1]);
        let row = |row: usize| {
            let (image, place) = (row / places, row % places);
            let pixel = phase.pixel([place / phase.grid[1], place % phase.grid[1]], patches.out_size);
            (image * pixels + pixel) * channels
        };
        let factors = match factors {
            [] => Vec::new(),
            [factor] => vec![*factor; range.len()],
            factors => range.clone().map(|row| factors[row / places]).collect(),
        };
        let (count, last) = (range.len(), range.end.saturating_sub(1));
        let mut all = Scratch::of::<usize>(count + Taps::SPARE);
        let (at, spare) = all.as_mut::<usize>().split_at_mut(count);
        // divisions would show where k is short
        let last = if phase.is_whole() {
            isa.indices(range.start * channels, channels, at);
            last * channels
        } else {
            range.zip(&mut *at).for_each(|(i, at)| *at = row(i));
            at.iter().copied().max().unwrap_or(0)
        };
        spare.fill(at.last().copied().unwrap_or(0));
        Self { at: all, last, factors }
    }

    /// Of `count` rows from `first` on.
    pub(super) fn of(&self, first: usize, count: usize) -> Places<'_> {
        let rows = first..first + count;
        let factors = if self.factors.is_empty() { &[] } else { &self.factors[rows.clone()] };
        let filled = &self.at.as_slice()[first..first + count + Taps::SPARE];
        Places { at: &filled[..count], filled, last: self.last, factors }
    }
}
