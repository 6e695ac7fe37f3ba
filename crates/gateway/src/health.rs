//! Whether engines are well, asked at their own endpoints: one that takes connections and answers nobody is found
//! before requests wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::handle::Shared;
use crate::routes::Upstream;
use crate::upstream::connection::Connection;

/// Between two questions to an engine.
const EVERY: Duration = Duration::from_secs(1);
/// An engine that takes longer is busy, or ill.
const LIMIT: Duration = Duration::from_secs(3);
/// Busy once is nothing.
const MOST_MISSED: u32 = 2;

/// Asks for ever.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut missed: HashMap<String, u32> = HashMap::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let mut asking = JoinSet::new();
        for upstream in shared.routes.load().upstreams().filter(|one| one.is_ready()) {
            if let Some(path) = upstream.instance.health_path.clone() {
                let upstream = Arc::clone(upstream);
                asking.spawn(async move {
                    let is_well =
                        tokio::time::timeout(LIMIT, ask(&upstream, &path)).await.unwrap_or(false);
                    (upstream, is_well)
                });
            }
        }
        let mut now = HashMap::new();
        while let Some(asked) = asking.join_next().await {
            let Ok((upstream, is_well)) = asked else { continue };
            if is_well {
                upstream.take_back();
                continue;
            }
            let count = missed.get(&upstream.instance.id).copied().unwrap_or(0) + 1;
            if count >= MOST_MISSED {
                upstream.put_out();
            }
            now.insert(upstream.instance.id.clone(), count);
        }
        missed = now;
    }
}

async fn ask(upstream: &Upstream, path: &str) -> bool {
    let address = upstream.instance.address;
    let Ok(mut connection) = Connection::open(address).await else { return false };
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    connection.ask(head.as_bytes(), &[]).await.is_ok_and(|answer| answer.status.is_success())
}
