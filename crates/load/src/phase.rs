//! Which requests go together: a phase is what all models are asked at the same time.

use std::time::Duration;

use crate::arrivals::Arrivals;
use crate::dataset::Request;
use crate::prompts::Prompt;

/// A part of a run; the next begins when all of its requests have ended.
#[derive(Clone, Debug)]
pub struct Phase {
    /// What it is called: longest, batch, burst, steady...
    pub name: String,
    /// What each model is asked.
    pub loads: Vec<ModelPhase>,
    /// Nothing is sent later than this; a month is the most.
    pub limit: Duration,
    /// What was sent has so long after the limit to end; then it was not answered in time.
    pub grace: Duration,
    /// Whether it asks for more than can be served: then a request that isn't answered in time is
    /// no failure, and no latency is promised.
    pub is_overload: bool,
}

/// What one model is asked in a phase.
#[derive(Clone, Debug)]
pub struct ModelPhase {
    /// The model, as the server calls it.
    pub model: String,
    /// When.
    pub arrivals: Arrivals,
    /// Makes the same times again, and the same beginnings of texts: phases that use the same prompts
    /// need seeds of their own, or a cache of prefixes helps.
    pub seed: u64,
    /// What.
    pub shape: Shape,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Shape {
    /// Questions made up, in turn; each time from another word on.
    Made {
        /// The questions.
        prompts: Vec<Prompt>,
        /// How long each answer is.
        answer_tokens: u32,
        /// So many pictures with each.
        images: u32,
        /// Whether answers go on to their full length.
        ignore_eos: bool,
    },
    /// Questions from a file, in turn.
    Dataset {
        /// The questions.
        requests: Vec<Request>,
        /// Whether answers go on to their full length.
        ignore_eos: bool,
    },
}
