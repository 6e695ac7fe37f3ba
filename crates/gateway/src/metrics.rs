//! What Prometheus sees.

use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::routing::routes::Routes;

/// A model and what became of a request to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    model: String,
    outcome: &'static str,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model: String,
}

/// A key and a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyModel {
    key: String,
    model: String,
}

type Times = Family<Model, Histogram, fn() -> Histogram>;

/// The gateway's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Outcome, Counter>,
    in_flight: Family<Model, Gauge>,
    first_token: Times,
    inter_token: Times,
    whole: Times,
    queue: Times,
    overhead: Times,
    prompt_tokens: Family<KeyModel, Counter>,
    generation_tokens: Family<KeyModel, Counter>,
    retries: Family<Model, Counter>,
}

/// The metrics of one model, found once.
#[derive(Clone, Debug)]
pub(crate) struct OfModel {
    pub(crate) ok: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) whole: Histogram,
    pub(crate) queue: Histogram,
    pub(crate) overhead: Histogram,
    pub(crate) retries: Counter,
}

/// From a millisecond to some nine minutes.
fn long() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 20))
}

/// From ten microseconds to some seconds.
fn short() -> Histogram {
    Histogram::new(exponential_buckets(0.000_01, 2.0, 18))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("berth_gateway");
        let family = |new: fn() -> Histogram| Times::new_with_constructor(new);
        let metrics = Self {
            requests: Family::default(),
            in_flight: Family::default(),
            first_token: family(long),
            inter_token: family(short),
            whole: family(long),
            queue: family(long),
            overhead: family(short),
            prompt_tokens: Family::default(),
            generation_tokens: Family::default(),
            retries: Family::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        registry.register("requests", "Requests by model and outcome", m.requests.clone());
        registry.register("requests_in_flight", "Requests being served", m.in_flight.clone());
        let mut time = |name: &str, help: &str, family: &Times| {
            registry.register(name, help, family.clone());
        };
        time(
            "time_to_first_token_seconds",
            "From a request's arrival to the first bytes of its answer's body",
            &m.first_token,
        );
        time(
            "inter_token_latency_seconds",
            "Between two events of a stream, the mean of a request",
            &m.inter_token,
        );
        time(
            "e2e_request_latency_seconds",
            "From a request's arrival to the end of its answer",
            &m.whole,
        );
        time("queue_time_seconds", "What requests waited for room in a cache", &m.queue);
        time(
            "overhead_seconds",
            "From when a request was read until it was sent to an engine, without waiting for room",
            &m.overhead,
        );
        registry.register(
            "prompt_tokens",
            "Tokens of prompts, as engines say, else as bytes tell",
            m.prompt_tokens.clone(),
        );
        registry.register(
            "generation_tokens",
            "Tokens of answers, as engines say, else the events of streams",
            m.generation_tokens.clone(),
        );
        registry.register(
            "retries",
            "Requests that went to another instance before anything was answered",
            m.retries.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    pub(crate) fn of_model(&self, model: &str) -> OfModel {
        let label = Model { model: model.to_owned() };
        let of = |family: &Times| family.get_or_create(&label).clone();
        let ok = Outcome { model: model.to_owned(), outcome: "ok" };
        OfModel {
            ok: self.requests.get_or_create(&ok).clone(),
            in_flight: self.in_flight.get_or_create(&label).clone(),
            first_token: of(&self.first_token),
            inter_token: of(&self.inter_token),
            whole: of(&self.whole),
            queue: of(&self.queue),
            overhead: of(&self.overhead),
            retries: self.retries.get_or_create(&label).clone(),
        }
    }

    /// Counts a request that ended otherwise than well. Only models that there are become labels.
    pub(crate) fn count(&self, model: &str, outcome: &'static str) {
        self.requests.get_or_create(&Outcome { model: model.to_owned(), outcome }).inc();
    }

    /// Counts the tokens of a request.
    pub(crate) fn tokens(&self, key: &str, model: &str, prompt: u64, generation: u64) {
        let label = KeyModel { key: key.to_owned(), model: model.to_owned() };
        self.prompt_tokens.get_or_create(&label).inc_by(prompt);
        self.generation_tokens.get_or_create(&label).inc_by(generation);
    }

    /// The metrics in Prometheus' text format, with what is in flight on each instance.
    pub fn encode(&self, routes: &Routes) -> String {
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            return String::new();
        }
        // What is read when it is asked for comes before the end.
        let end = out.rfind("# EOF").unwrap_or(out.len());
        out.truncate(end);
        instances(&mut out, routes);
        out.push_str("# EOF\n");
        out
    }
}

fn instances(out: &mut String, routes: &Routes) {
    let mut gauge = |name: &str,
                     help: &str,
                     value: &dyn Fn(&crate::routing::routes::Upstream) -> u64| {
        // Writing to memory doesn't fail.
        _ = write!(out, "# HELP berth_gateway_{name} {help}.\n# TYPE berth_gateway_{name} gauge\n");
        for one in routes.upstreams() {
            let (model, id) = (escaped(&one.instance.model), escaped(&one.instance.id));
            let value = value(one);
            _ = writeln!(
                out,
                "berth_gateway_{name}{{model=\"{model}\",instance=\"{id}\"}} {value}"
            );
        }
    };
    gauge("upstream_ready", "Whether an instance takes requests", &|one| {
        u64::from(one.is_ready() && !one.is_out())
    });
    gauge("upstream_in_flight", "Requests in flight on an instance", &|one| one.in_flight());
    gauge("upstream_tokens_in_flight", "Their tokens, as far as bytes tell", &|one| one.tokens());
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}
