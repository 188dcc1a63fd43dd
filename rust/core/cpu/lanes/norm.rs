//! Normalization of a row, its moments in float64.

/// Mean and variance (over n) of a row: each a sum over 16 lanes, lane i of the elements i, i + 16, .., then of the lanes
/// by halves (8 to 8, 4 to 4, ..): the same order everywhere.
#[inline(always)]
pub(super) fn moments(x: &[f32]) -> (f64, f64) {
    let count = x.len() as f64;
    let mean = total(x, |sum, v| sum + v) / count;
    let variance = total(x, |sum, v| sum + (v - mean) * (v - mean)) / count;
    (mean, variance)
}

#[inline(always)]
fn total(x: &[f32], add: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0f64; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] = add(lanes[i], f64::from(chunk[i]));
        }
    }
    // through memory: what follows takes the lanes one by one, and would have the compiler do so above
    let mut lanes = std::hint::black_box(lanes);
    lanes.iter_mut().zip(rest).for_each(|(lane, v)| *lane = add(*lane, f64::from(*v)));
    for half in [8, 4, 2, 1] {
        let (low, high) = lanes.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    lanes[0]
}

/// `(x − mean) · inverse` in float64, rounded to float32, then `· weight + bias`, fused.
#[inline(always)]
pub(super) fn normalize(x: &[f32], mean: f64, inverse: f64, weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let n = out.len();
    let (x, weight, bias) = (&x[..n], &weight[..n], &bias[..n]);
    for i in 0..n {
        out[i] = (((f64::from(x[i]) - mean) * inverse) as f32).mul_add(weight[i], bias[i]);
    }
}
