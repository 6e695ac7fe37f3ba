//! What all requests of a gateway share.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::routing::routes::{Model, Routes};
use crate::routing::table::Table;
use crate::settings::Settings;

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) routes: ArcSwap<Routes>,
    pub(crate) keys: ArcSwap<Option<Keys>>,
    pub(crate) metrics: Metrics,
    pub(crate) phase: watch::Sender<Phase>,
    /// Requests that were taken and not answered yet.
    pub(crate) underway: AtomicU64,
    /// Held while routes are exchanged: what is in flight must not be lost between two who do.
    changing: Mutex<()>,
}

/// How far a gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It takes requests.
    Serving,
    /// It finishes what it has taken, and says so to others.
    Draining,
    /// Nothing runs any more.
    Ending,
}

impl Shared {
    /// What a gateway begins with: no routes, and no keys.
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            routes: ArcSwap::default(),
            keys: ArcSwap::default(),
            metrics: Metrics::default(),
            phase: watch::Sender::new(Phase::Serving),
            underway: AtomicU64::new(0),
            changing: Mutex::default(),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.phase.borrow() != Phase::Serving
    }

    /// Gives room on a model's instances to those who wait for it.
    pub(crate) fn pump(&self, model: &Model) {
        if model.life.queue.len() > 0
            && let Some(model) = self.routes.load().model(&model.name)
        {
            model.life.queue.pump(model);
        }
    }

    /// Exchanges the routes for those of another table.
    pub(crate) fn exchange(&self, table: impl FnOnce(&Routes) -> Table) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.routes.load();
        let routes = Routes::new(table(&before), &before, &self.metrics);
        self.routes.store(Arc::new(routes));
    }
}
