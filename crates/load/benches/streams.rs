//! How late the generator is with many streams under way, and what it costs.
//!
//! `cargo bench -p berth-load -- [STREAMS [SECONDS]]`: prints, and asserts nothing. The server is in the
//! same process, in a thread of its own: on a machine with few cores it is a neighbour.

#![allow(clippy::print_stdout, missing_docs)]

#[allow(dead_code)]
#[path = "../tests/server/mod.rs"]
mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use berth_load::arrivals::Arrivals;
use berth_load::phase::{ModelPhase, Phase, Shape};
use berth_load::prompts;
use berth_load::run::run_blocking;
use berth_load::summary::{Spread, summarize};
use berth_load::target::Target;

/// 25 tokens a second, for 5 s.
const PACE: server::Pace =
    server::Pace { first: Duration::from_millis(100), gap: Duration::from_millis(40), tokens: 125 };

fn main() {
    let mut given = std::env::args().skip(1).filter_map(|word| word.parse::<u32>().ok());
    let streams = given.next().unwrap_or(2000);
    let seconds = given.next().unwrap_or(10);
    let address = server::start(PACE);
    let target = Target::parse(&format!("http://{address}"), None).expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let made = runtime.expect("a runtime").block_on(prompts::make(None, 16, 400, 1));
    let answer = PACE.first + PACE.gap * PACE.tokens;
    let shape = Shape::Made {
        prompts: made.expect("nobody is asked"),
        answer_tokens: PACE.tokens,
        images: 0,
        ignore_eos: true,
    };
    // It takes an answer's time until so many are under way.
    let limit = answer + Duration::from_secs(u64::from(seconds));
    let per_second = f64::from(streams) / answer.as_secs_f64();
    let arrivals = Arrivals::Poisson { per_second };
    let load = ModelPhase { model: "whole".to_owned(), arrivals, seed: 1, shape };
    let phase = Phase {
        name: "steady".to_owned(),
        loads: vec![load],
        limit,
        grace: limit,
        is_overload: false,
    };
    let before_s = cpu_s();
    let records = run_blocking(&target, vec![phase], |_| ()).expect("a run");
    let cpu_s = cpu_s() - before_s;
    let all = summarize(&records, &BTreeMap::new()).all;
    let show = |what: &str, spread: Option<Spread>| {
        if let Some(Spread { p50, p99, max, .. }) = spread {
            println!("{what:<24} p50 {p50:8.3} ms   p99 {p99:8.3} ms   max {max:8.3} ms");
        }
    };
    println!(
        "{} requests, {} answered, {} under way at most",
        all.requests, all.ok, all.own.most_in_flight
    );
    println!("errors: {:?}", all.errors);
    show("late with sending", all.own.delay_ms);
    show("late with reading", all.own.reading_delay_ms);
    show("first token (100 ms)", all.latencies.ttft_ms);
    show("between tokens (40 ms)", all.latencies.itl_ms);
    let (wall_s, tokens) = (all.throughput.wall_s, all.throughput.output_tokens);
    let each_us = cpu_s * 1e6 / tokens.max(1) as f64;
    println!(
        "CPU of the generator's thread: {cpu_s:.2} s of {wall_s:.1} s, {each_us:.1} µs a token"
    );
}

/// What this thread has used, in ticks of a hundredth of a second (proc(5): utime and stime).
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = after_name.split(' ').skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
