//! What can be pulled, what is there, and what is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::when::KeepAlive;
use crate::engine::{Engine, Pace};

/// Bytes of a second of pulling, and of loading.
const PULLS_PER_S: f64 = 100e6;
const LOADS_PER_S: f64 = 1e9;
/// Between two words about a pull.
const SAY_EVERY: Duration = Duration::from_millis(60);
const KEEP_ALIVE: KeepAlive = KeepAlive::For(Duration::from_secs(300));
/// Ollama's tier for less than 23 GiB of GPUs.
const SMALL_CONTEXT: u64 = 4096;

/// A model of the library.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Bytes of its file.
    pub size: u64,
    /// Bytes that it takes of GPUs once it is loaded.
    pub vram: u64,
    /// What its Modelfile sets: it comes before what the server's environment says.
    pub num_ctx: Option<u64>,
    /// The same, of the batch.
    pub num_batch: Option<u64>,
}

/// What the server's environment says.
#[derive(Clone, Debug)]
pub struct Environment {
    context_length: Option<u64>,
    keep_alive: KeepAlive,
    num_parallel: u64,
}

impl Environment {
    /// Of variables as Ollama names them.
    pub fn new(get: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name| get(name).and_then(|text| text.parse::<u64>().ok());
        let keep_alive = get("OLLAMA_KEEP_ALIVE").map(Value::from);
        Self {
            context_length: number("OLLAMA_CONTEXT_LENGTH").filter(|length| *length > 0),
            keep_alive: keep_alive.as_ref().and_then(KeepAlive::read).unwrap_or(KEEP_ALIVE),
            num_parallel: number("OLLAMA_NUM_PARALLEL").unwrap_or(1).max(1),
        }
    }
}

/// The models that are on a machine's disk; servers of one machine share them.
#[derive(Clone, Debug, Default)]
pub struct Pulled {
    names: Arc<Mutex<BTreeSet<String>>>,
    /// Where that is kept, one empty file a model.
    folder: Option<PathBuf>,
}

impl Pulled {
    /// What a folder has; it is made where it isn't there.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn in_folder(folder: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&folder)? {
            names.insert(entry?.file_name().to_string_lossy().replace("%2F", "/"));
        }
        Ok(Self { names: Arc::new(Mutex::new(names)), folder: Some(folder) })
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a model.
    pub(crate) fn add(&self, name: &str) -> std::io::Result<()> {
        if let Some(folder) = &self.folder {
            std::fs::write(folder.join(name.replace('/', "%2F")), "")?;
        }
        self.names().insert(whole(name));
        Ok(())
    }
}

/// A server.
#[derive(Debug)]
pub struct Ollama {
    library: BTreeMap<String, Model>,
    pulled: Pulled,
    environment: Environment,
    /// What its models have in common: how fast they are.
    pub(super) engine: Arc<Engine>,
    speedup: f64,
    loaded: Mutex<Option<Loaded>>,
    /// One load at a time.
    loading: tokio::sync::Mutex<()>,
}

/// The model in memory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Loaded {
    pub(super) name: String,
    pub(super) num_ctx: u64,
    /// None is for ever.
    pub(super) until: Option<Instant>,
}

impl Ollama {
    /// A server on a machine that has pulled some models.
    pub fn new(
        library: BTreeMap<String, Model>,
        pulled: Pulled,
        environment: Environment,
        speedup: f64,
    ) -> Self {
        let library = library.into_iter().map(|(name, model)| (whole(&name), model)).collect();
        let pace = Pace {
            weights_s: 0.02,
            prefill_s_per_token: 1e-4,
            cache_tokens: u64::MAX / 2,
            sequences: environment.num_parallel,
            longest: u64::MAX / 2,
            ..Pace::default()
        };
        Self {
            library,
            pulled,
            engine: Arc::new(Engine::new(String::new(), pace, speedup)),
            environment,
            speedup,
            loaded: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// The engine that answers: it says when the server has ended.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The models that are there.
    pub(super) fn there(&self) -> Vec<(String, &Model)> {
        let names = self.pulled.names();
        let there = names.iter().filter_map(|name| Some((name.clone(), self.library.get(name)?)));
        there.collect()
    }

    /// The model of a name that is there.
    pub(super) fn model(&self, name: &str) -> Option<&Model> {
        let name = whole(name);
        self.library.get(&name).filter(|_| self.pulled.names().contains(&name))
    }

    /// The model in memory, unless its time is up.
    pub(super) fn loaded(&self) -> Option<Loaded> {
        let mut loaded = self.slot();
        loaded.take_if(|one| one.until.is_some_and(|until| until <= Instant::now()));
        loaded.clone()
    }

    /// Bytes of GPUs that are held now.
    pub fn held(&self) -> u64 {
        let model = self.loaded().and_then(|one| self.library.get(&one.name));
        model.map_or(0, |model| model.vram)
    }

    fn slot(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pulls a model; each line goes to `lines` as it comes. What was pulled before is there at once.
    pub async fn pull(&self, name: &str, lines: mpsc::Sender<Value>) {
        let name = whole(name);
        let say = async |line: Value| drop(lines.send(line).await);
        say(json!({ "status": "pulling manifest" })).await;
        let Some(model) = self.library.get(&name) else {
            say(json!({ "error": "pull model manifest: file does not exist" })).await;
            return;
        };
        let digest = digest(&name);
        let status = format!("pulling {}", &digest[..12]);
        let line = |done: u64| {
            let mut line = json!({ "status": status, "digest": format!("sha256:{digest}"), "total": model.size });
            if done > 0 {
                line["completed"] = json!(done);
            }
            line
        };
        let mut done = if self.pulled.names().contains(&name) { model.size } else { 0 };
        while done < model.size {
            say(line(done)).await;
            tokio::time::sleep(SAY_EVERY).await;
            if lines.is_closed() {
                return;
            }
            let step = PULLS_PER_S * self.speedup * SAY_EVERY.as_secs_f64();
            done = done.saturating_add(step as u64).min(model.size);
        }
        say(line(done)).await;
        let last = match self.pulled.add(&name) {
            Ok(()) => json!({ "status": "success" }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        for status in ["verifying sha256 digest", "writing manifest"] {
            say(json!({ "status": status })).await;
        }
        say(last).await;
    }

    /// Sees to it that a model is in memory, as a request asks for it, instead of any other. False where it
    /// isn't there.
    pub async fn load(&self, name: &str, request: &Value) -> bool {
        let Some(model) = self.model(name).cloned() else { return false };
        let name = whole(name);
        let asked = request["options"]["num_ctx"].as_u64();
        let num_ctx = asked.or(model.num_ctx).or(self.environment.context_length);
        let num_ctx = num_ctx.unwrap_or(SMALL_CONTEXT);
        let _one_at_a_time = self.loading.lock().await;
        let is_there = |one: &Loaded| one.name == name && one.num_ctx == num_ctx;
        if !self.loaded().as_ref().is_some_and(is_there) {
            self.slot().take();
            let seconds = 1.0 + model.size as f64 / LOADS_PER_S;
            tokio::time::sleep(Duration::from_secs_f64(seconds / self.speedup)).await;
        }
        let keep_alive =
            KeepAlive::read(&request["keep_alive"]).unwrap_or(self.environment.keep_alive);
        let until = match keep_alive {
            KeepAlive::Forever => None,
            KeepAlive::For(time) => Instant::now().checked_add(time),
        };
        *self.slot() = Some(Loaded { name, num_ctx, until });
        true
    }

    /// Lets a model go.
    pub(super) fn unload(&self, name: &str) {
        self.slot().take_if(|one| one.name == whole(name));
    }
}

/// A name with its tag.
pub(super) fn whole(name: &str) -> String {
    let name = name.to_lowercase();
    match name.rsplit('/').next().unwrap_or_default().contains(':') {
        true => name,
        false => format!("{name}:latest"),
    }
}

/// A digest, the same for the same name.
pub(super) fn digest(name: &str) -> String {
    berth_core::Digest::of(&name).to_string()
}
