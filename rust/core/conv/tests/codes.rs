//! Activations to codes and back.

use super::*;
use crate::{Floats, Serial};
use half::f16;

#[test]
fn codes_are_their_definition() {
    let (serial, pool) = executors();
    let mut x = Noise(1).floats(3 * 70_001);
    (x[5], x[70_000], x[140_002]) = (f32::NAN, f32::NEG_INFINITY, 1e30);
    let half: Vec<f16> = x.iter().map(|x| f16::from_f32(*x)).collect();
    let widened: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
    for (scale, zero) in [(1.0 / 127.0, 0), (0.003, -127), (0.01, 100)] {
        each_isa(|isa| {
            for (given, x) in [(Floats::F32(&x), &x), (Floats::F16(&half), &widened)] {
                for executor in [&serial as &dyn Executor, &pool] {
                    let (mut q, mut finite) = (vec![0; x.len()], [true; 3]);
                    quantize_static(given, scale, zero, &mut q, &mut finite, executor).unwrap();
                    for (q, x) in q.iter().zip(x) {
                        let code = ((x / scale).round_ties_even() + f32::from(zero)).clamp(-127.0, 127.0) as i8;
                        assert_eq!(*q, if x.is_finite() { code } else { zero }, "{} {x}", isa.name);
                    }
                    assert_eq!(finite, [false, true, x[140_002].is_finite()]);
                    let mut back = vec![0f32; x.len()];
                    dequantize_static(&q, scale, zero, FloatsMut::F32(&mut back), executor).unwrap();
                    let same =
                        q.iter().zip(&back).all(|(q, b)| f32::from(i16::from(*q) - i16::from(zero)) * scale == *b);
                    assert!(same, "{}", isa.name);
                }
            }
        });
    }
}

#[test]
fn images_are_laid_out_by_pixel() {
    let (serial, pool) = executors();
    for (images, channels, pixels) in [(2, 3, 97 * 53), (3, 1, 10_007), (2, 4, 5_000), (1, 5_000, 3), (2, 3, 1)] {
        let mut x = Noise(2).floats(images * channels * pixels);
        x[(images - 1) * channels * pixels] = f32::INFINITY;
        let (mut want, mut finite) = (vec![0; x.len()], vec![true; images]);
        quantize_static(Floats::F32(&x), 0.02, -5, &mut want, &mut finite, &Serial).unwrap();
        for executor in [&serial as &dyn Executor, &pool] {
            let (mut got, mut all) = (vec![0; x.len()], vec![true; images]);
            quantize_images(Floats::F32(&x), channels, 0.02, -5, &mut got, &mut all, executor).unwrap();
            assert_eq!(all, finite);
            for (i, q) in got.iter().enumerate() {
                let (image, pixel, channel) = (i / (channels * pixels), i / channels % pixels, i % channels);
                assert_eq!(*q, want[(image * channels + channel) * pixels + pixel]);
            }
        }
    }
    quantize_images(Floats::F32(&[]), 3, 1.0, 0, &mut [], &mut [true; 2], &Serial).unwrap();
    let wrong = quantize_images(Floats::F32(&[1.0; 8]), 3, 1.0, 0, &mut [0; 8], &mut [true; 2], &Serial);
    assert!(wrong.unwrap_err().to_string().contains("finite"));
}

#[test]
fn nothing_has_no_codes() {
    let mut finite = [false; 2];
    quantize_static(Floats::F32(&[]), 1.0, 0, &mut [], &mut finite, &Serial).unwrap();
    assert_eq!(finite, [true; 2]);
    dequantize_static(&[], 1.0, 0, FloatsMut::F32(&mut []), &Serial).unwrap();
}
