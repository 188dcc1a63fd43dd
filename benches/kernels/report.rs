//! Runs one bench under criterion and says how near its limit it came.

use crate::limits::Limits;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use rquant::{Executor, Pool, QuantType, Serial, active_isa};
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

/// Which arithmetic bounds a bench.
#[derive(Clone, Copy)]
pub enum Peak {
    /// Products of int8 activations and such weights.
    Integer(QuantType),
    /// Float multiply-adds.
    Float,
    /// None: it moves bytes.
    Memory,
}

/// What one call does at least.
pub struct Work {
    /// Multiplications and additions.
    pub operations: f64,
    /// Bytes that come from memory.
    pub bytes: f64,
    pub peak: Peak,
}

impl Work {
    /// The seconds it takes at the limit, and whether memory is what bounds it. `None` without a probe for this CPU.
    fn floor(&self, limits: &Limits, threads: usize) -> Option<(f64, bool)> {
        let memory = self.bytes / limits.best(&["read_1_stream_gbps", "read_4_streams_gbps"], threads)? / 1e9;
        let computing = match keys(self.peak) {
            [] => 0.0,
            keys => self.operations / limits.best(keys, threads)? / 1e9,
        };
        Some((memory.max(computing), memory > computing))
    }
}

/// The probes whose best is the peak on the instruction set in use. Portable code is held against AVX2's.
fn keys(peak: Peak) -> &'static [&'static str] {
    let isa = active_isa().map_or("", |isa| isa.name);
    let (wide, vnni) = (isa.starts_with("avx512"), isa.ends_with("vnni"));
    match peak {
        Peak::Memory => &[],
        Peak::Float if wide => &["fma_zmm_gflops", "fma_ymm_gflops"],
        Peak::Float => &["fma_ymm_gflops"],
        Peak::Integer(_) if wide && vnni => &["vnni_gops"],
        Peak::Integer(_) if vnni => &["vnni_ymm_gops"],
        Peak::Integer(QuantType::Int8) => &["maddubs_gops", "maddwd_gops"],
        // their 16-bit sums have room for a second product
        Peak::Integer(_) => &["maddubs_gops", "maddubs_twice_gops", "maddwd_gops"],
    }
}

/// Who runs a bench: the calling thread, and a pool of all threads if there is more than one.
pub fn executors() -> Vec<(String, &'static dyn Executor)> {
    static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new(all_threads()).expect("threads start"));
    let mut all: Vec<(String, &'static dyn Executor)> = vec![("1t".into(), &Serial)];
    if all_threads() > 1 {
        all.push((format!("{}t", all_threads()), &*POOL));
    }
    all
}

fn all_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Measured when the first bench that is not filtered out starts.
fn limits() -> &'static Limits {
    static LIMITS: OnceLock<Limits> = OnceLock::new();
    LIMITS.get_or_init(|| {
        let limits = Limits::measure(all_threads()).expect("threads start");
        println!("instruction set: {}\n{limits}\n", active_isa().expect("one that this CPU has").name);
        limits
    })
}

/// A group whose benches take as few runs as they can.
pub fn group<'c>(criterion: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// Bench `id` of a group: `prepare` makes what is timed and checks its answer, unless criterion's filter leaves it out.
pub fn bench<F: FnMut()>(
    group: &mut BenchmarkGroup<WallTime>,
    id: &str,
    threads: usize,
    work: &dyn Fn() -> Work,
    throughput: Throughput,
    prepare: impl FnOnce() -> F,
) {
    let (mut prepare, mut call) = (Some(prepare), None);
    let mut seconds = Vec::new();
    group.throughput(throughput);
    // criterion comes by once to warm up and once for each sample
    group.bench_function(id, |bencher| {
        if let Some(prepare) = prepare.take() {
            limits();
            call = Some(prepare());
        }
        let Some(call) = &mut call else { return };
        bencher.iter_custom(|times| {
            let start = Instant::now();
            (0..times).for_each(|_| call());
            let elapsed = start.elapsed();
            seconds.push(elapsed.as_secs_f64() / times as f64);
            elapsed
        });
    });
    if seconds.is_empty() {
        return;
    }
    seconds.sort_by(f64::total_cmp);
    let (work, median) = (work(), seconds[seconds.len() / 2]);
    let mut line = format!("{:>10.1} µs", median * 1e6);
    if !matches!(work.peak, Peak::Memory) {
        line += &format!(", {:.1} G operations/s", work.operations / median / 1e9);
    }
    line += &format!(", {:.2} GB/s", work.bytes / median / 1e9);
    if let Some((floor, memory)) = work.floor(limits(), threads) {
        let by = if memory { "memory" } else { "arithmetic" };
        line += &format!(": {:.0} % of the limit ({by})", 100.0 * floor / median);
    }
    println!("{line}\n");
}
