//! Reading from memory: 1 GiB, shared out among the threads, each going through its part as one stream or as four.

use super::{Limit, rates};
use rquant::Pool;

/// 64-bit words of 1 GiB: no cache holds them.
const WORDS: usize = 1 << 27;
const REPETITIONS: usize = 5;
/// Words of a cache line.
const LINE: usize = 8;

pub fn measure(pools: &[Pool]) -> Vec<Limit> {
    let words: Vec<u64> = (0..WORDS as u64).collect();
    let limit = |key, what, streams| {
        let read = |task: usize, threads: usize| {
            let part = WORDS / threads / (4 * LINE) * 4 * LINE;
            let first = task * part;
            let sum = sum(&words[first..first + part], streams);
            // first + (first + 1) + .. of an arithmetic series
            let expected = ((2 * first + part - 1) as u128 * part as u128 / 2) as u64;
            assert!(sum == expected, "{what}: expected a sum of {expected}, got {sum}");
        };
        Limit { key, what, rates: rates(pools, REPETITIONS, |_| (WORDS * 8) as f64, read) }
    };
    vec![
        limit("read_1_stream_gbps", "GB/s: read 1 GiB, a stream a thread", 1),
        limit("read_4_streams_gbps", "GB/s: read 1 GiB, 4 streams a thread", 4),
    ]
}

/// The words' sum, wrapping.
fn sum(words: &[u64], streams: usize) -> u64 {
    let quarter = words.len() / 4;
    let parts = |i: usize| words[i * quarter..(i + 1) * quarter].as_chunks::<LINE>().0;
    let mut sums = [[0u64; LINE]; 4];
    let mut add = |stream: usize, line: &[u64; LINE]| {
        sums[stream].iter_mut().zip(line).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
    };
    if streams == 1 {
        let (lines, _) = words.as_chunks::<LINE>();
        lines.iter().for_each(|line| add(0, line));
    } else {
        let four = parts(0).iter().zip(parts(1)).zip(parts(2)).zip(parts(3));
        four.for_each(|(((a, b), c), d)| [a, b, c, d].into_iter().enumerate().for_each(|(i, line)| add(i, line)));
    }
    sums.iter().flatten().fold(0, |all, sum| all.wrapping_add(*sum))
}
