//! Planes of channels to channels-last.

/// `[channels][pixels]` to `[pixels][channels]`.
#[inline(always)]
pub(super) fn interleave(planes: &[u8], channels: usize, out: &mut [u8]) {
    let pixels = planes.len() / channels;
    for (channel, plane) in planes.chunks_exact(pixels.max(1)).enumerate() {
        out[channel..].iter_mut().step_by(channels).zip(plane).for_each(|(out, q)| *out = *q);
    }
}

#[cfg(test)]
mod tests {
    use crate::cpu::detected;

    #[test]
    fn planes_become_pixels() {
        for isa in detected() {
            for channels in [1, 2, 3, 4] {
                for pixels in [0, 1, 15, 16, 17, 21, 22, 32, 48, 49, 257] {
                    let planes: Vec<u8> = (0..pixels * channels).map(|i| (i * 37 % 251) as u8).collect();
                    let mut out = vec![0; planes.len() + 1];
                    isa.interleave(&planes, channels, &mut out[..planes.len()]);
                    let want = (0..pixels).flat_map(|i| (0..channels).map(move |c| c * pixels + i));
                    assert!(want.map(|at| planes[at]).eq(out[..planes.len()].iter().copied()), "{} {pixels}", isa.name);
                    assert_eq!(out[planes.len()], 0, "{}", isa.name);
                }
            }
        }
    }
}
