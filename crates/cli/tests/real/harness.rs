//! A spec, a state folder and a gateway port of a test's own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The longest that anything may take on a slow, busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) const SMOLLM: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub(crate) const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

/// One real test at a time where the runner doesn't see to it.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A file that `cargo xtask fetch` brought.
pub(crate) fn fetched(path: &str) -> PathBuf {
    let path = root().join("target/demo").join(path);
    assert!(path.exists(), "{} is not here: run `cargo xtask fetch` first", path.display());
    // Not its canonical form: a virtual environment's Python is a link that must stay one.
    std::path::absolute(path).unwrap()
}

/// berth with a folder of its own. What it started is stopped at the end.
pub(crate) struct Berth {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) gateway: u16,
    first_port: u16,
    _turn: MutexGuard<'static, ()>,
}

impl Berth {
    /// `number` gives this test a range of ports of its own.
    pub(crate) fn new(number: u16) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let gateway = listener.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        Self { folder, gateway, first_port: 21_000 + 100 * number, _turn: turn }
    }

    /// Writes the spec: its models' sections, after what all tests have in common.
    pub(crate) fn spec(&self, models: &str) {
        self.spec_with("", models);
    }

    /// The same with further keys in `[cluster]`.
    pub(crate) fn spec_with(&self, cluster: &str, models: &str) {
        let binary = fetched("llama-server/llama-server");
        let text = format!(
            "[cluster]\nfirst_port = {}\n{cluster}\n[gateway]\nlisten = \"127.0.0.1:{}\"\n\
             [engines.llama_server]\nbinary = \"{}\"\n{models}",
            self.first_port,
            self.gateway,
            binary.display()
        );
        std::fs::write(self.folder.path().join("berth.toml"), text).unwrap();
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("BERTH_STATE", self.folder.path().join("state"));
        command.env_remove("RUST_LOG");
        // What an engine takes from its environment must not change what was planned.
        command.env("LLAMA_ARG_N_PARALLEL", "3").env("LLAMA_ARG_CTX_SIZE", "64");
        command
    }

    /// Runs berth to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// Starts `berth up` and waits until it says that it is up.
    pub(crate) fn up(&self) -> Up {
        self.up_with(&[])
    }

    /// The same with more in its environment.
    pub(crate) fn up_with(&self, more: &[(&str, &str)]) -> Up {
        let mut command = self.command(&["up"]);
        command.envs(more.iter().copied());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut up = Up { child: child.unwrap(), said: String::new() };
        let mut lines = BufReader::new(up.child.stderr.take().unwrap());
        while !up.said.contains("Ctrl-C stops them") {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "berth up ended:\n{}", up.said);
            up.said.push_str(&line);
        }
        // What it says from now on must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        up
    }

    pub(crate) fn status(&self) -> Value {
        let ran = self.run(&["status", "--json"]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// The status of one instance.
    pub(crate) fn instance(&self, id: &str) -> Value {
        let status = self.status();
        let all = status["instances"].as_array().unwrap();
        let found = all.iter().find(|instance| instance["id"] == id);
        found.unwrap_or_else(|| panic!("no {id} in {status}")).clone()
    }

    pub(crate) fn pid(&self, id: &str) -> i32 {
        i32::try_from(self.instance(id)["pid"].as_i64().unwrap()).unwrap()
    }

    /// Waits until an instance is in this state.
    pub(crate) fn wait_for(&self, id: &str, state: &str) {
        wait_until(&format!("{id} is {state}"), || self.instance(id)["state"] == state);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.gateway)
    }

    /// Processes that berth started and that still live, by instance.
    pub(crate) fn engines(&self) -> Vec<String> {
        let log_dir = self.folder.path().canonicalize().unwrap().join("state/logs");
        let mut engines: Vec<String> = Vec::new();
        for entry in Path::new("/proc").read_dir().unwrap() {
            let path = entry.unwrap().path();
            let Ok(out) = std::fs::read_link(path.join("fd/1")) else { continue };
            let is_engine =
                std::fs::read_link(path.join("exe")).is_ok_and(|exe| !exe.ends_with("berth"));
            if is_engine && out.starts_with(&log_dir) {
                engines.push(out.file_stem().unwrap().to_string_lossy().into_owned());
            }
        }
        engines.sort();
        engines
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        drop(self.command(&["down"]).output());
    }
}

/// How a command ended and what it said.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Insists on an exit code and on what was said.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, says: &[&str]) {
        let said = format!("{}{}", self.stdout, self.stderr);
        assert_eq!(self.code, Some(code), "{said}");
        for text in says {
            assert!(said.contains(text), "{said}\n\ndoes not say: {text}");
        }
    }
}

/// A `berth up` in the background.
pub(crate) struct Up {
    child: Child,
    pub(crate) said: String,
}

impl Up {
    pub(crate) fn signal(&self, signal: Signal) {
        send(i32::try_from(self.child.id()).unwrap(), signal);
    }

    /// Waits for the end; gives the exit code and what was printed as data.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let mut out = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        (self.child.wait().unwrap().code(), out)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A section of the spec for a small, quick model.
pub(crate) fn small(name: &str) -> String {
    model(name, SMOLLM, "ctx-size = 512, parallel = 1, threads = 1, no-warmup = true", "")
}

/// A section of the spec.
pub(crate) fn model(name: &str, file: &str, flags: &str, more: &str) -> String {
    let path = fetched(&format!("models/{file}"));
    let path = path.display();
    format!(
        "[models.{name}]\nsource = \"{path}\"\ndevices = [\"host\"]\nflags = {{ {flags} }}\n{more}\n"
    )
}
