//! Requests for one token that changed engines are asked before they serve, beside the loop: a first token may take
//! long.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;

use berth_engines::{Cause, Diagnosis, health};
use tokio::task::JoinHandle;

/// Those that are on their way, by what is asked.
#[derive(Debug)]
pub(crate) struct Probes<K>(HashMap<K, JoinHandle<bool>>);

impl<K> Default for Probes<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash> Probes<K> {
    /// What came of asking a model at an address for one token; none while it is asked.
    pub(crate) async fn answer(
        &mut self,
        of: &K,
        address: SocketAddr,
        model: &str,
    ) -> Option<bool> {
        let model = model.to_owned();
        let ask = || tokio::spawn(async move { health::probe(address, &model).await });
        let probe = self.0.entry(of.clone()).or_insert_with(ask);
        if !probe.is_finished() {
            return None;
        }
        Some(self.0.remove(of)?.await.unwrap_or(false))
    }

    /// Forgets those of what is gone.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&K) -> bool) {
        self.0.retain(|of, _| is_there(of));
    }
}

/// Of an engine that is well and answers nothing.
pub(crate) fn no_answer() -> Diagnosis {
    Diagnosis {
        // It would do so again: what it was before is better.
        cause: Cause::CannotStart,
        message: "its health endpoint answers, and a request for one token doesn't".to_owned(),
        hint: "its log says what it was doing: in STATE/logs, or among Ray's in logs/berth"
            .to_owned(),
        evidence: None,
    }
}
