//! A request on its way: what it holds, and what is counted of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use hyper::StatusCode;

use crate::error::GatewayError;
use crate::keys::Admission;
use crate::routing::routes::{Model, Ticket};
use crate::shared::Shared;
use crate::spans::{Span, Told};
use crate::upstream::relay::Witness;

/// A request that was taken, counted until its answer is complete: a gateway that drains waits for it.
pub(crate) struct Underway(Arc<Shared>);

impl Underway {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.underway.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.underway.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request from its admission to the last byte of its answer.
pub(crate) struct Flight {
    underway: Underway,
    model: Arc<Model>,
    /// Room on an instance; given back at the end.
    ticket: Option<Ticket>,
    /// What its key allows it.
    admission: Option<Admission>,
    /// Tokens of the prompt, as far as bytes tell.
    prompt_tokens: u64,
    times: Times,
    /// Which instance has it.
    instance: String,
    status: StatusCode,
    events: u64,
    /// The last pieces: what an engine says it used stands at the end.
    tail: [Bytes; 2],
    ended: Option<&'static str>,
    span: Span,
}

/// Of the last two pieces so much is looked at.
const TAIL: usize = 1024;

/// When what happened.
#[derive(Clone, Copy, Debug)]
struct Times {
    arrived: Instant,
    first: Option<Instant>,
    last: Instant,
}

impl Flight {
    pub(crate) fn new(
        underway: Underway,
        model: Arc<Model>,
        admission: Option<Admission>,
        prompt_tokens: u64,
        (arrived, span): (Instant, Span),
    ) -> Self {
        model.life.metrics.in_flight.inc();
        Self {
            underway,
            model,
            ticket: None,
            admission,
            prompt_tokens,
            times: Times { arrived, first: None, last: arrived },
            instance: String::new(),
            status: StatusCode::OK,
            events: 0,
            tail: [Bytes::new(), Bytes::new()],
            ended: None,
            span,
        }
    }

    /// What the engine is told of the span that this is.
    pub(crate) fn traceparent(&self) -> Option<&str> {
        self.span.traceparent()
    }

    /// Holds room on an instance from now on.
    pub(crate) fn hold(&mut self, instance: &str, ticket: Ticket) {
        instance.clone_into(&mut self.instance);
        self.ticket = Some(ticket);
    }

    /// Gives the room back: the instance could not answer.
    pub(crate) fn let_go(&mut self) {
        drop(self.ticket.take());
        self.underway.0.pump(&self.model);
    }

    /// The engine has begun to answer.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// It was refused before an engine answered.
    pub(crate) fn refused(&mut self, error: &GatewayError) {
        self.status = error.status();
        self.ended = Some(error.code());
    }

    fn key(&self) -> &str {
        self.admission.as_ref().map_or("", Admission::key)
    }

    /// Tokens of the prompt and of the answer: as the engine says, else as far as can be told.
    fn tokens(&self) -> (u64, u64) {
        let [earlier, last] = &self.tail;
        let tail = [
            &earlier[earlier.len().saturating_sub(TAIL)..],
            &last[last.len().saturating_sub(TAIL)..],
        ]
        .concat();
        let said = |names: &[&str]| names.iter().find_map(|name| number_after(&tail, name));
        let prompt = said(&["\"prompt_tokens\":", "\"input_tokens\":", "\"prompt_eval_count\":"]);
        let answer = said(&["\"completion_tokens\":", "\"output_tokens\":", "\"eval_count\":"]);
        (prompt.unwrap_or(self.prompt_tokens), answer.unwrap_or(self.events.saturating_sub(1)))
    }

    fn outcome(&self) -> &'static str {
        match (self.ended, self.status.as_u16()) {
            (None, _) => "client_gone",
            (Some("ok"), 200..400) => "ok",
            (Some("ok"), 400..500) => "client_error",
            (Some("ok"), _) => "engine_error",
            (Some(code), _) => code,
        }
    }
}

impl Witness for Flight {
    fn passed(&mut self, bytes: &Bytes) {
        self.times.last = Instant::now();
        if self.times.first.is_none() {
            self.times.first = Some(self.times.last);
            if self.status.is_success() {
                let waited = self.times.last.duration_since(self.times.arrived);
                self.model.life.metrics.first_token.observe(waited.as_secs_f64());
            }
        }
        self.events += memchr::memmem::find_iter(bytes, b"\n\n").count() as u64;
        self.tail.rotate_left(1);
        self.tail[1] = bytes.clone();
    }

    fn ended(&mut self, how: Result<(), &io::Error>) {
        if let Err(error) = how {
            tracing::warn!(instance = %self.instance, %error, "an answer broke off");
        }
        self.ended = Some(if how.is_ok() { "ok" } else { "upstream_broken" });
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let (outcome, tokens) = (self.outcome(), self.used());
        self.count(outcome, tokens);
        if let Some(admission) = &mut self.admission {
            admission.settle(tokens.0 + tokens.1);
        }
        if self.underway.0.settings.access_log {
            self.log(outcome, tokens);
        }
        let Times { arrived, first, .. } = self.times;
        self.span.end(&Told {
            model: &self.model.name,
            instance: &self.instance,
            outcome,
            status: self.status.as_u16(),
            prompt_tokens: tokens.0,
            answer_tokens: tokens.1,
            first_byte: first.map(|first| first.duration_since(arrived)),
        });
        // Whoever waits for room may have it now.
        self.let_go();
    }
}

impl Flight {
    /// Tokens of the prompt and of the answer that were worked on.
    fn used(&self) -> (u64, u64) {
        match (self.times.first, self.ended) {
            (Some(_), _) if self.status.is_success() => self.tokens(),
            // Whoever leaves before the first byte had the prompt worked on all the same.
            (None, None) if self.ticket.is_some() => (self.prompt_tokens, 0),
            _ => (0, 0),
        }
    }

    fn count(&self, outcome: &'static str, (prompt, answer): (u64, u64)) {
        let (of_model, all) = (&self.model.life.metrics, &self.underway.0.metrics);
        of_model.in_flight.dec();
        if prompt + answer > 0 {
            all.tokens(self.key(), &self.model.name, prompt, answer);
        }
        if outcome != "ok" {
            return all.count(&self.model.name, outcome);
        }
        of_model.ok.inc();
        let Times { arrived, first, last } = self.times;
        of_model.whole.observe(last.duration_since(arrived).as_secs_f64());
        if let Some(first) = first.filter(|_| self.events > 2) {
            let gap = last.duration_since(first).as_secs_f64() / (self.events - 1) as f64;
            of_model.inter_token.observe(gap);
        }
    }

    fn log(&self, outcome: &'static str, (prompt, answer): (u64, u64)) {
        let (ms, status) = (self.times.arrived.elapsed().as_millis(), self.status.as_u16());
        let (model, instance, key) = (&self.model.name, &self.instance, self.key());
        tracing::info!(target: "berth::access", model, instance, key, outcome, status, ms, prompt, answer);
    }
}

/// The number after the last place where a text stands.
fn number_after(bytes: &[u8], name: &str) -> Option<u64> {
    let at = memchr::memmem::rfind(bytes, name.as_bytes())? + name.len();
    let rest = bytes[at..].trim_ascii_start();
    let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}
