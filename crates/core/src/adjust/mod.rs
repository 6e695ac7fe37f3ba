//! Adjusting how much memory engines take, as changes to a plan: a fraction is fixed at an engine's start, so that
//! each change is a restart.
//!
//! - [`law`]: from what was seen over minutes to a wish, and how often there may be one
//! - [`knob`]: from a wish to an engine's own flags, within what the user allows
//! - [`sleep`]: what needs no restart: idle engines that sleep while others are short of memory
//!
//! Whether a wish fits is for the planner to say, and how it is carried out step by step for
//! [`reconcile::roll`](crate::reconcile::roll).

pub mod knob;
pub mod law;
pub mod sleep;

pub use law::{Direction, Freeze, Law, Wish};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::{Deployment, FlagValue, Spec};

/// Between two adjustments on a cluster, whatever they are of; and between two restarts of one.
pub const PACE_S: u64 = 10 * 60;

/// Who adjusts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nobody.
    Off,
    /// berth says what it would change; `berth apply --advised` does it.
    #[default]
    Advise,
    /// berth does, within the limits.
    Auto,
}

/// Who adjusts, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdjustSpec {
    /// `off`, `advise` or `auto`. Default: `advise`.
    pub mode: Mode,
    /// `gpu_memory_utilization` is not set lower than this. Default: 0.5.
    pub least: f64,
    /// `gpu_memory_utilization` is not set higher than this. Default: 0.95.
    pub most: f64,
    /// An engine with a `sleep_level` that nobody has asked for so many seconds may be put to sleep. Default: 300.
    pub idle_s: u64,
}

impl Default for AdjustSpec {
    fn default() -> Self {
        Self { mode: Mode::Advise, least: 0.5, most: 0.95, idle_s: 300 }
    }
}

impl AdjustSpec {
    /// What is wrong with it, in words.
    pub fn problem(&self) -> Option<&'static str> {
        let is_share = |share: f64| (0.01..=1.0).contains(&share);
        let is_right = is_share(self.least) && is_share(self.most) && self.least <= self.most;
        (!is_right).then_some("least and most are shares of a GPU's memory, from 0.01 to 1")
    }
}

/// One flag's change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlagChange {
    /// The flag, as the spec writes it.
    pub flag: String,
    /// What the spec says; none where it says nothing.
    pub from: Option<FlagValue>,
    /// What it becomes.
    pub to: FlagValue,
}

/// A change to a deployment's flags that the spec doesn't have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adjustment {
    /// The deployment.
    pub deployment: String,
    /// Its flags.
    pub flags: Vec<FlagChange>,
    /// Why.
    pub why: String,
    /// When it was thought of, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Adjustment {
    /// Whether it is still about what the spec says: who writes another value means that one.
    pub fn holds_for(&self, deployment: &Deployment) -> bool {
        let is_same = |one: &FlagChange| deployment.flags.get(&one.flag) == one.from.as_ref();
        deployment.name == self.deployment && self.flags.iter().all(is_same)
    }
}

impl Spec {
    /// The spec with adjustments laid over it, of those that still hold; a later one takes an earlier one's place.
    #[must_use]
    pub fn adjusted(mut self, adjustments: &[Adjustment]) -> Self {
        for deployment in &mut self.deployments {
            let all = adjustments.iter().rev();
            let Some(found) = all.into_iter().find(|one| one.holds_for(deployment)) else {
                continue;
            };
            for change in &found.flags {
                deployment.flags.insert(change.flag.clone(), change.to.clone());
            }
            self.adjustments.push(found.clone());
        }
        self
    }
}

impl std::fmt::Display for Adjustment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.deployment)?;
        for FlagChange { flag, from, to } in &self.flags {
            let word = |value: &FlagValue| match value {
                FlagValue::Float(share) => format!("{share:.3}"),
                other => serde_json::to_string(other).unwrap_or_default().replace('"', ""),
            };
            let from = from.as_ref().map_or_else(|| "its default".to_owned(), word);
            write!(f, " {flag} from {from} to {}", word(to))?;
        }
        Ok(())
    }
}
