//! `linear`: float32 in, float32 out, activation quantization included where the arithmetic is integer.

use crate::reference;
use crate::report::{Peak, Work, bench, executors, group};
use crate::weight::{ROWS, SHAPES, Weight, numbers, schemes};
use criterion::{Criterion, Throughput};
use rquant::{Arithmetic, Floats, FloatsMut, linear};
use std::cell::LazyCell;

pub fn benches(criterion: &mut Criterion) {
    let mut group = group(criterion, "linear");
    for (k, n) in SHAPES {
        for (name, scheme) in schemes() {
            let weight = LazyCell::new(|| Weight::new(n, k, &scheme));
            for (way, arithmetic) in [("integer", Arithmetic::Integer), ("float", Arithmetic::Float)] {
                for m in ROWS {
                    for (threads, executor) in executors() {
                        let operations = 2 * m * n * k;
                        let work = || Work {
                            operations: operations as f64,
                            bytes: weight.nbytes() as f64,
                            peak: match arithmetic {
                                Arithmetic::Integer => Peak::Integer(scheme.qtype),
                                _ => Peak::Float,
                            },
                        };
                        let prepare = || {
                            let (x, mut y) = (numbers(m * k, 2), vec![0f32; m * n]);
                            let weight = &*weight;
                            let call = move |x: &[f32], y: &mut [f32]| {
                                let (x, w, y) = (Floats::F32(x), weight.next().view(), FloatsMut::F32(y));
                                linear(x, m, w, None, arithmetic, y, executor).expect("shapes that fit");
                            };
                            call(&x, &mut y);
                            reference::check_linear(&weight.canonical, &x, arithmetic, &y);
                            move || call(&x, &mut y)
                        };
                        let id = format!("{k}x{n}/{name}/{way}/m{m}/{threads}");
                        let elements = Throughput::Elements(operations as u64);
                        bench(&mut group, &id, executor.threads(), &work, elements, prepare);
                    }
                }
            }
        }
    }
}
