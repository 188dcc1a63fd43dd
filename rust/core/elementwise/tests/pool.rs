use super::*;
use crate::elementwise::*;

const X: PerTensor = params(0.031, 5);
const OUT: PerTensor = params(0.043, -12);

/// The elements of output (oy, ox)'s window that lie inside an image of `[h, w]`.
fn window(pool: &Pool2d, [h, w]: [usize; 2], oy: usize, ox: usize) -> Vec<(usize, usize)> {
    let at =
        |i: usize, o: usize, k: usize| (o * pool.stride[i] + k * pool.dilation[i]) as isize - pool.padding[i] as isize;
    let mut inside = Vec::new();
    for ky in 0..pool.kernel[0] {
        for kx in 0..pool.kernel[1] {
            let (y, x) = (at(0, oy, ky), at(1, ox, kx));
            if (0..h as isize).contains(&y) && (0..w as isize).contains(&x) {
                inside.push((y as usize, x as usize));
            }
        }
    }
    inside
}

fn pools() -> Vec<Pool2d> {
    let mut all = Vec::new();
    for (kernel, stride, padding) in
        [([3, 3], [2, 2], [1, 1]), ([2, 2], [2, 2], [0, 0]), ([3, 2], [1, 3], [1, 0]), ([1, 5], [1, 2], [0, 2])]
    {
        for dilation in [[1, 1], [2, 1], [1, 2]] {
            for ceil_mode in [false, true] {
                all.push(Pool2d { kernel, stride, padding, dilation, ceil_mode });
            }
        }
    }
    all
}

const SHAPES: [[usize; 4]; 5] = [[1, 7, 9, 3], [2, 5, 6, 16], [1, 6, 5, 83], [3, 5, 5, 64], [0, 5, 5, 4]];

#[test]
fn max_pooling_is_its_definition() {
    everywhere(|executor, isa| {
        for [n, h, w, c] in SHAPES {
            let x = codes(n * h * w * c, 31);
            for pool in pools() {
                let [oh, ow] = pool.out_size([h, w]).unwrap();
                let mut got = vec![9; n * oh * ow * c];
                max_pool(&x, [n, h, w, c], pool, &mut got, executor).unwrap();
                for (i, got) in got.iter().enumerate() {
                    let (image, oy, ox, channel) = (i / (oh * ow * c), i / (ow * c) % oh, i / c % ow, i % c);
                    let inside = window(&pool, [h, w], oy, ox);
                    let codes = inside.iter().map(|(y, v)| x[((image * h + y) * w + v) * c + channel]);
                    assert_eq!(*got, codes.max().unwrap_or(-127), "{isa} {:?} {pool:?} {i}", [n, h, w, c]);
                }
            }
        }
    });
}

#[test]
fn means_are_their_definition() {
    everywhere(|executor, isa| {
        for [n, h, w, c] in SHAPES {
            let x = codes(n * h * w * c, 32);
            for pool in pools().into_iter().filter(|pool| pool.dilation == [1, 1]) {
                let [oh, ow] = pool.out_size([h, w]).unwrap();
                for average in [Average::Padded, Average::Inside, Average::By(7)] {
                    let mut got = vec![9; n * oh * ow * c];
                    avg_pool(&x, X, [n, h, w, c], pool, average, OUT, &mut got, executor).unwrap();
                    for (i, got) in got.iter().enumerate() {
                        let (image, oy, ox, channel) = (i / (oh * ow * c), i / (ow * c) % oh, i / c % ow, i % c);
                        let inside = window(&pool, [h, w], oy, ox);
                        let padded = Pool2d { padding: [0, 0], ..pool };
                        let padded = window(&padded, [h + 2 * pool.padding[0], w + 2 * pool.padding[1]], oy, ox);
                        let count = match average {
                            Average::Padded => padded.len(),
                            Average::Inside => inside.len(),
                            Average::By(divisor) => divisor as usize,
                        };
                        let steps = inside
                            .iter()
                            .map(|(y, v)| i32::from(x[((image * h + y) * w + v) * c + channel]) - i32::from(X.zero));
                        let v = steps.sum::<i32>() as f32 * (over(X, OUT).scale / count as f32);
                        assert_eq!(*got, rounded(v, UNCLAMPED, OUT), "{isa} {:?} {pool:?} {average:?}", [n, h, w, c]);
                    }
                }
            }
        }
    });
}

#[test]
fn adaptive_means_divide_the_image() {
    everywhere(|executor, isa| {
        for ([n, h, w, c], out_size) in [
            ([2, 7, 9, 19], [1, 1]),
            ([1, 40, 33, 65], [1, 1]),
            ([1, 7, 9, 3], [3, 4]),
            ([2, 4, 3, 16], [6, 3]),
            ([1, 5, 5, 8], [0, 2]),
        ] {
            let x = codes(n * h * w * c, 33);
            let [oh, ow] = out_size;
            let mut got = vec![9; n * oh * ow * c];
            adaptive_avg_pool(&x, X, [n, h, w, c], out_size, OUT, &mut got, executor).unwrap();
            for (i, got) in got.iter().enumerate() {
                let (image, oy, ox, channel) = (i / (oh * ow * c), i / (ow * c) % oh, i / c % ow, i % c);
                let (mut sum, mut count) = (0, 0);
                for y in oy * h / oh..((oy + 1) * h).div_ceil(oh) {
                    for v in ox * w / ow..((ox + 1) * w).div_ceil(ow) {
                        sum += i32::from(x[((image * h + y) * w + v) * c + channel]) - i32::from(X.zero);
                        count += 1;
                    }
                }
                let v = sum as f32 * (over(X, OUT).scale / count as f32);
                assert_eq!(*got, rounded(v, UNCLAMPED, OUT), "{isa} {:?} {out_size:?} {i}", [n, h, w, c]);
            }
        }
    });
}

#[test]
fn with_ceil_mode_one_window_may_be_larger_than_the_image() {
    let pool = Pool2d { kernel: [3, 3], stride: [2, 2], padding: [0, 0], dilation: [1, 1], ceil_mode: true };
    assert_eq!(pool.out_size([2, 4]).unwrap(), [1, 2]);
    assert!(pool.out_size([1, 4]).is_err());
    let mut out = [0; 2];
    max_pool(&[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 4, 1], pool, &mut out, &Serial).unwrap();
    assert_eq!(out, [7, 8]);
}

#[test]
fn windows_that_do_not_fit_are_named() {
    let plain = Pool2d { kernel: [3, 3], stride: [2, 2], padding: [0, 0], dilation: [1, 1], ceil_mode: false };
    let x = [0i8; 16];
    for (pool, name) in [
        (Pool2d { kernel: [0, 3], ..plain }, "kernel"),
        (Pool2d { stride: [1, 0], ..plain }, "kernel, stride"),
        (Pool2d { padding: [2, 0], ..plain }, "padding"),
        (Pool2d { kernel: [5, 5], ..plain }, "x"),
        (plain, "out"),
    ] {
        let error = max_pool(&x, [1, 4, 4, 1], pool, &mut [0; 7], &Serial).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    }
    let error = max_pool(&x, [1, 4, 5, 1], plain, &mut [0; 1], &Serial).unwrap_err().to_string();
    assert_eq!(error, "x: expected length 20, got 16");
    let by = |pool, average| avg_pool(&x, X, [1, 4, 4, 1], pool, average, OUT, &mut [0; 1], &Serial);
    assert!(by(Pool2d { dilation: [1, 2], ..plain }, Average::Inside).is_err());
    assert!(by(plain, Average::By(0)).unwrap_err().to_string().starts_with("divisor"));
    assert!(adaptive_avg_pool(&[], X, [1, 0, 4, 1], [1, 1], OUT, &mut [0; 1], &Serial).is_err());
}
