//! Which instances serve a model now.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

/// All models by the name that clients ask for. A value: it is replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    models: BTreeMap<String, Vec<Arc<Upstream>>>,
}

/// One instance.
#[derive(Debug)]
pub struct Upstream {
    /// Its id, for logs and metrics.
    pub id: String,
    /// Where its engine listens.
    pub address: SocketAddr,
    /// What it is doing.
    pub state: UpstreamState,
    /// What the model is called there, where that is another name.
    pub name: Option<String>,
    load: Arc<Load>,
}

/// What is known of an instance beyond its route: it outlives changes of the routes.
#[derive(Debug, Default)]
struct Load {
    in_flight: AtomicU64,
    /// Milliseconds of the gateway's life until which it is only chosen where there is no other.
    out_until_ms: AtomicU64,
}

/// An instance that could not be reached is passed over for this long.
const OUT_MS: u64 = 2000;

/// Milliseconds since the first question.
fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// An instance that routes lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The model, by the name that clients ask for.
    pub model: String,
    /// Its id.
    pub id: String,
    /// Where its engine listens.
    pub address: SocketAddr,
    /// What it is doing.
    pub state: UpstreamState,
    /// What the model is called there, where that is another name.
    pub name: Option<String>,
}

/// What an instance is doing, as far as routing cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    /// It takes requests.
    Ready,
    /// It will take requests soon.
    Starting,
    /// It takes no more.
    Draining,
    /// It failed.
    Failed,
}

impl Routes {
    /// Routes to these instances. Counts of requests in flight go on from `before`; an instance that left
    /// stays, draining, until it has none.
    pub fn new(instances: impl IntoIterator<Item = Instance>, before: &Self) -> Self {
        let mut routes = Self::default();
        for Instance { model, id, address, state, name } in instances {
            let load = before.load(&id);
            routes.add(&model, Upstream { id, address, state, name, load });
        }
        for (model, upstreams) in &before.models {
            for left in upstreams.iter().filter(|upstream| upstream.in_flight() > 0) {
                if routes.upstreams().all(|upstream| upstream.id != left.id) {
                    let load = Arc::clone(&left.load);
                    let (id, address) = (left.id.clone(), left.address);
                    let state = UpstreamState::Draining;
                    let name = left.name.clone();
                    routes.add(model, Upstream { id, address, state, name, load });
                }
            }
        }
        routes
    }

    fn add(&mut self, model: &str, upstream: Upstream) {
        self.models.entry(model.to_owned()).or_default().push(Arc::new(upstream));
    }

    fn load(&self, id: &str) -> Arc<Load> {
        let known = self.upstreams().find(|upstream| upstream.id == id);
        known.map(|upstream| Arc::clone(&upstream.load)).unwrap_or_default()
    }

    /// The names of all models.
    pub fn names(&self) -> Vec<String> {
        self.models.keys().cloned().collect()
    }

    /// All instances.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.models.values().flatten()
    }

    /// The instances of a model; `None` where there is no such model.
    pub fn model(&self, name: &str) -> Option<&[Arc<Upstream>]> {
        self.models.get(name).map(Vec::as_slice)
    }

    /// Whether a model has an instance that takes requests.
    pub fn serves(&self, name: &str) -> bool {
        self.model(name).is_some_and(|upstreams| upstreams.iter().any(|u| u.is_ready()))
    }

    /// Whether every model has one.
    pub fn is_ready(&self) -> bool {
        !self.models.is_empty() && self.models.keys().all(|name| self.serves(name))
    }

    /// Requests in flight on an instance.
    pub fn in_flight(&self, id: &str) -> u64 {
        self.upstreams().filter(|u| u.id == id).map(|u| u.in_flight()).sum()
    }
}

impl Upstream {
    /// Whether it takes requests.
    pub fn is_ready(&self) -> bool {
        self.state == UpstreamState::Ready
    }

    /// Requests in flight on it.
    pub fn in_flight(&self) -> u64 {
        self.load.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request until the ticket is dropped.
    pub(crate) fn ticket(&self) -> Ticket {
        self.load.in_flight.fetch_add(1, Ordering::Relaxed);
        Ticket(Arc::clone(&self.load))
    }

    /// Notes that it could not be reached.
    pub(crate) fn put_out(&self) {
        self.load.out_until_ms.store(now_ms() + OUT_MS, Ordering::Relaxed);
    }

    /// Whether it could not be reached just now.
    pub(crate) fn is_out(&self) -> bool {
        now_ms() < self.load.out_until_ms.load(Ordering::Relaxed)
    }
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<Load>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
