//! Sizes, strides, padding, dilation, groups, transposed.

use super::*;
use proptest::prelude::*;

fn check(geometry: Geometry, noise: &mut Noise, executors: [&dyn Executor; 2]) {
    Call::new(geometry, QuantType::Int8, geometry.depth().max(1), 0, noise).check(executors);
}

#[test]
fn products_around_every_tile_edge() {
    let ((serial, pool), mut noise) = (executors(), Noise(1));
    for m in [1, 2, 5, 6, 7, 12, 13, 25, 60] {
        for (k, n) in [(1, 1), (3, 15), (4, 16), (5, 17), (16, 33), (31, 64), (64, 65), (100, 130)] {
            check(Geometry::linear(m, k, n), &mut noise, [&serial, &pool]);
        }
    }
}

#[test]
fn the_shapes_of_networks() {
    let ((serial, pool), mut noise) = (executors(), Noise(2));
    for geometry in [
        square(1, 9, 3, 20, 7, 2, 3),
        square(2, 7, 64, 70, 3, 1, 1),
        square(1, 8, 24, 96, 1, 1, 0),
        square(2, 7, 24, 20, 1, 2, 0),
        Geometry { groups: 144, ..square(1, 7, 144, 144, 3, 1, 1) },
        Geometry { groups: 40, ..square(2, 9, 40, 40, 3, 2, 1) },
        Geometry { groups: 20, ..square(1, 6, 20, 40, 3, 1, 1) },
        Geometry { groups: 7, ..square(1, 6, 7, 7, 5, 1, 2) },
        Geometry { groups: 28, ..square(2, 9, 28, 28, 7, 1, 3) },
        Geometry { groups: 17, dilation: [1, 2], ..square(1, 15, 17, 17, 6, 2, 3) },
        // lines in pairs: an odd one left in each image, and rows of a pair that fill a four or begin the next
        Geometry { groups: 33, ..square(3, 5, 33, 33, 3, 1, 1) },
        Geometry { groups: 16, ..square(2, 8, 16, 16, 4, 1, 2) },
        Geometry { groups: 18, kernel: [3, 5], ..square(2, 6, 18, 18, 3, 1, 1) },
        Geometry { groups: 16, kernel: [2, 3], dilation: [1, 2], ..square(1, 9, 16, 16, 3, 1, 1) },
        Geometry { groups: 16, dilation: [2, 1], ..square(1, 9, 16, 16, 3, 1, 2) },
        Geometry { groups: 48, ..square(1, 1, 48, 48, 3, 1, 1) },
        Geometry { groups: 8, ..square(1, 6, 32, 32, 3, 1, 1) },
        Geometry { groups: 4, ..square(1, 6, 64, 64, 3, 2, 1) },
        Geometry { groups: 3, ..square(1, 5, 72, 72, 3, 1, 1) },
        Geometry { groups: 2, ..square(1, 5, 6, 200, 3, 1, 1) },
        Geometry { dilation: [2, 3], ..square(1, 11, 8, 16, 3, 1, 2) },
        Geometry { padding: [0, 1, 2, 3], stride: [1, 2], ..square(2, 6, 5, 9, 3, 1, 0) },
        Geometry { size: [1, 30], kernel: [1, 5], padding: [0, 2, 0, 2], ..square(2, 1, 12, 18, 1, 1, 0) },
        Geometry { transposed: Some([1, 0]), ..square(1, 5, 8, 12, 3, 2, 1) },
        Geometry { transposed: Some([0, 0]), ..square(2, 4, 16, 16, 4, 2, 1) },
        Geometry { transposed: Some([0, 0]), groups: 2, ..square(1, 4, 16, 24, 2, 2, 0) },
        Geometry { transposed: Some([0, 1]), dilation: [2, 2], ..square(1, 4, 3, 5, 3, 2, 1) },
        Geometry { transposed: Some([0, 0]), groups: 12, ..square(1, 4, 12, 12, 3, 3, 1) },
    ] {
        check(geometry, &mut noise, [&serial, &pool]);
    }
}

fn any_geometry() -> impl Strategy<Value = Geometry> {
    let pair = |range: std::ops::Range<usize>| [range.clone(), range];
    (
        (1usize..3, pair(1..9), 1usize..7, 1usize..20, 1usize..20),
        (pair(1..5), pair(1..4), [0usize..4, 0..4, 0..4, 0..4], pair(1..3), any::<bool>(), pair(0..2)),
    )
        .prop_map(|((batch, size, groups, each, outputs), (kernel, stride, padding, dilation, transposed, extra))| {
            Geometry {
                batch,
                size,
                channels: groups * each,
                out_channels: groups * outputs,
                kernel,
                stride,
                padding,
                dilation,
                groups,
                transposed: transposed.then_some(extra),
            }
        })
        .prop_filter("an output", |g| g.out_size().is_ok_and(|size| size[0] * size[1] > 0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_geometry_is_its_definition(geometry in any_geometry(), seed: u64) {
        let (serial, pool) = executors();
        check(geometry, &mut Noise(seed), [&serial, &pool]);
    }
}
