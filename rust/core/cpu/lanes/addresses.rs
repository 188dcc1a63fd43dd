//! Where things lie that are equally far apart.

/// `out[i] = first + i · step`.
#[inline(always)]
pub(super) fn addresses(first: *const u8, step: usize, out: &mut [*const u8]) {
    out.iter_mut().enumerate().for_each(|(i, at)| *at = first.wrapping_add(i * step));
}

/// The same of indices.
#[inline(always)]
pub(super) fn indices(first: usize, step: usize, out: &mut [usize]) {
    out.iter_mut().enumerate().for_each(|(i, at)| *at = first + i * step);
}
