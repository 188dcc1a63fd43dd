//! The kernels, each answer checked and each rate held against what this CPU can do, which is measured first.
//!
//! ```sh
//! cargo bench --bench kernels                                    # all: some four minutes
//! cargo bench --bench kernels -- 'linear/4096x4096/int4-g128'    # criterion's filter, a regular expression
//! RQUANT_ISA=avx2 cargo bench --bench kernels -- gemm_i32        # another instruction set: one a process
//! ```
//!
//! After criterion's own lines comes one with the rate (operations: a multiplication and an addition each) and its share
//! of the limit, `max(operations / peak, bytes / bandwidth)` over the time taken. Weights lie in as many copies, taken
//! in turn, as it takes for them to come from memory, as a large model's do.
//!
//! A product of minutes in all leaves no bench more than a moment, which criterion warns of where one run takes longer;
//! `--measurement-time 5` (seconds) gives them more.

mod limits;
mod linear;
mod packing;
mod product;
mod reference;
mod report;
mod weight;

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::Duration;

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .nresamples(2000)
        .warm_up_time(Duration::from_millis(10))
        .measurement_time(Duration::from_millis(60))
}

criterion_group! {
    name = kernels;
    config = short();
    targets = linear::benches, product::benches, packing::benches
}
criterion_main!(kernels);
