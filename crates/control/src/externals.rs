//! Servers that somebody else runs: asked now and then whether they answer, beside the loop.

use std::collections::HashMap;

use berth_core::spec::External;
use berth_engines::{Health, health};
use tokio::net::lookup_host;
use tokio::task::JoinHandle;

/// Between two questions to the same server.
const INTERVAL_MS: u64 = 1000;
/// What vLLM, llama-server and Ollama all answer once they serve.
const PATH: &str = "/v1/models";

/// A server and what it answered last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalStatus {
    /// The server.
    pub external: External,
    /// Its address; none while its host's name has none.
    pub address: Option<std::net::SocketAddr>,
    /// Whether it serves.
    pub is_ready: bool,
}

/// What is known of each.
#[derive(Debug, Default)]
pub struct Externals(HashMap<String, Seen>);

type Answer = (Option<std::net::SocketAddr>, bool);

#[derive(Debug, Default)]
struct Seen {
    last: Answer,
    asked_at_ms: u64,
    asking: Option<JoinHandle<Answer>>,
}

impl Externals {
    /// Asks those whose time has come, and says what is known of all.
    pub async fn look(&mut self, all: &[External], now_ms: u64) -> Vec<ExternalStatus> {
        self.0.retain(|id, _| all.iter().any(|external| external.id() == *id));
        let mut statuses = Vec::new();
        for external in all {
            let seen = self.0.entry(external.id()).or_default();
            if let Some(asking) = seen.asking.take_if(|asking| asking.is_finished()) {
                seen.last = asking.await.unwrap_or_default();
            }
            if seen.asking.is_none() && now_ms.saturating_sub(seen.asked_at_ms) >= INTERVAL_MS {
                seen.asked_at_ms = now_ms;
                seen.asking = Some(tokio::spawn(ask(external.host.clone(), external.port)));
            }
            let (address, is_ready) = seen.last;
            statuses.push(ExternalStatus { external: external.clone(), address, is_ready });
        }
        statuses
    }
}

async fn ask(host: String, port: u16) -> Answer {
    let found = lookup_host((host.as_str(), port)).await;
    let Some(address) = found.ok().and_then(|mut all| all.next()) else { return (None, false) };
    (Some(address), health::ask_at(address, PATH).await == Health::Ready)
}
