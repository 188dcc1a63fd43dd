use super::*;
use crate::elementwise::*;
use crate::floats::FloatsMut;

const A: PerTensor = params(0.031, 5);
const B: PerTensor = params(0.017, -120);
const OUT: PerTensor = params(0.043, -127);

#[test]
fn addition_is_its_definition() {
    everywhere(|executor, isa| {
        for len in LENGTHS {
            let (a, b) = (codes(len, 1), codes(len, 2));
            // the second output has ties: all scales are powers of two. Those of the last ones are beyond int32
            let ties = (params(0.5, 0), params(0.25, 3), params(0.5, 1));
            let far = [1e-6, 1e-12, 1e-44].map(|scale| (A, params(3.0, 7), params(scale, -100)));
            for (pa, pb, out) in [(A, B, OUT), ties].into_iter().chain(far) {
                for clamp in CLAMPS {
                    let mut got = vec![0; len];
                    add(&a, pa, &b, pb, clamp, out, &mut got, executor).unwrap();
                    let one = |(a, b): (&i8, &i8)| {
                        let steps = (i32::from(*b) - i32::from(pb.zero)) as f32;
                        rounded(steps.mul_add(pb.scale / out.scale, value(*a, over(pa, out))), clamp, out)
                    };
                    assert_eq!(got, a.iter().zip(&b).map(one).collect::<Vec<_>>(), "{isa} {len} {clamp:?}");
                }
            }
        }
    });
}

#[test]
fn requantization_and_tables_are_their_definitions() {
    everywhere(|executor, isa| {
        for len in LENGTHS {
            let x = codes(len, 3);
            for clamp in CLAMPS {
                let mut got = vec![0; len];
                requantize(&x, A, clamp, OUT, &mut got, executor).unwrap();
                let want: Vec<i8> = x.iter().map(|q| rounded(value(*q, over(A, OUT)), clamp, OUT)).collect();
                assert_eq!(got, want, "{isa} {len}");
            }
            let table: Vec<i8> = (0..256).map(|i| (i * 89 % 251 - 125) as i8).collect();
            let mut got = vec![0; len];
            lookup(&x, &table, &mut got, executor).unwrap();
            assert_eq!(got, x.iter().map(|q| table[(i32::from(*q) + 128) as usize]).collect::<Vec<_>>(), "{isa} {len}");
        }
    });
}

/// A scale so small that a clamp's end overflows in steps; a clamp that holds everything to one code.
#[test]
fn extreme_clamps_stay_within_the_codes() {
    let x = codes(300, 4);
    everywhere(|executor, isa| {
        for (clamp, out) in
            [((0.0, 6.0), params(1e-44, 0)), ((50.0, 60.0), params(0.1, 3)), ((-60.0, -50.0), params(0.1, 3))]
        {
            let mut got = vec![0; x.len()];
            requantize(&x, params(3.0, 0), clamp, out, &mut got, executor).unwrap();
            let want: Vec<i8> = x.iter().map(|q| rounded(value(*q, params(3.0 / out.scale, 0)), clamp, out)).collect();
            assert_eq!(got, want, "{isa} {clamp:?}");
        }
    });
}

#[test]
fn concatenation_requantizes_each_part() {
    everywhere(|executor, isa| {
        for (rows, widths) in
            [(1, vec![5]), (0, vec![3, 4]), (7, vec![64, 1, 100]), (900, vec![24, 58]), (3, vec![0, 2])]
        {
            let given = [OUT, A, B];
            let data: Vec<Vec<i8>> = widths.iter().map(|w| codes(rows * w, 7 + *w as u64)).collect();
            let parts: Vec<Part> = data
                .iter()
                .zip(&widths)
                .zip(given)
                .map(|((codes, &cols), params)| Part { codes, cols, params })
                .collect();
            let mut got = vec![0; rows * widths.iter().sum::<usize>()];
            concat(&parts, rows, OUT, &mut got, executor).unwrap();
            let mut want = Vec::new();
            for r in 0..rows {
                for part in &parts {
                    let row = &part.codes[r * part.cols..][..part.cols];
                    let one = |q: &i8| {
                        if part.params == OUT { *q } else { rounded(value(*q, over(part.params, OUT)), UNCLAMPED, OUT) }
                    };
                    want.extend(row.iter().map(one));
                }
            }
            assert_eq!(got, want, "{isa} {rows} {widths:?}");
        }
    });
}

#[test]
fn affine_is_its_definition_as_codes_and_as_floats() {
    everywhere(|executor, isa| {
        for (samples, channels, inner) in
            [(1, 1, 1), (3, 7, 1), (0, 4, 1), (5000, 24, 1), (2, 5, 9), (2, 3, 7001), (1, 6000, 1)]
        {
            let x = codes(samples * channels * inner, 5);
            let (mul, add) = (floats(channels, 6), floats(channels, 7));
            let given = Channels { mul: &mul, add: &add, inner };
            for clamp in CLAMPS {
                let value = |i: usize| value(x[i], A).mul_add(mul[i / inner % channels], add[i / inner % channels]);
                let mut got = vec![0; x.len()];
                affine(&x, A, given, clamp, AffineOut::Codes(OUT, &mut got), executor).unwrap();
                let want: Vec<i8> = (0..x.len()).map(|i| encoded(value(i), clamp, OUT)).collect();
                assert_eq!(got, want, "{isa} {samples}x{channels}x{inner}");
                let mut got = vec![0f32; x.len()];
                affine(&x, A, given, clamp, AffineOut::Floats(FloatsMut::F32(&mut got)), executor).unwrap();
                assert!((0..x.len()).all(|i| got[i] == value(i).max(clamp.0).min(clamp.1)), "{isa}");
                let mut got = vec![half::f16::ZERO; x.len()];
                affine(&x, A, given, clamp, AffineOut::Floats(FloatsMut::F16(&mut got)), executor).unwrap();
                let want = |i: usize| half::f16::from_f32(value(i).max(clamp.0).min(clamp.1));
                assert!((0..x.len()).all(|i| got[i] == want(i)), "{isa}");
            }
        }
    });
}

#[test]
fn what_does_not_fit_is_named() {
    let (x, mut out) = ([1i8; 4], [0i8; 4]);
    for (bad, name) in [(params(0.0, 0), "x"), (params(f32::NAN, 0), "x"), (params(1.0, -128), "x")] {
        let error = requantize(&x, bad, UNCLAMPED, A, &mut out, &Serial).unwrap_err().to_string();
        assert!(error.starts_with(name) && error.contains("positive, finite"), "{error}");
    }
    let error = requantize(&x, A, (1.0, 0.0), A, &mut out, &Serial).unwrap_err().to_string();
    assert_eq!(error, "lo, hi: expected lo <= hi, got 1 and 0");
    let error = add(&x, A, &x[1..], A, UNCLAMPED, A, &mut out, &Serial).unwrap_err().to_string();
    assert_eq!(error, "b: expected length 4, got 3");
    let error = lookup(&x, &[0; 255], &mut out, &Serial).unwrap_err().to_string();
    assert_eq!(error, "table: expected 256 codes, got 255");
    let part = Part { codes: &x, cols: 3, params: A };
    assert!(concat(&[part], 1, A, &mut out[..3], &Serial).unwrap_err().to_string().starts_with("xs"));
    let given = Channels { mul: &[1.0; 3], add: &[1.0; 3], inner: 1 };
    assert!(affine(&x, A, given, UNCLAMPED, AffineOut::Codes(A, &mut out), &Serial).is_err());
}
