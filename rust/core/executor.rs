//! Who runs the work. The core splits a call into tasks; the caller's executor says on which threads they run.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread;

/// Runs independent tasks.
///
/// # Safety
/// `run` calls the task once for each index and never twice at the same time with one index: tasks write to the parts of
/// an output that their index names, and rely on being alone there. If a task panics, so does `run`.
#[allow(unsafe_code)]
pub unsafe trait Executor: Sync {
    /// How many tasks may run at once: the core makes at least as many where it can.
    fn threads(&self) -> usize;

    /// Call `task(i)` once for each i in `0..tasks`, in any order, and return when all are done.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

// SAFETY: a plain loop.
#[allow(unsafe_code)]
unsafe impl Executor for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}

/// Turns that a waiting thread looks again before it sleeps: some 20 µs, the gap between two layers of a model.
const SPINS: usize = 2_000;

/// A pool of threads that the caller of `run` joins. A second `run` at the same time, a nested one, and one in a
/// forked child (where the threads do not exist) run on their own thread alone.
pub struct Pool {
    shared: Arc<Shared>,
    busy: Mutex<()>,
    threads: usize,
    pid: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Counts the jobs given out; workers spin on it.
    epoch: AtomicUsize,
    /// Workers that have not finished the present job.
    running: AtomicUsize,
    panicked: AtomicBool,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    epoch: usize,
    stop: bool,
}

#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    next: &'static AtomicUsize,
    tasks: usize,
}

impl Job {
    fn work(&self) {
        loop {
            let i = self.next.fetch_add(1, Relaxed);
            if i >= self.tasks {
                return;
            }
            (self.task)(i);
        }
    }
}

impl Pool {
    /// A pool that runs up to `threads` tasks at once: it starts `threads - 1` threads.
    ///
    /// # Errors
    /// Those of [`std::thread::Builder::spawn`].
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let pool =
            Self { shared: Arc::default(), busy: Mutex::default(), threads: threads.max(1), pid: std::process::id() };
        for i in 1..pool.threads {
            let shared = pool.shared.clone();
            thread::Builder::new().name(format!("rquant-{i}")).spawn(move || shared.serve())?;
        }
        Ok(pool)
    }
}

impl Shared {
    fn serve(&self) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Acquire) == seen && spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            }
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            while state.epoch == seen && !state.stop {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            seen = state.epoch;
            let job = state.job;
            drop(state);
            if let Some(job) = job
                && catch_unwind(AssertUnwindSafe(|| job.work())).is_err()
            {
                self.panicked.store(true, Relaxed);
            }
            self.running.fetch_sub(1, Release);
        }
    }

    fn publish(&self, job: Option<Job>, stop: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.epoch += 1;
        state.job = job;
        state.stop = stop;
        self.epoch.store(state.epoch, Release);
        self.wake.notify_all();
    }
}

// SAFETY: indices come from one counter, each once.
#[allow(unsafe_code)]
unsafe impl Executor for Pool {
    fn threads(&self) -> usize {
        self.threads
    }

    #[allow(unsafe_code)]
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.threads == 1 || std::process::id() != self.pid {
            return Serial.run(tasks, task);
        }
        let _turn = match self.busy.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(panicked)) => panicked.into_inner(), // the lock guards no data
            Err(TryLockError::WouldBlock) => return Serial.run(tasks, task),
        };
        let next = AtomicUsize::new(0);
        // SAFETY: the borrows end only when this function returns, and it returns (or unwinds) only after every
        // worker has counted itself out below.
        let job = unsafe {
            Job {
                task: std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task),
                next: std::mem::transmute::<&AtomicUsize, &'static AtomicUsize>(&next),
                tasks,
            }
        };
        let shared = &*self.shared;
        shared.running.store(self.threads - 1, Relaxed);
        shared.publish(Some(job), false);
        let own = catch_unwind(AssertUnwindSafe(|| job.work()));
        let mut spins = 0;
        while shared.running.load(Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let others = shared.panicked.swap(false, Relaxed);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!others, "a task panicked on a pool thread");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if std::process::id() == self.pid {
            self.shared.publish(None, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 97] {
                let hits: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| _ = hits[i].fetch_add(1, Relaxed));
                assert!(hits.iter().all(|h| h.load(Relaxed) == 1), "threads {threads} tasks {tasks}");
            }
        }
    }

    #[test]
    fn nested_and_simultaneous_runs_finish() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..50).for_each(|_| pool.run(4, &|_| pool.run(3, &|_| _ = count.fetch_add(1, Relaxed)))));
            }
        });
        assert_eq!(count.into_inner(), 4 * 50 * 4 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for bad in [&[3usize][..], &[0, 1, 2, 3, 4, 5, 6, 7]] {
            let failed = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|i| assert!(!bad.contains(&i)))));
            assert!(failed.is_err());
        }
        let hits = AtomicUsize::new(0);
        pool.run(8, &|_| _ = hits.fetch_add(1, Relaxed));
        assert_eq!(hits.into_inner(), 8);
    }
}
