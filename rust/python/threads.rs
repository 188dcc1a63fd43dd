//! The one way into the core: GIL released, errors mapped, an executor with as many threads as the call may use.

use crate::arguments::value_error;
use pyo3::prelude::*;
use rquant::{Executor, Pool, Serial};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, TryLockError};

/// Run `work` without the GIL on up to `threads` threads.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    threads: usize,
    work: impl FnOnce(&dyn Executor) -> rquant::Result<T> + Send,
) -> PyResult<T> {
    py.detach(|| with(threads, work)).map_err(value_error)
}

/// The same for who does not hold the GIL.
pub(crate) fn with<T>(threads: usize, work: impl FnOnce(&dyn Executor) -> T) -> T {
    match executor(threads) {
        Some(executor) => work(&*executor),
        None => work(&Serial),
    }
}

/// `None`: the calling thread alone.
fn executor(threads: usize) -> Option<Arc<dyn Executor + Send>> {
    if threads <= 1 {
        return None;
    }
    #[cfg(target_os = "linux")]
    if let Some(team) = crate::openmp::Team::of(threads) {
        return Some(Arc::new(team));
    }
    pool(threads).map(|pool| pool as _)
}

/// The module's own pool, made anew when the size changes or in a forked child, where its threads do not exist.
fn pool(threads: usize) -> Option<Arc<Pool>> {
    static POOL: Mutex<Option<(u32, usize, Arc<Pool>)>> = Mutex::new(None);
    // not to be waited for: a fork may have copied it locked, and the one who holds it has the pool anyway
    let mut held = match POOL.try_lock() {
        Ok(held) => held,
        Err(TryLockError::Poisoned(held)) => held.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    let pid = std::process::id();
    match &*held {
        Some((owner, size, pool)) if (*owner, *size) == (pid, threads) => Some(pool.clone()),
        _ => {
            let made = Arc::new(Pool::new(threads).ok()?); // no threads to be had: work alone
            *held = Some((pid, threads, made.clone()));
            Some(made)
        }
    }
}

/// What Python chose (0: nothing), and whether this process shares the cores with its siblings.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);
static WORKER: AtomicBool = AtomicBool::new(false);

/// Python's `get_num_threads`, where torch has so many.
pub(crate) fn allowed(torch: usize) -> usize {
    match CHOSEN.load(Relaxed) {
        0 => torch,
        chosen if WORKER.load(Relaxed) => chosen.min(torch),
        chosen => chosen,
    }
}

#[pyfunction]
pub(crate) fn choose_threads(chosen: usize, worker: bool) {
    CHOSEN.store(chosen, Relaxed);
    WORKER.store(worker, Relaxed);
}

/// Cores that affinity and cgroup leave to this process.
#[pyfunction]
pub(crate) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Share the process's OpenMP threads, if an OpenMP runtime is loaded by now.
#[pyfunction]
pub(crate) fn adopt_openmp() -> bool {
    #[cfg(target_os = "linux")]
    return crate::openmp::adopt();
    #[cfg(not(target_os = "linux"))]
    false
}
