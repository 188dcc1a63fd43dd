use super::*;
use crate::elementwise::*;
use crate::floats::{Floats, FloatsMut};
use half::bf16;

/// The definition, and whether rounding alone gave the code.
fn faked(x: f32, p: PerTensor) -> (f32, u8) {
    let z = i32::from(p.zero);
    let rounded = (x / p.scale).round_ties_even();
    let inside = rounded >= (-127 - z) as f32 && rounded <= (127 - z) as f32;
    if x.is_nan() { (f32::NAN, 0) } else { (value(encoded(x, UNCLAMPED, p), p), u8::from(inside)) }
}

fn same(a: f32, b: f32) -> bool {
    a == b || a.is_nan() && b.is_nan()
}

fn values(len: usize) -> Vec<f32> {
    let mut x = floats(len, 11);
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, 63.5, 63.75, -63.5, 64.0, 0.25, -0.25];
    x.iter_mut().zip(odd).for_each(|(x, v)| *x = v);
    x
}

#[test]
fn fake_quantization_is_encode_then_decode() {
    everywhere(|executor, isa| {
        for len in LENGTHS {
            let x = values(len);
            for p in [params(0.5, 0), params(0.031, -100)] {
                let (mut got, mut inside) = (vec![0f32; len], vec![9; len]);
                fake_quantize(Floats::F32(&x), p, Some(FloatsMut::F32(&mut got)), Some(&mut inside), executor).unwrap();
                for i in 0..len {
                    assert!(same(got[i], faked(x[i], p).0) && inside[i] == faked(x[i], p).1, "{isa} {len} {}", x[i]);
                }
                let mut alone = vec![9; len];
                fake_quantize(Floats::F32(&x), p, None, Some(&mut alone), executor).unwrap();
                assert_eq!(alone, inside, "{isa} {len}");
                let narrow: Vec<bf16> = x.iter().map(|v| bf16::from_f32(*v)).collect();
                let mut got = vec![bf16::ZERO; len];
                fake_quantize(Floats::Bf16(&narrow), p, Some(FloatsMut::Bf16(&mut got)), None, executor).unwrap();
                let want = |i: usize| bf16::from_f32(faked(narrow[i].to_f32(), p).0).to_f32();
                assert!((0..len).all(|i| same(got[i].to_f32(), want(i))), "{isa} {len}");
            }
        }
    });
}

#[test]
fn channels_have_their_own_parameters() {
    everywhere(|executor, isa| {
        for (samples, channels, inner) in [(1, 3, 1), (4, 5, 1), (2, 3, 9001), (0, 2, 3), (7, 2, 64)] {
            let x = values(samples * channels * inner);
            let scales: Vec<f32> = (0..channels).map(|c| 0.01 + c as f32 * 0.2).collect();
            let zeros: Vec<i8> = (0..channels).map(|c| c as i8 * 30 - 120).collect();
            let (mut got, mut inside) = (vec![0f32; x.len()], vec![9; x.len()]);
            let out = Some(FloatsMut::F32(&mut got));
            fake_quantize_channels(Floats::F32(&x), &scales, &zeros, inner, out, Some(&mut inside), executor).unwrap();
            for i in 0..x.len() {
                let c = i / inner % channels;
                let want = faked(x[i], params(scales[c], zeros[c]));
                assert!(same(got[i], want.0) && inside[i] == want.1, "{isa} {samples}x{channels}x{inner} {i}");
            }
        }
    });
}
