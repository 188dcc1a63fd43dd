//! What holds for any weight.

use super::*;
use crate::{Scheme, quantize};
use proptest::prelude::*;

proptest! {
    #[test]
    fn unpack_inverts_pack(n in 1usize..140, k in 1usize..200, group in 1usize..220, bits in 0usize..3, kind in 0usize..3, seed: u64) {
        let w = Weight::new(n, k, group, QuantType::INTEGERS[bits], kind, &mut Noise(seed));
        each_isa(|_| {
            let packed = w.pack();
            let packed = PackedRef::parse(&packed).unwrap();
            let entries = n * k.div_ceil(group);
            let mut codes = vec![0; w.codes.len()];
            let mut scales = vec![0; entries * if n % 2 == 0 { 2 } else { 4 }];
            let mut zeros = vec![0; entries * kind];
            packed.unpack(&mut codes, &mut scales, &mut zeros, &Serial).unwrap();
            assert_eq!(codes, w.codes);
            let same = match packed.scale_dtype() {
                crate::ScaleDtype::F16 => scales.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).eq(w.halves.iter().copied()),
                crate::ScaleDtype::F32 => scales.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).eq(w.scales.iter().copied()),
            };
            assert!(same);
            match &w.zeros {
                Zeros::None => assert!(zeros.is_empty()),
                Zeros::Stored(z) => assert_eq!(&zeros, z),
                Zeros::Fraction(z) => assert!(zeros.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).eq(z.iter().copied())),
            }
        });
    }

    #[test]
    fn damaged_panels_are_an_error_or_read_within_bounds(at in 0usize..64, bit in 0u32..8, seed: u64) {
        let w = Weight::new(20, 40, 16, QuantType::Int4, 1, &mut Noise(seed));
        let mut bytes = w.pack();
        bytes[at] ^= 1 << bit;
        if let Ok(packed) = PackedRef::parse(&bytes) {
            for (m, arithmetic) in [(1, Arithmetic::Integer), (1, Arithmetic::Float), (9, Arithmetic::Float)] {
                let (x, mut out) = (vec![1f32; m * packed.k()], vec![0f32; m * packed.n()]);
                linear(Floats::F32(&x), m, packed, None, arithmetic, FloatsMut::F32(&mut out), &Serial).unwrap();
            }
            let mut out = vec![0f32; packed.k()];
            gather_rows(packed, &[packed.n() as i64 - 1], FloatsMut::F32(&mut out), &Serial).unwrap();
        }
    }

    #[test]
    fn quantized_values_lie_within_half_a_step(rows in 1usize..6, cols in 1usize..90, group in 1usize..100, bits in 0usize..3, symmetric: bool, seed: u64) {
        let qtype = QuantType::INTEGERS[bits];
        let x = Noise(seed).floats(rows * cols);
        let scheme = Scheme { symmetric, ..Scheme::affine(qtype, group) };
        let q = quantize(Floats::F32(&x), rows, cols, &scheme, &Serial).unwrap();
        let mut back = vec![0f32; x.len()];
        dequantize(&q.view().unwrap(), FloatsMut::F32(&mut back), &Serial).unwrap();
        for (i, (x, y)) in x.iter().zip(&back).enumerate() {
            let scale = q.view().unwrap().scales.get(i / cols * cols.div_ceil(group) + i % cols / group);
            // a float16 scale may fall short of the range by 2^-11 of it, a rounded zero point by half a step
            let slack = scale * (if symmetric { 0.5 } else { 1.0 } + 0.15);
            prop_assert!((x - y).abs() <= slack, "{x} {y} step {scale}");
            if *x == 0.0 { prop_assert_eq!(*y, 0.0); }
        }
        prop_assert_eq!(&PackedMatrix::pack(&q, &Serial).unwrap().unpack(&Serial), &q);
        let mut codes = vec![0i8; x.len()];
        crate::unpack_codes(&q.codes, rows, cols, qtype, &mut codes).unwrap();
        prop_assert!(!symmetric || codes.iter().all(|c| i32::from(*c) > qtype.qmin()));
    }
}
