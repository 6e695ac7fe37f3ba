//! What is shipped to a cluster's nodes, run as it runs there, with an emulated Ollama as its engine: pull, load,
//! load again, let go; and what it says where that can't be done.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const SUPERVISOR: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster/src/ray/module/berth_serve/supervisor.py");
const OLLAMA: &str = env!("CARGO_BIN_EXE_emulated-ollama");
/// The longest that anything may take on a slow, busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LIBRARY: &str = r#"{
    "owner/small:q8": {"size": 60000000, "vram": 70000000},
    "large": {"size": 60000000, "num_ctx": 32768},
    "batched": {"size": 1000, "num_batch": 1024}
}"#;

/// A supervisor with its engine.
struct Supervised {
    folder: tempfile::TempDir,
    port: u16,
    child: Child,
    input: Option<ChildStdin>,
    events: Lines<BufReader<ChildStdout>>,
}

impl Supervised {
    fn start(library: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let order = json!({
            "instance": "m-0", "node": format!("test-{port}"), "host": "127.0.0.1", "port": port,
            "gpus": [], "after": [], "start_limit_s": 30, "health": "/api/version",
            "command": [OLLAMA, "serve"], "library": library, "sleeps": false, "folder": "/",
            "log": folder.path().join("log"),
            "environment": {
                "OLLAMA_HOST": format!("127.0.0.1:{port}"), "OLLAMA_KEEP_ALIVE": "-1",
                "OLLAMA_MODELS": folder.path().join("models"), "OLLAMA_CONTEXT_LENGTH": "8192",
                "EMULATED_LIBRARY": LIBRARY, "EMULATED_SPEEDUP": "2",
            },
        });
        let mut python = Command::new("python3");
        python.args(["-E", "-B", SUPERVISOR]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{order}").unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { folder, port, child, input: Some(input), events }
    }

    /// The next thing that it says.
    fn event(&mut self) -> Value {
        serde_json::from_str(&self.events.next().unwrap().unwrap()).unwrap()
    }

    fn ready(&mut self) {
        assert_eq!(self.event()["event"], "starting");
        let event = self.event();
        assert_eq!(event["event"], "ready", "{event}");
    }

    fn ask(&self, path: &str, body: Option<Value>) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let answer = match body {
            None => ureq::get(url).call(),
            Some(body) => ureq::post(url).send(body.to_string()),
        };
        let text = answer.ok()?.into_body().read_to_string().ok()?;
        serde_json::from_str(&text).ok()
    }

    /// The names of what is in memory; none where nobody answers.
    fn loaded(&self) -> Option<Vec<String>> {
        let answer = self.ask("/api/ps", None)?;
        let models = answer["models"].as_array()?.iter();
        Some(models.map(|one| one["name"].as_str().unwrap().to_owned()).collect())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Its end is asked for: killed, it would leave its engine.
        drop(self.input.take());
        drop(self.child.wait());
    }
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_model_is_pulled_loaded_kept_and_let_go() {
    let mut small = Supervised::start(&json!({ "name": "owner/small:q8", "num_ctx": 8192 }));
    small.ready();
    let log = small.log();
    assert!(log.contains("berth: pulling owner/small:q8: "), "{log}");
    assert!(log.contains("berth: loading owner/small:q8"), "{log}");
    assert_eq!(small.loaded(), Some(vec!["owner/small:q8".to_owned()]));
    let shown = small.ask("/api/ps", None).unwrap();
    assert_eq!(shown["models"][0]["context_length"], 8192);
    // Somebody lets it go behind berth's back.
    small.ask("/api/generate", Some(json!({ "model": "owner/small:q8", "keep_alive": 0 })));
    assert_eq!(small.loaded(), Some(vec![]));
    wait_for("it is loaded again", || small.loaded().is_some_and(|all| all.len() == 1));
    assert!(small.log().contains("is no longer loaded: loading it again"), "{}", small.log());
    drop(small.input.take());
    wait_for("nothing answers any more", || small.loaded().is_none());
    assert!(small.child.wait().unwrap().success());
}

#[test]
fn what_cannot_be_had_is_said() {
    let rows = [
        (
            json!({ "name": "nope" }),
            "nope can't be pulled: pull model manifest: file does not exist",
        ),
        (
            json!({ "name": "large", "num_ctx": 8192 }),
            "large was loaded with a context of 32768, and the plan counts on 8192",
        ),
        (
            json!({ "name": "owner/small:q8", "num_batch": 1024 }),
            "the plan counts on num_batch = 1024, and owner/small:q8 has another",
        ),
    ];
    for (library, why) in rows {
        let mut supervised = Supervised::start(&library);
        let mut event = supervised.event();
        if event["event"] == "starting" {
            event = supervised.event();
        }
        assert_eq!(event["kind"], "no_model", "{event}");
        assert!(event["why"].as_str().unwrap().contains(why), "{event}");
        assert!(supervised.child.wait().unwrap().success());
    }
}

#[test]
fn a_batch_that_the_model_itself_has_is_fine() {
    Supervised::start(&json!({ "name": "batched:latest", "num_batch": 1024 })).ready();
}

#[test]
fn an_engine_that_dies_is_told_of() {
    let mut small = Supervised::start(&json!({ "name": "owner/small:q8" }));
    small.ready();
    small.ask("/emulator/fault", Some(json!({ "fault": "crash" })));
    small.ask("/api/version", None);
    let event = small.event();
    assert_eq!((&event["event"], &event["kind"]), (&json!("ended"), &Value::Null), "{event}");
}
