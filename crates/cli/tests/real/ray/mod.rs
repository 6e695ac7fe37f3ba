//! berth on a real Ray cluster, with the real llama-server: one cluster for all of it, since starting it
//! takes longest.

mod cluster;

use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Berth, SMOLLM, fetched, send, wait_until};
use berth_cluster::ray::{Ray, serve};
use cluster::{RayCluster, WORKERS};

/// A model on GPUs that are only counted: the engine is built for processors.
fn model(name: &str, more: &str) -> String {
    let path = fetched(&format!("models/{SMOLLM}"));
    let flags = "flags = { ctx-size = 512, parallel = 1, threads = 1, no-warmup = true }";
    format!("[models.{name}]\nsource = \"{}\"\n{flags}\n{more}\n", path.display())
}

fn spec(berth: &Berth, ray: &RayCluster, models: &str) {
    let cluster = format!(
        "backend = \"ray\"\n[cluster.ray]\naddress = \"{}\"\nname_label = \"machine\"\n\
         [[cluster.nodes]]\nnames = \"n[0-3]\"\ngpu = \"A10\"\ngpus = 4",
        ray.url()
    );
    berth.spec_with(&cluster, models);
}

/// One model with node 0 to itself, one on all others, and two that share a GPU.
fn case() -> String {
    model(
        "big",
        "devices = [\"gpu:0\", \"gpu:1\", \"gpu:2\", \"gpu:3\"]\nnodes = { role = \"dedicated\" }",
    ) + &model(
        "pool",
        "devices = [\"gpu:0\"]\nnodes = { role = \"!dedicated\" }\nreplicas = 3\n\
             spread = { over = \"node\", most = 1 }",
    ) + &model("one", "devices = [\"gpu:3\"]\nnodes = \"n1\"")
        + &model("two", "devices = [\"gpu:3\"]\nnodes = \"n1\"")
}

const ALL: [&str; 6] = ["big-0", "one-0", "pool-0", "pool-1", "pool-2", "two-0"];

fn is_ready(berth: &Berth, ids: &[&str]) -> bool {
    let status = berth.status();
    let all = status["instances"].as_array().unwrap();
    ids.iter().all(|id| all.iter().any(|one| one["id"] == *id && one["state"] == "ready"))
}

fn answers(berth: &Berth, model: &str) -> bool {
    let body = json!({ "model": model, "max_tokens": 1, "prompt": "a" });
    let request = ureq::post(berth.url("/v1/completions"));
    let request = request.config().timeout_global(Some(Duration::from_secs(20))).build();
    request.header("content-type", "application/json").send(body.to_string()).is_ok()
}

/// Figures of a run, for people: nothing rests on them.
#[expect(clippy::print_stderr, reason = "shown with --no-capture")]
fn tell(text: String) {
    eprintln!("{text}");
}

#[test]
fn a_ray_cluster() {
    let berth = Berth::new(9);
    let mut ray = RayCluster::start(WORKERS, &[]);
    what_is_wrong_is_said(&berth, &ray);
    somebody_else_is_there(&berth, &ray);
    everything_has_its_place(&berth, &ray);
    killed_between_any_two_steps(&berth, &ray);
    let mut serve = berth.command(&["serve"]).spawn().unwrap();
    wait_until("all models answer", || {
        ["big", "pool", "one", "two"].iter().all(|model| answers(&berth, model))
    });
    a_second_berth_is_refused(&berth, &ray);
    an_engines_processes_are_listed(&berth, &ray);
    all_machines_are_proved_at_once(&berth);
    a_replica_is_killed(&berth, &ray);
    the_dashboard_is_away(&berth, &ray);
    a_machine_is_lost_and_comes_back(&berth, &mut ray);
    a_change_that_cannot_start_goes_back(&berth, &ray);
    ollama_runs_there_too(&berth, &ray);
    send(i32::try_from(serve.id()).unwrap(), Signal::TERM);
    serve.wait().unwrap();
    vllm_sleeps_and_its_log_teaches(&berth, &ray);
    what_others_run_is_left(&berth, &ray);
    up_runs_it_there_and_stops_it(&berth, &ray);
}

/// Real vLLM under berth from plan to answer, without its GPU: what it takes there is planned as for an A10.
#[test]
#[ignore = "cargo xtask test --vllm brings what it needs"]
fn vllm_on_the_cpu() {
    const QUIET: &[(&str, &str)] = &[
        ("HF_HUB_OFFLINE", "1"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("DO_NOT_TRACK", "1"),
        ("VLLM_CPU_KVCACHE_SPACE", "1"),
    ];
    let berth = Berth::new(8);
    let ray = RayCluster::start(0, QUIET);
    let (vllm, model) = (fetched("vllm/bin/vllm"), fetched("vllm/model"));
    let tiny = format!(
        "[engines.vllm]\nbinary = \"{}\"\nversion = \"0.32.0\"\n[models.tiny]\nengine = \"vllm\"\nsource = \"{}\"\n\
         devices = [\"gpu:1\"]\nextra_args = [\"--load-format\", \"dummy\"]\n\
         flags = {{ max_model_len = 1024, max_num_seqs = 8, dtype = \"bfloat16\", enforce_eager = true }}\n",
        vllm.display(),
        model.display()
    );
    spec(&berth, &ray, &tiny);
    let started = Instant::now();
    berth.run(&["apply"]).expect(0, &["+ tiny-0 starts on n0", "tiny-0: ready"]);
    tell(format!("real vLLM ready after {:.0} s", started.elapsed().as_secs_f64()));
    let mut serve = berth.command(&["serve"]).spawn().unwrap();
    wait_until("vLLM answers through the gateway", || answers(&berth, "tiny"));
    send(i32::try_from(serve.id()).unwrap(), Signal::TERM);
    serve.wait().unwrap();
    let (_, pid) = ray.applications()["berth-tiny-0"][0].clone();
    berth.run(&["down"]).expect(0, &["everything that berth started has stopped"]);
    wait_until("nothing of it is left", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

/// What is written for people to put by hand passes Ray's own schema.
#[test]
fn ray_takes_what_is_emitted() {
    const READ: &str = "import sys, yaml\nfrom ray.serve.schema import ServeDeploySchema\n\
        config = yaml.safe_load(sys.stdin)\n\
        if config.get('kind') == 'RayService': config = yaml.safe_load(config['spec']['serveConfigV2'])\n\
        print(len(ServeDeploySchema(**config).applications))";
    let berth = Berth::new(7);
    let case = crate::harness::root().join("examples/medgemma-16x4.toml");
    for (how, applications) in [("ray", "19"), ("kuberay", "19"), ("ray-serve-llm", "1")] {
        let emit = ["plan", "--strategy", "node-for-newcomer", "--emit", how, "-f"];
        let emitted = berth.command(&emit).arg(&case).output().unwrap();
        let mut python = std::process::Command::new(fetched("ray/bin/python"));
        let python = python.args(["-c", READ]).stdin(std::process::Stdio::piped());
        let mut python = python.stdout(std::process::Stdio::piped()).spawn().unwrap();
        python.stdin.take().unwrap().write_all(&emitted.stdout).unwrap();
        let read = python.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&read.stdout).trim(), applications, "{how}");
    }
}

fn what_is_wrong_is_said(berth: &Berth, ray: &RayCluster) {
    spec(berth, ray, &model("m", "nodes = { role = \"nobody\" }\ndevices = [\"gpu:0\"]"));
    berth.run(&["plan"]).expect(3, &["no node is role = nobody, where m may run"]);
    spec(berth, ray, &model("m", "nodes = \"n7\"\ndevices = [\"gpu:0\"]"));
    berth.run(&["apply"]).expect(3, &["no node is n7, where m may run"]);
    spec(berth, ray, &model("m", "spread = \"rack\"\ndevices = [\"gpu:0\"]"));
    berth
        .run(&["plan"])
        .expect(2, &["m asks for a label `rack`, which n0 lacks", "ray start --labels"]);
    let away = "backend = \"ray\"\n[cluster.ray]\naddress = \"http://127.0.0.1:1\"";
    berth.spec_with(away, &model("m", ""));
    berth.run(&["apply"]).expect(1, &["can't be reached", "set address in [cluster.ray]"]);
}

/// An application of somebody else's, which must be there in the end as it was.
fn somebody_else_is_there(berth: &Berth, ray: &RayCluster) {
    spec(berth, ray, &model("one", "devices = [\"gpu:3\"]\nnodes = \"n1\""));
    berth.run(&["apply"]).expect(0, &["+ one-0 starts on n1", "one-0: ready"]);
    let answer = ray.ask("/api/serve/applications/").unwrap();
    let apps = answer["applications"].as_object().unwrap();
    let mut configs: Vec<Value> =
        apps.values().map(|app| app["deployed_app_config"].clone()).collect();
    let module = ray.config("berth-one-0")["runtime_env"].clone();
    configs.push(json!({
        "name": "theirs", "route_prefix": "/theirs", "import_path": "berth_serve:lease",
        "runtime_env": module, "args": {},
    }));
    ray.put(&json!({ "applications": configs }));
    wait_until("the other application runs", || {
        ray.applications().get("theirs").is_some_and(|replicas| replicas.len() == 1)
    });
}

fn everything_has_its_place(berth: &Berth, ray: &RayCluster) {
    spec(berth, ray, &case());
    berth.run(&["apply"]).expect(0, &["+ big-0 starts on n0", "1 stay as they are"]);
    berth.run(&["apply"]).expect(0, &["nothing changes"]);
    let apps = ray.applications();
    let machines = |name: &str| -> Vec<&str> {
        apps[&format!("berth-{name}")].iter().map(|(machine, _)| machine.as_str()).collect()
    };
    assert_eq!(machines("big-0"), ["n0"]);
    assert_eq!((machines("one-0"), machines("two-0")), (vec!["n1"], vec!["n1"]));
    let mut pool = [machines("pool-0"), machines("pool-1"), machines("pool-2")].concat();
    pool.sort_unstable();
    assert_eq!(pool, ["n1", "n2", "n3"]);
    // What Ray counts of the shared GPU is all of it, and no more.
    let counted = |name: &str| {
        let config = ray.config(&format!("berth-{name}"));
        config["deployments"][0]["ray_actor_options"]["num_gpus"].as_f64().unwrap()
    };
    assert_eq!((counted("big-0"), counted("pool-0")), (4.0, 1.0));
    assert!((counted("one-0") + counted("two-0") - 1.0).abs() < 1e-3);
}

/// However far an apply came, the next one ends where it would have, and nothing runs twice.
fn killed_between_any_two_steps(berth: &Berth, ray: &RayCluster) {
    for point in [1, 3, 5, 8] {
        let change = format!("ctx-size = {}", 512 + 256 * point);
        spec(berth, ray, &case().replacen("ctx-size = 512", &change, 1));
        let mut killed = berth.command(&["apply"]);
        let killed = killed.env("BERTH_CRASH_AT", point.to_string()).output().unwrap();
        assert!(!killed.status.success(), "at {point}");
        berth.run(&["apply"]).expect(0, &[]);
        assert!(is_ready(berth, &ALL), "after a kill at {point}");
        let apps = ray.applications();
        let once = |id: &&str| apps[&format!("berth-{id}")].len() == 1;
        assert!(ALL.iter().all(once), "after a kill at {point}: {apps:?}");
    }
}

fn a_second_berth_is_refused(berth: &Berth, ray: &RayCluster) {
    let other = berth.folder.path().join("other");
    spec(berth, ray, &model("m", "devices = [\"gpu:2\"]\nnodes = \"n2\""));
    let mut apply = berth.command(&["apply"]);
    let refused = apply.env("BERTH_STATE", other).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("another berth ("), "{said}");
    spec(berth, ray, &case());
}

/// What tells whose memory a GPU's processes hold, where there is one.
fn an_engines_processes_are_listed(berth: &Berth, ray: &RayCluster) {
    let dashboard = Ray::new(&ray.url(), None);
    for id in ["one-0", "two-0"] {
        let port = berth.instance(id)["port"].to_string();
        let is_engine = |pid: &u32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split('\0').any(|word| word == port)
        };
        let serving = serve::read(&dashboard).unwrap();
        let replica = &serving.applications[&format!("berth-{id}")].replicas[0];
        wait_until("its processes are listed", || {
            let listed = serve::processes(&dashboard, id, replica).unwrap_or_default();
            !listed.is_empty() && listed.iter().all(is_engine)
        });
    }
}

/// Every model on four machines at once. The GPUs are only counted, so what they hold isn't seen, and no verdict is given.
fn all_machines_are_proved_at_once(berth: &Berth) {
    let ran = berth.run(&["prove", "--duration", "5", "--rate", "2", "--json"]);
    let said = format!("{}\n{}", ran.stdout, ran.stderr);
    // A busy machine may let a request wait too long: then it says no.
    assert!(matches!(ran.code, Some(1 | 4)), "{said}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let phases = report["summary"]["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 4, "{said}");
    for phase in phases {
        let models = phase["models"].as_array().unwrap();
        assert_eq!(models.len(), 4, "{phase}");
        let answered = |model: &Value| model["measures"]["ok"].as_u64() > Some(0);
        assert!(models.iter().all(answered), "{phase}");
    }
    assert!(said.contains("gpu:0 on n3 was not seen"), "{said}");
    tell("four machines are proved at once".to_owned());
}

fn a_replica_is_killed(berth: &Berth, ray: &RayCluster) {
    let (_, pid) = ray.applications()["berth-one-0"][0].clone();
    send(pid, Signal::KILL);
    let started = Instant::now();
    wait_until("the engine has gone with its replica", || !answers(berth, "one"));
    assert!(answers(berth, "two"), "its neighbour on the GPU goes on");
    wait_until("Ray has brought it up again", || answers(berth, "one"));
    tell(format!("a replica killed: answers again after {:.1} s", started.elapsed().as_secs_f64()));
    wait_until("all are ready", || is_ready(berth, &ALL));
}

fn the_dashboard_is_away(berth: &Berth, ray: &RayCluster) {
    ray.signal_dashboard(Signal::STOP);
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        assert!(answers(berth, "big"), "engines serve without the dashboard");
    }
    ray.signal_dashboard(Signal::CONT);
    wait_until("all are ready", || is_ready(berth, &ALL));
}

fn a_machine_is_lost_and_comes_back(berth: &Berth, ray: &mut RayCluster) {
    let apps = ray.applications();
    let on = |id: &str| apps[&format!("berth-{id}")][0].0.clone();
    let lost = ["pool-0", "pool-1", "pool-2"].into_iter().find(|id| on(id) == "n2").unwrap();
    let started = Instant::now();
    ray.kill_node(2);
    wait_until("berth sees it", || berth.instance(lost)["state"] != "ready");
    tell(format!("a machine lost: seen after {:.1} s", started.elapsed().as_secs_f64()));
    assert!(answers(berth, "big") && answers(berth, "pool"), "the others serve on");
    ray.start_node(2);
    let back = Instant::now();
    wait_until("it is ready again", || is_ready(berth, &ALL));
    tell(format!("the machine back: ready after {:.1} s", back.elapsed().as_secs_f64()));
    assert_eq!(ray.applications()[&format!("berth-{lost}")][0].0, "n2");
}

fn a_change_that_cannot_start_goes_back(berth: &Berth, ray: &RayCluster) {
    let bad = case() + "extra_args = [\"--nope\"]\n";
    spec(berth, ray, &bad);
    berth.run(&["apply"]).expect(1, &["~ two-0 restarts on n1"]);
    let two = berth.instance("two-0");
    assert_eq!((&two["state"], &two["rolled_back"]), (&json!("ready"), &json!(true)), "{two}");
    let why = two["diagnosis"]["message"].as_str().unwrap();
    assert!(why.contains("refused a flag"), "{two}");
    assert!(answers(berth, "two") && answers(berth, "one"));
}

/// A program of a shell's lines.
fn program(berth: &Berth, name: &str, lines: &str) -> std::path::PathBuf {
    let file = berth.folder.path().join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{lines}\n")).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&file, executable).unwrap();
    file
}

/// Ollama's server is emulated; what starts it, has it pull and load, and asks it is what a cluster gets.
fn ollama_runs_there_too(berth: &Berth, ray: &RayCluster) {
    let berth_itself = std::path::Path::new(env!("CARGO_BIN_EXE_berth"));
    let emulated = berth_itself.with_file_name("emulated-ollama");
    assert!(emulated.exists(), "build it first: cargo build -p berth-emulator");
    // Slow enough for its pull to be seen.
    let library = r#"{"owner/small:q8": {"size": 1000000000}}"#;
    let script = format!(
        "EMULATED_LIBRARY='{library}' OLLAMA_MODELS='{}' exec '{}' \"$@\"",
        berth.folder.path().join("library").display(),
        emulated.display()
    );
    let wrapper = program(berth, "ollama", &script);
    let ollama = format!(
        "[models.small]\nengine = \"ollama\"\nsource = \"owner/small:q8\"\ndevices = [\"gpu:2\"]\nnodes = \"n2\"\n\
         facts = {{ model = \"medgemma-4b\", type = \"q8_0\" }}\n[engines.ollama]\nbinary = \"{}\"\n",
        wrapper.display()
    );
    spec(berth, ray, &(case() + &ollama));
    let mut apply = berth.command(&["apply"]).spawn().unwrap();
    wait_until("how far the pull is can be seen", || {
        let status = berth.status();
        let mut all = status["instances"].as_array().unwrap().iter();
        let small = all.find(|one| one["id"] == "small-0");
        let doing = small.and_then(|one| one["doing"].as_str());
        doing.is_some_and(|doing| doing.contains("berth: pulling owner/small:q8: 0."))
    });
    assert_eq!(apply.wait().unwrap().code(), Some(0));
    assert!(answers(berth, "small") && answers(berth, "big"));
    let (machine, pid) = ray.applications()["berth-small-0"][0].clone();
    assert_eq!(machine, "n2");
    send(pid, Signal::KILL);
    wait_until("the server has gone with its replica", || !answers(berth, "small"));
    wait_until("Ray has brought it up again", || answers(berth, "small"));
}

/// vLLM is emulated, as it needs a GPU to sleep: that Serve tells its replica without a restart is what counts, and
/// that what is logged comes to where plans are made.
fn vllm_sleeps_and_its_log_teaches(berth: &Berth, ray: &RayCluster) {
    const LOG: &str = "INFO [core.py:116] Initializing a V1 LLM engine (v0.26.0) with config: tensor_parallel_size=1, \
        pipeline_parallel_size=1,\nINFO [model_runner.py:305] Model loading took 15.27 GiB and 1.7 seconds\n\
        INFO [gpu_worker.py:857] Free memory on device (21.4/22.06 GiB) on startup. Desired GPU memory utilization is \
        (0.92, 20.3 GiB). Actual usage is 15.27 GiB for weight, 0.7 GiB for peak activation, 0.37 GiB for non-torch \
        memory, and 0.0 GiB for CUDAGraph memory.";
    let emulated =
        std::path::Path::new(env!("CARGO_BIN_EXE_berth")).with_file_name("emulated-vllm");
    assert!(emulated.exists(), "build it first: cargo build -p berth-emulator");
    let vllm = program(
        berth,
        "vllm",
        &format!("cat <<'END'\n{LOG}\nEND\nexec '{}' \"$@\"", emulated.display()),
    );
    let config = crate::harness::root().join("data/configs/qwen3-8b.json");
    let folder = berth.folder.path().join("qwen3-8b");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(config, folder.join("config.json")).unwrap();
    let sleeper = format!(
        "[models.sleeper]\nengine = \"vllm\"\nsource = \"{0}\"\ndevices = [\"gpu:1\"]\nnodes = \"n2\"\n\
         sleep_level = 1\nflags = {{ max_model_len = 2048, enforce_eager = true }}\n\
         [models.teacher]\nengine = \"vllm\"\nsource = \"{0}\"\ndevices = [\"gpu:2\"]\nnodes = \"n2\"\n\
         flags = {{ max_model_len = 2048, enforce_eager = true }}\n\
         [engines.vllm]\nbinary = \"{1}\"\n",
        folder.display(),
        vllm.display()
    );
    spec(berth, ray, &(case() + &sleeper));
    berth.run(&["apply"]).expect(0, &["sleeper-0: ready"]);
    let instance = berth.instance("sleeper-0");
    let address = format!("http://{}:{}", instance["host"].as_str().unwrap(), instance["port"]);
    let is_asleep = || {
        let answer = ureq::get(format!("{address}/is_sleeping")).call().ok()?;
        let answer: Value =
            serde_json::from_str(&answer.into_body().read_to_string().ok()?).ok()?;
        answer["is_sleeping"].as_bool()
    };
    let before = ray.applications()["berth-sleeper-0"].clone();
    for level in [1, 0] {
        let mut all = ray.configs();
        let sleeper = all.iter_mut().find(|config| config["name"] == "berth-sleeper-0").unwrap();
        sleeper["deployments"][0]["user_config"]["sleep_level"] = json!(level);
        ray.put(&json!({ "applications": all }));
        wait_until("it is told", || is_asleep() == Some(level == 1));
    }
    assert_eq!(ray.applications()["berth-sleeper-0"], before, "the same replica");

    let mut serve = berth.command(&["serve"]).spawn().unwrap();
    let learnt = berth.folder.path().join("state/calibration.json");
    let says = |what: &str| {
        std::fs::read_to_string(&learnt).is_ok_and(|calibration| calibration.contains(what))
    };
    wait_until("its log has taught", || says("the log of teacher-0 on n2, vLLM 0.26.0"));
    assert!(says("\"non_torch\"") && !says("sleeper-0"));
    wait_until("the ledger has what its log reports", || {
        let ledger = berth.status()["ledger"].take();
        let of = |line: &&Value| line["instance"] == "teacher-0" && line["term"] == "weights";
        let weights = ledger.as_array().unwrap().iter().find(of).map(|line| &line["reported"]);
        // 15.27 GiB.
        weights == Some(&json!(16_396_037_652_u64))
    });
    send(i32::try_from(serve.id()).unwrap(), Signal::TERM);
    serve.wait().unwrap();
}

/// From an empty state folder, in the foreground, until Ctrl-C.
fn up_runs_it_there_and_stops_it(berth: &Berth, ray: &RayCluster) {
    std::fs::remove_dir_all(berth.folder.path().join("state")).unwrap();
    spec(berth, ray, &model("one", "devices = [\"gpu:3\"]\nnodes = \"n1\""));
    let up = berth.up();
    assert_eq!(ray.applications()["berth-one-0"][0].0, "n1");
    assert!(answers(berth, "one"));
    up.signal(Signal::INT);
    assert_eq!(up.wait().0, Some(0));
    wait_until("only theirs is left again", || ray.applications().keys().eq(["theirs"]));
}

fn what_others_run_is_left(berth: &Berth, ray: &RayCluster) {
    let theirs = ray.applications()["theirs"].clone();
    berth.run(&["down"]).expect(0, &["everything that berth started has stopped"]);
    wait_until("only theirs is left", || ray.applications().keys().eq(["theirs"]));
    assert_eq!(ray.applications()["theirs"], theirs, "the same process");
}
