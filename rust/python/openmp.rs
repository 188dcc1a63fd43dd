//! An executor on the OpenMP threads that the process already has. After each of its parallel regions OpenMP's threads
//! spin for a while; a second pool would have to fight them for the cores, in just the pattern of a model: framework
//! op, our op, framework op.
#![allow(unsafe_code)]

use rquant::{Executor, Serial};
use std::ffi::{c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};

/// `void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)`: the entry that compiled
/// `#pragma omp parallel` calls, exported by GNU's and LLVM's runtimes.
type GompParallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

static ADOPTED: OnceLock<(GompParallel, u32)> = OnceLock::new();

/// Look for a loaded runtime; true once one was found.
pub(crate) fn adopt() -> bool {
    if ADOPTED.get().is_some() {
        return true;
    }
    // SAFETY: a lookup by a terminated name among the libraries that are loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
    if found.is_null() {
        return false;
    }
    // SAFETY: this symbol has had this signature since GCC 4.9.
    let entry = unsafe { std::mem::transmute::<*mut c_void, GompParallel>(found) };
    ADOPTED.get_or_init(|| (entry, std::process::id()));
    true
}

/// Some of the runtime's threads.
pub(crate) struct Team {
    enter: GompParallel,
    threads: usize,
}

impl Team {
    /// `None` without a runtime, and in a forked child, where its threads are gone.
    pub(crate) fn of(threads: usize) -> Option<Self> {
        let (enter, pid) = *ADOPTED.get()?;
        (pid == std::process::id()).then_some(Self { enter, threads })
    }
}

struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    next: AtomicUsize,
    tasks: usize,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

extern "C" fn work(job: *mut c_void) {
    // SAFETY: `run` passes its own `Job`, which outlives the parallel region.
    let job = unsafe { &*job.cast::<Job>() };
    let result = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let i = job.next.fetch_add(1, Relaxed);
            if i >= job.tasks {
                return;
            }
            (job.task)(i);
        }
    }));
    if let (Err(panic), Ok(mut first)) = (result, job.panic.lock()) {
        first.get_or_insert(panic);
    }
}

/// Each thread that enters the runtime gets a team of its own: callers at the same time would fight for the cores.
static BUSY: AtomicBool = AtomicBool::new(false);

// SAFETY: indices come from one counter, each once.
unsafe impl Executor for Team {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || BUSY.swap(true, Acquire) {
            return Serial.run(tasks, task);
        }
        let mut job = Job { task, next: AtomicUsize::new(0), tasks, panic: Mutex::new(None) };
        // always as many threads: GNU's runtime ends and starts threads when the number changes from region to region
        // SAFETY: `work` takes the `Job` it is given here, and the region ends before this call returns.
        unsafe { (self.enter)(work, (&raw mut job).cast(), self.threads as c_uint, 0) };
        BUSY.store(false, Release);
        if let Ok(Some(panic)) = job.panic.into_inner() {
            resume_unwind(panic);
        }
    }
}
