//! `berth up --emulate`: the whole case on one machine, with berth's own code from plan to gateway.
//!
//! What is emulated is never a measurement: nothing here looks at a figure.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const CASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/medgemma-16x4.toml");
/// The longest that anything may take on a slow, busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A rehearsal in the background.
struct Rehearsal {
    folder: tempfile::TempDir,
    spec: PathBuf,
    gateway: u16,
    child: Child,
    said: String,
    /// What it says once it is up.
    log: Arc<Mutex<String>>,
}

impl Rehearsal {
    fn start(spec: &str, more: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), spec, more)
    }

    /// One with another file beside its spec.
    fn with_file(spec: &str, name: &str, text: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
        Self::start_in(folder, spec, &[])
    }

    fn start_in(folder: tempfile::TempDir, spec: &str, more: &[&str]) -> Self {
        let file = folder.path().join("berth.toml");
        std::fs::write(&file, spec).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let gateway = listener.local_addr().unwrap().port();
        drop(listener);
        let mut up = Command::new(env!("CARGO_BIN_EXE_berth"));
        up.args(["up", "--emulate", "--speedup", "200", "-f"]).arg(&file);
        up.args(["--listen", &format!("127.0.0.1:{gateway}"), "--state"]).arg(folder.path());
        let child = up.args(more).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mut this = Self { folder, spec: file, gateway, child, said: String::new(), log };
        let mut lines = BufReader::new(this.child.stderr.take().unwrap());
        while !this.said.contains("Ctrl-C stops them") {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "it ended:\n{}", this.said);
            this.said.push_str(&line);
        }
        let log = Arc::clone(&this.log);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                log.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        this
    }

    /// Runs another command on it.
    fn run(&self, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(args).arg("--state").arg(self.folder.path().join("emulated"));
        let output = command.env_remove("RUST_LOG").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    fn apply(&self, strategy: &str) -> (i32, String) {
        self.run(&["apply", "-f", self.spec.to_str().unwrap(), "--strategy", strategy])
    }

    fn status(&self) -> Value {
        let (code, text) = self.run(&["status", "--json"]);
        assert_eq!(code, 0, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn instances(&self) -> Vec<Value> {
        self.status()["instances"].as_array().unwrap().clone()
    }

    /// Kinds of alarms that are on.
    fn alarms(&self) -> String {
        let alarms = self.status()["alarms"].take();
        let kinds = alarms.as_array().unwrap().iter().map(|one| one["kind"].as_str().unwrap());
        kinds.collect::<Vec<_>>().join(" ")
    }

    fn states(&self, state: &str) -> usize {
        self.instances().iter().filter(|instance| instance["state"] == state).count()
    }

    fn wait_for(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            let log = self.log.lock().unwrap();
            assert!(Instant::now() < deadline, "waited too long until {what}; it said:\n{log}");
            drop(log);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the gateway answers, and whether it says that it is emulated.
    fn ask(&self, model: &str) -> Option<(String, bool)> {
        let url = format!("http://127.0.0.1:{}/v1/chat/completions", self.gateway);
        let message = json!({ "role": "user", "content": "hello" });
        let body = json!({ "model": model, "max_tokens": 4, "messages": [message] });
        let answer = ureq::post(url).send(body.to_string()).ok()?;
        let is_marked = answer.headers().get("x-berth-emulated").is_some();
        let answer: Value =
            serde_json::from_str(&answer.into_body().read_to_string().ok()?).ok()?;
        Some((answer["choices"][0]["message"]["content"].as_str()?.to_owned(), is_marked))
    }

    fn node(&self, name: &str, alive: bool) {
        self.tell(&format!("nodes/{name}"), &json!({ "alive": alive }));
    }

    /// The emulated cluster's dashboard.
    fn address(&self) -> String {
        let (before, _) = self.said.split_once("/emulator/nodes").unwrap();
        before[before.rfind("http://").unwrap()..].to_owned()
    }

    /// Tells the emulated cluster what goes wrong.
    fn tell(&self, what: &str, body: &Value) {
        ureq::post(format!("{}/emulator/{what}", self.address())).send(body.to_string()).unwrap();
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn the_case_from_plan_to_answer() {
    let spec = std::fs::read_to_string(CASE).unwrap();
    let rehearsal = Rehearsal::start(&spec, &["--strategy", "node-for-newcomer"]);
    assert!(rehearsal.said.contains("EVERYTHING BELOW IS EMULATED"), "{}", rehearsal.said);
    assert!(rehearsal.said.contains("15 stay as they are"), "{}", rehearsal.said);
    assert_eq!(rehearsal.states("ready"), 19);
    for model in ["medgemma-27b", "medgemma-4b"] {
        assert_eq!(rehearsal.ask(model), Some(("this answer is emulated ".to_owned(), true)));
    }

    // The machines and the engines are watched.
    let (code, text) = rehearsal.run(&["top", "--once", "--json"]);
    let seen: Value = serde_json::from_str(&text).unwrap();
    let devices = seen["devices"].as_array().unwrap();
    assert!(code == 0 && devices.len() == 64, "{text}");
    assert!(devices.iter().all(|one| one["used"].as_u64() > Some(0)), "{text}");
    let engines = seen["engines"].as_array().unwrap();
    let says = |one: &Value| one["running"] == 0 && one["kv_cache_usage"] == 0.0;
    assert!(engines.len() == 19 && engines.iter().all(says), "{text}");

    rehearsal.node("node-3", false);
    rehearsal.wait_for("the lost node is seen", || rehearsal.states("ready") == 18);
    assert!(rehearsal.ask("medgemma-27b").is_some(), "the others serve on");
    rehearsal.node("node-3", true);
    rehearsal.wait_for("it runs again", || rehearsal.states("ready") == 19);

    let (code, text) = rehearsal.apply("half-fp8");
    assert_eq!(code, 0, "{text}");
    for says in ["+ medgemma-27b-here-0 starts on node-0", "17 stay as they are"] {
        assert!(text.contains(says), "{text}\n\ndoes not say {says}");
    }
    assert_eq!(rehearsal.states("ready"), 18);
    let (code, text) = rehearsal.run(&["rollback"]);
    assert_eq!(code, 0, "{text}");
    rehearsal.wait_for("it is as it was", || rehearsal.states("ready") == 19);
    let (code, text) = rehearsal.apply("1A-lower-090");
    assert!(code == 3 && text.contains("less than desired GPU memory utilization"), "{text}");
    assert_eq!(rehearsal.states("ready"), 19, "what can't be changes nothing");
}

#[test]
fn sixty_four_machines_through_the_same_code() {
    let spec = "[[cluster.nodes]]\nnames = \"n[0-63]\"\ngpu = \"A10\"\ngpus = 4\n\
                [models.small]\nsource = \"medgemma-4b\"\nengine = \"vllm\"\n\
                replicas = { min = 64, max = 128 }\nspread = { over = \"node\", most = 2 }\n\
                flags = { max_model_len = 8192, enforce_eager = true }\n";
    let rehearsal = Rehearsal::start(spec, &[]);
    assert_eq!(rehearsal.states("ready"), 128);
    assert!(rehearsal.ask("small").is_some());
}

/// More instances while more is asked, fewer when it is over; each only where the plan has room.
#[test]
fn instances_follow_what_is_asked() {
    let spec = "[[cluster.nodes]]\nnames = \"n[0-3]\"\ngpu = \"A10\"\n\
                [models.small]\nsource = \"medgemma-4b\"\nengine = \"vllm\"\n\
                replicas = { min = 1, max = 9 }\n\
                scale = { target_ongoing_requests = 2, up_delay_s = 1, down_delay_s = 2 }\n\
                flags = { max_model_len = 8192, enforce_eager = true }\n";
    let rehearsal = Rehearsal::start(spec, &[]);
    assert_eq!((rehearsal.states("ready"), rehearsal.states("spare")), (1, 3));
    let url = format!("http://127.0.0.1:{}/v1/completions", rehearsal.gateway);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..16 {
            threads.spawn(|| {
                let body =
                    json!({ "model": "small", "max_tokens": 4000, "prompt": "a" }).to_string();
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let request = ureq::post(&url).config().timeout_global(Some(PATIENCE)).build();
                    assert!(request.send(body.clone()).is_ok(), "no request is lost on the way");
                }
            });
        }
        rehearsal.wait_for("all four run", || rehearsal.states("ready") == 4);
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    rehearsal.wait_for("one is left", || rehearsal.states("spare") == 3);
    assert_eq!(rehearsal.states("ready"), 1);
}

/// A change lets requests end before the engine that answers them goes.
#[test]
fn a_restart_drains_first() {
    let spec = |longest: u32| {
        format!(
            "[[cluster.nodes]]\nnames = \"n0\"\ngpu = \"A10\"\n\
             [models.small]\nsource = \"medgemma-4b\"\nengine = \"vllm\"\n\
             flags = {{ max_model_len = {longest}, enforce_eager = true }}\n"
        )
    };
    let rehearsal = Rehearsal::start(&spec(8192), &[]);
    let url = format!("http://127.0.0.1:{}/v1/completions", rehearsal.gateway);
    let body = json!({ "model": "small", "max_tokens": 6000, "stream": true, "prompt": "a" });
    std::thread::scope(|threads| {
        let stream = threads.spawn(|| {
            let answer = ureq::post(&url).send(body.to_string()).unwrap();
            answer.into_body().into_with_config().limit(1 << 30).read_to_string()
        });
        std::thread::sleep(Duration::from_millis(500));
        assert!(!stream.is_finished(), "it takes some seconds");
        std::fs::write(&rehearsal.spec, spec(7168)).unwrap();
        let (code, text) = rehearsal.run(&["apply", "-f", rehearsal.spec.to_str().unwrap()]);
        assert!(code == 0 && text.contains("~ small-0 restarts on n0"), "{text}");
        let text = stream.join().unwrap().unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "the stream is whole");
    });
    assert!(rehearsal.ask("small").is_some());
}

#[test]
fn engines_fail_as_real_ones_do() {
    let spec = "[[cluster.nodes]]\nnames = \"n[0-1]\"\ngpu = \"A10\"\n\
                [models.small]\nsource = \"medgemma-4b\"\nengine = \"vllm\"\n\
                flags = { max_model_len = 8192, enforce_eager = true }\n";
    let rehearsal = Rehearsal::start(spec, &[]);
    let engine = || {
        let instance = rehearsal.instances().remove(0);
        format!("http://{}:{}", instance["host"].as_str().unwrap(), instance["port"])
    };
    let set = |fault: &str| {
        let url = format!("{}/emulator/fault", engine());
        ureq::post(url).send(json!({ "fault": fault }).to_string()).is_ok()
    };
    let stream = || {
        let message = json!({ "role": "user", "content": "hello" });
        let body =
            json!({ "model": "small", "max_tokens": 8, "stream": true, "messages": [message] });
        let url = format!("{}/v1/chat/completions", engine());
        ureq::post(url).send(body.to_string()).unwrap().into_body().read_to_string()
    };
    let whole = stream().unwrap();
    assert_eq!(whole.matches("data: {").count(), 8, "{whole}");
    assert!(whole.ends_with("data: [DONE]\n\n"), "{whole}");
    let metrics = ureq::get(format!("{}/metrics", engine())).call().unwrap();
    let metrics = metrics.into_body().read_to_string().unwrap();
    assert!(
        metrics.contains("vllm:num_requests_running{engine=\"0\",model_name=\"small\"} 0"),
        "{metrics}"
    );

    assert!(set("crash_in_stream"));
    assert!(stream().is_err(), "it breaks off");
    rehearsal.wait_for("Serve has brought it up again", || rehearsal.ask("small").is_some());
    assert!(set("out_of_memory"));
    assert!(rehearsal.ask("small").is_none());
    rehearsal.wait_for("it is up again", || rehearsal.ask("small").is_some());
    assert!(set("refuse"));
    assert!(rehearsal.ask("small").is_none());
    assert!(set("none") && rehearsal.ask("small").is_some());
    assert!(!set("nonsense"));
}

/// Everything asked at once on a cluster: berth's own parts hold, and the report says that no figure is a measurement.
#[test]
fn a_cluster_is_proved() {
    let spec = "[[cluster.nodes]]\nnames = \"n[0-1]\"\ngpu = \"A10\"\n\
                [models.small]\nsource = \"gemma-3-4b\"\nengine = \"vllm\"\nreplicas = 2\n\
                flags = { max_model_len = 4096, max_num_seqs = 16, enforce_eager = true }\n";
    let rehearsal = Rehearsal::start(spec, &[]);
    let (code, text) = rehearsal.run(&["prove", "--duration", "5", "--rate", "10", "--json"]);
    // Late on a busy machine, it says that it can't tell.
    assert!(matches!(code, 0 | 4), "{text}");
    let json = text.find('{').and_then(|at| text.rfind('}').map(|end| &text[at..=end]));
    let report: Value = serde_json::from_str(json.unwrap()).unwrap();
    assert_eq!((&report["emulated"], &report["version"]), (&json!(true), &json!(1)));
    let phases = report["summary"]["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 4);
    for phase in phases {
        assert_eq!(phase["all"]["requests"], phase["all"]["ok"], "{phase}");
    }
    let asked = phases.iter().filter_map(|phase| phase["all"]["requests"].as_u64());
    assert!(asked.sum::<u64>() > 0);
    let devices = report["memory"]["devices"].as_array().unwrap();
    assert!(devices.len() == 2 && devices.iter().all(|one| one["least_free_bytes"].is_u64()));
}

/// Ray says which process holds what, and an engine's supervisor which are its own: together that is who holds a GPU.
#[test]
fn who_holds_what_is_seen() {
    let spec = "[[cluster.nodes]]\nnames = \"n[0-1]\"\ngpu = \"A10\"\n\
                [models.small]\nsource = \"gemma-3-4b\"\nengine = \"vllm\"\nnodes = \"n0\"\n\
                flags = { max_model_len = 4096, max_num_seqs = 16, enforce_eager = true }\n\
                [models.smaller]\nsource = \"gemma-3-1b\"\nengine = \"vllm\"\nnodes = \"n1\"\n\
                flags = { max_model_len = 4096, max_num_seqs = 16, enforce_eager = true, gpu_memory_utilization = 0.4 }\n";
    let rehearsal = Rehearsal::start(spec, &[]);
    let device = || rehearsal.status()["devices"][0].take();
    let bytes = |device: &Value, of: &str| device[of].as_u64().unwrap();
    let first = device();
    assert!(bytes(&first, "observed") > 0, "{first}");
    assert!(bytes(&first, "observed") <= bytes(&first, "planned"), "{first}");
    let limit = |instance: &str| {
        let ledger = rehearsal.status()["ledger"].take();
        let of = ledger.as_array().unwrap().iter();
        of.filter(|line| line["term"] == "limit").find(|line| line["instance"] == instance).cloned()
    };
    assert_eq!(limit("small-0").unwrap()["observed"], first["observed"], "{first}");
    assert_eq!(
        limit("smaller-0").unwrap()["observed"],
        rehearsal.status()["devices"][1]["observed"]
    );
    assert_ne!(limit("smaller-0").unwrap()["observed"], first["observed"], "{first}");
    let (before, room) = (bytes(&first, "used_by_others"), bytes(&first, "budget"));

    rehearsal.tell("gpus/n0/gpu:0", &json!({ "bytes": 2_u64 << 30 }));
    rehearsal
        .wait_for("others hold it", || bytes(&device(), "used_by_others") == before + (2 << 30));
    let second = device();
    assert_eq!(second["observed"], first["observed"], "it is nobody's of ours");
    rehearsal.wait_for("it is told", || rehearsal.alarms().contains("no_room"));
    rehearsal.tell("gpus/n0/gpu:0", &json!({ "bytes": 0 }));

    let instances = rehearsal.instances();
    let leaky = instances.iter().find(|one| one["node"] == "n0").unwrap();
    let engine = format!("http://{}:{}", leaky["host"].as_str().unwrap(), leaky["port"]);
    let leaks = json!({ "fault": "leak" }).to_string();
    ureq::post(format!("{engine}/emulator/fault")).send(leaks).unwrap();
    let (code, text) = rehearsal.run(&["prove", "--duration", "5", "--rate", "10"]);
    assert_eq!(code, 1, "{text}");
    let says = format!("{} held ", leaky["id"].as_str().unwrap());
    assert!(text.contains(&says) && text.contains(" more than its plan (limit 1 %)"), "{text}");
    rehearsal.wait_for("it is told", || rehearsal.alarms().contains("over_plan"));
    assert!(bytes(&device(), "observed") > room, "{}", device());
}

/// A first spec, from what a cluster has; it is one that berth reads.
#[test]
fn a_first_spec_is_written() {
    let models = "[models.small]\nsource = \"medgemma-4b\"\nengine = \"vllm\"\n\
                  flags = { max_model_len = 8192, enforce_eager = true }\n";
    let nodes = "[[cluster.nodes]]\nnames = \"n[0-1]\"\ngpu = \"A10\"\ngpus = 4\n";
    let rehearsal = Rehearsal::start(&format!("{nodes}{models}"), &[]);
    let address = rehearsal.address();
    let file = rehearsal.folder.path().join("first.toml");
    let file = file.to_str().unwrap();
    let init = ["init", "--ray", &address, "-f", file];
    let (code, text) = rehearsal.run(&[&init[..], &["--model", "medgemma-27b"]].concat());
    assert_eq!(code, 0, "{text}");
    let written = std::fs::read_to_string(file).unwrap();
    for says in ["4 x A10 of", "tensor_parallel_size = 4", "[models.medgemma-27b]", &address] {
        assert!(written.contains(says), "{written}\n\ndoes not say {says}");
    }
    let (code, text) = rehearsal.run(&init);
    assert!(code == 2 && text.contains("name another with -f: what is there stays"), "{text}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), written);
    let nowhere = ["init", "--ray", "http://127.0.0.1:1", "-f", "none.toml"];
    let (code, text) = rehearsal.run(&nowhere);
    assert!(code == 1 && text.contains("can't be reached"), "{text}");
}

/// An idle engine gives its memory to one that can't start without it, and wakes when it is asked and there is room.
#[test]
fn who_is_idle_sleeps_for_others() {
    let model = |name: &str, more: &str| {
        format!(
            "[models.{name}]\nsource = \"medgemma-4b\"\nengine = \"vllm\"\n{more}\
             flags = {{ gpu_memory_utilization = 0.3, max_model_len = 8192, enforce_eager = true }}\n"
        )
    };
    let spec = format!(
        "[[cluster.nodes]]\nnames = \"n0\"\ngpu = \"H100\"\n[adjust]\nidle_s = 1\n{}{}",
        model("seldom", "sleep_level = 1\n"),
        model("often", "")
    );
    let rehearsal = Rehearsal::start(&spec, &[]);
    let state = |model: &str| {
        let all = rehearsal.instances();
        let found = all.iter().find(|one| one["model"] == model).unwrap();
        (found["state"].as_str().unwrap().to_owned(), found["port"].clone(), found["host"].clone())
    };
    let stranger = |gib: u64| rehearsal.tell("gpus/n0/gpu:0", &json!({ "bytes": gib << 30 }));
    assert!(rehearsal.ask("seldom").is_some() && rehearsal.ask("often").is_some());

    // 79.2 GiB, of which each takes 24 and some: what the stranger leaves is too little for two.
    stranger(40);
    let (_, port, host) = state("often");
    let url = format!("http://{}:{port}/emulator/fault", host.as_str().unwrap());
    ureq::post(&url).send(json!({ "fault": "crash" }).to_string()).unwrap();
    rehearsal.ask("often");
    rehearsal.wait_for("one sleeps", || state("seldom").0 == "asleep");
    rehearsal.wait_for("the other runs again", || state("often").0 == "ready");
    assert!(rehearsal.ask("often").is_some());
    let log = rehearsal.log.lock().unwrap().clone();
    assert!(log.contains("seldom-0: put to sleep: often-0 can't start for want of it"), "{log}");

    // It is asked for, and can't wake yet: the request waits.
    std::thread::scope(|threads| {
        let asking = threads.spawn(|| rehearsal.ask("seldom"));
        std::thread::sleep(Duration::from_secs(2));
        assert!(!asking.is_finished() && state("seldom").0 == "asleep");
        stranger(0);
        assert!(asking.join().unwrap().is_some(), "it is answered once there is room");
    });
    rehearsal.wait_for("it is awake", || state("seldom").0 == "ready");
}

/// Keys, another name, a rule, and a line for each request that doesn't say what was asked.
#[test]
fn a_gateway_with_keys() {
    let spec = "[gateway]\nkeys = \"keys.toml\"\naccess_log = true\naliases = { gpt = \"small\" }\n\
                [[gateway.rules]]\npath_prefix = \"/team\"\nto = \"small\"\n\
                [[cluster.nodes]]\nnames = \"n0\"\ngpu = \"A10\"\n\
                [models.small]\nsource = \"medgemma-4b\"\nengine = \"vllm\"\n\
                flags = { max_model_len = 8192, enforce_eager = true }\n";
    let made = Command::new(env!("CARGO_BIN_EXE_berth")).args(["key", "team"]).output().unwrap();
    let said = String::from_utf8(made.stderr).unwrap();
    let secret = said.split_whitespace().find(|word| word.starts_with("berth-")).unwrap();
    let rehearsal = Rehearsal::with_file(spec, "keys.toml", &made.stdout);
    let ask = |path: &str, key: &str| {
        let url = format!("http://127.0.0.1:{}{path}", rehearsal.gateway);
        let body = json!({ "model": "gpt", "max_tokens": 2, "prompt": "a secret prompt" });
        let request = ureq::post(url).header("authorization", format!("Bearer {key}"));
        let request = request.config().http_status_as_error(false).build();
        request.send(body.to_string()).unwrap().status().as_u16()
    };
    let rows = [
        ("/v1/completions", secret, 200),
        ("/team/v1/completions", secret, 200),
        ("/v1/completions", "berth-nobody", 401),
    ];
    for (path, key, status) in rows {
        assert_eq!(ask(path, key), status, "{path}");
    }
    let mut log = String::new();
    rehearsal.wait_for("each has its line", || {
        log = rehearsal.log.lock().unwrap().clone();
        log.matches("berth::access").count() == 3
    });
    assert!(log.contains("team") && log.contains("invalid_api_key"), "{log}");
    assert!(!log.contains(secret) && !log.contains("a secret prompt"), "{log}");
}

/// Pulled, loaded and asked under the name that its library has for it.
#[test]
fn ollama_is_looked_after() {
    let spec = "[[cluster.nodes]]\nnames = \"n[0-1]\"\ngpu = \"A10\"\ngpus = 2\n\
                [models.small]\nsource = \"amsaravi/medgemma-4b-it:q8\"\nengine = \"ollama\"\n\
                facts = { model = \"medgemma-4b\", type = \"q8_0\" }\n\
                devices = [\"gpu:1\"]\nflags = { num_ctx = 8192 }\n";
    let rehearsal = Rehearsal::start(spec, &[]);
    assert!(rehearsal.ask("small").is_some());
    let instance = rehearsal.instances().remove(0);
    assert_eq!(instance["served_name"], "amsaravi/medgemma-4b-it:q8");
    let engine = format!("http://{}:{}", instance["host"].as_str().unwrap(), instance["port"]);
    let shown = || {
        let answer = ureq::get(format!("{engine}/api/ps")).call().ok()?;
        let text = answer.into_body().read_to_string().ok()?;
        let models = serde_json::from_str::<Value>(&text).ok()?["models"].take();
        models.as_array()?.first().cloned()
    };
    let loaded = shown().unwrap();
    assert_eq!(loaded["context_length"], 8192, "{loaded}");
    assert!(loaded["size_vram"].as_u64().unwrap() > 4 << 30, "{loaded}");
    let body = json!({ "model": "small", "messages": [] }).to_string();
    let refused = ureq::post(format!("{engine}/v1/chat/completions")).send(body);
    assert!(refused.is_err(), "the engine itself knows only its own name");
    let body = json!({ "model": "amsaravi/medgemma-4b-it:q8", "keep_alive": 0 }).to_string();
    ureq::post(format!("{engine}/api/generate")).send(body).unwrap();
    rehearsal.wait_for("it is loaded again", || shown().is_some());
    let fault = json!({ "fault": "crash" }).to_string();
    ureq::post(format!("{engine}/emulator/fault")).send(fault).unwrap();
    assert!(rehearsal.ask("small").is_none());
    rehearsal.wait_for("it is up again", || rehearsal.ask("small").is_some());
    let wrong = spec.replace("devices = [\"gpu:1\"]", "extra_args = [\"-v\"]");
    std::fs::write(&rehearsal.spec, wrong).unwrap();
    let (code, text) = rehearsal.run(&["apply", "-f", rehearsal.spec.to_str().unwrap()]);
    assert!(code == 2 && text.contains("`ollama serve` takes no arguments"), "{text}");
}

/// Somebody has Ollama drop its model again and again while it is proved.
#[test]
fn a_dropped_model_is_no_proof() {
    let spec = "[[cluster.nodes]]\nnames = \"n0\"\ngpu = \"A10\"\n\
                [models.small]\nsource = \"amsaravi/medgemma-4b-it:q8\"\nengine = \"ollama\"\n\
                facts = { model = \"medgemma-4b\", type = \"q8_0\" }\n\
                devices = [\"gpu:0\"]\nflags = { num_ctx = 4096 }\n";
    let rehearsal = Rehearsal::start(spec, &[]);
    let instance = rehearsal.instances().remove(0);
    let engine = format!("http://{}:{}", instance["host"].as_str().unwrap(), instance["port"]);
    // However it ends, dropping ends with it.
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let (code, text) = std::thread::scope(|threads| {
        let over = over;
        threads.spawn(move || {
            let body = json!({ "model": "amsaravi/medgemma-4b-it:q8", "keep_alive": 0 });
            let (started, pause) = (Instant::now(), Duration::from_millis(10));
            while is_over.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                // Longer than between two looks, so that one sees it gone, and one there again.
                if started.elapsed().as_secs() % 4 >= 2 {
                    drop(ureq::post(format!("{engine}/api/generate")).send(body.to_string()));
                }
            }
        });
        let proved = rehearsal.run(&["prove", "--duration", "5", "--rate", "2", "--json"]);
        drop(over);
        proved
    });
    assert_eq!(code, 1, "{text}");
    let json = text.find('{').and_then(|at| text.rfind('}').map(|end| &text[at..=end]));
    let report: Value = serde_json::from_str(json.unwrap()).unwrap();
    assert!(report["memory"]["instances"][0]["evictions"].as_u64() > Some(0), "{text}");
    assert!(text.contains("small-0 dropped its model "), "{text}");
}
