//! Where the rows of tiles lie: in the input itself, or, where a tap's channels are no whole quads, in copies.

use super::patches::Patches;
use super::phases::Phase;
use crate::buffer::Scratch;
use crate::cpu::Taps;
use std::ops::Range;

/// The rows of a task, cut into tiles.
pub(super) struct Addresses {
    pub tiles: Vec<Tile>,
    /// Per tile `[tap][row]`.
    at: Vec<*const u8>,
    taps: usize,
    /// Copies, if there are any.
    _copies: Option<Scratch>,
}

/// Some rows of a task.
pub(super) struct Tile {
    /// The first one, counted from the task's first.
    pub first: usize,
    /// Those that are outputs.
    pub used: usize,
    /// Those that the kernel computes.
    pub rows: usize,
}

impl Addresses {
    /// Rows `range` of a phase: images times the places of its grid.
    pub(super) fn of_input(
        patches: &Patches,
        phase: &Phase,
        zeros: &[i8],
        range: Range<usize>,
        most: usize,
        taps: &Taps,
    ) -> Self {
        let mut all = Self::empty(range.len(), phase.taps.len(), most, taps);
        let ([height, width], channels) = (patches.geometry.size, patches.geometry.channels);
        let (x, zeros) = (patches.x.as_ptr().cast::<u8>(), zeros.as_ptr().cast::<u8>());
        let [grid_y, grid_x] = phase.grid;
        let (mut image, mut y, mut x_at) =
            (range.start / (grid_y * grid_x), range.start / grid_x % grid_y, range.start % grid_x);
        let mut start = 0;
        for tile in &all.tiles {
            for r in 0..tile.used {
                let (from_y, from_x) = ((y * phase.step[0]) as isize, (x_at * phase.step[1]) as isize);
                let image_at = x.wrapping_add(image * height * width * channels);
                for (t, tap) in phase.taps.iter().enumerate() {
                    let (y, x) = ((from_y + tap.offset[0]) as usize, (from_x + tap.offset[1]) as usize);
                    let inside = y < height && x < width; // a negative one is a large one
                    all.at[start + t * tile.rows + r] =
                        if inside { image_at.wrapping_add((y * width + x) * channels) } else { zeros };
                }
                x_at += 1;
                if x_at == grid_x {
                    (x_at, y) = (0, y + 1);
                    if y == grid_y {
                        (y, image) = (0, image + 1);
                    }
                }
            }
            for t in 0..phase.taps.len() {
                let row = &mut all.at[start + t * tile.rows..][..tile.rows];
                let last = row[tile.used - 1];
                row[tile.used..].fill(last);
            }
            start += phase.taps.len() * tile.rows;
        }
        all
    }

    /// Copies of what output positions `range` see in `group`: one tap of all steps, the zero point behind them up to
    /// a whole quad.
    pub(super) fn of_copies(patches: &Patches, group: usize, range: Range<usize>, most: usize, taps: &Taps) -> Self {
        let mut all = Self::empty(range.len(), 1, most, taps);
        let depth = patches.geometry.depth();
        let stride = depth.next_multiple_of(4);
        let mut copies = Scratch::of::<u8>(range.len() * stride);
        for (row, codes) in range.zip(copies.as_mut::<u8>().chunks_exact_mut(stride.max(1))) {
            patches.gather(row, group, &mut codes[..depth]);
            codes[depth..].fill(patches.zero as u8);
        }
        let base = copies.as_slice::<u8>().as_ptr();
        let mut start = 0;
        for tile in &all.tiles {
            for (r, at) in all.at[start..start + tile.rows].iter_mut().enumerate() {
                *at = base.wrapping_add((tile.first + r.min(tile.used - 1)) * stride);
            }
            start += tile.rows;
        }
        all._copies = Some(copies);
        all
    }

    fn empty(count: usize, taps_of_row: usize, most: usize, taps: &Taps) -> Self {
        let tiles: Vec<Tile> = (0..count)
            .step_by(most)
            .map(|first| {
                let used = most.min(count - first);
                Tile { first, used, rows: taps.rows(used).min(most) }
            })
            .collect();
        let rows: usize = tiles.iter().map(|tile| tile.rows).sum();
        Self { tiles, at: vec![std::ptr::null(); rows * taps_of_row], taps: taps_of_row, _copies: None }
    }

    /// Each tile, and its addresses `[tap][row]`.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Tile, &[*const u8])> {
        let mut rest = &self.at[..];
        self.tiles.iter().map(move |tile| {
            let at;
            (at, rest) = rest.split_at(self.taps * tile.rows);
            (tile, at)
        })
    }
}
