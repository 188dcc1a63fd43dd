//! The integer kernels.
//!
//! A group's zero points cost one instruction: the sums start from −z·Σa, which `vpmaddwd` makes of the pairs
//! (z, 128 z) and Σa in two halves (see [`split_sum`](crate::cpu::split_sum)).

use super::{ask_ahead, ask_for, by_shape, load, load_f16, load_f32, load_i32, load_u8, store, store_f32, store_i32};
use crate::cpu::{GroupRun, Outputs};
use crate::matrix::Scales;
use std::arch::x86_64::*;

/// Rows whose float sums stay in registers beside the integer ones; more rows keep them in the first-level cache.
const ROWS_IN_REGISTERS: usize = 3;

/// `c[r][j] += a · b`: a macro, since the accumulators stay in registers only where this is inlined.
macro_rules! multiply {
    ($bits:ident, $rows:ident, $vectors:ident, $a:expr, $b:expr, $c:ident) => {
        let (a, _) = $a.as_chunks::<4>();
        let (b, _) = $b.as_chunks::<64>();
        if $rows == 1 {
            // one row has too few sums to hide a multiplication's latency: every other block goes to a second set
            let mut d = [[_mm512_setzero_si512(); $vectors]; $rows];
            let (mut pairs_a, mut pairs_b) = (a.chunks_exact(16 / $bits * $rows), b.chunks_exact(2 * $vectors));
            for (a, b) in pairs_a.by_ref().zip(pairs_b.by_ref()) {
                block!($bits, $rows, $vectors, a, b, $c);
                block!($bits, $rows, $vectors, a[8 / $bits * $rows..], b[$vectors..], d);
            }
            if !pairs_b.remainder().is_empty() {
                block!($bits, $rows, $vectors, pairs_a.remainder(), pairs_b.remainder(), $c);
            }
            for j in 0..$vectors {
                $c[0][j] = _mm512_add_epi32($c[0][j], d[0][j]);
            }
        } else {
            for (a, b) in a.chunks_exact(8 / $bits * $rows).zip(b.chunks_exact($vectors)) {
                block!($bits, $rows, $vectors, a, b, $c);
            }
        }
    };
}

/// One block of weights: `8 / BITS` quads.
macro_rules! block {
    ($bits:ident, $rows:ident, $vectors:ident, $a:expr, $b:expr, $c:ident) => {
        let mask = _mm512_set1_epi8(((1u16 << $bits) - 1) as i8);
        if $rows <= 4 {
            ask_ahead(&$b[..$vectors], $bits < 8 && $rows * 8 / $bits >= 4);
        }
        for t in 0..8 / $bits {
            let mut w = [mask; $vectors];
            for j in 0..$vectors {
                w[j] = match ($bits, t) {
                    (8, _) => load(&$b[j]),
                    (_, 0) => _mm512_and_si512(load(&$b[j]), mask),
                    (4, _) => _mm512_and_si512(_mm512_srli_epi16::<4>(load(&$b[j])), mask),
                    (_, 1) => _mm512_and_si512(_mm512_srli_epi16::<2>(load(&$b[j])), mask),
                    (_, 2) => _mm512_and_si512(_mm512_srli_epi16::<4>(load(&$b[j])), mask),
                    _ => _mm512_and_si512(_mm512_srli_epi16::<6>(load(&$b[j])), mask),
                };
            }
            for r in 0..$rows {
                let x = _mm512_set1_epi32(i32::from_le_bytes($a[t * $rows + r]));
                for j in 0..$vectors {
                    $c[r][j] = _mm512_dpbusd_epi32($c[r][j], w[j], x);
                }
            }
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn tile<const BITS: usize>(a: &[u8], rows: usize, b: &[u8], cols: usize, acc: &mut [i32], accumulate: bool) {
    by_shape!(rows, cols, [1 2 3 4 5 6], tile_shape<BITS>(a, b, acc, accumulate))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile_shape<const BITS: usize, const R: usize, const V: usize>(
    a: &[u8],
    b: &[u8],
    acc: &mut [i32],
    accumulate: bool,
) {
    let (out, _) = acc.as_chunks_mut::<16>();
    let mut c = [[_mm512_setzero_si512(); V]; R];
    if accumulate {
        for r in 0..R {
            for j in 0..V {
                c[r][j] = load_i32(&out[r * V + j]);
            }
        }
    }
    multiply!(BITS, R, V, a, b, c);
    for r in 0..R {
        for j in 0..V {
            store_i32(&mut out[r * V + j], c[r][j]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,f16c")]
pub(super) fn grouped<const BITS: usize>(
    a: &[u8],
    rows: usize,
    b: &[u8],
    cols: usize,
    run: GroupRun,
    f: &mut [f32],
    outputs: Option<Outputs>,
) {
    by_shape!(rows, cols, [1 2 3 4 5 6], grouped_shape<BITS>(a, b, run, f, outputs))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,f16c")]
fn grouped_shape<const BITS: usize, const R: usize, const V: usize>(
    a: &[u8],
    b: &[u8],
    run: GroupRun,
    f: &mut [f32],
    mut outputs: Option<Outputs>,
) {
    if let Some(outputs) = &mut outputs {
        (0..R).for_each(|r| ask_for(outputs.out.row(r)));
    }
    let (out, _) = f.as_chunks_mut::<16>();
    let mut f = [[_mm512_setzero_ps(); V]; R];
    if R <= ROWS_IN_REGISTERS && !run.fresh {
        for r in 0..R {
            for j in 0..V {
                f[r][j] = load_f32(&out[r * V + j]);
            }
        }
    }
    let (sums_of, _) = run.sums.as_chunks::<R>();
    let (mut a, mut b) = (a, b);
    for (g, sums) in sums_of.iter().enumerate() {
        let last = g + 1 == sums_of.len();
        let quads = if last { a.len() / (R * 4) } else { run.quads };
        let (group_a, rest_a) = a.split_at(quads * R * 4);
        let (group_b, rest_b) = b.split_at(quads * BITS / 8 * V * 64);
        (a, b) = (rest_a, rest_b);

        let mut zero = [_mm512_set1_epi32(z_pair(run.offset)); V];
        if let Some(zeros) = run.zeros {
            let (zeros, _) = zeros[g * V * 16..].as_chunks::<16>();
            for j in 0..V {
                let z = load_u8(&zeros[j]);
                zero[j] = _mm512_or_si512(z, _mm512_slli_epi32::<23>(z));
            }
        }
        let mut c = [[_mm512_setzero_si512(); V]; R];
        for r in 0..R {
            let sum = _mm512_set1_epi32(sums[r]);
            for j in 0..V {
                c[r][j] = _mm512_madd_epi16(zero[j], sum);
            }
        }
        multiply!(BITS, R, V, group_a, group_b, c);
        for j in 0..V {
            let scale = match run.scales {
                Scales::F32(s) => load_f32(&s[g * V * 16..].as_chunks().0[j]),
                Scales::F16(s) => load_f16(&s[g * V * 16..].as_chunks().0[j]),
            };
            for r in 0..R {
                let v = _mm512_cvtepi32_ps(c[r][j]);
                if R <= ROWS_IN_REGISTERS {
                    f[r][j] = _mm512_fmadd_ps(v, scale, f[r][j]);
                    continue;
                }
                let at = &mut out[r * V + j];
                let so_far = if g == 0 && run.fresh { _mm512_setzero_ps() } else { load_f32(at) };
                let sum = _mm512_fmadd_ps(v, scale, so_far);
                match &mut outputs {
                    Some(outputs) if last => write(outputs, r, j, sum),
                    _ => store_f32(at, sum),
                }
            }
        }
    }
    if R <= ROWS_IN_REGISTERS {
        for r in 0..R {
            for j in 0..V {
                match &mut outputs {
                    Some(outputs) => write(outputs, r, j, f[r][j]),
                    None => store_f32(&mut out[r * V + j], f[r][j]),
                }
            }
        }
    }
}

/// Strip `j` of row `r`, as far as its columns are outputs.
#[inline]
#[target_feature(enable = "avx512f")]
fn write(Outputs { factors, bias, out }: &mut Outputs, r: usize, j: usize, f: __m512) {
    let (row, factor) = (out.row(r), _mm512_set1_ps(factors[r]));
    if let Some(out) = row.as_chunks_mut::<16>().0.get_mut(j) {
        let v = match bias {
            None => _mm512_mul_ps(f, factor),
            Some(bias) => _mm512_fmadd_ps(f, factor, load_f32(&bias.as_chunks().0[j])),
        };
        return store_f32(out, v);
    }
    let mask = ((1u32 << row.len().saturating_sub(j * 16)) - 1) as u16;
    // SAFETY: the elements from `j * 16` on that the mask has are those left of the row, and of the bias, which is as long.
    unsafe {
        let v = match bias {
            None => _mm512_mul_ps(f, factor),
            Some(bias) => _mm512_fmadd_ps(f, factor, _mm512_maskz_loadu_ps(mask, bias.as_ptr().wrapping_add(j * 16))),
        };
        _mm512_mask_storeu_ps(row.as_mut_ptr().wrapping_add(j * 16), mask, v);
    }
}

/// (z, 128 z) as two 16-bit halves.
fn z_pair(z: u8) -> i32 {
    i32::from(z) | i32::from(z) << 23
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack<const BITS: usize>(b: &[u8], cols: usize, out: &mut [u8]) {
    by_shape!(1, cols, [1], unpack_shape<BITS>(b, out))
}

#[target_feature(enable = "avx512f,avx512bw")]
fn unpack_shape<const BITS: usize, const R: usize, const V: usize>(b: &[u8], out: &mut [u8]) {
    let mask = _mm512_set1_epi8(((1u16 << BITS) - 1) as i8);
    let (b, _) = b.as_chunks::<64>();
    let (out, _) = out.as_chunks_mut::<64>();
    for (b, out) in b.chunks_exact(V).zip(out.chunks_exact_mut(8 / BITS * V)) {
        for j in 0..V {
            let mut w = load(&b[j]);
            for t in 0..8 / BITS {
                store(&mut out[t * V + j], _mm512_and_si512(w, mask));
                w = if BITS == 4 { _mm512_srli_epi16::<4>(w) } else { _mm512_srli_epi16::<2>(w) };
            }
        }
    }
}
