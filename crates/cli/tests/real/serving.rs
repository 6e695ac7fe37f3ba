//! Requests through the gateway to real engines.

use std::io::{BufRead as _, BufReader, Read};
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{self, Berth, GEMMA, SMOLLM, fetched, model, send, small, wait_until};

/// A stream of events: what it said so far, and whether it came to its end.
struct Stream {
    lines: std::io::Lines<BufReader<Box<dyn Read>>>,
}

impl Stream {
    fn open(berth: &Berth, model: &str, tokens: u32) -> Self {
        let request = json!({
            "model": model, "stream": true, "max_tokens": tokens, "ignore_eos": true,
            "prompt": "Once upon a time",
        });
        let response = ureq::post(berth.url("/v1/completions")).send(request.to_string()).unwrap();
        let body: Box<dyn Read> = Box::new(response.into_body().into_reader());
        Self { lines: BufReader::new(body).lines() }
    }

    /// The next event; `None` at the end, however it came.
    fn next(&mut self) -> Option<String> {
        self.lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("data: ").map(str::to_owned))
    }

    /// Whether the rest ends as a whole stream does.
    fn finishes(mut self) -> bool {
        let mut last = String::new();
        while let Some(event) = self.next() {
            last = event;
        }
        last == "[DONE]"
    }
}

fn two_models() -> String {
    model("smol", SMOLLM, "ctx-size = 2048, parallel = 2, threads = 1", "")
        + &model("gemma", GEMMA, "ctx-size = 1024, parallel = 1, threads = 1", "")
}

/// From nothing to answers by OpenAI's own client, and back to nothing.
/// A server that somebody else runs is routed to under another name, watched, and left alone.
#[test]
fn a_server_of_somebody_elses_is_adopted() {
    let berth = Berth::new(6);
    let port = 22_900;
    let start = || {
        let mut server = std::process::Command::new(fetched("llama-server/llama-server"));
        server.args([
            "--port",
            &port.to_string(),
            "--alias",
            "their:name",
            "-c",
            "512",
            "--no-warmup",
            "--model",
        ]);
        server
            .arg(fetched(&format!("models/{SMOLLM}")))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut theirs = start();
    let external =
        format!("external = {{ url = \"http://localhost:{port}\", name = \"their:name\" }}");
    berth.spec(&(small("own") + &format!("[models.theirs]\n{external}\n")));
    let up = berth.up();
    let ask = || {
        let body = r#"{"model":"theirs","prompt":"a","max_tokens":1}"#;
        let answer = ureq::post(berth.url("/v1/completions")).send(body).ok()?;
        answer.into_body().read_to_string().ok()
    };
    wait_until("their server answers", || ask().is_some_and(|text| text.contains("their:name")));
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    wait_until("it is seen to be gone", || ask().is_none());
    let mut theirs = start();
    wait_until("it answers again", || ask().is_some());
    drop(up);
    berth.run(&["down"]).expect(0, &[]);
    assert!(theirs.try_wait().unwrap().is_none(), "it is left alone");
    theirs.kill().unwrap();
    theirs.wait().unwrap();
}

#[test]
fn openais_client_works_and_ctrl_c_stops_all() {
    let berth = Berth::new(10);
    berth.spec_with("host_budget = \"1 GiB\"", &two_models());
    let mut foreign = Command::new("sleep").arg("1000").spawn().unwrap();
    let up = berth.up();

    let script = harness::root().join("crates/cli/tests/real/openai_client.py");
    let client =
        Command::new(fetched("openai/bin/python")).arg(script).arg(berth.url("/v1")).output();
    let client = harness::Ran::from(client.unwrap());
    client.expect(0, &["all held"]);

    up.signal(Signal::INT);
    let (code, ledger) = up.wait();
    assert_eq!(code, Some(0));
    for text in ["smol-0", "gemma-0", "kv_cache", "resident when ready"] {
        assert!(ledger.contains(text), "{ledger}");
    }
    assert_eq!(berth.engines(), Vec::<String>::new());
    assert_eq!(foreign.try_wait().unwrap(), None, "what berth did not start goes on");
    foreign.kill().unwrap();
    foreign.wait().unwrap();
}

/// One engine dies under load: its stream is cut, the other model's goes on, and it comes back.
#[test]
fn an_engine_killed_under_load_comes_back() {
    let berth = Berth::new(11);
    berth.spec(&two_models());
    let up = berth.up();
    let mut dying = Stream::open(&berth, "smol", 1500);
    let mut living = Stream::open(&berth, "gemma", 40);
    assert!(dying.next().is_some() && living.next().is_some());
    let pid = berth.pid("smol-0");
    send(pid, Signal::KILL);
    assert!(!dying.finishes(), "a cut stream must not look complete");

    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let request = json!({"model": "smol", "prompt": "x", "max_tokens": 1}).to_string();
    let refused = agent.post(berth.url("/v1/completions")).send(&request).unwrap();
    assert!(matches!(refused.status().as_u16(), 502 | 503), "{refused:?}");
    assert!(refused.headers().contains_key("retry-after"), "{refused:?}");

    assert!(living.finishes(), "the other model's stream goes on");
    berth.wait_for("smol-0", "ready");
    assert_ne!(berth.pid("smol-0"), pid);
    assert_eq!(berth.instance("smol-0")["failures"], 1);
    wait_until("the gateway sends requests there again", || {
        agent.post(berth.url("/v1/completions")).send(&request).unwrap().status() == 200
    });
    up.signal(Signal::TERM);
    assert_eq!(up.wait().0, Some(0));
}

/// Ctrl-C lets what runs come to its end.
#[test]
fn ctrl_c_finishes_streams() {
    let berth = Berth::new(12);
    berth.spec(&two_models());
    let up = berth.up();
    let mut stream = Stream::open(&berth, "smol", 100);
    assert!(stream.next().is_some());
    up.signal(Signal::INT);
    assert!(stream.finishes());
    assert_eq!(up.wait().0, Some(0));
    assert_eq!(berth.engines(), Vec::<String>::new());
}

/// The engine stops working for a client that left.
#[test]
fn a_client_that_leaves_frees_its_slot() {
    let berth = Berth::new(13);
    berth.spec(&two_models());
    let _up = berth.up();
    let port = berth.instance("smol-0")["port"].as_u64().unwrap();
    let busy = || -> bool {
        let slots = ureq::get(format!("http://127.0.0.1:{port}/slots")).call().unwrap();
        let slots: Value = serde_json::from_reader(slots.into_body().into_reader()).unwrap();
        slots.as_array().unwrap().iter().any(|slot| slot["is_processing"] == true)
    };
    let mut stream = Stream::open(&berth, "smol", 1_000_000);
    assert!(stream.next().is_some());
    assert!(busy());
    drop(stream);
    wait_until("no slot works", || !busy());
}

/// A new plan for a running berth: handed over by `apply`, streams on what stays are not cut, and
/// what goes is drained first.
#[test]
fn a_change_under_load_cuts_nothing() {
    let berth = Berth::new(14);
    berth.spec(&two_models());
    let up = berth.up();
    let (smol, gemma) = (berth.pid("smol-0"), berth.pid("gemma-0"));
    let mut going = Stream::open(&berth, "smol", 150);
    let mut staying = Stream::open(&berth, "gemma", 30);
    assert!(going.next().is_some() && staying.next().is_some());
    berth.spec(&two_models().replace("ctx-size = 2048", "ctx-size = 3072"));
    berth.run(&["apply"]).expect(0, &["another berth watches over this state"]);
    assert!(going.finishes() && staying.finishes());
    assert_eq!(berth.pid("gemma-0"), gemma, "what did not change goes on");
    assert_ne!(berth.pid("smol-0"), smol);
    up.signal(Signal::INT);
    assert_eq!(up.wait().0, Some(0));
}

/// `apply` leaves engines behind, `serve` puts the gateway before them and goes without them.
#[test]
fn apply_serve_and_down_share_the_engines() {
    let berth = Berth::new(15);
    berth.spec(&harness::small("a"));
    berth.run(&["apply"]).expect(0, &["nobody watches over it: `berth serve` does"]);
    let pid = berth.pid("a-0");
    let mut serve = berth.command(&["serve"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_until("the gateway is ready", || ureq::get(berth.url("/ready")).call().is_ok());
    assert!(Stream::open(&berth, "a", 5).finishes());
    send(i32::try_from(serve.id()).unwrap(), Signal::INT);
    assert_eq!(serve.wait().unwrap().code(), Some(0));
    assert_eq!(berth.pid("a-0"), pid, "the engine goes on");
    berth.run(&["down"]).expect(0, &["a-0: stopped"]);
    assert_eq!(berth.engines(), Vec::<String>::new());
    berth.run(&["down"]).expect(0, &[]);
}
