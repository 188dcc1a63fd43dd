//! How k is cut: into groups that share a scale, and those into pieces that a kernel takes at once.

use crate::cpu::block_steps;
use crate::qtype::QuantType;
use std::ops::Range;

/// Longest sum kept in int32 by `linear`: 65,536 · 127 · 255 < 2^31.
const DEEP: usize = 1 << 16;
/// Parts of a longer sum.
pub(crate) const PART: usize = 1 << 15;
/// Steps whose unpacked panel (64 channels) stays in the second-level cache.
const CACHED: usize = 2048;

/// A run of k within one group, short enough for int32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Segment {
    pub group: usize,
    /// Steps of k.
    pub start: usize,
    pub len: usize,
    /// Quads of the activation panel.
    pub first_quad: usize,
    pub quads: usize,
    /// One of several of its group, to be added in int64.
    pub deep: bool,
    /// Whether the group ends here.
    pub ends_group: bool,
}

/// What one kernel call covers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Piece {
    pub segment: usize,
    pub first_quad: usize,
    pub quads: usize,
    /// Whether the segment starts, ends here.
    pub starts: bool,
    pub ends: bool,
}

/// How a weight's k is cut.
#[derive(Debug)]
pub(crate) struct Plan {
    pub segments: Vec<Segment>,
    /// Quads of a row of activations.
    pub quads: usize,
    pub alignment: Alignment,
}

/// How groups lie to the panels' blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Alignment {
    /// Groups start with a block: kernels may read packed bits.
    Block,
    /// Groups start with a quad: kernels read unpacked codes.
    Quad,
    /// Groups start anywhere: unpacked codes are moved so that each starts with a quad.
    None,
}

impl Plan {
    pub(crate) fn new(k: usize, group_size: usize, qtype: QuantType) -> Self {
        Self::within(DEEP, k, group_size, qtype)
    }

    /// The same for sums that int32 holds up to `longest` steps, at least [`PART`].
    pub(crate) fn within(longest: usize, k: usize, group_size: usize, qtype: QuantType) -> Self {
        let groups = k.div_ceil(group_size);
        let alignment = if groups <= 1 || group_size.is_multiple_of(block_steps(qtype)) {
            Alignment::Block
        } else if group_size.is_multiple_of(4) {
            Alignment::Quad
        } else {
            Alignment::None
        };
        let whole = k.div_ceil(block_steps(qtype)) * qtype.per_byte();
        let mut segments = Vec::with_capacity(groups);
        let mut quad = 0;
        for group in 0..groups {
            let (start, end) = (group * group_size, ((group + 1).saturating_mul(group_size)).min(k));
            let deep = end - start > longest;
            let part = if deep { PART } else { end - start };
            for from in (start..end).step_by(part) {
                let len = part.min(end - from);
                let last = from + len == k;
                // the last one takes the padding of the last block along
                let quads = if last && alignment != Alignment::None { whole - quad } else { len.div_ceil(4) };
                segments.push(Segment {
                    group,
                    start: from,
                    len,
                    first_quad: quad,
                    quads,
                    deep,
                    ends_group: from + len == end,
                });
                quad += quads;
            }
        }
        Self { segments, quads: quad, alignment }
    }

    /// One segment over the whole of k, for the bare product.
    pub(crate) fn whole(k: usize, qtype: QuantType) -> Self {
        let quads = k.div_ceil(block_steps(qtype)) * qtype.per_byte();
        let segment = Segment { group: 0, start: 0, len: k, first_quad: 0, quads, deep: false, ends_group: true };
        Self { segments: vec![segment], quads, alignment: Alignment::Block }
    }

    /// The groups in order (none of them cut into segments), in runs that end where the sums are folded, every `fold`
    /// groups, and with `cached` once their unpacked codes fill the cache.
    pub(crate) fn group_runs(&self, cached: bool, fold: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let groups = self.segments.len();
        let fit = if cached { (CACHED / 4 / self.segments[0].quads).max(1) } else { groups };
        let mut start = 0;
        std::iter::from_fn(move || {
            let run = start..(start + fit).min((start / fold + 1) * fold).min(groups);
            start = run.end;
            (!run.is_empty()).then_some(run)
        })
    }

    /// The pieces in order, in runs whose unpacked codes stay in cache. Cuts lie on whole blocks.
    pub(crate) fn runs(&self) -> Vec<Vec<Piece>> {
        const LIMIT: usize = CACHED / 4;
        let mut runs = vec![Vec::new()];
        let mut room = LIMIT;
        for (i, s) in self.segments.iter().enumerate() {
            let mut at = 0;
            while at < s.quads {
                if room < s.quads - at && room < LIMIT / 4 {
                    runs.push(Vec::new());
                    room = LIMIT;
                }
                // a cut within a segment must not split a block of 4 quads
                let quads = if s.quads - at <= room { s.quads - at } else { (room / 4 * 4).max(4) };
                let piece = Piece {
                    segment: i,
                    first_quad: s.first_quad + at,
                    quads,
                    starts: at == 0,
                    ends: at + quads == s.quads,
                };
                if let Some(run) = runs.last_mut() {
                    run.push(piece);
                }
                at += quads;
                room = room.saturating_sub(quads);
            }
        }
        runs.retain(|run| !run.is_empty());
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_every_quad_once(k in 1usize..300_000, group in 1usize..9000, bits in 0usize..3) {
            let qtype = QuantType::INTEGERS[bits];
            let plan = Plan::new(k, group, qtype);
            let mut quad = 0;
            for run in plan.runs() {
                for piece in run {
                    prop_assert_eq!(piece.first_quad, quad);
                    let s = plan.segments[piece.segment];
                    prop_assert!(piece.first_quad >= s.first_quad && piece.first_quad + piece.quads <= s.first_quad + s.quads);
                    if plan.alignment == Alignment::Block {
                        prop_assert_eq!(piece.first_quad % qtype.per_byte(), 0);
                        prop_assert_eq!(piece.quads % qtype.per_byte(), 0);
                    }
                    quad += piece.quads;
                }
            }
            prop_assert_eq!(quad, plan.quads);
            let steps: usize = plan.segments.iter().map(|s| s.len).sum();
            prop_assert_eq!(steps, k);
        }
    }
}
