//! `gemm_i32`: int8 by codes, no scales.

use crate::reference;
use crate::report::{Peak, Work, bench, executors, group};
use crate::weight::{ROWS, SHAPES, Weight, numbers};
use criterion::{Criterion, Throughput};
use rquant::{QuantType, Scheme, gemm_i32};
use std::cell::LazyCell;

pub fn benches(criterion: &mut Criterion) {
    let mut group = group(criterion, "gemm_i32");
    for (k, n) in SHAPES {
        for qtype in [QuantType::Int8, QuantType::Int4, QuantType::Int2] {
            let weight = LazyCell::new(|| Weight::new(n, k, &Scheme::symmetric(qtype)));
            for m in ROWS {
                for (threads, executor) in executors() {
                    let operations = 2 * m * n * k;
                    let work = || Work {
                        operations: operations as f64,
                        bytes: weight.nbytes() as f64,
                        peak: Peak::Integer(qtype),
                    };
                    let prepare = || {
                        let a: Vec<i8> = numbers(m * k, 3).iter().map(|v| (v * 128.0).floor() as i8).collect();
                        let mut out = vec![0; m * n];
                        let weight = &*weight;
                        let call = move |a: &[i8], out: &mut [i32]| {
                            gemm_i32(a, m, weight.next().view(), out, executor).expect("shapes that fit");
                        };
                        call(&a, &mut out);
                        reference::check_product(&weight.canonical, &a, &out);
                        move || call(&a, &mut out)
                    };
                    let id = format!("{k}x{n}/int{}/m{m}/{threads}", qtype.bits());
                    let elements = Throughput::Elements(operations as u64);
                    bench(&mut group, &id, executor.threads(), &work, elements, prepare);
                }
            }
        }
    }
}
