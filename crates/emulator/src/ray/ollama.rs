//! An Ollama server as the module's supervisor keeps one: pull, wait for its turn, load, and load again.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_core::Bytes;
use berth_core::memory::ollama::{Request, fit};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::replica::{
    Held, Start, cards, ended, gpu, lock, lost, show, until_ended, wait_for_earlier,
};
use super::{Card, PAUSE, Replica, Shared};
use crate::ollama::{Environment, Model, Ollama, serve};

/// Starts it and serves until it ends or its node is lost; says why.
pub(super) async fn run(shared: &Arc<Shared>, start: &Start<'_>) -> Result<String, String> {
    let Start { args, node, runs_already, .. } = *start;
    let name = args["library"]["name"].as_str().unwrap_or_default();
    let cards = cards(args, node);
    let environment = Environment::new(|name| Some(args["environment"][name].as_str()?.to_owned()));
    let pulled = shared.inner().pulled.entry(node.to_owned()).or_default().clone();
    if runs_already {
        drop(pulled.add(name));
    }
    let library =
        BTreeMap::from_iter(model(shared, args, &cards).map(|model| (name.to_owned(), model)));
    let ollama = Arc::new(Ollama::new(library, pulled, environment, shared.setup.speedup));
    let address = start.address();
    let _server = serve(address, Arc::clone(&ollama)).await.map_err(|error| {
        ended(&format!("{address}: {error}"), 1, &["bind: address already in use".to_owned()])
    })?;
    let starting = async {
        pull(shared, start, &ollama, name).await?;
        if !runs_already {
            wait_for_earlier(shared, args, node).await;
        }
        let _one_at_a_time = lock(shared, &cards).await;
        start.log(shared, &format!("loading {name}"));
        ollama.load(name, &json!({ "keep_alive": -1 })).await;
        Ok::<(), String>(())
    };
    tokio::select! {
        up = starting => up?,
        () = lost(shared, node) => return Ok("its node was lost".to_owned()),
    }
    let bytes: Vec<Bytes> = share(ollama.held(), cards.len());
    let held = Held::new(shared, start.instance(), &cards, &bytes);
    show(
        shared,
        start.app,
        "RUNNING",
        Some(Replica { node: node.to_owned(), state: "RUNNING", pid: start.pid }),
    );
    let looking = async {
        loop {
            tokio::time::sleep(PAUSE).await;
            held.set(&share(ollama.held() + ollama.engine().leaked(), cards.len()));
            if ollama.held() == 0 {
                ollama.load(name, &json!({ "keep_alive": -1 })).await;
            }
        }
    };
    Ok(until_ended(shared, node, ollama.engine(), looking).await)
}

async fn pull(
    shared: &Shared,
    start: &Start<'_>,
    ollama: &Ollama,
    name: &str,
) -> Result<(), String> {
    let (lines, mut said) = mpsc::channel::<Value>(16);
    let listening = async {
        let mut failed = None;
        while let Some(line) = said.recv().await {
            if let Some(error) = line["error"].as_str() {
                failed = Some(format!("{name} can't be pulled: {error}"));
            }
            let (done, total) = (line["completed"].as_u64().unwrap_or(0), line["total"].as_u64());
            if let Some(total) = total {
                start.log(shared, &format!("pulling {name}: {} of {}", Bytes(done), Bytes(total)));
            }
        }
        failed
    };
    let ((), failed) = tokio::join!(ollama.pull(name, lines), listening);
    match failed {
        None => Ok(()),
        Some(why) => {
            Err(format!("BERTH-ENDED {}", json!({ "why": why, "kind": "no_model", "log": [] })))
        }
    }
}

/// What the library has of it: as large as its facts say, and in memory what llama.cpp then takes.
fn model(shared: &Shared, args: &Value, cards: &[Card]) -> Option<Model> {
    let library = &args["library"];
    let facts = shared.setup.library.get(library["name"].as_str()?)?;
    let gpus: Vec<_> = cards.iter().filter_map(|card| gpu(shared, card, false)).collect();
    let number = |name: &str| args["environment"][name].as_str().and_then(|text| text.parse().ok());
    let request = Request {
        num_ctx: library["num_ctx"].as_u64(),
        num_parallel: number("OLLAMA_NUM_PARALLEL").unwrap_or(1),
        num_batch: library["num_batch"].as_u64(),
    };
    let free: Vec<Bytes> = gpus.iter().map(|gpu| gpu.total - gpu.used_by_others).collect();
    let total = gpus.iter().map(|gpu| gpu.total).sum();
    let (_, fit) = fit(facts, request, &free, total);
    let vram: Bytes = fit.devices.iter().map(|device| device.terms.total()).sum();
    Some(Model {
        size: facts.file_bytes.0,
        vram: vram.0,
        num_ctx: None,
        num_batch: request.num_batch,
    })
}

/// So many bytes over so many GPUs.
fn share(bytes: u64, gpus: usize) -> Vec<Bytes> {
    vec![Bytes(bytes / gpus.max(1) as u64); gpus]
}
