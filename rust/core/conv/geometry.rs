//! Where a convolution reads and writes.

use crate::error::{Error, Result};
use std::ops::Range;

/// A 2-D convolution over channels-last activations `[batch, height, width, channels]`. A 1-D one has height 1; a matrix
/// product is a 1x1 one over `batch` images of one pixel: [`Geometry::linear`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Images.
    pub batch: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// Input channels.
    pub channels: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Height and width of the kernel; what follows is in the same order.
    pub kernel: [usize; 2],
    /// Steps between outputs; of a transposed convolution, between what its inputs write.
    pub stride: [usize; 2],
    /// Top, left, bottom, right.
    pub padding: [usize; 4],
    /// Steps between taps.
    pub dilation: [usize; 2],
    /// Groups of channels that do not mix.
    pub groups: usize,
    /// `Some(output_padding)`: a transposed convolution.
    pub transposed: Option<[usize; 2]>,
}

impl Geometry {
    /// `[m, k]` to `[m, n]`.
    pub const fn linear(m: usize, k: usize, n: usize) -> Self {
        Self {
            batch: m,
            size: [1; 2],
            channels: k,
            out_channels: n,
            kernel: [1; 2],
            stride: [1; 2],
            padding: [0; 4],
            dilation: [1; 2],
            groups: 1,
            transposed: None,
        }
    }

    /// Height and width of the output.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a geometry that has none: a kernel beyond the padded input, zeros where only positive
    /// numbers make sense, groups that do not divide the channels.
    pub fn out_size(&self) -> Result<[usize; 2]> {
        for (argument, values) in [
            ("kernel", &self.kernel[..]),
            ("stride", &self.stride),
            ("dilation", &self.dilation),
            ("groups", &[self.groups]),
        ] {
            if values.contains(&0) {
                return Err(Error::mismatch(argument, "at least 1", format!("{values:?}")));
            }
        }
        for (argument, channels) in [("channels", self.channels), ("out_channels", self.out_channels)] {
            if !channels.is_multiple_of(self.groups) {
                let expected = format!("a multiple of {} groups", self.groups);
                return Err(Error::mismatch(argument, expected, channels));
            }
        }
        Ok([self.out_length(0)?, self.out_length(1)?])
    }

    /// One side of the output.
    fn out_length(&self, axis: usize) -> Result<usize> {
        let too_large = || Error::mismatch("size", "an output that fits memory", format!("{self:?}"));
        let (size, stride) = (self.size[axis], self.stride[axis]);
        let padding = self.padding[axis].checked_add(self.padding[axis + 2]).ok_or_else(too_large)?;
        let reach = (self.kernel[axis] - 1).checked_mul(self.dilation[axis]).ok_or_else(too_large)?;
        let reach = reach.checked_add(1).ok_or_else(too_large)?;
        let (whole, taken) = match self.transposed {
            None => (size.checked_add(padding), reach),
            Some(extra) => {
                if extra[axis] >= stride.max(self.dilation[axis]) {
                    let expected = "less than stride or dilation";
                    return Err(Error::mismatch("output_padding", expected, format!("{extra:?}")));
                }
                let whole = size.saturating_sub(1).checked_mul(stride).and_then(|v| v.checked_add(reach + extra[axis]));
                (whole, padding)
            }
        };
        let whole = whole.filter(|whole| *whole <= isize::MAX as usize / 4).ok_or_else(too_large)?;
        if size == 0 || whole < taken {
            let expected =
                format!("a size whose output is not empty (kernel and dilation reach over {reach}, padding {padding})");
            return Err(Error::mismatch("size", expected, format!("{:?}", self.size)));
        }
        Ok(if self.transposed.is_some() { whole - taken } else { (whole - taken) / stride + 1 })
    }

    /// Input channels of a group.
    pub(crate) fn group_channels(&self) -> usize {
        self.channels / self.groups
    }

    /// Output channels of a group.
    pub(crate) fn group_outputs(&self, group: usize) -> Range<usize> {
        let each = self.out_channels / self.groups;
        group * each..(group + 1) * each
    }

    /// Steps of k: the taps, with the channels of a group innermost.
    pub(crate) fn depth(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.group_channels()
    }

    /// The input row (or column) that a tap of an output row (or column) reads; `None`: padding, or between the inputs of
    /// a transposed convolution.
    pub(crate) fn source(&self, axis: usize, out: usize, tap: usize) -> Option<usize> {
        let (stride, padding) = (self.stride[axis], self.padding[axis]);
        let at = if self.transposed.is_none() {
            (out * stride + tap * self.dilation[axis]).checked_sub(padding)?
        } else {
            let at = (out + padding).checked_sub(tap * self.dilation[axis])?;
            if !at.is_multiple_of(stride) {
                return None;
            }
            at / stride
        };
        (at < self.size[axis]).then_some(at)
    }
}
