//! A convolution as plain ones: itself, or, transposed, one for each place that an output has between the strides. Each
//! has those taps alone that meet inputs, so nothing is multiplied by inserted zeros.

use super::geometry::Geometry;

/// A tap of a kernel: output (y, x) of the grid reads input (y · step + y of the tap, x · step + x of the tap).
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub offset: [isize; 2],
    /// Which one of the weight's taps.
    pub index: usize,
}

/// Outputs on a grid that all see the same taps.
#[derive(Debug)]
pub(super) struct Phase {
    pub taps: Vec<Tap>,
    /// Input rows (columns) from one output of the grid to the next.
    pub step: [usize; 2],
    /// The grid in the output: its size, where it begins and how far apart it is.
    pub grid: [usize; 2],
    first: [usize; 2],
    apart: [usize; 2],
}

impl Phase {
    pub(super) fn all(geometry: &Geometry, out_size: [usize; 2]) -> Vec<Self> {
        let places = if geometry.transposed.is_some() { geometry.stride } else { [1, 1] };
        let phases = (0..places[0]).flat_map(|y| (0..places[1]).map(move |x| [y, x]));
        phases.map(|first| Self::new(geometry, out_size, first)).filter(|p| p.grid[0] * p.grid[1] > 0).collect()
    }

    /// All outputs, of which each sees a copy of its own: one tap.
    pub(super) fn whole(out_size: [usize; 2]) -> Self {
        let taps = vec![Tap { offset: [0, 0], index: 0 }];
        Self { taps, step: [1, 1], grid: out_size, first: [0, 0], apart: [1, 1] }
    }

    fn new(geometry: &Geometry, out_size: [usize; 2], first: [usize; 2]) -> Self {
        let Geometry { kernel, stride, padding, dilation, .. } = *geometry;
        let transposed = geometry.transposed.is_some();
        let offset = |axis: usize, tap: usize| -> Option<isize> {
            let (reach, padding) = ((tap * dilation[axis]) as isize, padding[axis] as isize);
            if !transposed {
                return Some(reach - padding);
            }
            let (at, stride) = (first[axis] as isize + padding - reach, stride[axis] as isize);
            (at.rem_euclid(stride) == 0).then(|| at.div_euclid(stride))
        };
        let taps = (0..kernel[0]).flat_map(|y| (0..kernel[1]).map(move |x| [y, x]));
        let taps =
            taps.filter_map(|[y, x]| Some(Tap { offset: [offset(0, y)?, offset(1, x)?], index: y * kernel[1] + x }));
        let apart = if transposed { stride } else { [1, 1] };
        Self {
            taps: taps.collect(),
            step: if transposed { [1, 1] } else { stride },
            grid: [0, 1].map(|axis| out_size[axis].saturating_sub(first[axis]).div_ceil(apart[axis])),
            first,
            apart,
        }
    }

    /// Whether the grid is the whole output.
    pub(super) fn is_whole(&self) -> bool {
        self.apart == [1, 1]
    }

    /// Whether its outputs see a pixel each, in the order of an input of `size`.
    pub(super) fn reads_each_pixel(&self, size: [usize; 2]) -> bool {
        let [tap] = &self.taps[..] else { return false };
        tap.offset == [0; 2] && self.step == [1; 2] && self.grid == size
    }

    /// The pixel of the output that place (y, x) of the grid is.
    pub(super) fn pixel(&self, [y, x]: [usize; 2], out_size: [usize; 2]) -> usize {
        (self.first[0] + y * self.apart[0]) * out_size[1] + self.first[1] + x * self.apart[1]
    }
}
