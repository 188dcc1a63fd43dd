//! Rounding and overflow where they could add up.

use super::*;

#[test]
fn rounding_does_not_grow_with_k() {
    // all terms alike: every rounding goes the same way
    let mut noise = Noise(10);
    for (k, group, kind) in
        [(14_336, 14_336, 0), (4096, 1, 0), (131_072, 32, 1), (131_072, 131_072, 0), (4096, 4096, 2)]
    {
        let mut w = Weight::new(2, k, group, QuantType::Int8, kind, &mut noise);
        w.q.fill(101);
        pack_codes(&w.q, 2, k, w.qtype, &mut w.codes).unwrap();
        w.halves.fill(f16::from_f32(0.0123));
        w.scales.fill(f16::from_f32(0.0123).to_f32());
        match &mut w.zeros {
            Zeros::None => {}
            Zeros::Stored(z) => z.fill(3),
            Zeros::Fraction(z) => z.fill(f16::from_f32(100.0625)),
        }
        let zero = f64::from(w.view().zeros.get(0, w.qtype));
        for m in [1, 8, 18] {
            let x = vec![bf16::from_f32(0.737); m * k];
            let value = x[0].to_f32();
            let wide = vec![value; m * k];
            let step = f64::from(value / 127.0); // of the activations: each becomes 127
            for (arithmetic, x_back) in [(Arithmetic::Float, f64::from(value)), (Arithmetic::Integer, 127.0 * step)] {
                let want = x_back * (101.0 - zero) * f64::from(w.scales[0]) * k as f64;
                each_isa(|isa| {
                    let (mut out, packed) = (vec![0f32; m * 2], w.pack());
                    for x in [Floats::F32(&wide), Floats::Bf16(&x)] {
                        let packed = PackedRef::parse(&packed).unwrap();
                        linear(x, m, packed, None, arithmetic, FloatsMut::F32(&mut out), &Serial).unwrap();
                        for got in &out {
                            let error = (f64::from(*got) - want).abs() / want.abs();
                            assert!(error <= 1e-5, "{} {arithmetic:?} k {k} g {group} m {m}: {error}", isa.name);
                        }
                    }
                });
            }
        }
    }
}

#[test]
fn huge_activations_do_not_overflow_on_the_way() {
    let mut w = Weight::new(2, 256, 256, QuantType::Int8, 0, &mut Noise(11));
    w.q.fill(127);
    pack_codes(&w.q, 2, 256, w.qtype, &mut w.codes).unwrap();
    w.halves.fill(f16::from_f32(1e-3));
    for m in [1, 8, 18] {
        let (x, brain) = (vec![1e37f32; m * 256], vec![bf16::from_f32(1e37); m * 256]);
        each_isa(|_| {
            let (mut out, packed) = (vec![0f32; m * 2], w.pack());
            for x in [Floats::F32(&x), Floats::Bf16(&brain)] {
                let packed = PackedRef::parse(&packed).unwrap();
                linear(x, m, packed, None, Arithmetic::Float, FloatsMut::F32(&mut out), &Serial).unwrap();
                assert!(out.iter().all(|y| y.is_finite()), "{out:?}");
            }
        });
    }
}
