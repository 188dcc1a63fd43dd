//! Reading from memory: 1 GiB, shared out among the threads, each going through its part as one stream or as four.

use super::Probe;
use std::sync::Arc;

/// 64-bit words of 1 GiB, which no cache holds; a little less, because streams a power of two apart get in each other's
/// way (a third of the rate on a Zen 4).
const WORDS: usize = (1 << 27) - 4 * LINE * 1_061;
/// Words of a cache line.
const LINE: usize = 8;

pub fn probes() -> Vec<Probe> {
    let words: Arc<[u64]> = (0..WORDS as u64).collect();
    let probe = |key, what, streams| {
        let words = words.clone();
        let work = move |task: usize, threads: usize| {
            let part = WORDS / threads / (4 * LINE) * 4 * LINE;
            let first = task * part;
            let sum = sum(&words[first..first + part], streams);
            // first + (first + 1) + .. of an arithmetic series
            let expected = ((2 * first + part - 1) as u128 * part as u128 / 2) as u64;
            assert!(sum == expected, "{what}: expected a sum of {expected}, got {sum}");
        };
        Probe { key, what, amount: Box::new(|_| (WORDS * size_of::<u64>()) as f64), work: Box::new(work) }
    };
    vec![
        probe("read_1_stream_gbps", "GB/s: read 1 GiB, a stream a thread", 1),
        probe("read_4_streams_gbps", "GB/s: read 1 GiB, 4 streams a thread", 4),
    ]
}

/// The words' sum, wrapping.
fn sum(words: &[u64], streams: usize) -> u64 {
    let (lines, _) = words.as_chunks::<LINE>();
    let mut sums = [0u64; LINE];
    if streams == 1 {
        lines.iter().for_each(|line| add(&mut sums, line));
    } else {
        let quarter = lines.len() / 4;
        let part = |i: usize| &lines[i * quarter..][..quarter];
        for (((a, b), c), d) in part(0).iter().zip(part(1)).zip(part(2)).zip(part(3)) {
            add(&mut sums, a);
            add(&mut sums, b);
            add(&mut sums, c);
            add(&mut sums, d);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[inline(always)]
fn add(sums: &mut [u64; LINE], line: &[u64; LINE]) {
    sums.iter_mut().zip(line).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
}
