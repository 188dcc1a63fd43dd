//! The integer-only variant.

use super::*;
use crate::Serial;

/// The definition in i128, of one output.
fn code(acc: i64, bias: i32, multiplier: i32, shift: i32, fixed: &FixedPoint) -> i8 {
    let sum = (acc + i64::from(bias)).clamp(i64::from(i32::MIN), i64::from(i32::MAX));
    let product = i128::from(sum) * i128::from(multiplier);
    let (below, rest) = (product >> shift, product & ((1 << shift) - 1));
    let half = 1i128 << (shift - 1);
    let up = rest > half || (rest == half && below & 1 == 1);
    (below + i128::from(up) + i128::from(fixed.zero)).clamp(fixed.lo.into(), fixed.hi.into()) as i8
}

#[test]
fn integers_alone_are_their_definition() {
    let ((serial, pool), mut noise) = (executors(), Noise(5));
    for (geometry, qtype, kind) in [
        (square(2, 6, 12, 20, 3, 1, 1), QuantType::Int8, 0),
        (square(1, 6, 12, 20, 3, 2, 1), QuantType::Int8, 1),
        (square(1, 5, 3, 17, 3, 1, 1), QuantType::Int4, 1),
        (Geometry { groups: 20, ..square(1, 6, 20, 20, 3, 1, 1) }, QuantType::Int8, 0),
        (Geometry { groups: 8, ..square(1, 6, 32, 32, 3, 1, 1) }, QuantType::Int8, 0),
        (Geometry { groups: 8, ..square(1, 6, 32, 32, 3, 1, 1) }, QuantType::Int2, 1),
        (Geometry::linear(7, 40, 70), QuantType::Int8, 0),
    ] {
        let n = geometry.out_channels;
        let mut call = Call::new(geometry, qtype, geometry.depth(), kind, &mut noise);
        // what is left of the float definition are the sums
        (call.bias, call.addend, call.lo, call.hi) = (None, None, f32::NEG_INFINITY, f32::INFINITY);
        (call.scales, call.w) = (vec![1.0], call.w.unscaled());
        let sums: Vec<i64> = call.outputs().0.iter().map(|v| *v as i64).collect();
        let bias: Vec<i32> = (0..n).map(|_| noise.next() as i32 % 1000).collect();
        let multiplier: Vec<i32> =
            (0..n).map(|c| if c % 3 == 0 { 1 << 20 } else { noise.next() as i32 | 1 << 30 }).collect();
        let shift: Vec<i32> = (0..n).map(|c| if c % 3 == 0 { 26 } else { 34 + (noise.next() % 6) as i32 }).collect();
        for bias in [None, Some(&bias[..])] {
            let fixed = FixedPoint { bias, multiplier: &multiplier, shift: &shift, zero: -5, lo: -100, hi: 127 };
            let of = |i: usize| (bias.map_or(0, |b| b[i % n]), multiplier[i % n], shift[i % n]);
            let want: Vec<i8> =
                sums.iter().enumerate().map(|(i, sum)| code(*sum, of(i).0, of(i).1, of(i).2, &fixed)).collect();
            each_isa(|isa| {
                let packed = call.w.pack_grouped(geometry.groups);
                for executor in [&serial as &dyn Executor, &pool] {
                    let mut got = vec![0; want.len()];
                    let x = Input { q: &call.x, scales: &[], zero: call.zero };
                    conv_fixed(x, &geometry, PackedRef::parse(&packed).unwrap(), fixed, &mut got, executor).unwrap();
                    assert!(got == want, "{} {geometry:?} {}", isa.name, differing(&got, &want));
                }
            });
        }
    }
}

#[test]
fn what_integers_cannot_do_is_named() {
    let mut noise = Noise(6);
    let geometry = Geometry::linear(1, 8, 2);
    let run = |w: &Weight, shift: [i32; 2], lo: i8| {
        let fixed = FixedPoint { bias: None, multiplier: &[1; 2], shift: &shift, zero: 0, lo, hi: 127 };
        let x = Input { q: &[0; 8], scales: &[], zero: 0 };
        let packed = w.pack_grouped(1);
        conv_fixed(x, &geometry, PackedRef::parse(&packed).unwrap(), fixed, &mut [0; 2], &Serial)
            .unwrap_err()
            .to_string()
    };
    let whole = Weight::new(2, 8, 8, QuantType::Int8, 0, &mut noise);
    assert_eq!(run(&whole, [1, 63], 0), "shift: expected 1 to 62, got 63");
    assert_eq!(run(&whole, [1, 2], -128), "lo: expected at least -127, got -128");
    let grouped = Weight::new(2, 8, 4, QuantType::Int8, 0, &mut noise);
    assert!(run(&grouped, [1, 2], 0).starts_with("panels: expected one scale a channel"));
}
