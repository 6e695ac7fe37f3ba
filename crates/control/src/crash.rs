//! Places at which a test may have the process killed, as by kill -9. Builds for release have none.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of the point at which to die, from the environment.
static DEADLY: LazyLock<Option<u64>> =
    LazyLock::new(|| std::env::var("BERTH_CRASH_AT").ok()?.parse().ok());
static PASSED: AtomicU64 = AtomicU64::new(0);

/// A place between two steps. With `BERTH_CRASH_AT=N` in the environment of a debug build, the
/// process gets SIGKILL at the Nth place that it comes to.
pub fn point() {
    if !cfg!(debug_assertions) {
        return;
    }
    let passed = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    if *DEADLY == Some(passed) {
        let own = rustix::process::getpid();
        if rustix::process::kill_process(own, rustix::process::Signal::KILL).is_ok() {
            // The signal comes before the call returns.
            std::thread::park();
        }
    }
}
