//! What Prometheus sees.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A model and what became of a request to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) model: String,
    pub(crate) outcome: &'static str,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Model {
    pub(crate) model: String,
}

/// The gateway's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<Outcome, Counter>,
    pub(crate) in_flight: Family<Model, Gauge>,
    pub(crate) first_byte_seconds: Family<Model, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("berth_gateway");
        let requests = Family::default();
        let in_flight = Family::default();
        let buckets = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let first_byte_seconds = Family::new_with_constructor(buckets as fn() -> Histogram);
        registry.register("requests", "Requests by model and outcome", requests.clone());
        registry.register("requests_in_flight", "Requests being served", in_flight.clone());
        registry.register(
            "time_to_first_byte_seconds",
            "From the request's arrival to the first byte of the engine's answer",
            first_byte_seconds.clone(),
        );
        Self { registry, requests, in_flight, first_byte_seconds }
    }
}

impl Metrics {
    /// The metrics in Prometheus' text format.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        match text::encode(&mut out, &self.registry) {
            Ok(()) => out,
            Err(_) => String::new(),
        }
    }
}
