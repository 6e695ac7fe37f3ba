//! How often a model's requests may be sent once more: an engine that fails them all doesn't get them all twice.

use std::sync::atomic::{AtomicI64, Ordering};

/// Of all requests so many in a thousand.
const PER_MILLE: i64 = 200;
/// What there is at first, and at most, in thousandths of a request.
const FIRST: i64 = 10 * 1000;
const MOST: i64 = 100 * 1000;

/// What is left to a model's requests together.
#[derive(Debug)]
pub(crate) struct Budget(AtomicI64);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(FIRST))
    }
}

impl Budget {
    /// A request was made.
    pub(crate) fn earn(&self) {
        let more = |left: i64| Some((left + PER_MILLE).min(MOST));
        _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Takes what one more sending costs; false where there isn't as much.
    pub(crate) fn take(&self) -> bool {
        let take = |left: i64| (left >= 1000).then_some(left - 1000);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}
