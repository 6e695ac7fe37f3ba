//! Requests in a continuous batch: those that have room in the cache run, the others wait in order.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::fault::Fault;

/// What an engine's pace depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Seconds of a step for reading the weights.
    pub weights_s: f64,
    /// Seconds of a step for each token in the cache of a running request.
    pub cache_s_per_token: f64,
    /// Seconds for a token of a prompt.
    pub prefill_s_per_token: f64,
    /// Tokens that the cache holds.
    pub cache_tokens: u64,
    /// Requests at once.
    pub sequences: u64,
    /// `max_model_len`.
    pub longest: u64,
}

/// How an engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub why: String,
    /// Its exit code; below zero for a signal.
    pub code: i32,
    /// Its last lines.
    pub log: Vec<String>,
}

/// An engine that runs.
#[derive(Debug)]
pub struct Engine {
    pub(crate) model: String,
    pub(crate) pace: Pace,
    /// How many times faster than the real one.
    speedup: f64,
    state: Mutex<State>,
    has_room: Notify,
    ended: watch::Sender<Option<Ended>>,
}

/// What it is doing.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    pub(crate) used_tokens: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) requests: u64,
    pub(crate) is_asleep: bool,
    pub(crate) fault: Fault,
    pub(crate) leaked: u64,
}

impl Engine {
    /// An engine of a model that has started.
    pub fn new(model: String, pace: Pace, speedup: f64) -> Self {
        Self {
            model,
            pace,
            speedup,
            state: Mutex::default(),
            has_room: Notify::new(),
            ended: watch::Sender::new(None),
        }
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.subscribe()
    }

    /// Ends it.
    pub(crate) fn end(&self, why: &str, code: i32, line: &str) {
        let log = vec![line.to_owned()];
        self.ended.send_replace(Some(Ended { why: why.to_owned(), code, log }));
    }

    /// Bytes that it holds beyond what it started with.
    pub fn leaked(&self) -> u64 {
        self.state().leaked
    }

    /// Puts it to sleep, or wakes it.
    pub(crate) fn set_asleep(&self, is_asleep: bool) {
        self.state().is_asleep = is_asleep;
        self.has_room.notify_waiters();
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room for a request of so many tokens, answer included. The room is its own until it is
    /// dropped.
    pub(crate) async fn admit(&self, prompt: u64, answer: u64) -> Admitted<'_> {
        let tokens = prompt + answer;
        let waiting = Waiting::new(self);
        loop {
            let room = self.has_room.notified();
            {
                let mut state = self.state();
                let fits = state.used_tokens + tokens <= self.pace.cache_tokens;
                let has_room = state.running < self.pace.sequences && (fits || state.running == 0);
                // What comes while it sleeps waits.
                if has_room && !state.is_asleep {
                    state.running += 1;
                    state.used_tokens += tokens;
                    state.prompt_tokens += prompt;
                    break;
                }
            }
            room.await;
        }
        drop(waiting);
        Admitted { engine: self, tokens }
    }

    /// Works through a prompt.
    pub(crate) async fn prefill(&self, tokens: u64) {
        self.rest(self.pace.weights_s + tokens as f64 * self.pace.prefill_s_per_token).await;
    }

    /// Makes one token of a request, beside all others.
    pub(crate) async fn token(&self) {
        let used = self.state().used_tokens as f64;
        self.rest(self.pace.weights_s + used * self.pace.cache_s_per_token).await;
        self.state().generated_tokens += 1;
    }

    async fn rest(&self, seconds: f64) {
        let slow = if self.state().fault == Fault::Slow { 10.0 } else { 1.0 };
        tokio::time::sleep(Duration::from_secs_f64(seconds * slow / self.speedup)).await;
    }
}

/// A request that waits; it is counted until it is dropped.
struct Waiting<'a>(&'a Engine);

impl<'a> Waiting<'a> {
    fn new(engine: &'a Engine) -> Self {
        engine.state().waiting += 1;
        Self(engine)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// A request that runs.
pub(crate) struct Admitted<'a> {
    engine: &'a Engine,
    tokens: u64,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let mut state = self.engine.state();
        state.running -= 1;
        state.used_tokens -= self.tokens;
        drop(state);
        self.engine.has_room.notify_waiters();
    }
}
