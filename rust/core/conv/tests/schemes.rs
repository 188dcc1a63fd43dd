//! Weights of any width, in groups, with any zero points; sums beyond int32.

use super::*;

#[test]
fn every_scheme_of_weights() {
    let ((serial, pool), mut noise) = (executors(), Noise(3));
    for qtype in QuantType::INTEGERS {
        for kind in 0..3 {
            for (geometry, groups) in [
                (square(1, 5, 12, 20, 3, 1, 1), &[1, 3, 4, 12, 32, 108][..]),
                (square(2, 4, 32, 48, 1, 1, 0), &[16, 32]),
                (Geometry { groups: 2, ..square(1, 5, 16, 24, 3, 2, 1) }, &[8, 24, 72]),
                (Geometry { groups: 32, ..square(1, 5, 32, 32, 3, 1, 1) }, &[4, 9]),
                (Geometry { transposed: Some([1, 1]), ..square(1, 3, 16, 16, 3, 2, 1) }, &[16, 144]),
                (Geometry::linear(3, 300, 20), &[4, 300]),
            ] {
                for group in groups {
                    Call::new(geometry, qtype, *group, kind, &mut noise).check([&serial, &pool]);
                }
            }
        }
    }
}

#[test]
fn sums_beyond_int32_are_exact() {
    let ((serial, pool), mut noise) = (executors(), Noise(4));
    for (k, zero, code) in [(33_155, -127, 127), (70_000, 127, -127), (140_000, -127, 127)] {
        for kind in 0..3 {
            let mut call = Call::new(Geometry::linear(2, k, 3), QuantType::Int8, k, kind, &mut noise);
            (call.zero, call.x) = (zero, vec![code; 2 * k]);
            call.check([&serial, &pool]);
        }
    }
}

/// Multipliers and biases so large that values are beyond int32 or no numbers at all.
#[test]
fn values_beyond_int32_become_the_ends_of_the_codes() {
    let ((serial, pool), mut noise) = (executors(), Noise(5));
    for geometry in [square(2, 5, 12, 20, 3, 1, 1), Geometry { groups: 20, ..square(1, 6, 20, 20, 3, 1, 1) }] {
        for group in [geometry.depth(), 4] {
            for scale in [1e-6, 1e-12, 1e-30, 1e-44, 1e30] {
                for odd in [0.0, 1e38, -1e38, f32::INFINITY, f32::NAN] {
                    let mut call = Call::new(geometry, QuantType::Int8, group, 0, &mut noise);
                    let mut bias = vec![0.5; geometry.out_channels];
                    bias[3] = odd;
                    (call.scale, call.bias) = (scale, Some(bias));
                    call.check([&serial, &pool]);
                }
            }
        }
    }
}
