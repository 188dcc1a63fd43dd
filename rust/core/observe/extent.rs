//! The least and the largest value.

use crate::cpu::{self, lanes::INF_BITS};
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::floats::Floats;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Elements of one task.
const CHUNK: usize = 1 << 16;

/// Minimum and maximum of `x`, not widened to contain 0; `None` without elements.
///
/// # Errors
/// [`Error::NotFinite`] with the first NaN or infinity.
pub fn extent(x: Floats, executor: &dyn Executor) -> Result<Option<(f32, f32)>> {
    let isa = cpu::active()?;
    let first_bad = AtomicUsize::new(usize::MAX);
    let found = Mutex::new((f32::INFINITY, f32::NEG_INFINITY));
    executor.run(x.len().div_ceil(CHUNK), &|task| {
        let start = task * CHUNK;
        let mut scratch = Vec::new();
        let values = x.widen(start..x.len().min(start + CHUNK), &mut scratch);
        if isa.absmax_bits(values) >= INF_BITS {
            let bad = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
            first_bad.fetch_min(start + bad, Relaxed);
            return;
        }
        let part = least_and_most(values);
        let mut all = found.lock().unwrap_or_else(|e| e.into_inner());
        *all = (all.0.min(part.0), all.1.max(part.1));
    });
    match first_bad.into_inner() {
        usize::MAX if x.is_empty() => Ok(None),
        usize::MAX => Ok(Some(found.into_inner().unwrap_or_else(|e| e.into_inner()))),
        index => Err(Error::NotFinite { argument: "x", index }),
    }
}

fn least_and_most(x: &[f32]) -> (f32, f32) {
    let (mut lo, mut hi) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16]);
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lo[i] = if chunk[i] < lo[i] { chunk[i] } else { lo[i] };
            hi[i] = if chunk[i] > hi[i] { chunk[i] } else { hi[i] };
        }
    }
    let least = lo.iter().chain(rest).fold(f32::INFINITY, |m, &v| m.min(v));
    let most = hi.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    (least, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::forced::each_isa;
    use crate::executor::{Pool, Serial};

    #[test]
    fn the_ends_and_the_first_bad_element() {
        let pool = Pool::new(2).unwrap();
        let mut x: Vec<f32> = (0..200_001).map(|i| 2.0 + (i as f32 * 0.37).sin()).collect();
        let least = x.iter().copied().fold(f32::INFINITY, f32::min);
        let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        each_isa(|_| {
            for executor in [&Serial as &dyn Executor, &pool] {
                assert_eq!(extent(Floats::F32(&x), executor), Ok(Some((least, most))));
            }
        });
        assert_eq!(extent(Floats::F32(&[]), &Serial), Ok(None));
        x[190_000] = f32::NAN;
        x[100_007] = f32::NEG_INFINITY;
        assert_eq!(extent(Floats::F32(&x), &pool), Err(Error::NotFinite { argument: "x", index: 100_007 }));
    }
}
