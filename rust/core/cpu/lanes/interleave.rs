//! Planes of channels to channels-last.

/// `[channels][pixels]` to `[pixels][channels]`.
#[inline(always)]
pub(super) fn interleave(planes: &[u8], channels: usize, out: &mut [u8]) {
    let pixels = planes.len() / channels;
    for (channel, plane) in planes.chunks_exact(pixels.max(1)).enumerate() {
        out[channel..].iter_mut().step_by(channels).zip(plane).for_each(|(out, q)| *out = *q);
    }
}
