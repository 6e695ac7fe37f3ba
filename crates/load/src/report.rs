//! A run as one value: what was asked, measured, seen and judged.

use serde::{Deserialize, Serialize};

use crate::arrivals::Arrivals;
use crate::phase::{ModelPhase, Phase, Shape};
use crate::summary::{Own, Summary};
use crate::verdict::{Limits, MemorySeen, Verdict};

/// The form of a report; a reader of another doesn't guess.
pub const VERSION: u32 = 1;

/// A report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its form.
    pub version: u32,
    /// What was proven.
    pub name: String,
    /// When it began, in milliseconds since 1970.
    pub at_ms: u64,
    /// The plan that it is about.
    pub plan_digest: String,
    /// The strategy that the plan is of.
    pub strategy: Option<String>,
    /// Whether engines or devices were emulated: then speeds say nothing.
    pub emulated: bool,
    /// How it is.
    pub verdict: Verdict,
    /// What would have been all right.
    pub limits: Limits,
    /// What was asked.
    pub phases: Vec<PhaseNote>,
    /// What was measured.
    pub summary: Summary,
    /// What was seen of memory.
    pub memory: MemorySeen,
    /// What sent the load.
    pub generator: Generator,
}

/// What sent the load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// Threads that send and read.
    pub threads: u32,
    /// How late they were.
    pub own: Own,
}

/// A phase, described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseNote {
    /// What it is called.
    pub name: String,
    /// Nothing is sent later.
    pub limit_s: f64,
    /// What was sent has so long after that.
    pub grace_s: f64,
    /// Whether it asks for more than can be served.
    pub is_overload: bool,
    /// What each model is asked.
    pub loads: Vec<LoadNote>,
}

/// What a model is asked in a phase, described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadNote {
    /// The model.
    pub model: String,
    /// When, in words.
    pub arrivals: String,
    /// What, in words.
    pub shape: String,
}

impl PhaseNote {
    /// Describes a phase.
    pub fn of(phase: &Phase) -> Self {
        Self {
            name: phase.name.clone(),
            limit_s: phase.limit.as_secs_f64(),
            grace_s: phase.grace.as_secs_f64(),
            is_overload: phase.is_overload,
            loads: phase.loads.iter().map(LoadNote::of).collect(),
        }
    }
}

impl LoadNote {
    fn of(load: &ModelPhase) -> Self {
        Self {
            model: load.model.clone(),
            arrivals: arrivals(&load.arrivals),
            shape: shape(&load.shape),
        }
    }
}

fn arrivals(arrivals: &Arrivals) -> String {
    match arrivals {
        Arrivals::Poisson { per_second } => format!("at random, {per_second:.3} a second"),
        Arrivals::Burst { count: 1 } => "one".to_owned(),
        Arrivals::Burst { count } => format!("{count} at once"),
        Arrivals::Trace(times) => format!("{} at recorded times", times.len()),
    }
}

fn shape(shape: &Shape) -> String {
    match shape {
        Shape::Dataset { requests, .. } => {
            format!("{} requests of a file, in turn", requests.len())
        }
        Shape::Made { prompts, answer_tokens, images, .. } => {
            let tokens = prompts.iter().map(|prompt| prompt.tokens).max().unwrap_or_default();
            let is_estimated = prompts.iter().any(|prompt| prompt.is_estimated);
            let about = if is_estimated { "about " } else { "" };
            let with = match images {
                0 => String::new(),
                1 => " with a picture".to_owned(),
                count => format!(" with {count} pictures"),
            };
            format!("{about}{tokens} tokens{with}, answered with {answer_tokens}")
        }
    }
}
