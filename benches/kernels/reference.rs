//! What the answers must be, in plain loops over 64-bit numbers: whole for small products, else rows and channels from
//! all over, the last ones among them.

use rquant::{Arithmetic, QuantizedMatrix, unpack_codes};

/// Multiplications up to which a whole product is checked.
const WHOLE: usize = 1 << 22;

/// A channel of a weight: signed codes, and the scale and zero point of each.
struct Channel {
    codes: Vec<i8>,
    scales: Vec<f64>,
    zeros: Vec<f64>,
}

impl Channel {
    fn new(q: &QuantizedMatrix, row: usize) -> Self {
        let view = q.view().expect("a whole matrix");
        let mut codes = vec![0; q.cols];
        let stride = q.codes.len() / q.rows;
        unpack_codes(&q.codes[row * stride..][..stride], 1, q.cols, q.qtype, &mut codes).expect("one row");
        let at = |i: usize| row * view.groups() + i / q.group_size;
        let scales = (0..q.cols).map(|i| f64::from(view.scales().get(at(i)))).collect();
        let zeros = (0..q.cols).map(|i| f64::from(view.zero_points().get(at(i), q.qtype))).collect();
        Self { codes, scales, zeros }
    }
}

fn sample(len: usize, parts: usize) -> Vec<usize> {
    let mut all: Vec<_> = (0..len).step_by(len.div_ceil(parts)).collect();
    all.push(len - 1);
    all
}

/// The rows and channels of an `[m, n]` output that are looked at.
fn sampled(m: usize, n: usize, k: usize) -> (Vec<usize>, Vec<usize>) {
    if m * n * k <= WHOLE { ((0..m).collect(), (0..n).collect()) } else { (sample(m, 5), sample(n, 13)) }
}

/// A row of activations as the product takes it, and the scale that goes with it.
fn activations(x: &[f32], arithmetic: Arithmetic) -> (Vec<f64>, f64) {
    if arithmetic == Arithmetic::Float {
        return (x.iter().map(|v| f64::from(*v)).collect(), 1.0);
    }
    let scale = x.iter().fold(0f32, |most, v| most.max(v.abs())) / 127.0;
    (x.iter().map(|v| f64::from((v / scale).round_ties_even())).collect(), f64::from(scale))
}

/// # Panics
/// If `y` is not `x · dequantize(q)ᵀ`.
pub fn check_linear(q: &QuantizedMatrix, x: &[f32], arithmetic: Arithmetic, y: &[f32]) {
    let (m, n, k) = (x.len() / q.cols, q.rows, q.cols);
    let (rows, channels) = sampled(m, n, k);
    let rows: Vec<_> = rows.iter().map(|&row| (row, activations(&x[row * k..][..k], arithmetic))).collect();
    for channel in channels {
        let w = Channel::new(q, channel);
        for (row, (a, scale)) in &rows {
            let (mut sum, mut size) = (0.0, 0.0);
            for i in 0..k {
                let code = f64::from(w.codes[i]);
                sum += a[i] * w.scales[i] * (code - w.zeros[i]);
                size += a[i].abs() * w.scales[i] * (code.abs() + w.zeros[i].abs());
            }
            let (got, expected) = (f64::from(y[row * n + channel]), sum * scale);
            // rounding in float32, some roots of k of it
            let near = (got - expected).abs() <= 1e-6 * size * scale;
            assert!(near, "linear, m {m}: expected {expected} at [{row}, {channel}], got {got}");
        }
    }
}

/// # Panics
/// If `out` is not the product of `a` and the bare codes of `q`.
pub fn check_product(q: &QuantizedMatrix, a: &[i8], out: &[i32]) {
    let (m, n, k) = (a.len() / q.cols, q.rows, q.cols);
    let (rows, channels) = sampled(m, n, k);
    for channel in channels {
        let w = Channel::new(q, channel);
        for &row in &rows {
            let pairs = a[row * k..][..k].iter().zip(&w.codes);
            let expected: i64 = pairs.map(|(a, q)| i64::from(*a) * i64::from(*q)).sum();
            let got = i64::from(out[row * n + channel]);
            assert!(got == expected, "gemm_i32, m {m}: expected {expected} at [{row}, {channel}], got {got}");
        }
    }
}

/// # Panics
/// If the codes of `q` are not `clip(round_half_even(x / S) + Z)`, or stand for numbers far from `x`.
pub fn check_codes(q: &QuantizedMatrix, x: &[f32], symmetric: bool) {
    let lowest = q.qtype.qmin() + i32::from(symmetric);
    for row in sample(q.rows, 13) {
        let w = Channel::new(q, row);
        for (i, x) in x[row * q.cols..][..q.cols].iter().enumerate() {
            let code = (x / w.scales[i] as f32).round_ties_even() + w.zeros[i] as f32;
            let expected = (code as i32).clamp(lowest, q.qtype.qmax());
            let got = i32::from(w.codes[i]);
            assert!(got == expected, "quantize: expected code {expected} at [{row}, {i}], got {got}");
            // half a step, and what rounding a scale to float16 moves the ends of a range by
            let error = (f64::from(*x) - w.scales[i] * (f64::from(got) - w.zeros[i])).abs();
            assert!(error <= 0.65 * w.scales[i], "quantize: {error} off at [{row}, {i}], scale {}", w.scales[i]);
        }
    }
}
