//! Planned, reported and observed bytes side by side, with the error of each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inventory::{DeviceId, InstanceId};
use crate::plan::PlannedInstance;
use crate::units::Bytes;

/// What an engine said in its log about the memory it took, by the names of a footprint's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reported(pub std::collections::BTreeMap<String, Bytes>);

/// One line of the ledger. What could not be had is `None`, never zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LedgerEntry {
    /// The instance.
    pub instance: InstanceId,
    /// The device.
    pub device: DeviceId,
    /// The term of the footprint, or `total`.
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

impl LedgerEntry {
    fn new(
        instance: &InstanceId,
        device: &DeviceId,
        term: &str,
        planned: Bytes,
        reported: Option<Bytes>,
        observed: Option<Bytes>,
    ) -> Self {
        let error = observed.or(reported).and_then(|evidence| planned.relative_error(evidence));
        let (instance, device, term) = (instance.clone(), device.clone(), term.to_owned());
        Self { instance, device, term, planned, reported, observed, error }
    }
}

/// The ledger of one instance: a line for each term that its engine reports, and the total.
/// `observed_peak` is the most that the process ever held.
pub fn entries(
    instance: &PlannedInstance,
    reported: Option<&Reported>,
    observed_peak: Option<Bytes>,
) -> Vec<LedgerEntry> {
    let mut entries = Vec::new();
    for share in &instance.shares {
        let line = |term: &str, planned, reported, observed| {
            LedgerEntry::new(&instance.id, &share.device, term, planned, reported, observed)
        };
        for term in &share.footprint.terms {
            let reported = reported.and_then(|reported| reported.0.get(&term.name)).copied();
            entries.push(line(&term.name, term.bytes, reported, None));
        }
        entries.push(line("total", share.footprint.total(), None, observed_peak));
    }
    entries
}
