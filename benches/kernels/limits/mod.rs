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

/// All limits of this CPU.
pub struct Limits(Vec<Limit>);

impl Limits {
    /// Measure them with one thread and with `threads`; some three seconds.
    ///
    /// # Errors
    /// Those of starting threads.
    ///
    /// # Panics
    /// If a probe's result is not what its arithmetic must give.
    pub fn measure(threads: usize) -> io::Result<Self> {
        let pools = if threads > 1 { vec![Pool::new(1)?, Pool::new(threads)?] } else { vec![Pool::new(1)?] };
        let mut limits = Vec::new();
        #[cfg(target_arch = "x86_64")]
        limits.extend(vector::measure(&pools));
        limits.extend(read::measure(&pools));
        Ok(Self(limits))
    }

    /// The limits, as measured.
    pub fn iter(&self) -> impl Iterator<Item = &Limit> {
        self.0.iter()
    }

    /// The best of those limits under `keys` that this CPU has.
    pub fn best(&self, keys: &[&str], threads: usize) -> Option<f64> {
        let limits = self.0.iter().filter(|limit| keys.contains(&limit.key));
        let rates = limits.flat_map(|limit| &limit.rates).filter(|rate| rate.threads == threads);
        rates.map(|rate| rate.best).reduce(f64::max)
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:<62}", "limit (best / median)")?;
        for rate in self.0.first().map_or(&[][..], |limit| &limit.rates) {
            write!(f, "{:>20}", format!("threads: {}", rate.threads))?;
        }
        for limit in &self.0 {
            write!(f, "\n{:<22}{:<40}", limit.key, limit.what)?;
            for rate in &limit.rates {
                write!(f, "{:>20}", format!("{:.1} / {:.1}", rate.best, rate.median))?;
            }
        }
        Ok(())
    }
}

/// The rate of `work`, one task a thread, for each pool; `amount` is what so many threads do together.
fn rates(
    pools: &[Pool],
    repetitions: usize,
    amount: impl Fn(usize) -> f64,
    work: impl Fn(usize, usize) + Sync,
) -> Vec<Rate> {
    let rate = |pool: &Pool| {
        let threads = pool.threads();
        let once = |_| {
            let start = Instant::now();
            pool.run(threads, &|task| work(task, threads));
            amount(threads) / start.elapsed().as_secs_f64() / 1e9
        };
        let mut found: Vec<f64> = (0..repetitions).map(once).collect();
        found.sort_by(f64::total_cmp);
        Rate { threads, best: found[repetitions - 1], median: found[repetitions / 2] }
    };
    pools.iter().map(rate).collect()
}
