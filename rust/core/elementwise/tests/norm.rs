use super::*;
use crate::elementwise::*;
use crate::floats::Floats;

const OUT: PerTensor = params(0.04, -3);

/// The definition, with the lanes of the sum spelt out.
fn normalized(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<i8> {
    let total = |values: &[f64], add: &dyn Fn(f64, f64) -> f64| {
        let mut lanes: Vec<f64> =
            (0..16).map(|i| values.iter().skip(i).step_by(16).fold(0.0, |s, v| add(s, *v))).collect();
        while lanes.len() > 1 {
            let (low, high) = lanes.split_at(lanes.len() / 2);
            lanes = low.iter().zip(high).map(|(a, b)| a + b).collect();
        }
        lanes[0] / values.len() as f64
    };
    let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let mean = total(&wide, &|s, v| s + v);
    let variance = total(&wide, &|s, v| s + (v - mean) * (v - mean));
    let inverse = 1.0 / (variance + eps).sqrt();
    let one =
        |(i, v): (usize, &f64)| encoded((((v - mean) * inverse) as f32).mul_add(weight[i], bias[i]), UNCLAMPED, OUT);
    if !variance.is_finite() || !inverse.is_finite() {
        vec![OUT.zero; x.len()]
    } else {
        wide.iter().enumerate().map(one).collect()
    }
}

#[test]
fn layer_norm_is_its_definition() {
    everywhere(|executor, isa| {
        for (rows, features) in [(1, 1), (3, 15), (2, 16), (70, 768), (5, 1025), (0, 8)] {
            let mut x = floats(rows * features, 21);
            x.iter_mut().for_each(|v| *v += 1000.0); // a mean that dwarfs the spread
            if rows == 5 {
                x[features] = f32::NAN;
                x[2 * features + 3] = f32::INFINITY;
                x[3 * features..4 * features].fill(2.0);
            }
            let (weight, bias) = (floats(features, 22), floats(features, 23));
            for (eps, w, b) in
                [(1e-5, Some(&weight[..]), Some(&bias[..])), (1e-5, None, None), (0.0, None, Some(&bias[..]))]
            {
                let norm = Norm { features, weight: w, bias: b, eps };
                let mut got = vec![9; x.len()];
                layer_norm(Floats::F32(&x), norm, OUT, &mut got, executor).unwrap();
                let (ones, zeros) = (vec![1.0; features], vec![0.0; features]);
                let (w, b) = (w.unwrap_or(&ones), b.unwrap_or(&zeros));
                let want: Vec<i8> = x.chunks(features).flat_map(|x| normalized(x, w, b, eps)).collect();
                assert_eq!(got, want, "{isa} {rows}x{features}");

                let given = params(0.07, 30);
                let q = codes(rows * features, 24);
                layer_norm_codes(&q, given, norm, OUT, &mut got, executor).unwrap();
                let x: Vec<f32> = q.iter().map(|q| value(*q, given)).collect();
                let want: Vec<i8> = x.chunks(features).flat_map(|x| normalized(x, w, b, eps)).collect();
                assert_eq!(got, want, "{isa} {rows}x{features} codes");
            }
        }
    });
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    let mut out = [0; 6];
    let norm = Norm { features: 4, weight: None, bias: None, eps: 1e-5 };
    let error = layer_norm(Floats::F32(&[0.0; 6]), norm, OUT, &mut out, &Serial).unwrap_err().to_string();
    assert_eq!(error, "x: expected a multiple of 4 features, got 6");
    let norm = Norm { features: 3, weight: Some(&[1.0; 2]), bias: None, eps: 1e-5 };
    let error = layer_norm(Floats::F32(&[0.0; 6]), norm, OUT, &mut out, &Serial).unwrap_err().to_string();
    assert_eq!(error, "weight: expected length 3, got 2");
    let norm = Norm { features: 3, weight: None, bias: None, eps: f64::NAN };
    assert!(layer_norm(Floats::F32(&[0.0; 6]), norm, OUT, &mut out, &Serial).is_err());
}
