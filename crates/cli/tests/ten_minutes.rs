//! The README's ten-minute path, command by command, on a Ray cluster of sixteen emulated machines that berth is told
//! nothing of but its address.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_core::spec::Spec;
use berth_emulator::ray::{Cluster, Setup};
use berth_engines::source::{Hub, transformer};
use serde_json::Value;

const MACHINES: &str = "[[cluster.nodes]]\nnames = \"n[0-15]\"\ngpu = \"A10\"\ngpus = 4\n\
                        [models.any]\nsource = \"medgemma-4b\"\nengine = \"vllm\"\n";
const MODELS: [&str; 2] = ["google/medgemma-27b-it", "google/medgemma-4b-it"];
/// The longest that anything may take on a slow, busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

fn setup() -> Setup {
    let model =
        |name: &str| (name.to_owned(), transformer(name, &Hub::from_env()).unwrap().transformer);
    Setup {
        nodes: Spec::parse("machines", MACHINES).unwrap().cluster.nodes,
        models: MODELS.map(model).into_iter().collect(),
        library: BTreeMap::new(),
        vllm_version: "0.26.0".to_owned(),
        speedup: 200.0,
    }
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.args(args).current_dir(folder).env("BERTH_STATE", folder.join("state"));
    command.env_remove("RUST_LOG");
    command
}

/// What it says, and how it ends.
fn run(folder: &Path, args: &[&str]) -> (i32, String) {
    let output = command(folder, args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// Ends with the test, however that ends.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn from_init_to_a_verdict() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cluster = runtime.block_on(Cluster::start(setup())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let address = cluster.address();
    let [large, small] = MODELS;
    let expect = |args: &[&str], says: &str| {
        let (code, text) = run(folder, args);
        assert_eq!(code, 0, "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}\n\ndoes not say {says}");
    };
    expect(&["init", "--ray", &address, "--model", large, "--model", small], "written: berth.toml");
    // Another test may have the usual port.
    let spec = folder.join("berth.toml");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let written = std::fs::read_to_string(&spec).unwrap();
    assert!(
        written.contains(".0.16 (16): 4 x A10 of 22.1 GiB, up to 0 B in use on one"),
        "{written}"
    );
    std::fs::write(&spec, format!("{written}\n[gateway]\nlisten = \"127.0.0.1:{port}\"\n"))
        .unwrap();
    expect(&["doctor"], "nothing is in the way");
    expect(&["plan"], "fits (plan ");
    expect(&["apply"], "medgemma-27b-it-0: ready after");
    let _serving = Serving(command(folder, &["serve"]).stderr(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while !run(folder, &["status"]).1.contains("watched over") {
        assert!(Instant::now() < deadline, "nobody serves");
        std::thread::sleep(Duration::from_millis(100));
    }
    let prove = ["prove", "--duration", "5", "--rate", "10", "--json"];
    let proved = command(folder, &prove).output().unwrap();
    // Late on a busy machine, it says that it can't tell.
    assert!(matches!(proved.status.code(), Some(0 | 4)), "{proved:?}");
    let report: Value = serde_json::from_slice(&proved.stdout).unwrap();
    let reasons = report["verdict"]["reasons"].as_array().unwrap();
    let open = reasons.iter().filter(|reason| reason["weight"] == "leaves_open");
    let texts: Vec<&str> = open.map(|reason| reason["text"].as_str().unwrap()).collect();
    assert!(texts.iter().all(|text| text.contains("load generator")), "{texts:?}");
    let phases = report["summary"]["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 4);
    for phase in phases {
        let (asked, ok) = (&phase["all"]["requests"], &phase["all"]["ok"]);
        assert!(asked.as_u64() > Some(0) && asked == ok, "{phase}");
    }
    let instances = report["memory"]["instances"].as_array().unwrap();
    assert_eq!(instances.len(), MODELS.len());
    for instance in instances {
        let [held, planned] = ["most_held_bytes", "planned_bytes"].map(|of| instance[of].as_u64());
        assert!(held > Some(0) && held <= planned, "{instance}");
    }
}
