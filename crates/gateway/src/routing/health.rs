//! Whether engines are well, asked at their own endpoints: one that takes connections and answers nobody is found
//! before requests wait for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::routing::routes::Upstream;
use crate::shared::Shared;
use crate::upstream::connection::Connection;

/// Between two questions to an engine.
const EVERY: Duration = Duration::from_secs(1);
/// An engine that takes longer is busy, or ill.
const LIMIT: Duration = Duration::from_secs(3);
/// Busy once is nothing.
const MOST_MISSED: u32 = 2;

/// Asks for ever: each engine every so often, and none a second time before it has answered.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut missed: HashMap<String, u32> = HashMap::new();
    let mut asked: HashSet<String> = HashSet::new();
    let mut asking = JoinSet::new();
    let mut turn = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = turn.tick() => {
                let routes = shared.routes.load();
                for upstream in routes.upstreams().filter(|one| one.is_ready()) {
                    let Some(path) = upstream.instance.health_path.clone() else { continue };
                    if asked.insert(upstream.instance.id.clone()) {
                        asking.spawn(answer(Arc::clone(upstream), path));
                    }
                }
            }
            Some(answer) = asking.join_next() => {
                let Ok((upstream, is_well)) = answer else { continue };
                let id = &upstream.instance.id;
                asked.remove(id);
                let count = if is_well { 0 } else { missed.get(id).copied().unwrap_or(0) + 1 };
                match count {
                    0 => drop(missed.remove(id)),
                    _ => _ = missed.insert(id.clone(), count),
                }
                upstream.set_ill(count >= MOST_MISSED);
            }
        }
    }
}

async fn answer(upstream: Arc<Upstream>, path: String) -> (Arc<Upstream>, bool) {
    let is_well = tokio::time::timeout(LIMIT, ask(&upstream, &path)).await.unwrap_or(false);
    (upstream, is_well)
}

async fn ask(upstream: &Upstream, path: &str) -> bool {
    let address = upstream.instance.address;
    let Ok(mut connection) = Connection::open(address).await else { return false };
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    connection.ask(head.as_bytes(), &[]).await.is_ok_and(|answer| answer.status.is_success())
}
