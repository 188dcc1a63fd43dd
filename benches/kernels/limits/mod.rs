//! What this CPU can do at most, measured: arithmetic in registers and reading from memory. A kernel's rate says little
//! without them, and they differ from machine to machine and from hour to hour on a shared one.

mod read;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)] // loops in assembly
mod vector;

use rquant::{Executor, Pool};
use std::fmt;
use std::io;
use std::time::Instant;

/// One limit: billions of something in a second, by number of threads.
pub struct Limit {
    /// Its name in JSON.
    pub key: &'static str,
    /// What was measured.
    pub what: &'static str,
    /// Its rates.
    pub rates: Vec<Rate>,
}

/// A limit with so many threads.
pub struct Rate {
    /// Threads, all at once.
    pub threads: usize,
    /// The best of the repetitions: the limit.
    pub best: f64,
    /// The median: how far the machine was from quiet.
    pub median: f64,
}

/// What measures one.
struct Probe {
    key: &'static str,
    what: &'static str,
    /// What so many threads do together.
    amount: Box<dyn Fn(usize) -> f64 + Sync>,
    /// The part of one thread of so many.
    work: Box<dyn Fn(usize, usize) + Sync>,
}

/// Rounds through all probes: a moment's disturbance hits each once.
const ROUNDS: usize = 7;
/// Rounds at most, on a machine that is not quiet.
const MOST_ROUNDS: usize = 3 * ROUNDS;
/// A median this near the best says that nobody else ran.
const QUIET: f64 = 0.9;

/// All limits of this CPU.
pub struct Limits {
    pub all: Vec<Limit>,
}

impl Limits {
    /// Measure them with one thread and with `threads`; three seconds, or ten where others run.
    ///
    /// # Errors
    /// Those of starting threads.
    ///
    /// # Panics
    /// If a probe's result is not what its arithmetic must give.
    pub fn measure(threads: usize) -> io::Result<Self> {
        let pools = if threads > 1 { vec![Pool::new(1)?, Pool::new(threads)?] } else { vec![Pool::new(1)?] };
        let mut probes = Vec::new();
        #[cfg(target_arch = "x86_64")]
        probes.extend(vector::probes());
        probes.extend(read::probes());
        let mut found = vec![vec![Vec::new(); pools.len()]; probes.len()];
        let mut limits = Self { all: Vec::new() };
        for round in 1..=MOST_ROUNDS {
            for (probe, found) in probes.iter().zip(&mut found) {
                for (pool, found) in pools.iter().zip(found) {
                    found.push(once(probe, pool));
                }
            }
            let limit = |(probe, found): (&Probe, &Vec<Vec<f64>>)| {
                let rates = pools.iter().zip(found).map(|(pool, found)| Rate::new(pool.threads(), found));
                Limit { key: probe.key, what: probe.what, rates: rates.collect() }
            };
            limits = Self { all: probes.iter().zip(&found).map(limit).collect() };
            if round >= ROUNDS && limits.quiet() {
                break;
            }
        }
        Ok(limits)
    }

    /// Whether the machine did nothing else meanwhile.
    pub fn quiet(&self) -> bool {
        self.all.iter().flat_map(|limit| &limit.rates).all(|rate| rate.median >= QUIET * rate.best)
    }

    /// The best of those limits under `keys` that this CPU has.
    pub fn best(&self, keys: &[&str], threads: usize) -> Option<f64> {
        let limits = self.all.iter().filter(|limit| keys.contains(&limit.key));
        let rates = limits.flat_map(|limit| &limit.rates).filter(|rate| rate.threads == threads);
        rates.map(|rate| rate.best).reduce(f64::max)
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:<62}", "limit (best / median)")?;
        for rate in self.all.first().map_or(&[][..], |limit| &limit.rates) {
            write!(f, "{:>20}", format!("threads: {}", rate.threads))?;
        }
        for limit in &self.all {
            write!(f, "\n{:<22}{:<40}", limit.key, limit.what)?;
            for rate in &limit.rates {
                write!(f, "{:>20}", format!("{:.1} / {:.1}", rate.best, rate.median))?;
            }
        }
        if !self.quiet() {
            write!(f, "\nOthers ran meanwhile: these are too low, and a share of them may come out above 100 %.")?;
        }
        Ok(())
    }
}

fn once(probe: &Probe, pool: &Pool) -> f64 {
    let threads = pool.threads();
    let start = Instant::now();
    pool.run(threads, &|task| (probe.work)(task, threads));
    (probe.amount)(threads) / start.elapsed().as_secs_f64() / 1e9
}

impl Rate {
    fn new(threads: usize, found: &[f64]) -> Self {
        let mut found = found.to_vec();
        found.sort_by(f64::total_cmp);
        Self { threads, best: found[found.len() - 1], median: found[found.len() / 2] }
    }
}
