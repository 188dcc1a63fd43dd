//! What a block covers and takes, as the sources have it.

use crate::cuda::error::{Error, Result};

pub(super) const MOST_BLOCKS_Y: usize = 65535;

/// What a block of a product covers and takes.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub rows: usize,
    pub columns: usize,
    /// Along k, of a step.
    pub depth: usize,
    pub threads: u32,
    pub shared: u32,
}

impl Shape {
    /// `linear_small.cu`, `linear_int8_small.cu`: 8 warps, each with a ring of stages of 16 rows and 128 k.
    pub fn small(bits: usize) -> Self {
        let stages = if bits == 8 { 3 } else { 4 };
        let ring = 8 * stages * 16 * 128 * bits / 8; // more than the sums of all warps in the end
        Self { rows: 8, columns: 16, depth: 8 * 128, threads: 256, shared: ring as u32 }
    }

    /// `linear_tiled.cu`, `linear_int8.cu`: a ring of stages of both operands, `depth` k deep; `bytes` an activation.
    pub fn tiled(m: usize, depth: usize, stages: usize, bits: usize, bytes: usize) -> Self {
        let (rows, columns) = (if m <= 16 { 16 } else { 64 }, 64);
        let shared = stages * (rows * depth * bytes + columns * depth * bits / 8);
        Self { rows, columns, depth, threads: 128, shared: shared as u32 }
    }

    /// `linear_simt.cu`: 4 warps of 4 rows.
    pub fn simt() -> Self {
        Self { rows: 8, columns: 16, depth: 256, threads: 128, shared: 0 }
    }

    /// `outlier_products.cu`: 16 listed columns at a time, of x and of the weight, rows an element longer.
    pub fn outliers() -> Self {
        Self { rows: 32, columns: 64, depth: 16, threads: 256, shared: 16 * (33 + 65) * 4 }
    }

    pub fn grid(&self, m: usize, n: usize) -> Result<(u32, u32)> {
        let (x, y) = (n.div_ceil(self.columns), m.div_ceil(self.rows));
        if y > MOST_BLOCKS_Y {
            return Err(Error::argument("x", format!("at most {} rows", MOST_BLOCKS_Y * self.rows), m));
        }
        Ok((x as u32, y as u32))
    }

    /// Among how many blocks k is shared so that `multiprocessors` have one each: 1 where there are enough tiles, or k is
    /// too short to give each part a few steps, which the second launch must be worth.
    pub fn splits(&self, m: usize, n: usize, k: usize, multiprocessors: usize) -> usize {
        let tiles = n.div_ceil(self.columns) * m.div_ceil(self.rows);
        let steps = k.div_ceil(self.depth);
        (multiprocessors / tiles.max(1)).min(steps / 4).clamp(1, 16)
    }
}

/// A thread for each 32-bit word of codes, rows along y.
pub(super) fn word_grid(n: usize, k: usize, bits: usize) -> (u32, u32) {
    (k.div_ceil(32 / bits).div_ceil(256) as u32, n.min(MOST_BLOCKS_Y) as u32)
}
