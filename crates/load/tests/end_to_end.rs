//! Whole runs against a server whose times are known.

mod server;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use berth_load::arrivals::Arrivals;
use berth_load::phase::{ModelPhase, Phase, Shape};
use berth_load::prompts::{self, Prompt};
use berth_load::record::{Outcome, Record};
use berth_load::run::run_blocking;
use berth_load::summary::summarize;
use berth_load::target::Target;
use berth_load::tokenizer::Tokenizer;

const FIRST: Duration = Duration::from_millis(50);
const GAP: Duration = Duration::from_millis(20);
const TOKENS: u32 = 11;

fn server() -> SocketAddr {
    server::start(server::Pace { first: FIRST, gap: GAP, tokens: TOKENS })
}

fn target(address: SocketAddr) -> Target {
    Target::parse(&format!("http://{address}"), Some("key")).expect("an address")
}

fn made(tokenizer: Option<&Tokenizer>, tokens: u32) -> Vec<Prompt> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let made = prompts::make(tokenizer, 4, tokens, 1);
    runtime.expect("a runtime").block_on(made).expect("counts")
}

fn load(model: &str, arrivals: Arrivals) -> ModelPhase {
    let prompts = made(None, 20);
    let shape = Shape::Made { prompts, answer_tokens: TOKENS, images: 0, ignore_eos: true };
    ModelPhase { model: model.to_owned(), arrivals, seed: 3, shape }
}

fn phase(name: &str, loads: Vec<ModelPhase>, limit: Duration) -> Phase {
    Phase { name: name.to_owned(), loads, limit, grace: limit, is_overload: false }
}

fn run(address: SocketAddr, phases: Vec<Phase>) -> Vec<Record> {
    run_blocking(&target(address), phases, |_| ()).expect("a run")
}

#[test]
fn known_times_are_measured() {
    let steady = Arrivals::Poisson { per_second: 40.0 };
    let phases = vec![
        phase("burst", vec![load("a", Arrivals::Burst { count: 8 })], Duration::from_secs(5)),
        phase("steady", vec![load("a", steady.clone()), load("b", steady)], Duration::from_secs(2)),
    ];
    let told = RefCell::new(Vec::new());
    let tell = |progress: &_| told.borrow_mut().push(Clone::clone(progress));
    let records = run_blocking(&target(server()), phases, tell).unwrap();
    let summary = summarize(&records, &BTreeMap::new());
    assert_eq!(summary.all.ok, summary.all.requests, "{:?}", summary.all.errors);
    assert!((80..250).contains(&summary.all.requests), "{}", summary.all.requests);
    assert_eq!(summary.phases.len(), 2);
    for one in &summary.models {
        let latencies = one.measures.latencies;
        let median = |spread: Option<berth_load::summary::Spread>| spread.unwrap().p50;
        // As the server's clock has it, and what a busy machine adds.
        assert!((50.0..150.0).contains(&median(latencies.ttft_ms)), "{latencies:?}");
        assert!((15.0..35.0).contains(&median(latencies.itl_ms)), "{latencies:?}");
        assert!((250.0..450.0).contains(&median(latencies.e2e_ms)), "{latencies:?}");
        let tokens = one.measures.throughput;
        assert_eq!(tokens.output_tokens, one.measures.ok * u64::from(TOKENS));
        assert_eq!(tokens.total_tokens, one.measures.ok * u64::from(TOKENS + 7));
    }
    let told = told.into_inner();
    let last = told.last().unwrap();
    assert_eq!((&*last.phase, last.sent, last.finished), ("steady", last.planned, last.planned));
}

/// A model of the server's, how requests to it end, what is said of that, and how many tokens came.
const ENDINGS: [(&str, Outcome, &str, u32); 11] = [
    ("whole", Outcome::Ok, "", TOKENS),
    ("locked", Outcome::Ok, "", TOKENS),
    ("wrong", Outcome::Status(500), "boom", 0),
    ("full", Outcome::Status(503), "error", 0),
    ("queued", Outcome::Refused, "queue_full", 0),
    ("loading", Outcome::Status(503), "Loading model", 0),
    ("cut", Outcome::Broken, "the connection broke", 3),
    ("short", Outcome::Broken, "without [DONE]", 3),
    ("sorry", Outcome::Broken, "OOM", 3),
    ("silent", Outcome::Timeout, "", 0),
    ("stuck", Outcome::Timeout, "", 3),
];

#[test]
fn endings() {
    // Twice, so that connections are used again.
    let twice = Arrivals::Trace(vec![0.0, 0.7]);
    let loads = ENDINGS.iter().map(|(model, ..)| load(model, twice.clone())).collect();
    let records = run(server(), vec![phase("p", loads, Duration::from_secs(1))]);
    assert_eq!(records.len(), 2 * ENDINGS.len());
    for record in records {
        let row = ENDINGS.iter().find(|(model, ..)| *model == &*record.model).unwrap();
        let (_, outcome, detail, tokens) = row;
        assert_eq!((record.outcome, record.answer_tokens), (*outcome, *tokens), "{record:?}");
        assert!(record.detail.as_deref().unwrap_or_default().contains(detail), "{record:?}");
    }
}

#[test]
fn nobody_listens() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let burst = load("a", Arrivals::Burst { count: 3 });
    let records = run(address, vec![phase("p", vec![burst], Duration::from_secs(1))]);
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|record| record.outcome == Outcome::Connect), "{records:?}");
}

#[test]
fn nothing_to_send_is_no_run() {
    let none = load("a", Arrivals::Burst { count: 0 });
    let phases =
        vec![phase("p", vec![none], Duration::from_secs(9)), phase("q", vec![], Duration::MAX)];
    assert!(run(server(), phases).is_empty());
}

#[test]
fn an_engine_counts_tokens() {
    let tokenizer = Tokenizer::new(target(server()), "a".to_owned());
    for tokens in [1, 10, 1000] {
        let made = made(Some(&tokenizer), tokens);
        assert!(made.iter().all(|one| one.tokens == tokens && !one.is_estimated), "{made:?}");
        assert_eq!(made[0].text().split(' ').count(), tokens as usize);
    }
}
