//! A Ray cluster, emulated as far as berth sees one: the dashboard's HTTP (`dashboard`), nodes with GPUs, and Serve, which
//! keeps one engine for each application (`replica`), restarts it after a crash, and waits for its node.

mod dashboard;
mod ollama;
mod replica;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_core::inventory::Node;
use berth_core::model::ModelFacts;
use berth_core::model::hf_config::Transformer;
use serde_json::{Map, Value};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::http::{Server, serve};
use crate::ollama::Pulled;
use dashboard::{Dashboard, deploy};

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
    /// The models that Ollama can pull, by the name that it has for them.
    pub library: BTreeMap<String, ModelFacts>,
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
    /// What each instance holds of each GPU.
    held: BTreeMap<Card, BTreeMap<String, Hold>>,
    /// What Ollama has pulled on each node.
    pulled: BTreeMap<String, Pulled>,
    /// The last line of each instance's log.
    logs: BTreeMap<String, String>,
    /// The last process of each node: numbers are the same on all of them, as real machines' may be.
    last_pids: BTreeMap<String, u32>,
}

/// What one process holds of a GPU: an engine has one for each of its GPUs.
#[derive(Clone, Copy, Debug)]
struct Hold {
    pid: u32,
    bytes: u64,
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
        let inner = Mutex::default();
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
    fn new_pid(&mut self, node: &str) -> u32 {
        let last = self.last_pids.entry(node.to_owned()).or_insert(1000);
        *last += 1;
        *last
    }

    /// Has somebody hold so much of a GPU.
    fn hold(&mut self, card: &Card, who: &str, bytes: u64) {
        let known = self.held.get(card).and_then(|held| held.get(who)).map(|hold| hold.pid);
        let pid = known.unwrap_or_else(|| self.new_pid(&card.0));
        self.held.entry(card.clone()).or_default().insert(who.to_owned(), Hold { pid, bytes });
    }

    fn held(&self, card: &Card) -> impl Iterator<Item = &Hold> {
        self.held.get(card).into_iter().flatten().map(|(_, hold)| hold)
    }

    fn id(&self, node: &str) -> String {
        let life = self.lives.get(node).copied().unwrap_or(0);
        format!("{:0>8x}{life:04x}", fingerprint(node))
    }
}

/// A number for a name: ids look like Ray's, and are the same every time.
fn fingerprint(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
