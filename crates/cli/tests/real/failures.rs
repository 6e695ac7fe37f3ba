//! What goes wrong, and what the person is told.

use std::net::TcpListener;
use std::process::Command;

use rustix::process::Signal;

use crate::harness::{Berth, GEMMA, Ran, SMOLLM, fetched, model, small};

/// Mistakes that are found before anything is started: exit 2, with what to do.
#[test]
fn mistakes_are_found_before_anything_starts() {
    let berth = Berth::new(20);
    let folder = berth.folder.path();
    let whole = std::fs::read(fetched(&format!("models/{SMOLLM}"))).unwrap();
    std::fs::write(folder.join("cut.gguf"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(folder.join("header.gguf"), &whole[..1000]).unwrap();
    std::fs::write(folder.join("zip.gguf"), "PK a zip file").unwrap();
    std::fs::create_dir(folder.join("empty")).unwrap();
    let source = |source: &str| format!("[models.a]\nsource = \"{source}\"\n");
    for (models, says) in [
        (
            source("nowhere.gguf"),
            ["nowhere.gguf can't be read: No such file", "hint: source in the spec is"],
        ),
        (source("cut.gguf"), ["it is truncated; fetch it again", "hint: check the file"]),
        (source("header.gguf"), ["inside its header: it is truncated", "hint: check the file"]),
        (source("zip.gguf"), ["not a GGUF file: it starts with \"PK a\"", "hint: check the file"]),
        (source("empty"), ["empty has 0 .gguf files, not one", "hint: source in the spec is"]),
        (
            small("a").replace("ctx-size", "ctx-sise"),
            [
                "berth.toml:11:11: llama-server has no flag `ctx-sise`",
                "hint: did you mean `ctx-size`?",
            ],
        ),
        (
            small("a") + "replica = 2\n",
            ["berth.toml:13:1: unknown key `replica`", "hint: did you mean `replicas`?"],
        ),
    ] {
        berth.spec(&models);
        for command in ["plan", "apply", "up"] {
            berth.run(&[command]).expect(2, &says);
        }
    }
    let missing = berth.run(&["plan", "-f", "nothing.toml"]);
    missing.expect(2, &["the spec nothing.toml can't be read", "hint: name it with -f"]);
    berth.spec(&small("a"));
    let text = std::fs::read_to_string(folder.join("berth.toml")).unwrap();
    std::fs::write(folder.join("berth.toml"), text.replace("llama-server/llama-server", "gone"))
        .unwrap();
    berth.run(&["apply"]).expect(2, &["is not a program", "hint: set the path of llama-server"]);
    assert_eq!(berth.engines(), Vec::<String>::new());
}

/// Too much for the budget: exit 3, in bytes, and the advice holds.
#[test]
fn what_does_not_fit_is_told_in_bytes() {
    let berth = Berth::new(21);
    let models = |ctx: u64| model("a", SMOLLM, &format!("ctx-size = {ctx}, parallel = 1"), "");
    let budget = "host_budget = \"600 MiB\"\nheadroom = \"10 MiB\"";
    berth.spec_with(budget, &models(65_536));
    let ran = berth.run(&["apply"]);
    ran.expect(
        3,
        &["does not fit", "host: an instance needs", "short", "any one of these would do:"],
    );
    let advice = ran.stdout.split("- ctx-size = ").nth(1).unwrap();
    let ctx: u64 = advice.split(' ').next().unwrap().parse().unwrap();
    berth.spec_with(budget, &models(ctx));
    berth.run(&["apply"]).expect(0, &["a-0: ready"]);
}

/// A flag that only the engine can refuse: that instance fails in words, the others serve.
#[test]
fn one_bad_start_does_not_stop_the_others() {
    let berth = Berth::new(22);
    berth.spec(&(small("bad") + "extra_args = [\"--nope\"]\n" + &small("good")));
    let ran = berth.run(&["apply"]);
    ran.expect(1, &[
        "bad-0: failed: llama-server refused a flag (error: invalid argument: --nope); left alone",
        "hint: correct the model's flags",
        "good-0: ready",
    ]);
    assert_eq!(berth.engines(), ["good-0"]);
    assert_eq!(berth.instance("bad-0")["diagnosis"]["cause"], "bad_flag");
}

/// A change that can't start goes back to what ran before.
#[test]
fn a_failed_change_is_rolled_back() {
    let berth = Berth::new(23);
    berth.spec(&small("a"));
    berth.run(&["apply"]).expect(0, &[]);
    let args = berth.instance("a-0");
    berth.spec(&(small("a") + "extra_args = [\"--nope\"]\n"));
    berth
        .run(&["apply"])
        .expect(1, &["going back to its earlier configuration", "ready (rolled back)"]);
    let after = berth.instance("a-0");
    assert_eq!((&after["state"], &after["rolled_back"]), (&"ready".into(), &true.into()));
    assert_eq!(after["port"], args["port"]);
    assert_eq!(after["diagnosis"]["cause"], "bad_flag", "why it went back stays in sight");
    assert_eq!(berth.engines(), ["a-0"]);
    // The same mistake again ends in the same way.
    berth.run(&["apply"]).expect(1, &["ready (rolled back)"]);
    assert_eq!(berth.engines(), ["a-0"]);
}

/// A strategy is planned, applied and rolled back by its name.
#[test]
fn strategies_are_applied_and_rolled_back_by_name() {
    let berth = Berth::new(34);
    let change = |name: &str, tokens: u32| {
        format!("[strategies.{name}.models.a]\nflags = {{ ctx-size = {tokens} }}\n")
    };
    berth.spec(&(small("a") + &change("short", 256) + &change("long", 1024)));
    let context = || {
        let pid = berth.instance("a-0")["pid"].to_string();
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let words = String::from_utf8(words).unwrap();
        let mut words = words.split('\0').skip_while(|word| *word != "--ctx-size");
        words.nth(1).map(str::to_owned)
    };
    berth.run(&["plan", "--strategy", "shrt"]).expect(2, &["did you mean `short`?"]);
    berth.run(&["rollback"]).expect(1, &["nothing was ever applied here"]);
    for (command, strategy, tokens) in [
        (vec!["apply", "--strategy", "short"], "short", "256"),
        (vec!["apply", "--strategy", "long"], "long", "1024"),
        (vec!["rollback"], "short", "256"),
        (vec!["rollback", "long"], "long", "1024"),
    ] {
        berth.run(&command).expect(0, &["ready", strategy]);
        assert_eq!(context().as_deref(), Some(tokens), "{command:?}");
    }
    berth.run(&["rollback", "wide"]).expect(1, &["no earlier plan of the strategy `wide`"]);
}

/// An engine that hangs is ended and started again.
#[test]
fn an_engine_that_hangs_is_started_again() {
    let berth = Berth::new(29);
    berth.spec(&small("a"));
    let up = berth.up();
    let pid = berth.pid("a-0");
    crate::harness::send(pid, Signal::STOP);
    crate::harness::wait_until("it is given up", || berth.instance("a-0")["failures"] == 1);
    berth.wait_for("a-0", "ready");
    assert_ne!(berth.pid("a-0"), pid);
    up.signal(Signal::INT);
    assert_eq!(up.wait().0, Some(0));
}

/// A program that starts the engine as its child is found, measured and stopped as one.
#[test]
fn a_wrapper_and_its_engine_are_one_instance() {
    let berth = Berth::new(31);
    let engine = fetched("llama-server/llama-server").display().to_string();
    let wrapper = berth.folder.path().join("wrapper");
    std::fs::write(&wrapper, format!("#!/bin/sh\n'{engine}' \"$@\"\n")).unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    berth.spec(&small("a"));
    let path = berth.folder.path().join("berth.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(&engine, "./wrapper")).unwrap();
    berth.run(&["apply"]).expect(0, &["a-0: ready"]);
    berth.run(&["plan"]).expect(0, &[]);
    assert!(berth.instance("a-0")["memory"]["resident"].as_u64().unwrap() > 100 << 20);
    // The wrapper dies; its engine is stopped all the same.
    crate::harness::send(berth.pid("a-0"), Signal::KILL);
    berth.run(&["down"]).expect(0, &[]);
    assert_eq!(berth.engines(), Vec::<String>::new());
}

/// Less memory than the operating system gives: the engine's own words, and no second try.
#[test]
fn out_of_memory_is_named() {
    let berth = Berth::new(24);
    berth.spec(&model("a", SMOLLM, "ctx-size = 32768, parallel = 1, no-warmup = true", ""));
    let shell = format!("ulimit -v 900000; exec '{}' apply", env!("CARGO_BIN_EXE_berth"));
    let limited = Command::new("sh")
        .args(["-c", &shell])
        .current_dir(berth.folder.path())
        .env("BERTH_STATE", berth.folder.path().join("state"))
        .output();
    Ran::from(limited.unwrap())
        .expect(1, &["a-0: failed: there was not enough memory", "left alone"]);
    assert_eq!(berth.instance("a-0")["diagnosis"]["cause"], "out_of_memory");
}

/// A file that changes between plan and start.
#[test]
fn an_engine_that_always_dies_is_left_alone() {
    let berth = Berth::new(25);
    let engine = berth.folder.path().join("dies");
    std::fs::write(&engine, "#!/bin/sh\necho 'something unheard of' >&2\nexit 3\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&engine, executable).unwrap();
    berth.spec(&small("a"));
    let path = berth.folder.path().join("berth.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let binary = fetched("llama-server/llama-server").display().to_string();
    std::fs::write(&path, text.replace(&binary, "./dies")).unwrap();
    let ran = berth.run(&["apply"]);
    ran.expect(
        1,
        &[
            "it ended by itself: exit code 3 (something unheard of)",
            "next try in 16 s",
            "left alone",
        ],
    );
    assert_eq!(ran.stderr.matches("a-0: starting").count(), 6, "{}", ran.stderr);
}

#[test]
fn ports_and_states_that_are_taken_are_told() {
    let berth = Berth::new(26);
    berth.spec(&small("a"));
    let taken = TcpListener::bind(("127.0.0.1", berth.gateway)).unwrap();
    berth.run(&["up"]).expect(1, &["the gateway can't listen on", "hint: stop what listens there"]);
    assert_eq!(berth.engines(), Vec::<String>::new());
    drop(taken);
    let up = berth.up();
    berth.run(&["up"]).expect(1, &["another berth watches over this state", "hint: stop it first"]);
    berth.run(&["serve"]).expect(1, &["error: "]);
    up.signal(Signal::INT);
    assert_eq!(up.wait().0, Some(0));
    berth.run(&["serve"]).expect(1, &["nothing is applied here yet", "hint: `berth apply"]);
}

/// A port that somebody takes after the plan was made: the answer of a stranger is not readiness.
#[test]
fn a_strangers_server_on_the_port_is_no_readiness() {
    let berth = Berth::new(27);
    berth.spec(&small("a"));
    berth.run(&["apply"]).expect(0, &[]);
    let port = u16::try_from(berth.instance("a-0")["port"].as_u64().unwrap()).unwrap();
    let pid = berth.pid("a-0");
    // The engine dies; before berth starts it again, a stranger has its port and answers 200.
    crate::harness::send(pid, Signal::KILL);
    let mut stranger = None;
    crate::harness::wait_until("the port is free", || {
        stranger = TcpListener::bind(("127.0.0.1", port)).ok();
        stranger.is_some()
    });
    let stranger = stranger.unwrap();
    std::thread::spawn(move || {
        use std::io::Write as _;
        for stream in stranger.incoming().flatten() {
            let mut stream = stream;
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
        }
    });
    let serve = berth.command(&["serve"]).stderr(std::process::Stdio::null()).spawn();
    let mut serve = serve.unwrap();
    let backs_off = || berth.instance("a-0")["diagnosis"]["cause"] == "port_taken";
    crate::harness::wait_until("the port is seen to be taken", backs_off);
    serve.kill().unwrap();
    serve.wait().unwrap();
    // The next plan takes another port.
    berth.run(&["apply"]).expect(0, &["a-0: ready"]);
    assert_ne!(berth.instance("a-0")["port"], port);
}

#[test]
fn fit_answers_cases_and_single_models() {
    let berth = Berth::new(28);
    let gemma = fetched(&format!("models/{GEMMA}"));
    let gemma = gemma.to_str().unwrap();
    berth
        .run(&["fit", gemma, "--", "-c", "4096"])
        .expect(0, &["ready", "kv_cache", "exact", "calibrated"]);
    berth
        .run(&["fit", gemma, "--", "--ctx-sise", "1"])
        .expect(2, &["did you mean `--ctx-size`?", "hint: flags come after"]);
    berth.run(&["fit", gemma, "--", "-ctv", "q8_0", "-fa", "off"]).expect(3, &["flash_attn"]);
    let cases = crate::harness::root().join("data/llamacpp-host.jsonl");
    let models = fetched("models");
    let ran = berth.run(&[
        "fit",
        "--cases",
        cases.to_str().unwrap(),
        "--models",
        models.to_str().unwrap(),
        "--json",
    ]);
    ran.expect(0, &[]);
    let lines: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 34);
    assert!(lines.iter().all(|line| line["verdict"] == "ready" && line["rss_peak_bytes"].is_u64()));
    let odd = berth.folder.path().join("odd.jsonl");
    std::fs::write(&odd, "{\"engine\":\"vllm\",\"model\":\"x\",\"args\":{}}\n{\"engine\":\"llama.cpp\",\"model\":\"gone\"}\n").unwrap();
    berth
        .run(&["fit", "--cases", odd.to_str().unwrap()])
        .expect(0, &["config.json can't be read", "gone.gguf can't be read"]);
    std::fs::write(&odd, "{\"engine\":\n").unwrap();
    berth
        .run(&["fit", "--cases", odd.to_str().unwrap()])
        .expect(2, &["odd.jsonl:1", "hint: a line is"]);
}
