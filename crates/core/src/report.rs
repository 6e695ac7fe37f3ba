//! Why a plan is as it is: for each decision what was tried and what it came to, in bytes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::inventory::DeviceId;
use crate::memory::{Footprint, Verdict};
use crate::plan::PlannedDevice;

/// The report that goes with a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanReport {
    /// Whether everything fits.
    pub verdict: PlanVerdict,
    /// The plan that this is about.
    pub plan_digest: Digest,
    /// Every device with its budget and what is planned on it.
    pub devices: Vec<PlannedDevice>,
    /// Every model of the spec.
    pub models: Vec<ModelReport>,
    /// What could not be observed while planning.
    pub notes: Vec<String>,
}

/// Whether a plan may be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlanVerdict {
    /// Every model has its least number of instances.
    Fits,
    /// Something fits nowhere.
    Impossible,
}

/// What became of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelReport {
    /// The model.
    pub model: String,
    /// What its engine would do on a machine of its own.
    pub verdict: Verdict,
    /// What one instance takes.
    pub footprint: Footprint,
    /// Instances that must be placed.
    pub wanted: u32,
    /// The device of each instance that is placed.
    pub placed: Vec<DeviceId>,
    /// Why the others are not, device by device.
    pub reasons: Vec<String>,
    /// What would make one more fit, the smallest change first.
    pub changes: Vec<String>,
}

impl ModelReport {
    /// Whether all its instances are placed.
    pub fn is_complete(&self) -> bool {
        self.verdict.is_ready() && self.placed.len() as u64 == u64::from(self.wanted)
    }
}
