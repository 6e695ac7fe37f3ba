//! A change that berth advises, made under load, one instance after the other; and one that its probe refuses.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Berth, SMOLLM, fetched, model, send, wait_until};

/// Says that it is well, and answers nothing.
const BROKEN: &str = "
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code):
        self.send_response(code)
        self.send_header('content-length', '0')
        self.end_headers()
    def do_GET(self):
        self.answer(200 if self.path == '/health' else 404)
    def do_POST(self):
        self.answer(500)
    def log_message(self, *_):
        pass
port = int(sys.argv[sys.argv.index('--port') + 1])
http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler).serve_forever()
";

/// An engine that a limit ends with two slots where a file is there, and that is broken with three.
fn wrapper(folder: &Path) -> String {
    let real = fetched("llama-server/llama-server");
    let (path, broken) = (folder.join("engine"), folder.join("broken.py"));
    std::fs::write(&broken, BROKEN).unwrap();
    let script = format!(
        "#!/bin/sh\n\
         case \"$*\" in *--parallel\\ 2*) [ -e {limit} ] && ulimit -v 200000;; esac\n\
         case \"$*\" in *--parallel\\ 3*) exec python3 {broken} \"$@\";; esac\nexec {real} \"$@\"\n",
        limit = folder.join("limit").display(),
        broken = broken.display(),
        real = real.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Clients that ask again and again.
struct Load {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(berth: &Berth) -> Self {
        let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |_| {
            let (is_over, answered) = (Arc::clone(&is_over), Arc::clone(&answered));
            let url = berth.url("/v1/completions");
            thread::spawn(move || {
                let agent: ureq::Agent =
                    ureq::Agent::config_builder().http_status_as_error(false).build().into();
                let request = json!({"model": "smol", "prompt": "x", "max_tokens": 4}).to_string();
                let mut failed = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    match agent.post(&url).send(&request) {
                        Ok(answer) if answer.status() == 200 => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => failed.push(answer.status().to_string()),
                        Err(error) => failed.push(error.to_string()),
                    }
                }
                failed
            })
        };
        let clients = (0..3).map(client).collect();
        Self { is_over, answered, clients }
    }

    /// How many were answered, and what the others came to.
    fn end(self) -> (u64, Vec<String>) {
        self.is_over.store(true, Ordering::Relaxed);
        let failed = self.clients.into_iter().flat_map(|client| client.join().unwrap());
        let failed = failed.collect();
        (self.answered.load(Ordering::Relaxed), failed)
    }
}

fn slots(berth: &Berth, id: &str) -> usize {
    let port = berth.instance(id)["port"].as_u64().unwrap();
    let answer = ureq::get(format!("http://127.0.0.1:{port}/slots")).call().unwrap();
    let slots: Value = serde_json::from_reader(answer.into_body().into_reader()).unwrap();
    slots.as_array().unwrap().len()
}

/// A spec of one model with so many slots of 1024 tokens.
fn spec(berth: &Berth, engine: &str, slots: u32, more: &str) {
    let flags = format!("ctx-size = {}, parallel = {slots}, threads = 1", 1024 * slots);
    berth.spec(&model("smol", SMOLLM, &flags, more));
    let file = berth.folder.path().join("berth.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let real = fetched("llama-server/llama-server").display().to_string();
    std::fs::write(&file, text.replace(&real, engine)).unwrap();
}

/// With `auto` nobody has to say yes, while nothing is asked of the model.
#[test]
fn what_may_be_done_is_done() {
    let berth = Berth::new(35);
    let folder = berth.folder.path();
    spec(&berth, &wrapper(folder), 2, "[adjust]\nmode = \"auto\"");
    let up = berth.up();
    std::fs::write(folder.join("limit"), "").unwrap();
    send(berth.pid("smol-0"), Signal::KILL);
    wait_until("it serves with one slot", || {
        berth.instance("smol-0")["state"] == "ready" && slots(&berth, "smol-0") == 1
    });
    assert!(berth.status()["advice"].is_null());
    let shown = berth.run(&["status"]).stdout;
    assert!(shown.contains("berth advises no more memory for it for 24 h"), "{shown}");
    // Nothing was asked for since, and nothing is changed by asking for the same.
    berth.run(&["apply"]).expect(0, &["nothing changes", "adjusted, and not in the spec"]);
    berth.run(&["apply", "--advised"]).expect(1, &["nothing is advised", "`berth status` shows"]);
    drop(up);
    berth.run(&["down"]).expect(0, &[]);
}

#[test]
fn what_is_advised_is_done_under_load_and_what_fails_goes_back() {
    let berth = Berth::new(34);
    let folder = berth.folder.path();
    let engine = wrapper(folder);
    let spec = |slots: u32| spec(&berth, &engine, slots, "replicas = 2");
    spec(2);
    let up = berth.up();
    let all = ["smol-0", "smol-1"];
    let both_serve = || {
        all.iter().all(|id| {
            let one = berth.instance(id);
            one["state"] == "ready" && one["is_on_trial"] == false && one["is_to_change"] == false
        })
    };

    // One dies of memory: berth would rather have fewer slots.
    std::fs::write(folder.join("limit"), "").unwrap();
    send(berth.pid("smol-0"), Signal::KILL);
    wait_until("something is advised", || berth.status()["advice"].is_object());
    std::fs::remove_file(folder.join("limit")).unwrap();
    let advised = berth.run(&["status"]).stdout;
    for part in ["parallel from 2 to 1", "smol-0 died of memory", "berth apply --advised"] {
        assert!(advised.contains(part), "{part}: {advised}");
    }

    let load = Load::start(&berth);
    berth.run(&["apply", "--advised"]).expect(0, &["~ smol-0 restarts", "~ smol-1 restarts"]);
    assert_eq!(all.map(|id| slots(&berth, id)), [1, 1]);
    assert!(berth.status()["advice"].is_null());
    wait_until("both have stood their trial", both_serve);
    // What the spec doesn't say stays, as long as it says what it said.
    berth.run(&["apply"]).expect(0, &["adjusted, and not in the spec: smol: ctx-size"]);
    assert_eq!(all.map(|id| slots(&berth, id)), [1, 1]);

    // A change whose engine is well and answers nothing.
    spec(3);
    let pids = all.map(|id| berth.pid(id));
    berth.run(&["apply"]).expect(1, &[]);
    let seen = all.map(|id| berth.instance(id));
    assert!(seen.iter().all(|one| one["rolled_back"] == true), "{seen:?}");
    assert_eq!(all.map(|id| slots(&berth, id)), [1, 1]);
    let stayed = all.iter().zip(pids).filter(|(id, pid)| berth.pid(id) == *pid).count();
    assert_eq!(stayed, 1, "only the first was ever changed");

    let (answered, failed) = load.end();
    assert!(failed.is_empty() && answered > 100, "{answered} answered, failed: {failed:?}");
    drop(up);
    berth.run(&["down"]).expect(0, &[]);
}
