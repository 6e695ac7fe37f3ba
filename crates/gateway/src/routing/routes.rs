//! What the table comes to while requests run: instances with what is in flight on them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use crate::keys::Allowed;
use crate::metrics::{Metrics, OfModel};
use crate::routing::admit::Queue;
use crate::routing::affinity::{Affinity, place};
use crate::routing::retry::Budget;
use crate::routing::table::{Instance, Table, UpstreamState};

/// All models by the name that clients ask for. It is replaced as a whole.
#[derive(Debug, Default)]
pub struct Routes {
    models: HashMap<String, Arc<Model>>,
    /// Instances that left with requests in flight.
    leaving: Vec<Arc<Upstream>>,
    /// What they were made of.
    pub(crate) table: Table,
}

/// One model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    /// Its deployments.
    pub(crate) groups: Vec<Group>,
    pub(crate) life: Arc<Life>,
}

/// What outlives changes of a model's routes.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) metrics: OfModel,
    pub(crate) queue: Queue,
    pub(crate) affinity: Affinity,
    pub(crate) budget: Budget,
}

/// The instances of one deployment.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) weight: u32,
    /// Its name as a number.
    pub(crate) seed: u64,
    pub(crate) upstreams: Vec<Arc<Upstream>>,
}

/// One instance.
#[derive(Debug)]
pub struct Upstream {
    /// What is said of it.
    pub instance: Instance,
    pub(crate) load: Arc<Load>,
}

/// What is known of an instance beyond its route: it outlives changes of the routes.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: AtomicU64,
    /// Requests that have ended.
    ended: AtomicU64,
    /// Tokens of what is in flight, as far as the gateway can tell.
    tokens: AtomicU64,
    /// Milliseconds of the gateway's life until which it is only chosen where there is no other.
    out_until_ms: AtomicU64,
    /// Whether its engine says that it isn't well, or says nothing.
    is_ill: AtomicBool,
}

/// An instance that could not be reached is passed over for this long.
const OUT_MS: u64 = 1500;

/// Milliseconds since the first question.
fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Routes {
    /// The routes of a table. What is in flight goes on from `before`; an instance that left is counted until it has
    /// none.
    pub(crate) fn new(table: Table, before: &Self, metrics: &Metrics) -> Self {
        let mut models: BTreeMap<String, BTreeMap<String, Group>> = BTreeMap::new();
        let known: HashMap<String, Arc<Load>> = before
            .upstreams()
            .map(|one| (one.instance.id.clone(), Arc::clone(&one.load)))
            .collect();
        let mut here = Vec::new();
        for instance in table.instances.iter().cloned() {
            let load = known.get(&instance.id).cloned().unwrap_or_default();
            here.push(instance.id.clone());
            let groups = models.entry(instance.model.clone()).or_default();
            let group = groups.entry(instance.deployment.clone());
            let group = group.or_insert(Group {
                weight: instance.weight,
                seed: place(&instance.deployment),
                upstreams: Vec::new(),
            });
            group.upstreams.push(Arc::new(Upstream { instance, load }));
        }
        let is_leaving =
            |one: &&Arc<Upstream>| one.in_flight() > 0 && !here.contains(&one.instance.id);
        let leaving: Vec<Arc<Upstream>> = before.upstreams().filter(is_leaving).cloned().collect();
        for one in &leaving {
            // A model whose last instance drains is still known.
            models.entry(one.instance.model.clone()).or_default();
        }
        let model = |(name, groups): (String, BTreeMap<String, Group>)| {
            let life = before.models.get(&name).map(|model| Arc::clone(&model.life));
            let life = life.unwrap_or_else(|| {
                let metrics = metrics.of_model(&name);
                Arc::new(Life {
                    metrics,
                    queue: Queue::default(),
                    affinity: Affinity::default(),
                    budget: Budget::default(),
                })
            });
            let groups = groups.into_values().collect();
            (name.clone(), Arc::new(Model { name, groups, life }))
        };
        let mut models: HashMap<String, Arc<Model>> = models.into_iter().map(model).collect();
        for (alias, name) in &table.aliases {
            if let Some(model) = models.get(name).cloned() {
                models.entry(alias.clone()).or_insert(model);
            }
        }
        for (name, model) in &before.models {
            if !models.contains_key(name) {
                model.life.queue.dismiss();
            }
        }
        Self { models, leaving, table }
    }

    /// Whether instances have left and were kept for what is in flight on them.
    pub(crate) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// The names of all models, aliases too, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.models.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// The names that somebody may use, in order.
    pub(crate) fn names_for(&self, allowed: &Allowed) -> Vec<String> {
        let mut names = self.names();
        names.retain(|name| self.model(name).is_some_and(|model| allowed.has(&model.name)));
        names
    }

    pub(crate) fn model(&self, name: &str) -> Option<&Arc<Model>> {
        self.models.get(name)
    }

    pub(crate) fn models(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.values()
    }

    /// All instances, those on their way out too.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        // An alias leads to the same model.
        let own = self.models.iter().filter(|(name, model)| **name == model.name);
        own.flat_map(|(_, model)| model.upstreams()).chain(&self.leaving)
    }

    /// Whether a model has an instance that takes requests, or would once it is woken.
    pub(crate) fn serves(&self, name: &str) -> bool {
        let model = self.model(name);
        model.is_some_and(|model| model.upstreams().any(|one| one.is_ready() || one.is_asleep()))
    }

    /// Whether every model has an instance that takes requests.
    pub(crate) fn is_ready(&self) -> bool {
        // A model without instances has left, but for what is in flight.
        let mut there = self.models.iter().filter(|(_, model)| !model.groups.is_empty());
        there.all(|(name, _)| self.serves(name))
    }

    /// Requests in flight on each instance that has any.
    pub fn all_in_flight(&self) -> BTreeMap<String, u64> {
        let busy = self.upstreams().filter(|one| one.in_flight() > 0);
        busy.map(|one| (one.instance.id.clone(), one.in_flight())).collect()
    }

    /// Requests that have ended, by instance.
    pub fn all_ended(&self) -> BTreeMap<String, u64> {
        let of = |one: &Arc<Upstream>| (one.instance.id.clone(), one.ended());
        self.upstreams().map(of).collect()
    }

    /// Requests that have ended on an instance.
    pub fn ended(&self, id: &str) -> u64 {
        self.upstreams().filter(|one| one.instance.id == id).map(|one| one.ended()).sum()
    }

    /// Requests that wait, by model.
    pub fn all_waiting(&self) -> BTreeMap<String, u64> {
        let waiting =
            self.models.values().map(|model| (model.name.clone(), self.waiting(&model.name)));
        waiting.filter(|(_, count)| *count > 0).collect()
    }

    /// Requests that wait for room on a model's instances.
    pub fn waiting(&self, model: &str) -> u64 {
        self.model(model).map_or(0, |model| model.life.queue.len() as u64)
    }

    /// Requests in flight on an instance.
    pub fn in_flight(&self, id: &str) -> u64 {
        self.upstreams().filter(|one| one.instance.id == id).map(|one| one.in_flight()).sum()
    }
}

impl Model {
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.groups.iter().flat_map(|group| &group.upstreams)
    }
}

impl Upstream {
    /// Whether it takes requests.
    pub fn is_ready(&self) -> bool {
        matches!(self.instance.state, UpstreamState::Ready | UpstreamState::OnTrial)
    }

    /// Whether it takes requests once it is woken.
    pub(crate) fn is_asleep(&self) -> bool {
        self.instance.state == UpstreamState::Asleep
    }

    /// Requests in flight on it.
    pub fn in_flight(&self) -> u64 {
        self.load.in_flight.load(Ordering::Relaxed)
    }

    fn ended(&self) -> u64 {
        self.load.ended.load(Ordering::Relaxed)
    }

    /// Tokens in flight on it.
    pub(crate) fn tokens(&self) -> u64 {
        self.load.tokens.load(Ordering::Relaxed)
    }

    /// Takes room for a request of so many tokens; none where there isn't as much. One that is larger than the whole
    /// cache is the engine's to refuse.
    pub(crate) fn take(&self, tokens: u64) -> Option<Ticket> {
        let fits = |used: u64| {
            let limit = self.instance.cache_tokens.unwrap_or(u64::MAX);
            (used == 0 || used.saturating_add(tokens) <= limit).then(|| used.saturating_add(tokens))
        };
        let order = Ordering::Relaxed;
        self.load.tokens.fetch_update(order, order, fits).ok()?;
        self.load.in_flight.fetch_add(1, order);
        Some(Ticket { load: Arc::clone(&self.load), tokens })
    }

    /// Notes that it could not be reached.
    pub(crate) fn put_out(&self) {
        self.load.out_until_ms.store(now_ms() + OUT_MS, Ordering::Relaxed);
    }

    /// Notes what its engine says of itself. One that is well again gets requests at once.
    pub(crate) fn set_ill(&self, is_ill: bool) {
        if self.load.is_ill.swap(is_ill, Ordering::Relaxed) && !is_ill {
            self.load.out_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it is ill, or could not be reached just now.
    pub(crate) fn is_out(&self) -> bool {
        let until = self.load.out_until_ms.load(Ordering::Relaxed);
        self.load.is_ill.load(Ordering::Relaxed) || (until > 0 && now_ms() < until)
    }
}

/// Room for a request on an instance, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    load: Arc<Load>,
    tokens: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.load.ended.fetch_add(1, Ordering::Relaxed);
        self.load.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}
