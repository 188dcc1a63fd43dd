//! Whole products at every instruction set, with one and two threads, against naive loops.

mod outliers;
mod properties;
mod rounding;
mod scaled;

use super::*;
use crate::bitpack::{pack_codes, row_bytes};
use crate::cpu::forced::each_isa;
use crate::matrix::{MatrixRef, Scales, ZeroPoints};
use crate::{AlignedBytes, Executor, PackedMatrix, Pool, QuantType, Serial, dequantize};
use half::{bf16, f16};

/// Numbers without a pattern that a kernel could hide behind, the ends of the range among them.
pub(crate) struct Noise(pub u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 8
    }

    pub(crate) fn codes(&mut self, len: usize, qtype: QuantType) -> Vec<i8> {
        let span = 2 * qtype.offset() as u64;
        let code = |v: u64| {
            if v.is_multiple_of(7) { qtype.qmin() as i8 } else { ((v / 7 % span) as i32 - qtype.offset()) as i8 }
        };
        (0..len).map(|_| code(self.next())).collect()
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() % 20_001) as f32 / 10_000.0 - 1.0).collect()
    }
}

/// A weight of any kind, in all its parts.
#[derive(Clone)]
pub(crate) struct Weight {
    q: Vec<i8>,
    codes: Vec<u8>,
    halves: Vec<f16>,
    pub(crate) scales: Vec<f32>,
    zeros: Zeros,
    n: usize,
    k: usize,
    pub(crate) group: usize,
    qtype: QuantType,
}

#[derive(Clone)]
enum Zeros {
    None,
    Stored(Vec<u8>),
    Fraction(Vec<f16>),
}

impl Weight {
    pub(crate) fn new(n: usize, k: usize, group: usize, qtype: QuantType, kind: usize, noise: &mut Noise) -> Self {
        let q = noise.codes(n * k, qtype);
        let mut codes = vec![0; n * row_bytes(k, qtype)];
        pack_codes(&q, n, k, qtype, &mut codes).unwrap();
        let count = n * k.div_ceil(group);
        let halves: Vec<f16> = noise.floats(count).iter().map(|s| f16::from_f32(s.abs() + 0.01)).collect();
        let scales = halves.iter().map(|s| s.to_f32()).collect();
        let zeros = match kind {
            0 => Zeros::None,
            1 => Zeros::Stored((0..count).map(|_| (noise.next() % (2 * qtype.offset() as u64)) as u8).collect()),
            _ => Zeros::Fraction(noise.floats(count).iter().map(|z| f16::from_f32(z * 2.0)).collect()),
        };
        Self { q, codes, halves, scales, zeros, n, k, group, qtype }
    }

    /// The same codes and zero points, all scales 1.
    pub(crate) fn unscaled(mut self) -> Self {
        self.halves.fill(f16::ONE);
        self.scales.fill(1.0);
        self
    }

    fn view(&self) -> MatrixRef<'_> {
        let zeros = match &self.zeros {
            Zeros::None => ZeroPoints::None,
            Zeros::Stored(z) => ZeroPoints::U8(z),
            Zeros::Fraction(z) => ZeroPoints::F16(z),
        };
        // both scale dtypes take their turn
        let scales = if self.n.is_multiple_of(2) { Scales::F16(&self.halves) } else { Scales::F32(&self.scales) };
        MatrixRef::new(self.n, self.k, self.qtype, self.group, &self.codes, scales, zeros).unwrap()
    }

    fn pack(&self) -> AlignedBytes {
        self.pack_grouped(1)
    }

    pub(crate) fn pack_grouped(&self, groups: usize) -> AlignedBytes {
        let v = self.view();
        let len =
            PackedMatrix::packed_len(v.rows, v.cols, v.qtype, v.group_size, v.scales.dtype(), v.zeros.kind()).unwrap();
        let mut bytes = AlignedBytes::zeroed(len);
        PackedMatrix::pack_into(&v, groups, &mut bytes, &Serial).unwrap();
        bytes
    }

    /// The documented definition of the integer path, one output at a time.
    fn integer_definition(&self, a: &[i8], scale: f32, row: usize, bias: f32) -> f32 {
        let a: Vec<i64> = a.iter().map(|a| i64::from(*a)).collect();
        self.sums_definition(&a, row).mul_add(scale, bias)
    }

    /// The sum of all groups, by each one's scale.
    pub(crate) fn sums_definition(&self, a: &[i64], row: usize) -> f32 {
        let groups = self.k.div_ceil(self.group);
        let (mut f, mut total, mut carry) = (0f32, 0f32, 0f32);
        for g in 0..groups {
            let steps = g * self.group..((g + 1).saturating_mul(self.group)).min(self.k);
            let dot: i64 = steps.clone().map(|i| a[i] * i64::from(self.q[row * self.k + i])).sum();
            let sum: i64 = steps.map(|i| a[i]).sum();
            let at = row * groups + g;
            let v = match &self.zeros {
                Zeros::None => dot as f32,
                Zeros::Stored(z) => (dot - i64::from(i32::from(z[at]) - self.qtype.offset()) * sum) as f32,
                Zeros::Fraction(z) => {
                    let z = z[at].to_f32();
                    let whole = z.round_ties_even().clamp(self.qtype.qmin() as f32, self.qtype.qmax() as f32);
                    (whole - z).mul_add(sum as f32, (dot - whole as i64 * sum) as f32)
                }
            };
            f = v.mul_add(self.scales[at], f);
            if g % 64 == 63 && groups > 64 {
                let y = f - carry;
                let t = total + y;
                (carry, total, f) = ((t - total) - y, t, 0.0);
            }
        }
        if groups > 64 { total + (f - carry) } else { f }
    }
}

pub(crate) fn executors() -> (Serial, Pool) {
    (Serial, Pool::new(2).unwrap())
}

fn check_product(m: usize, n: usize, k: usize, qtype: QuantType, noise: &mut Noise, executors: [&dyn Executor; 2]) {
    let w = Weight::new(n, k, k.max(1), qtype, 0, noise);
    let a = noise.codes(m * k, QuantType::Int8);
    let naive = |i: usize| -> i64 {
        let (a, q) = (&a[i / n * k..][..k], &w.q[i % n * k..][..k]);
        a.iter().zip(q).map(|(a, q)| i64::from(*a) * i64::from(*q)).sum()
    };
    let want: Vec<i64> = (0..m * n).map(naive).collect();
    each_isa(|isa| {
        let packed = w.pack();
        for executor in executors {
            let mut out = vec![-1i32; m * n];
            gemm_i32(&a, m, PackedRef::parse(&packed).unwrap(), &mut out, executor).unwrap();
            let same = out.iter().zip(&want).all(|(o, w)| i64::from(*o) == *w);
            assert!(same, "{} {qtype:?} m {m} n {n} k {k} threads {}", isa.name, executor.threads());
        }
    });
}

#[test]
fn the_integer_product_is_exact_around_every_tile_edge() {
    let (serial, pool) = executors();
    let mut noise = Noise(1);
    for qtype in QuantType::INTEGERS {
        for m in [1, 2, 4, 5, 6, 7, 12, 13, 25] {
            for n in [1, 2, 10, 15, 16, 17, 33, 63, 64, 65, 130] {
                for k in [1, 3, 4, 5, 15, 16, 17, 32, 63, 100] {
                    check_product(m, n, k, qtype, &mut noise, [&serial, &pool]);
                }
            }
        }
        for (m, n, k) in [(1, 1000, 70), (3, 64, 2047), (14, 70, 2049), (60, 20, 4100), (97, 1000, 24), (2, 3, 131_071)]
        {
            check_product(m, n, k, qtype, &mut noise, [&serial, &pool]);
        }
    }
}

#[test]
fn the_deepest_product_of_extremes_is_exact() {
    let (n, k, m) = (3, MAX_GEMM_K, 2);
    let mut w = Weight::new(n, k, k, QuantType::Int8, 0, &mut Noise(2));
    w.q.fill(-128);
    pack_codes(&w.q, n, k, QuantType::Int8, &mut w.codes).unwrap();
    each_isa(|isa| {
        let mut out = vec![0; m * n];
        gemm_i32(&vec![-128; m * k], m, PackedRef::parse(&w.pack()).unwrap(), &mut out, &Serial).unwrap();
        assert!(out.iter().all(|v| *v == 128 * 128 * 131_071), "{}: {out:?}", isa.name);
    });
    let w = Weight::new(1, k + 1, k + 1, QuantType::Int2, 0, &mut Noise(2));
    let error = gemm_i32(&vec![0; k + 1], 1, PackedRef::parse(&w.pack()).unwrap(), &mut [0], &Serial).unwrap_err();
    assert_eq!(error, Error::TooDeep { k: 131_072, max: 131_071 });
}

fn check_linear(m: usize, w: &Weight, noise: &mut Noise, executors: [&dyn Executor; 2]) {
    let (x, bias) = (noise.floats(m * w.k), noise.floats(w.n));
    let (half, brain): (Vec<f16>, Vec<bf16>) = x.iter().map(|x| (f16::from_f32(*x), bf16::from_f32(*x))).unzip();
    let values =
        [x.clone(), half.iter().map(|x| x.to_f32()).collect(), brain.iter().map(|x| x.to_f32()).collect::<Vec<_>>()];
    let (mut a, mut scales) = (vec![0i8; m * w.k], vec![0f32; m]);
    quantize_rows(Floats::F32(&x), m, w.k, &mut a, &mut scales, &Serial).unwrap();
    let mut float = vec![0f32; w.n * w.k];
    dequantize(&w.view(), FloatsMut::F32(&mut float), &Serial).unwrap();
    each_isa(|isa| {
        let packed = w.pack();
        let packed = PackedRef::parse(&packed).unwrap();
        for executor in executors {
            let mut out = vec![0f32; m * w.n];
            linear(Floats::F32(&x), m, packed, Some(&bias), Arithmetic::Integer, FloatsMut::F32(&mut out), executor)
                .unwrap();
            for (i, got) in out.iter().enumerate() {
                let (r, c) = (i / w.n, i % w.n);
                let want = w.integer_definition(&a[r * w.k..][..w.k], scales[r], c, bias[c]);
                assert_eq!(*got, want, "{} {:?} {r},{c} of m {m} n {} k {} g {}", isa.name, w.qtype, w.n, w.k, w.group);
            }
            for (given, x) in [Floats::F32(&x), Floats::F16(&half), Floats::Bf16(&brain)].into_iter().zip(&values) {
                linear(given, m, packed, Some(&bias), Arithmetic::Float, FloatsMut::F32(&mut out), executor).unwrap();
                for (i, got) in out.iter().enumerate() {
                    let (x, w_row) = (&x[i / w.n * w.k..][..w.k], &float[i % w.n * w.k..][..w.k]);
                    let bias = f64::from(bias[i % w.n]);
                    let (mut want, mut size) = (bias, bias.abs());
                    for (x, w) in x.iter().zip(w_row) {
                        want += f64::from(*x) * f64::from(*w);
                        size += f64::from(*x).abs() * f64::from(*w).abs();
                    }
                    let error = (f64::from(*got) - want).abs();
                    assert!(
                        error <= 1e-5 * size,
                        "{} {:?} {error} of {size}, m {m} n {} k {} g {}",
                        isa.name,
                        w.qtype,
                        w.n,
                        w.k,
                        w.group
                    );
                }
            }
        }
    });
}

#[test]
fn linear_is_its_definition_for_every_scheme() {
    let (serial, pool) = executors();
    let mut noise = Noise(3);
    for qtype in QuantType::INTEGERS {
        for kind in 0..3 {
            for (m, n, k) in [(1, 17, 40), (3, 64, 64), (7, 65, 100), (13, 33, 129), (50, 80, 96)] {
                for group in [1, 3, 4, 7, 12, 16, 32, k, k + 1] {
                    let w = Weight::new(n, k, group, qtype, kind, &mut noise);
                    check_linear(m, &w, &mut noise, [&serial, &pool]);
                }
            }
        }
    }
}

/// Sums as large as a grouped kernel takes them, and one beyond, with zero points that only a file can bring.
#[test]
fn zero_points_and_sums_at_their_ends_are_exact() {
    let (serial, mut noise) = (Serial, Noise(11));
    for qtype in QuantType::INTEGERS {
        for (k, group) in [(33_000, 33_000), (33_001, 33_001), (33_002, 32_996), (4_100, 4_097)] {
            let mut w = Weight::new(3, k, group, qtype, 1, &mut noise);
            w.zeros = Zeros::Stored((0..3 * k.div_ceil(group)).map(|i| [0, 255][i % 2]).collect());
            each_isa(|isa| {
                let packed = w.pack();
                for m in [1, 6, 7] {
                    let mut out = vec![0f32; m * 3];
                    let (x, packed) = (vec![1f32; m * k], PackedRef::parse(&packed).unwrap());
                    linear(Floats::F32(&x), m, packed, None, Arithmetic::Integer, FloatsMut::F32(&mut out), &serial)
                        .unwrap();
                    for (i, got) in out.iter().enumerate() {
                        let want = w.integer_definition(&vec![127; k], 1.0 / 127.0, i % 3, 0.0);
                        assert_eq!(*got, want, "{} {qtype:?} k {k} group {group} m {m} channel {}", isa.name, i % 3);
                    }
                }
            });
        }
    }
}

#[test]
fn sums_beyond_int32_are_added_in_int64() {
    let (serial, pool) = executors();
    let mut noise = Noise(4);
    for kind in 0..3 {
        for (k, group) in [(65_537, 65_537), (140_000, 140_000), (140_000, 70_000)] {
            for qtype in [QuantType::Int8, QuantType::Int2] {
                check_linear(2, &Weight::new(3, k, group, qtype, kind, &mut noise), &mut noise, [&serial, &pool]);
            }
        }
    }
    // the largest sum there is: every product 127 · 255
    let mut w = Weight::new(1, 200_000, 200_000, QuantType::Int8, 1, &mut noise);
    w.q.fill(127);
    pack_codes(&w.q, 1, w.k, QuantType::Int8, &mut w.codes).unwrap();
    w.zeros = Zeros::Stored(vec![0]);
    let x = vec![1f32; w.k];
    each_isa(|_| {
        let mut out = [0f32];
        linear(
            Floats::F32(&x),
            1,
            PackedRef::parse(&w.pack()).unwrap(),
            None,
            Arithmetic::Integer,
            FloatsMut::F32(&mut out),
            &Serial,
        )
        .unwrap();
        assert_eq!(out[0], w.integer_definition(&vec![127; w.k], 1.0 / 127.0, 0, 0.0));
    });
}

#[test]
fn a_bad_row_is_nan_and_leaves_the_others_alone() {
    let mut noise = Noise(5);
    let w = Weight::new(20, 70, 32, QuantType::Int4, 1, &mut noise);
    for m in [3, 20] {
        let clean = noise.floats(m * w.k);
        let mut dirty = clean.clone();
        (dirty[w.k + 3], dirty[2 * w.k + 69]) = (f32::NAN, f32::INFINITY);
        each_isa(|_| {
            let packed = w.pack();
            let packed = PackedRef::parse(&packed).unwrap();
            for arithmetic in [Arithmetic::Float, Arithmetic::Integer] {
                let (mut want, mut got) = (vec![0f32; m * w.n], vec![0f32; m * w.n]);
                linear(Floats::F32(&clean), m, packed, None, arithmetic, FloatsMut::F32(&mut want), &Serial).unwrap();
                linear(Floats::F32(&dirty), m, packed, None, arithmetic, FloatsMut::F32(&mut got), &Serial).unwrap();
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    if (1..=2).contains(&(i / w.n)) { assert!(got.is_nan()) } else { assert_eq!(got, want) }
                }
            }
        });
    }
}

#[test]
fn nothing_times_nothing_is_the_bias() {
    let w = Weight::new(20, 0, 32, QuantType::Int4, 1, &mut Noise(8));
    let packed = w.pack();
    let packed = PackedRef::parse(&packed).unwrap();
    let bias = Noise(9).floats(20);
    for arithmetic in [Arithmetic::Float, Arithmetic::Integer] {
        let mut out = vec![7f32; 3 * 20];
        linear(Floats::F32(&[]), 3, packed, Some(&bias), arithmetic, FloatsMut::F32(&mut out), &Serial).unwrap();
        assert_eq!(out, bias.repeat(3));
        linear(Floats::F32(&[]), 3, packed, None, arithmetic, FloatsMut::F32(&mut out), &Serial).unwrap();
        assert_eq!(out, [0.0; 60]);
        linear(Floats::F32(&[]), 0, packed, None, arithmetic, FloatsMut::F32(&mut []), &Serial).unwrap();
    }
    let mut out = vec![7; 20];
    gemm_i32(&[], 1, packed, &mut out, &Serial).unwrap();
    assert_eq!(out, [0; 20]);
}

#[test]
fn gathered_rows_are_the_dequantized_ones() {
    let mut noise = Noise(6);
    for qtype in QuantType::INTEGERS {
        let w = Weight::new(70, 45, 16, qtype, 1, &mut noise);
        let mut all = vec![0f32; w.n * w.k];
        dequantize(&w.view(), FloatsMut::F32(&mut all), &Serial).unwrap();
        let ids = [0, 69, 3, 3, 64];
        each_isa(|_| {
            let packed = w.pack();
            let packed = PackedRef::parse(&packed).unwrap();
            let mut out = vec![0f32; ids.len() * w.k];
            gather_rows(packed, &ids, FloatsMut::F32(&mut out), &Serial).unwrap();
            for (id, row) in ids.iter().zip(out.chunks(w.k)) {
                assert_eq!(row, &all[*id as usize * w.k..][..w.k]);
            }
            let error = gather_rows(packed, &[70], FloatsMut::F32(&mut out[..w.k]), &Serial).unwrap_err();
            assert_eq!(error.to_string(), "ids: expected ids in [0, 70), got 70");
        });
    }
}

#[test]
fn packed_memory_is_near_the_canonical() {
    for qtype in QuantType::INTEGERS {
        for (n, k) in [(64, 64), (65, 384), (100, 33), (1000, 1000), (1536, 384)] {
            for group in [1, 3, 7, 32, k] {
                let w = Weight::new(n, k, group, qtype, 1, &mut Noise(7));
                let scales = if n % 2 == 0 { 2 } else { 4 };
                let canonical = w.codes.len() + w.halves.len() * (scales + 1);
                assert!(w.pack().len() as f64 <= 1.3 * canonical as f64, "{qtype:?} n {n} k {k} g {group}");
            }
        }
    }
}
