//! A Ray cluster, emulated as far as berth sees one: the dashboard's HTTP, nodes with GPUs, and Serve, which
//! keeps one engine for each application, restarts it after a crash, and waits for its node.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_core::inventory::{DeviceKind, Node};
use berth_core::memory::vllm::Gpu;
use berth_core::model::hf_config::Transformer;
use hyper::Method;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::task::AbortHandle;

use crate::http::{Answer, Answers, Asked, Server, serve};
use crate::vllm::start::{Taken, start};
use crate::vllm::{Engine, Pace, serve as serve_engine};

/// Serve tries again after this long.
const PAUSE: Duration = Duration::from_millis(300);
/// Held on the first address of a network that is in use.
const GUARD_PORT: u16 = 18_000;
/// The label that names nodes.
pub const NAME_LABEL: &str = "machine";

/// What is emulated.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The machines.
    pub nodes: Vec<Node>,
    /// The models that engines can start, by what their command line calls them.
    pub models: BTreeMap<String, Transformer>,
    /// vLLM's version.
    pub vllm_version: String,
    /// How many times faster than real ones engines start and answer.
    pub speedup: f64,
}

/// An emulated cluster. It ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
    server: Server,
    /// Keeps other emulations off these addresses.
    _guard: TcpListener,
}

#[derive(Debug)]
struct Shared {
    setup: Setup,
    inner: Mutex<Inner>,
    /// Something has changed that a replica may wait for.
    changed: Notify,
    /// One start at a time on each GPU.
    starting: BTreeMap<Card, Arc<tokio::sync::Mutex<()>>>,
}

/// A node and the name of a GPU of it.
type Card = (String, String);

#[derive(Debug, Default)]
struct Inner {
    /// Nodes that are lost.
    lost: BTreeSet<String>,
    /// How often each node was lost: its id changes.
    lives: BTreeMap<String, u32>,
    apps: BTreeMap<String, App>,
    settings: Map<String, Value>,
    packages: BTreeSet<String>,
    /// Command lines of engines that ran from the beginning: what has run starts again, whatever is
    /// reckoned.
    proven: BTreeSet<Vec<String>>,
    /// Bytes of each instance on each GPU.
    held: BTreeMap<Card, BTreeMap<String, u64>>,
    next_pid: u32,
}

#[derive(Debug)]
struct App {
    config: Value,
    status: &'static str,
    message: String,
    replica: Option<Replica>,
    task: Option<AbortHandle>,
}

impl Drop for App {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[derive(Clone, Debug)]
struct Replica {
    node: String,
    state: &'static str,
    pid: u32,
}

impl Cluster {
    /// Starts it on a loopback port of its own.
    ///
    /// # Errors
    /// Where there is no port.
    pub async fn start(mut setup: Setup) -> io::Result<Self> {
        let (network, guard) = network()?;
        for (number, node) in setup.nodes.iter_mut().enumerate() {
            // Every machine has an address of its own within loopback.
            let [high, low] = u16::try_from(number + 1).unwrap_or(u16::MAX).to_be_bytes();
            node.address = Some(Ipv4Addr::new(127, network, high, low).to_string());
            node.labels.insert(NAME_LABEL.to_owned(), node.name.clone());
        }
        let cards = setup.nodes.iter().flat_map(|node| {
            let gpus = node.devices.iter().filter(|device| device.is_gpu());
            gpus.map(|gpu| ((node.name.clone(), gpu.id.0.clone()), Arc::default()))
        });
        let starting = cards.collect();
        let inner = Mutex::new(Inner { next_pid: 1000, ..Inner::default() });
        let shared = Arc::new(Shared { inner, changed: Notify::new(), starting, setup });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = serve(address, Arc::new(Dashboard(Arc::clone(&shared)))).await?;
        Ok(Self { shared, server, _guard: guard })
    }

    /// The dashboard's address.
    pub fn address(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Puts applications in place that run already, whether or not they could start anew.
    pub fn preload(&self, configs: &[Value]) {
        for config in configs {
            deploy(&self.shared, config, true);
        }
    }
}

/// A network within loopback that no other emulation has, and what keeps it so.
fn network() -> io::Result<(u8, TcpListener)> {
    let mut last = io::ErrorKind::AddrInUse.into();
    for network in 1..=250 {
        match TcpListener::bind((Ipv4Addr::new(127, network, 0, 0), GUARD_PORT)) {
            Ok(guard) => return Ok((network, guard)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.setup.nodes.iter().find(|node| node.name == name)
    }
}

impl Inner {
    fn id(&self, node: &str) -> String {
        let life = self.lives.get(node).copied().unwrap_or(0);
        format!("{:0>8x}{life:04x}", fingerprint(node))
    }
}

/// A number for a name: ids look like Ray's, and are the same every time.
fn fingerprint(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

struct Dashboard(Arc<Shared>);

impl Answers for Dashboard {
    async fn answer(&self, asked: Asked) -> Answer {
        let shared = &self.0;
        let path = asked.path.split('?').next().unwrap_or_default().to_owned();
        match (&asked.method, path.as_str()) {
            (_, "/api/version") => Answer::json(
                200,
                &json!({ "version": "4", "ray_version": "2.60.0", "emulated": true }),
            ),
            (_, "/api/v0/nodes") => Answer::json(200, &nodes(shared)),
            (_, "/nodes") => Answer::json(200, &summary(shared)),
            (_, "/api/v0/actors") => {
                Answer::json(200, &json!({ "data": { "result": { "result": [] } } }))
            }
            (&Method::GET, "/api/serve/applications/") => Answer::json(200, &serving(shared)),
            (&Method::PUT, "/api/serve/applications/") => put(shared, &asked.json()),
            (method, path) if path.starts_with("/api/packages/gcs/") => {
                package(shared, method, path)
            }
            (&Method::POST, path) if path.starts_with("/emulator/nodes/") => {
                lose(shared, path.trim_start_matches("/emulator/nodes/"), &asked.json())
            }
            _ => Answer::text(404, "not found"),
        }
    }
}

fn package(shared: &Shared, method: &Method, path: &str) -> Answer {
    let mut inner = shared.inner();
    match *method {
        Method::PUT => {
            inner.packages.insert(path.to_owned());
            Answer::text(200, "")
        }
        _ if inner.packages.contains(path) => Answer::text(200, ""),
        _ => Answer::text(404, "not found"),
    }
}

/// Loses a machine, or brings it back: `{"alive": false}`.
fn lose(shared: &Shared, name: &str, body: &Value) -> Answer {
    let (Some(alive), Some(_)) = (body["alive"].as_bool(), shared.node(name)) else {
        return Answer::text(400, "POST {\"alive\": false} to a node that there is\n");
    };
    let mut inner = shared.inner();
    if alive {
        if inner.lost.remove(name) {
            *inner.lives.entry(name.to_owned()).or_default() += 1;
        }
    } else {
        inner.lost.insert(name.to_owned());
    }
    drop(inner);
    shared.changed.notify_waiters();
    Answer::text(200, "")
}

fn nodes(shared: &Shared) -> Value {
    let inner = shared.inner();
    let node = |node: &Node| {
        let gpus = node.devices.iter().filter(|device| device.is_gpu()).count();
        let id = inner.id(&node.name);
        let mut labels = node.labels.clone();
        labels.insert("ray.io/node-id".to_owned(), id.clone());
        json!({
            "node_id": id,
            "node_ip": node.address,
            "state": if inner.lost.contains(&node.name) { "DEAD" } else { "ALIVE" },
            "resources_total": { "CPU": 32.0, "GPU": gpus as f64 },
            "labels": labels,
        })
    };
    let all: Vec<Value> = shared.setup.nodes.iter().map(node).collect();
    json!({ "result": true, "data": { "result": { "total": all.len(), "result": all } } })
}

fn summary(shared: &Shared) -> Value {
    let inner = shared.inner();
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    let node = |node: &Node| {
        let gpus = node.devices.iter().filter_map(|device| {
            let DeviceKind::Gpu { index, name } = &device.kind else { return None };
            let card = (node.name.clone(), device.id.0.clone());
            let held: u64 = inner.held.get(&card).into_iter().flatten().map(|(_, held)| held).sum();
            Some(json!({
                "index": index, "name": name, "uuid": device.id,
                "memoryTotal": mib(device.total.0),
                "memoryUsed": mib(device.used_by_others.0 + held),
            }))
        });
        let gpus: Vec<Value> = gpus.collect();
        json!({
            "hostname": node.name, "ip": node.address, "gpus": gpus,
            "raylet": { "nodeId": inner.id(&node.name), "state": "ALIVE" },
        })
    };
    let all: Vec<Value> = shared.setup.nodes.iter().map(node).collect();
    json!({ "result": true, "data": { "summary": all } })
}

fn serving(shared: &Shared) -> Value {
    let inner = shared.inner();
    let app = |(name, app): (&String, &App)| {
        let replica = |replica: &Replica| {
            json!({
                "replica_id": name, "state": replica.state, "pid": replica.pid,
                "node_id": inner.id(&replica.node),
            })
        };
        let replicas: Vec<Value> = app.replica.iter().map(replica).collect();
        let value = json!({
            "name": name, "status": app.status, "message": app.message,
            "deployed_app_config": app.config,
            "deployments": { "Engine": { "message": "", "replicas": replicas } },
        });
        (name.clone(), value)
    };
    let apps: Map<String, Value> = inner.apps.iter().map(app).collect();
    let mut answer = inner.settings.clone();
    answer.insert("applications".to_owned(), Value::Object(apps));
    Value::Object(answer)
}

/// What is not in the config goes, what is new or has changed comes.
fn put(shared: &Arc<Shared>, config: &Value) -> Answer {
    let Some(wanted) = config["applications"].as_array() else {
        return Answer::text(400, "applications: Field required");
    };
    let name = |config: &Value| config["name"].as_str().unwrap_or("default").to_owned();
    let names: BTreeSet<String> = wanted.iter().map(name).collect();
    if names.len() < wanted.len() {
        return Answer::text(
            400,
            "applications: Found multiple configs for the same application name",
        );
    }
    let mut inner = shared.inner();
    let gone: Vec<String> =
        inner.apps.keys().filter(|name| !names.contains(*name)).cloned().collect();
    let gone: Vec<Option<App>> = gone.iter().map(|name| inner.apps.remove(name)).collect();
    drop(inner);
    drop(gone);
    for config in wanted {
        let is_same = shared.inner().apps.get(&name(config)).is_some_and(|app| {
            let without = |config: &Value| {
                let mut config = config.clone();
                config["deployments"][0]["user_config"] = Value::Null;
                config
            };
            without(&app.config) == without(config)
        });
        if !is_same {
            deploy(shared, config, false);
        } else if let Some(app) = shared.inner().apps.get_mut(&name(config)) {
            app.config = config.clone();
        }
    }
    shared.changed.notify_waiters();
    Answer::text(200, "")
}

/// Puts an application in place. One that runs already has started some time ago.
fn deploy(shared: &Arc<Shared>, config: &Value, runs_already: bool) {
    let name = config["name"].as_str().unwrap_or("default").to_owned();
    let is_engine = config["args"]["command"].is_array();
    let status = if is_engine { "DEPLOYING" } else { "RUNNING" };
    let app =
        App { config: config.clone(), status, message: String::new(), replica: None, task: None };
    let before = shared.inner().apps.insert(name.clone(), app);
    drop(before);
    if is_engine {
        let task =
            tokio::spawn(keep(Arc::clone(shared), name.clone(), config.clone(), runs_already));
        if let Some(app) = shared.inner().apps.get_mut(&name) {
            app.task = Some(task.abort_handle());
        }
    }
}

/// One engine for as long as its application is there: on its node when that is there, again when it ended.
async fn keep(shared: Arc<Shared>, name: String, config: Value, runs_already: bool) {
    let mut is_first = true;
    loop {
        let node = place(&shared, &config).await;
        let pid = {
            let mut inner = shared.inner();
            inner.next_pid += 1;
            inner.next_pid
        };
        show(
            &shared,
            &name,
            "DEPLOYING",
            Some(Replica { node: node.clone(), state: "STARTING", pid }),
        );
        match run(&shared, &name, &config, &node, pid, runs_already && is_first).await {
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

fn show(shared: &Shared, name: &str, status: &'static str, replica: Option<Replica>) {
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

/// Starts an engine and serves until it ends or its node is lost; says why. An error is one that another
/// start would meet again.
async fn run(
    shared: &Arc<Shared>,
    name: &str,
    config: &Value,
    node: &str,
    pid: u32,
    runs_already: bool,
) -> Result<String, String> {
    let args = &config["args"];
    let instance = args["instance"].as_str().unwrap_or_default();
    let cards: Vec<Card> = args["gpus"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|gpu| Some((node.to_owned(), gpu["id"].as_str()?.to_owned())))
        .collect();
    let lost = || async {
        loop {
            let changed = shared.changed.notified();
            if shared.inner().lost.contains(node) {
                return;
            }
            changed.await;
        }
    };
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
        () = lost() => return Ok("its node was lost".to_owned()),
    };
    let held = Held::new(shared, instance, &cards, &taken);
    let model = served_name(args);
    let engine = Arc::new(Engine::new(model, taken.pace, shared.setup.speedup));
    let host: IpAddr =
        args["host"].as_str().and_then(|host| host.parse().ok()).unwrap_or([127, 0, 0, 1].into());
    let port = args["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
    let address = SocketAddr::from((host, port));
    let _server = serve_engine(address, Arc::clone(&engine)).await.map_err(|error| {
        ended(&format!("{address}: {error}"), 1, &["[Errno 98] address already in use".to_owned()])
    })?;
    show(shared, name, "RUNNING", Some(Replica { node: node.to_owned(), state: "RUNNING", pid }));
    let mut has_ended = engine.ended();
    let leaking = async {
        loop {
            tokio::time::sleep(PAUSE).await;
            held.grow(engine.leaked());
        }
    };
    tokio::select! {
        () = leaking => Ok(String::new()),
        ended = has_ended.wait_for(Option::is_some) => {
            let why = ended.ok().and_then(|ended| ended.clone());
            Ok(why.map_or_else(String::new, |ended| ended.why))
        }
        () = lost() => Ok("its node was lost".to_owned()),
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

async fn wait_for_earlier(shared: &Shared, args: &Value, node: &str) {
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

async fn lock(shared: &Shared, cards: &[Card]) -> Vec<OwnedMutexGuard<()>> {
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
    let planned = planned.filter_map(|gpu| gpu["bytes"].as_u64()).map(berth_core::Bytes).collect();
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
        return Ok(Taken { bytes: planned, pace, seconds: 5.0 });
    };
    let flags: Vec<String> = own_flags(&words[3..]);
    let gpus = cards.iter().filter_map(|card| gpu(shared, card, runs_already));
    let gpus: Vec<Gpu> = gpus.collect();
    let started = start(model, &flags, &gpus, &shared.setup.vllm_version);
    if runs_already {
        shared.inner().proven.insert(flags.clone());
    }
    let is_alone = gpus.iter().all(|gpu| gpu.used_by_others == berth_core::Bytes::ZERO);
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
            Ok(Taken { bytes: planned, pace, seconds: 60.0 })
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
fn gpu(shared: &Shared, card: &Card, is_empty: bool) -> Option<Gpu> {
    let node = shared.node(&card.0)?;
    let device = node.devices.iter().find(|device| device.id.0 == card.1)?;
    let gpu = Gpu::of_device(device)?;
    let held: u64 = match is_empty {
        true => 0,
        false => shared.inner().held.get(card).into_iter().flatten().map(|(_, held)| held).sum(),
    };
    Some(gpu.with_others(gpu.used_by_others + berth_core::Bytes(held)))
}

/// What the module puts into Serve's message.
fn ended(why: &str, code: i32, log: &[String]) -> String {
    format!("BERTH-ENDED {}", json!({ "why": why, "code": code, "log": log }))
}

/// What an engine holds of GPUs, for as long as it lives.
struct Held {
    shared: Arc<Shared>,
    instance: String,
    cards: Vec<Card>,
    first: Vec<u64>,
}

impl Held {
    fn new(shared: &Arc<Shared>, instance: &str, cards: &[Card], taken: &Taken) -> Self {
        let mut inner = shared.inner();
        for (card, bytes) in cards.iter().zip(&taken.bytes) {
            inner.held.entry(card.clone()).or_default().insert(instance.to_owned(), bytes.0);
        }
        drop(inner);
        Self {
            shared: Arc::clone(shared),
            instance: instance.to_owned(),
            cards: cards.to_vec(),
            first: taken.bytes.iter().map(|bytes| bytes.0).collect(),
        }
    }
}

impl Held {
    /// Holds so much more of each GPU than at first.
    fn grow(&self, leaked: u64) {
        let mut inner = self.shared.inner();
        for (card, first) in self.cards.iter().zip(&self.first) {
            if let Some(held) = inner.held.get_mut(card) {
                held.insert(self.instance.clone(), first + leaked);
            }
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
