//! Activations quantized by ready-made scales.

use super::*;

fn scaled(x: &[f32], scales: &[f32], m: usize, w: &[u8], bias: Option<&[f32]>, executor: &dyn Executor) -> Vec<f32> {
    let w = PackedRef::parse(w).unwrap();
    let mut out = vec![0f32; m * w.n()];
    linear_scaled(Floats::F32(x), scales, m, w, bias, FloatsMut::F32(&mut out), executor).unwrap();
    out
}

/// `clip(round_half_even(x / S))`, written down once more.
fn codes(x: &[f32], scale: f32) -> Vec<i8> {
    x.iter().map(|x| (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8).collect()
}

#[test]
fn given_scales_keep_the_definition() {
    let (serial, pool) = executors();
    let mut noise = Noise(21);
    for qtype in QuantType::INTEGERS {
        for (m, n, k, group) in [(1, 17, 40, 40), (7, 65, 100, 12), (13, 33, 129, 7), (50, 80, 96, 32), (90, 3, 40, 40)]
        {
            let w = Weight::new(n, k, group, qtype, 1, &mut noise);
            let (x, bias) = (noise.floats(m * k), noise.floats(n));
            // from a sixth of a row's own scale, which clips, to a little more than it
            let each: Vec<f32> = (0..m).map(|r| (r % 7 + 1) as f32 / 800.0).collect();
            each_isa(|isa| {
                let packed = w.pack();
                for (scales, executor) in
                    [(&each[..], &serial as &dyn Executor), (&each[..], &pool), (&each[..1], &pool)]
                {
                    let out = scaled(&x, scales, m, &packed, Some(&bias), executor);
                    for (i, got) in out.iter().enumerate() {
                        let (r, c) = (i / n, i % n);
                        let scale = scales[if scales.len() == 1 { 0 } else { r }];
                        let want = w.integer_definition(&codes(&x[r * k..][..k], scale), scale, c, bias[c]);
                        assert_eq!(*got, want, "{} {qtype:?} {r},{c} of m {m} n {n} k {k} g {group}", isa.name);
                    }
                }
            });
        }
    }
}

#[test]
fn a_row_s_own_scale_given_changes_nothing() {
    let mut noise = Noise(22);
    let w = Weight::new(33, 70, 16, QuantType::Int4, 1, &mut noise);
    let m = 45; // more than are taken at once
    let x = noise.floats(m * w.k);
    each_isa(|_| {
        let (mut q, mut scales, mut want) = (vec![0; m * w.k], vec![0f32; m], vec![0f32; m * w.n]);
        quantize_rows(Floats::F32(&x), m, w.k, &mut q, &mut scales, &Serial).unwrap();
        let packed = w.pack();
        let view = PackedRef::parse(&packed).unwrap();
        let out = FloatsMut::F32(&mut want);
        linear(Floats::F32(&x), m, view, None, Arithmetic::Integer, out, &Serial).unwrap();
        assert_eq!(scaled(&x, &scales, m, &packed, None, &Serial), want);
    });
}

#[test]
fn a_row_or_a_scale_without_a_number_is_a_row_of_nan() {
    let mut noise = Noise(23);
    let w = Weight::new(20, 40, 16, QuantType::Int8, 0, &mut noise);
    let mut x = noise.floats(5 * w.k);
    (x[w.k + 3], x[2 * w.k]) = (f32::NAN, f32::NEG_INFINITY);
    each_isa(|_| {
        let out = scaled(&x, &[0.01, 0.01, 0.01, f32::NAN, f32::INFINITY], 5, &w.pack(), None, &Serial);
        for (r, row) in out.chunks(w.n).enumerate() {
            assert!(row.iter().all(|v| v.is_nan() == (r > 0)), "row {r}: {row:?}");
        }
    });
}

#[test]
fn wrong_scales_are_named() {
    let w = Weight::new(4, 8, 8, QuantType::Int8, 0, &mut Noise(24));
    let packed = w.pack();
    let try_with = |scales: &[f32]| {
        let (x, mut out) = (vec![0f32; 3 * 8], vec![0f32; 3 * 4]);
        let w = PackedRef::parse(&packed).unwrap();
        linear_scaled(Floats::F32(&x), scales, 3, w, None, FloatsMut::F32(&mut out), &Serial).unwrap_err().to_string()
    };
    assert_eq!(try_with(&[1.0, 1.0]), "scale: expected length 3 (one a row) or 1, got 2");
    assert_eq!(try_with(&[]), "scale: expected length 3 (one a row) or 1, got 0");
    assert_eq!(try_with(&[1.0, 0.0, 1.0]), "scale: expected positive numbers, got 0 at [1]");
    assert_eq!(try_with(&[-2.5]), "scale: expected positive numbers, got -2.5 at [0]");
}
