//! Planned, reported and observed bytes side by side, with the error of each.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inventory::{DeviceId, InstanceId};
use crate::memory::Footprint;
use crate::plan::PlannedInstance;
use crate::spec::EngineKind;
use crate::units::Bytes;

/// The name of the line that sets the most that was planned beside the most that was held.
pub const LIMIT: &str = "limit";

/// What is open of a figure that an engine logs: two decimals of MiB, and some terms are the sum of two such figures; or
/// of GiB.
fn log_rounding(engine: EngineKind) -> u64 {
    match engine {
        EngineKind::Vllm => (1 << 30) / 200 + 1,
        EngineKind::LlamaServer | EngineKind::Ollama => 2 * (1 << 20) / 200 + 1,
    }
}

/// What an engine said in its log about the memory it took, by the names of a footprint's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reported(pub BTreeMap<String, Bytes>);

/// One line of the ledger. What could not be had is `None`, never zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LedgerEntry {
    /// The instance.
    pub instance: InstanceId,
    /// The device.
    pub device: DeviceId,
    /// The term of the footprint, `resident when ready`, or `limit`.
    pub term: String,
    /// What the plan says.
    pub planned: Bytes,
    /// What the engine's log says.
    pub reported: Option<Bytes>,
    /// What the operating system or NVML says.
    pub observed: Option<Bytes>,
    /// How far the plan is from the best evidence there is: 0.02 is 2 % too much.
    pub error: Option<f64>,
}

/// What was seen of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence<'a> {
    /// What its engine logged.
    pub reported: Option<&'a Reported>,
    /// The most that its process held of the host until it was ready.
    pub peak_when_ready: Option<Bytes>,
    /// The most that its process has held of the host so far.
    pub peak: Option<Bytes>,
    /// The most that it was seen to hold of each GPU.
    pub held: BTreeMap<DeviceId, Bytes>,
}

/// The ledger of one instance: a line for each term, one for what was resident when it was ready,
/// and one for the limit that it was given.
pub fn entries(instance: &PlannedInstance, evidence: &Evidence<'_>) -> Vec<LedgerEntry> {
    let mut entries = Vec::new();
    for share in &instance.shares {
        let entry = |term: &str, planned, reported: Option<Bytes>, observed| LedgerEntry {
            instance: instance.id.clone(),
            device: share.device.clone(),
            term: term.to_owned(),
            planned,
            reported,
            observed,
            error: error(planned, reported, observed, log_rounding(instance.engine)),
        };
        for (term, planned) in by_term(&share.footprint) {
            let reported = evidence.reported.and_then(|reported| reported.0.get(term)).copied();
            entries.push(entry(term, planned, reported, None));
        }
        let (when_ready, most) = match share.device == DeviceId::host() {
            true => (evidence.peak_when_ready, evidence.peak),
            false => (None, evidence.held.get(&share.device).copied()),
        };
        entries.push(entry("resident when ready", share.resident_ready, None, when_ready));
        // A limit is no prediction, so it has no error: it holds or it doesn't.
        let mut limit = entry(LIMIT, share.footprint.total(), None, most);
        limit.error = None;
        entries.push(limit);
    }
    entries
}

/// The bytes of each term, in the order of the footprint.
fn by_term(footprint: &Footprint) -> Vec<(&str, Bytes)> {
    let mut terms: Vec<(&str, Bytes)> = Vec::new();
    for term in &footprint.terms {
        match terms.iter_mut().find(|(name, _)| *name == term.name) {
            Some((_, bytes)) => *bytes += term.bytes,
            None => terms.push((&term.name, term.bytes)),
        }
    }
    terms
}

/// The plan's error against what was observed, else against what was reported.
fn error(
    planned: Bytes,
    reported: Option<Bytes>,
    observed: Option<Bytes>,
    rounding: u64,
) -> Option<f64> {
    match (observed, reported) {
        (Some(observed), _) => planned.relative_error(observed),
        (None, Some(reported)) if planned.0.abs_diff(reported.0) <= rounding => Some(0.0),
        (None, reported) => planned.relative_error(reported?),
    }
}
