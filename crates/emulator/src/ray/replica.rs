//! One engine for each application.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use berth_core::Bytes;
use berth_core::inventory::Node;
use berth_core::memory::vllm::Gpu;
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use super::{Card, PAUSE, Replica, Shared, ollama};
use crate::engine::{Engine, Pace};
use crate::vllm::serve as serve_engine;
use crate::vllm::start::{Taken, start};

/// Falling asleep and waking take so long.
const TOLD: Duration = Duration::from_millis(1200);

/// One engine for as long as its application is there: on its node when that is there, again when it ended.
pub(super) async fn keep(shared: Arc<Shared>, name: String, config: Value, runs_already: bool) {
    let mut is_first = true;
    loop {
        let node = place(&shared, &config).await;
        let pid = shared.inner().new_pid(&node);
        show(
            &shared,
            &name,
            "DEPLOYING",
            Some(Replica { node: node.clone(), state: "STARTING", pid }),
        );
        let start = Start {
            app: &name,
            args: &config["args"],
            node: &node,
            pid,
            runs_already: runs_already && is_first,
        };
        let ran = match start.args["library"].is_object() {
            true => ollama::run(&shared, &start).await,
            false => run(&shared, &start).await,
        };
        match ran {
            Ok(why) => {
                tracing::info!(app = name, why, "an emulated engine ended");
                show(&shared, &name, "UNHEALTHY", None);
            }
            Err(message) => {
                show(&shared, &name, "DEPLOY_FAILED", None);
                if let Some(app) = shared.inner().apps.get_mut(&name) {
                    app.message = message;
                }
                return;
            }
        }
        is_first = false;
        tokio::time::sleep(PAUSE).await;
    }
}

pub(super) fn show(shared: &Shared, name: &str, status: &'static str, replica: Option<Replica>) {
    if let Some(app) = shared.inner().apps.get_mut(name) {
        (app.status, app.replica) = (status, replica);
    }
    shared.changed.notify_waiters();
}

/// Waits for the node that an application is pinned to.
async fn place(shared: &Shared, config: &Value) -> String {
    let deployment = &config["deployments"][0];
    let selector = match &deployment["placement_group_bundle_label_selector"][0] {
        Value::Null => &deployment["ray_actor_options"]["label_selector"],
        bundle => bundle,
    };
    loop {
        let changed = shared.changed.notified();
        {
            let inner = shared.inner();
            let matches = |node: &&Node| {
                let mut asked = selector.as_object().into_iter().flatten();
                let holds = |(label, value): (&String, &Value)| match label.as_str() {
                    "ray.io/node-id" => *value == inner.id(&node.name),
                    label => node.labels.get(label).is_some_and(|is| value == is),
                };
                !inner.lost.contains(&node.name) && asked.all(holds)
            };
            if let Some(node) = shared.setup.nodes.iter().find(matches) {
                return node.name.clone();
            }
        }
        changed.await;
    }
}

/// One start of an application's engine.
pub(super) struct Start<'a> {
    /// The application's name.
    pub(super) app: &'a str,
    /// What the plan says of it.
    pub(super) args: &'a Value,
    /// Where it has its place.
    pub(super) node: &'a str,
    /// Its replica's process.
    pub(super) pid: u32,
    /// Whether it has started some time ago.
    pub(super) runs_already: bool,
}

impl Start<'_> {
    pub(super) fn instance(&self) -> &str {
        self.args["instance"].as_str().unwrap_or_default()
    }

    /// Where its engine listens.
    pub(super) fn address(&self) -> SocketAddr {
        let host = self.args["host"].as_str().and_then(|host| host.parse::<IpAddr>().ok());
        let port = self.args["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        SocketAddr::from((host.unwrap_or([127, 0, 0, 1].into()), port.unwrap_or(0)))
    }

    /// Says something in its log.
    pub(super) fn log(&self, shared: &Shared, line: &str) {
        shared.inner().logs.insert(self.instance().to_owned(), format!("berth: {line}\n"));
    }
}

/// The GPUs of an application's engine.
pub(super) fn cards(args: &Value, node: &str) -> Vec<Card> {
    let gpus = args["gpus"].as_array().into_iter().flatten();
    gpus.filter_map(|gpu| Some((node.to_owned(), gpu["id"].as_str()?.to_owned()))).collect()
}

/// Waits until a node is lost.
pub(super) async fn lost(shared: &Shared, node: &str) {
    loop {
        let changed = shared.changed.notified();
        if shared.inner().lost.contains(node) {
            return;
        }
        changed.await;
    }
}

/// Starts an engine and serves until it ends or its node is lost; says why. An error is one that another
/// start would meet again.
async fn run(shared: &Arc<Shared>, start: &Start<'_>) -> Result<String, String> {
    let Start { app, args, node, pid, runs_already } = *start;
    let cards = cards(args, node);
    let starting = async {
        if !runs_already {
            wait_for_earlier(shared, args, node).await;
        }
        let _one_at_a_time = lock(shared, &cards).await;
        let taken = take(shared, args, &cards, runs_already)?;
        if !runs_already {
            let seconds = taken.seconds / shared.setup.speedup;
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        }
        Ok::<Taken, String>(taken)
    };
    let taken = tokio::select! {
        taken = starting => taken?,
        () = lost(shared, node) => return Ok("its node was lost".to_owned()),
    };
    let held = Held::new(shared, start.instance(), &cards, &taken.bytes);
    let model = served_name(args);
    let engine = Arc::new(Engine::new(model, taken.pace, shared.setup.speedup));
    let address = start.address();
    let _server = serve_engine(address, Arc::clone(&engine)).await.map_err(|error| {
        ended(&format!("{address}: {error}"), 1, &["[Errno 98] address already in use".to_owned()])
    })?;
    show(shared, app, "RUNNING", Some(Replica { node: node.to_owned(), state: "RUNNING", pid }));
    let living = async {
        loop {
            tokio::time::sleep(PAUSE).await;
            if sleeps(shared, app) != engine.state().is_asleep {
                // Serve shows it so until `reconfigure` has returned.
                let of = |state| Some(Replica { node: node.to_owned(), state, pid });
                show(shared, app, "DEPLOYING", of("UPDATING"));
                tokio::time::sleep(TOLD).await;
                match turn(shared, app, &engine, &taken, &cards) {
                    Ok(()) => show(shared, app, "RUNNING", of("RUNNING")),
                    Err(why) => {
                        let line = "torch.OutOfMemoryError: CUDA out of memory. (emulated)";
                        engine.end(&why, 1, line);
                    }
                }
            }
            let is_asleep = engine.state().is_asleep && !taken.asleep.is_empty();
            let bytes = if is_asleep { &taken.asleep } else { &taken.bytes };
            let held_now = bytes.iter().map(|first| Bytes(first.0 + engine.leaked()));
            held.set(&held_now.collect::<Vec<_>>());
        }
    };
    Ok(until_ended(shared, node, &engine, living).await)
}

/// Whether an application's engine was told to sleep, as its replica's `reconfigure` is.
fn sleeps(shared: &Shared, app: &str) -> bool {
    let inner = shared.inner();
    let config = inner.apps.get(app).map(|app| &app.config["deployments"][0]["user_config"]);
    config.is_some_and(|config| config["sleep_level"].as_u64().unwrap_or(0) > 0)
}

/// Puts an engine to sleep or wakes it. It can't wake where its memory is gone.
fn turn(
    shared: &Shared,
    app: &str,
    engine: &Engine,
    taken: &Taken,
    cards: &[Card],
) -> Result<(), String> {
    let is_asleep = sleeps(shared, app);
    let more = taken.bytes.iter().zip(&taken.asleep).map(|(awake, asleep)| *awake - *asleep);
    for (card, more) in cards.iter().zip(more).filter(|_| !is_asleep) {
        let free = gpu(shared, card, false).map(|gpu| gpu.total - gpu.used_by_others);
        if free.is_some_and(|free| free < more) {
            return Err(format!("it could not wake: {more} of {} {} are not free", card.0, card.1));
        }
    }
    engine.set_asleep(is_asleep);
    Ok(())
}

/// Goes on with something until an engine ends or its node is lost; says why it ended.
pub(super) async fn until_ended(
    shared: &Shared,
    node: &str,
    engine: &Engine,
    beside: impl Future<Output = String>,
) -> String {
    let mut has_ended = engine.ended();
    tokio::select! {
        never = beside => never,
        ended = has_ended.wait_for(Option::is_some) => {
            let why = ended.ok().and_then(|ended| ended.clone());
            why.map_or_else(String::new, |ended| ended.why)
        }
        () = lost(shared, node) => "its node was lost".to_owned(),
    }
}

/// What an engine's clients ask for.
fn served_name(args: &Value) -> String {
    let words: Vec<&str> = words(args).collect();
    let named =
        |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1));
    let name = named("--served-model-name").or_else(|| named("--alias"));
    name.map_or_else(String::new, |name| (*name).to_owned())
}

fn words(args: &Value) -> impl Iterator<Item = &str> {
    args["command"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

pub(super) async fn wait_for_earlier(shared: &Shared, args: &Value, node: &str) {
    let after: Vec<&str> =
        args["after"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    loop {
        let changed = shared.changed.notified();
        {
            let inner = shared.inner();
            let is_coming = |instance: &&str| {
                inner.apps.values().any(|app| {
                    app.config["args"]["instance"] == **instance
                        && app.status == "DEPLOYING"
                        && app.replica.as_ref().is_some_and(|replica| replica.node == node)
                })
            };
            if !after.iter().any(is_coming) {
                return;
            }
        }
        changed.await;
    }
}

pub(super) async fn lock(shared: &Shared, cards: &[Card]) -> Vec<OwnedMutexGuard<()>> {
    let mut held = Vec::new();
    let sorted: BTreeSet<&Card> = cards.iter().collect();
    for card in sorted {
        if let Some(mutex) = shared.starting.get(card) {
            held.push(Arc::clone(mutex).lock_owned().await);
        }
    }
    held
}

/// Starts the engine of a command line on its GPUs beside what is there. What runs already takes what the plan
/// says.
fn take(
    shared: &Shared,
    args: &Value,
    cards: &[Card],
    runs_already: bool,
) -> Result<Taken, String> {
    let planned = args["gpus"].as_array().into_iter().flatten();
    let planned = planned.filter_map(|gpu| gpu["bytes"].as_u64()).map(Bytes).collect();
    let words: Vec<String> = words(args).map(str::to_owned).collect();
    let is_vllm = words.get(1).is_some_and(|word| word == "serve");
    let model = words.get(2).and_then(|path| shared.setup.models.get(path));
    let (true, Some(model)) = (is_vllm, model) else {
        // Another engine: it takes what is planned, and is as fast as a small one.
        let pace = Pace {
            weights_s: 0.02,
            prefill_s_per_token: 1e-4,
            cache_tokens: 8192,
            sequences: 4,
            longest: 8192,
            ..Pace::default()
        };
        return Ok(Taken { bytes: planned, asleep: Vec::new(), pace, seconds: 5.0 });
    };
    let flags: Vec<String> = own_flags(&words[3..]);
    let gpus = cards.iter().filter_map(|card| gpu(shared, card, runs_already));
    let gpus: Vec<Gpu> = gpus.collect();
    let started = start(model, &flags, &gpus, &shared.setup.vllm_version);
    if runs_already {
        shared.inner().proven.insert(flags.clone());
    }
    let is_alone = gpus.iter().all(|gpu| gpu.used_by_others == Bytes::ZERO);
    match started.outcome {
        Ok(taken) => Ok(taken),
        Err(_) if is_alone && shared.inner().proven.contains(&flags) => {
            let pace = Pace {
                weights_s: 0.03,
                prefill_s_per_token: 5e-4,
                cache_s_per_token: 1e-7,
                cache_tokens: 50_000,
                sequences: 256,
                longest: 8192,
            };
            Ok(Taken { bytes: planned, asleep: Vec::new(), pace, seconds: 60.0 })
        }
        Err(why) => Err(ended(&format!("it ended before it was ready: {why}"), 1, &started.log)),
    }
}

/// The words that memory depends on: where it listens and what it is called are others.
fn own_flags(words: &[String]) -> Vec<String> {
    let mut flags = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--served-model-name" | "--host" | "--port" => drop(words.next()),
            _ => flags.push(word.clone()),
        }
    }
    flags
}

/// A GPU with what is held there; as if it were empty for what has started some time ago.
pub(super) fn gpu(shared: &Shared, card: &Card, is_empty: bool) -> Option<Gpu> {
    let node = shared.node(&card.0)?;
    let device = node.devices.iter().find(|device| device.id.0 == card.1)?;
    let gpu = Gpu::of_device(device)?;
    let held: u64 = match is_empty {
        true => 0,
        false => shared.inner().held(card).map(|hold| hold.bytes).sum(),
    };
    Some(gpu.with_others(gpu.used_by_others + Bytes(held)))
}

/// What the module puts into Serve's message.
pub(super) fn ended(why: &str, code: i32, log: &[String]) -> String {
    format!("BERTH-ENDED {}", json!({ "why": why, "code": code, "log": log }))
}

/// What an engine holds of GPUs, for as long as it lives.
pub(super) struct Held {
    shared: Arc<Shared>,
    instance: String,
    cards: Vec<Card>,
}

impl Held {
    pub(super) fn new(
        shared: &Arc<Shared>,
        instance: &str,
        cards: &[Card],
        bytes: &[Bytes],
    ) -> Self {
        let (shared, instance) = (Arc::clone(shared), instance.to_owned());
        let held = Self { shared, instance, cards: cards.to_vec() };
        held.set(bytes);
        held
    }

    /// Holds so much of each GPU now.
    pub(super) fn set(&self, bytes: &[Bytes]) {
        let mut inner = self.shared.inner();
        for (card, bytes) in self.cards.iter().zip(bytes) {
            inner.hold(card, &self.instance, bytes.0);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.shared.inner();
        for card in &self.cards {
            if let Some(held) = inner.held.get_mut(card) {
                held.remove(&self.instance);
            }
        }
    }
}
