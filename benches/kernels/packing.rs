//! `quantize`, then `PackedMatrix::pack`: from float32 to what the kernels read. Bytes are those of the float32 weight.

use crate::reference;
use crate::report::{Peak, Work, bench, executors, group};
use crate::weight::{numbers, schemes};
use criterion::{Criterion, Throughput};
use rquant::{Floats, PackedMatrix, quantize};
use std::cell::LazyCell;
use std::hint::black_box;

const K: usize = 4096;
const N: usize = 2048;

pub fn benches(criterion: &mut Criterion) {
    let mut group = group(criterion, "quantize_pack");
    let x = LazyCell::new(|| numbers(N * K, 4));
    for (name, scheme) in schemes() {
        for (threads, executor) in executors() {
            let bytes = N * K * size_of::<f32>();
            let work = || Work { operations: 0.0, bytes: bytes as f64, peak: Peak::Memory };
            let prepare = || {
                let x = &*x;
                let call = move || {
                    let q = quantize(Floats::F32(x), N, K, &scheme, executor).expect("finite numbers");
                    let packed = PackedMatrix::pack(&q, executor).expect("a whole matrix");
                    (q, packed)
                };
                let (q, packed) = call();
                assert!(packed.unpack(executor) == q, "pack: unpacking gives another matrix");
                reference::check_codes(&q, x, scheme.symmetric);
                move || _ = black_box(call())
            };
            let id = format!("{K}x{N}/{name}/{threads}");
            bench(&mut group, &id, executor.threads(), &work, Throughput::Bytes(bytes as u64), prepare);
        }
    }
}
