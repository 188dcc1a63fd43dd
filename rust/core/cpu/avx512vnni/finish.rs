//! A tile's sums to codes, in registers from the integer to the byte: what the loop of `lanes` says, which compilers make
//! three times as slow.
//!
//! Four vectors of 16 values become one of 64 codes: of one row where a tile is four (or three) strips wide, else of two
//! rows or of four. Packing saturates, so that values up to int32 need no clamp before; whoever calls has seen to it that
//! there are no others.

use super::{load_f32, load_i32};
use crate::buffer::Rows;
use crate::cpu::lanes::{Steps, Tile, body};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) fn tile_codes(acc: &[i32], t: Tile, steps: Steps, out: Rows<u8>) {
    match t.cols / 16 {
        _ if t.first != 0 || !t.factors.is_empty() => body::tile_codes(acc, t, steps, out),
        1 => finish::<1>(acc, t, steps, out),
        2 => finish::<2>(acc, t, steps, out),
        3 => finish::<3>(acc, t, steps, out),
        4 => finish::<4>(acc, t, steps, out),
        _ => body::tile_codes(acc, t, steps, out),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn finish<const V: usize>(acc: &[i32], t: Tile, steps: Steps, mut out: Rows<u8>) {
    let encoder = Encoder::<V>::new(&t, steps, &out);
    let (acc, _) = acc.as_chunks::<16>().0[..t.at.len() * V].as_chunks::<V>();
    for (group, acc) in acc.chunks(Encoder::<V>::ROWS).enumerate() {
        let mut c = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            let (r, j) = Encoder::<V>::place(i);
            c[i] = load_i32(&acc[r.min(acc.len() - 1)][j]);
        }
        let at = out.offsets(group * Encoder::<V>::ROWS);
        write_codes!(encoder, false, c, at, out);
    }
}

/// Values in steps to codes, in registers.
pub(super) struct Packer {
    zero: __m512i,
    lo: __m512i,
    hi: __m512i,
}

impl Packer {
    /// Up to here values are int32 when rounded.
    pub(super) const FAR: f32 = (1 << 30) as f32;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(steps: Steps) -> Self {
        Self {
            zero: _mm512_set1_epi16(steps.zero as i16),
            lo: _mm512_set1_epi8(steps.lo as i8),
            hi: _mm512_set1_epi8(steps.hi as i8),
        }
    }

    /// By quarters of the registers: quarter l of what comes out is that of the first vector, of the second and so on. For
    /// values below [`Packer::FAR`] that are numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn pack(&self, v: [__m512; 4]) -> __m512i {
        let low = _mm512_packs_epi32(_mm512_cvtps_epi32(v[0]), _mm512_cvtps_epi32(v[1]));
        let high = _mm512_packs_epi32(_mm512_cvtps_epi32(v[2]), _mm512_cvtps_epi32(v[3]));
        let q = _mm512_packs_epi16(_mm512_adds_epi16(low, self.zero), _mm512_adds_epi16(high, self.zero));
        _mm512_min_epi8(_mm512_max_epi8(q, self.lo), self.hi)
    }
}

/// The sums of rows that begin at `$at`, as [`Encoder::place`] says, to their codes. `$plain`: see [`Encoder::is_plain`]. A
/// macro: LLVM would rather call this, with all sums of a tile in memory meanwhile.
macro_rules! write_codes {
    ($encoder:ident, $plain:expr, $sums:expr, $at:expr, $out:expr) => {
        let (at, out): ([usize; 4], &mut Rows<u8>) = ($at, &mut $out);
        let mut values = $encoder.values($sums);
        if !$plain && $encoder.addend.is_some() {
            values = $encoder.added(values, at);
        }
        let codes = $encoder.codes(values);
        if $plain || $encoder.is_whole() { $encoder.store(codes, at, out) } else { $encoder.store_part(codes, at, out) }
    };
}
pub(super) use write_codes;

#[repr(align(64))]
struct Order([i32; 16]);

static ORDER: Order = Order([0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]);

/// What encoding takes of a tile of `V` strips whose first column is an output, and whose rows have no factors.
pub(super) struct Encoder<'a, const V: usize> {
    multipliers: [__m512; V],
    bias: &'a [[f32; 16]; V],
    pub(super) addend: Option<(*const i8, __m512, __m512i)>,
    /// The columns that are outputs.
    mask: u64,
    packer: Packer,
    order: __m512i,
}

impl<'a, const V: usize> Encoder<'a, V> {
    /// Strips of a row among four vectors, and rows.
    const WIDTH: usize = V.next_power_of_two();
    pub(super) const ROWS: usize = 4 / Self::WIDTH;

    /// The row and the strip of vector `i`: where there are three strips, the last one twice.
    #[inline]
    pub(super) fn place(i: usize) -> (usize, usize) {
        (i / Self::WIDTH, (i % Self::WIDTH).min(V - 1))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(t: &Tile<'a>, steps: Steps, out: &Rows<u8>) -> Self {
        assert!(t.first == 0 && t.factors.is_empty() && t.used == out.len() && (1..=V * 16).contains(&t.used));
        let scales: &[[f32; 16]; V] = t.scales.as_chunks().0.try_into().expect("as many as strips");
        let mut multipliers = [_mm512_setzero_ps(); V];
        for j in 0..V {
            multipliers[j] = load_f32(&scales[j]);
        }
        let addend = t.addend.map(|(q, scale, zero)| {
            assert!(q.len() >= out.memory_len());
            (q.as_ptr(), _mm512_set1_ps(scale), _mm512_set1_epi32(zero))
        });
        Self {
            multipliers,
            bias: t.bias.as_chunks().0.try_into().expect("as many as strips"),
            addend,
            mask: u64::MAX >> (64 - t.used),
            packer: Packer::new(steps),
            // quarter l of vector i is dword 4 l + i of what was packed
            // SAFETY: a static's address. Volatile: known, it would be merged with the extraction of rows, to one each
            order: unsafe { (&raw const ORDER.0).cast::<__m512i>().read_volatile() },
        }
    }

    /// Whether all columns are outputs.
    #[inline]
    pub(super) fn is_whole(&self) -> bool {
        self.mask == u64::MAX >> (64 - V * 16)
    }

    /// The same, and nothing is added.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.is_whole() && self.addend.is_none()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn values(&self, c: [__m512i; 4]) -> [__m512; 4] {
        let mut v = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            let (_, j) = Self::place(i);
            v[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c[i]), self.multipliers[j], load_f32(&self.bias[j]));
        }
        v
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn added(&self, mut v: [__m512; 4], at: [usize; 4]) -> [__m512; 4] {
        let Some((q, scale, zero)) = self.addend else { return v };
        for i in 0..4 {
            let (r, j) = Self::place(i);
            // SAFETY: as long as the output, so these columns of the row are there; what the mask leaves out is not read.
            let q = unsafe { _mm_maskz_loadu_epi8((self.mask >> (j * 16)) as u16, q.add(at[r] + j * 16)) };
            let q = _mm512_sub_epi32(_mm512_cvtepi8_epi32(q), zero);
            v[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), scale, v[i]);
        }
        v
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn codes(&self, v: [__m512; 4]) -> __m512i {
        _mm512_permutexvar_epi32(self.order, self.packer.pack(v))
    }

    /// To the rows that begin at `at`, where all columns are outputs. The first row goes last: others may have its place.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn store(&self, q: __m512i, at: [usize; 4], out: &mut Rows<u8>) {
        // SAFETY: rows of the output, of so many bytes.
        unsafe {
            let mut to = |r: usize| out.pointer(at[r]);
            match V {
                1 => {
                    _mm_storeu_si128(to(3).cast(), _mm512_extracti32x4_epi32::<3>(q));
                    _mm_storeu_si128(to(2).cast(), _mm512_extracti32x4_epi32::<2>(q));
                    _mm_storeu_si128(to(1).cast(), _mm512_extracti32x4_epi32::<1>(q));
                    _mm_storeu_si128(to(0).cast(), _mm512_castsi512_si128(q));
                }
                2 => {
                    _mm256_storeu_si256(to(1).cast(), _mm512_extracti64x4_epi64::<1>(q));
                    _mm256_storeu_si256(to(0).cast(), _mm512_castsi512_si256(q));
                }
                3 => {
                    _mm256_storeu_si256(to(0).cast(), _mm512_castsi512_si256(q));
                    _mm_storeu_si128(to(0).wrapping_add(32).cast(), _mm512_extracti32x4_epi32::<2>(q));
                }
                _ => _mm512_storeu_si512(to(0).cast(), q),
            }
        }
    }

    /// The same of any columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn store_part(&self, q: __m512i, at: [usize; 4], out: &mut Rows<u8>) {
        for r in (0..Self::ROWS).rev() {
            // the row's codes to where the register begins
            let from = _mm512_add_epi64(
                _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                _mm512_set1_epi64((r * Self::WIDTH * 2) as i64),
            );
            let row = _mm512_permutexvar_epi64(from, q);
            // SAFETY: a row of the output; no more of it is written than the mask has bits.
            unsafe { _mm512_mask_storeu_epi8(out.pointer(at[r]).cast(), self.mask, row) }
        }
    }
}
