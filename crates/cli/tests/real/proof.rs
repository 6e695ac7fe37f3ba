//! `berth prove` on real engines: a verdict that says yes, one that says no, and figures that another tool agrees with.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use berth_load::arrivals::Arrivals;
use berth_load::phase::{ModelPhase, Phase, Shape};
use berth_load::prompts;
use berth_load::run::run_blocking;
use berth_load::summary::{Latencies, summarize};
use berth_load::target::Target;
use berth_load::tokenizer::Tokenizer;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Berth, GEMMA, SMOLLM, fetched, send, wait_until};

fn model(name: &str, file: &str, flags: &str) -> String {
    let path = fetched(&format!("models/{file}"));
    format!("[models.{name}]\nsource = \"{}\"\nflags = {{ {flags} }}\n", path.display())
}

/// The reports that are kept, the newest last.
fn reports(berth: &Berth) -> Vec<Value> {
    let Ok(files) = std::fs::read_dir(berth.folder.path().join("state/proofs")) else {
        return Vec::new();
    };
    let mut files: Vec<_> = files.flatten().map(|file| file.path()).collect();
    files.sort_unstable();
    let json = files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "json"));
    json.map(|file| serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()).collect()
}

#[test]
fn a_plan_is_proved_or_goes_back() {
    let berth = Berth::new(13);
    let flags = "ctx-size = 512, parallel = 2, threads = 1, no-warmup = true";
    berth.spec(&(model("smol", SMOLLM, flags) + &model("gemma", GEMMA, flags)));
    berth.run(&["prove"]).expect(1, &["nothing is applied here yet", "berth apply -f SPEC"]);
    let up = berth.up();
    let steady = ["prove", "--duration", "20", "--rate", "1.5"];
    let ran = berth.run(&steady);
    // A busy machine keeps the load generator itself from its times, and then nothing is claimed.
    let verdict = ran.stdout.lines().next().unwrap_or_default().to_owned();
    assert!(matches!(ran.code, Some(0 | 4)), "{}\n{}", ran.stdout, ran.stderr);
    assert!(verdict.starts_with("PASS") || verdict.starts_with("INCONCLUSIVE"), "{verdict}");
    let report = reports(&berth).pop().unwrap();
    assert_eq!(report["plan_digest"], berth.status()["plan_digest"]);
    let phases = report["summary"]["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["longest", "batch", "burst", "steady"]);
    for phase in phases {
        let (asked, ok) = (&phase["all"]["requests"], &phase["all"]["ok"]);
        assert!(asked.as_u64() > Some(0) && asked == ok, "all are answered: {phase}");
    }
    for instance in report["memory"]["instances"].as_array().unwrap() {
        let [held, planned] = ["most_held_bytes", "planned_bytes"].map(|it| instance[it].as_u64());
        assert!(held > Some(0) && held <= planned, "{instance}");
    }
    let page = report["name"].as_str().unwrap();
    let page = berth.folder.path().join(format!("state/proofs/{page}.html"));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains(report["plan_digest"].as_str().unwrap()) && !page.contains("<script"));

    // An engine that dies under the load: the change is taken back.
    let before = berth.status()["plan_digest"].clone();
    berth.spec(
        &(model("smol", SMOLLM, "ctx-size = 768, parallel = 2, threads = 1, no-warmup = true")
            + &model("gemma", GEMMA, flags)),
    );
    let apply = ["apply", "--prove", "--duration", "20"];
    let mut applying = berth.command(&apply).spawn().unwrap();
    wait_until("the changed engine serves", || {
        let smol = berth.instance("smol-0");
        let is_there = smol["state"] == "ready" && smol["is_to_change"] == false;
        berth.status()["plan_digest"] != before && is_there
    });
    // In the midst of the load, and another engine than the one that may go back by itself.
    std::thread::sleep(Duration::from_secs(8));
    let pid = berth.instance("gemma-0")["pid"].as_i64().unwrap();
    send(i32::try_from(pid).unwrap(), Signal::KILL);
    assert_eq!(applying.wait().unwrap().code(), Some(1));
    let report = reports(&berth).pop().unwrap();
    assert_eq!(report["verdict"]["result"], "FAIL", "{}", report["verdict"]);
    let reasons = report["verdict"]["reasons"].to_string();
    assert!(reasons.contains("gemma-0 restarted once (limit 0)"), "{reasons}");
    assert_eq!(berth.status()["plan_digest"], before, "what was before is in force again");
    up.signal(Signal::INT);
    assert_eq!(up.wait().0, Some(0));
}

/// What both tools measure of one server at about the same time.
#[derive(Clone, Copy, Debug)]
struct Figures {
    ttft_ms: f64,
    itl_ms: f64,
    e2e_ms: f64,
    tokens_per_second: f64,
    /// What the server says that a token of a prompt and one of an answer took it.
    prefill_ms: f64,
    decode_ms: f64,
}

const REQUESTS: u32 = 30;
const PROMPT_TOKENS: u32 = 100;
const ANSWER_TOKENS: u32 = 32;
/// So often both measure; the pair counts in which the server was most alike for both.
const PAIRS: usize = 4;
/// It is alike enough where its own figures differ by so little.
const ALIKE: f64 = 0.015;
/// The figures of both may differ by so much.
const AGREE: f64 = 0.05;

#[test]
fn another_tool_agrees() {
    let berth = Berth::new(14);
    let flags = "ctx-size = 4096, parallel = 4, threads = 1, no-warmup = true";
    // The template around each question would be in the cache for one tool, which doesn't tell the server otherwise.
    let uncached = "extra_args = [\"--no-cache-prompt\"]\n";
    berth.spec(&(model("smol", SMOLLM, flags) + uncached));
    let _up = berth.up();
    let url = format!("http://127.0.0.1:{}", berth.instance("smol-0")["port"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tokenizer = Tokenizer::new(Target::parse(&url, None).unwrap(), "smol".to_owned());
    let making = prompts::make(Some(&tokenizer), REQUESTS as usize, PROMPT_TOKENS, 7);
    let made = runtime.block_on(making).unwrap();
    let lines: String =
        made.iter().map(|one| format!("{}\n", serde_json::json!({ "text": one.text() }))).collect();
    let file = berth.folder.path().join("prompts.jsonl");
    std::fs::write(&file, lines).unwrap();
    // Far apart: each is alone, whatever the machine does.
    let alone = measure(&url, || own(&url, &made, 2.0, 5));
    let every_s = alone.e2e_ms / 1000.0 * 1.4;

    let mut pairs: Vec<(f64, [Figures; 2])> = Vec::new();
    for pair in 0..PAIRS {
        let folder = berth.folder.path().join(format!("aiperf-{pair}"));
        let theirs = measure(&url, || aiperf(&url, &file, &folder, 1.0 / every_s));
        let ours = measure(&url, || own(&url, &made, every_s, REQUESTS));
        let off = |ours: f64, theirs: f64| (ours / theirs - 1.0).abs();
        let alike =
            off(ours.prefill_ms, theirs.prefill_ms).max(off(ours.decode_ms, theirs.decode_ms));
        pairs.push((alike, [ours, theirs]));
        if alike < ALIKE {
            break;
        }
    }
    let (_, [ours, theirs]) = pairs.iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    for (what, ours, theirs) in [
        ("first token", ours.ttft_ms, theirs.ttft_ms),
        ("between tokens", ours.itl_ms, theirs.itl_ms),
        ("whole answer", ours.e2e_ms, theirs.e2e_ms),
        ("tokens a second", ours.tokens_per_second, theirs.tokens_per_second),
    ] {
        let off = ours / theirs - 1.0;
        assert!(off.abs() < AGREE, "{what}: {ours:.2}, and aiperf {theirs:.2}: of {pairs:#?}");
    }
}

/// berth's own load on the engine itself, a request every so often.
fn own(url: &str, made: &[prompts::Prompt], every_s: f64, requests: u32) -> [f64; 4] {
    let times = (0..requests).map(|at| f64::from(at) * every_s).collect();
    let shape = Shape::Made {
        prompts: made.to_vec(),
        answer_tokens: ANSWER_TOKENS,
        images: 0,
        ignore_eos: true,
    };
    let load =
        ModelPhase { model: "smol".to_owned(), arrivals: Arrivals::Trace(times), seed: 3, shape };
    let long = Duration::from_secs(600);
    let phase = Phase {
        name: "steady".to_owned(),
        loads: vec![load],
        limit: long,
        grace: long,
        is_overload: false,
    };
    let records = run_blocking(&Target::parse(url, None).unwrap(), vec![phase], |_| ()).unwrap();
    let all = summarize(&records, &Default::default()).all;
    assert_eq!(all.ok, u64::from(requests), "{all:?}");
    let [first, last] = [
        records.iter().map(|one| one.marks.sent).min(),
        records.iter().filter_map(|one| one.marks.last).max(),
    ];
    let seconds = (last.unwrap() - first.unwrap()).as_secs_f64();
    let p50 = |spread: Option<berth_load::summary::Spread>| spread.unwrap().p50;
    let Latencies { ttft_from_sent_ms, itl_ms, e2e_from_sent_ms, .. } = all.latencies;
    [
        p50(ttft_from_sent_ms),
        p50(itl_ms),
        p50(e2e_from_sent_ms),
        all.throughput.output_tokens as f64 / seconds,
    ]
}

fn aiperf(url: &str, prompts: &Path, folder: &Path, per_second: f64) -> [f64; 4] {
    let script = crate::harness::root().join("crates/cli/tests/real/run_aiperf.py");
    let mut python = Command::new("python3");
    python.arg(script).arg(fetched("aiperf")).args([url, "smol"]).arg(folder);
    python.args(["--requests", &REQUESTS.to_string(), "--rate", &per_second.to_string()]);
    python.arg("--prompts").arg(prompts);
    let ran = python.args(["--output-tokens", &ANSWER_TOKENS.to_string()]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let said: Value = serde_json::from_slice(&ran.stdout).unwrap();
    ["ttft_ms", "itl_ms", "e2e_ms", "tokens_per_second"].map(|name| said[name].as_f64().unwrap())
}

/// Measures, and asks the server what it took meanwhile.
fn measure(url: &str, run: impl FnOnce() -> [f64; 4]) -> Figures {
    let before = counters(url);
    let [ttft_ms, itl_ms, e2e_ms, tokens_per_second] = run();
    let after = counters(url);
    let each_ms = |seconds: usize| {
        (after[seconds] - before[seconds]) / (after[seconds + 1] - before[seconds + 1]) * 1000.0
    };
    let (prefill_ms, decode_ms) = (each_ms(0), each_ms(2));
    Figures { ttft_ms, itl_ms, e2e_ms, tokens_per_second, prefill_ms, decode_ms }
}

/// Seconds and tokens of prompts, and of answers, since the server started.
fn counters(url: &str) -> [f64; 4] {
    let page = ureq::get(format!("{url}/metrics")).call().unwrap();
    let page = page.into_body().read_to_string().unwrap();
    let value = |name: &str| {
        let line =
            page.lines().find(|line| line.strip_prefix(name).is_some_and(|it| it.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
    };
    [
        "prompt_seconds_total",
        "prompt_tokens_total",
        "tokens_predicted_seconds_total",
        "tokens_predicted_total",
    ]
    .map(|name| value(&format!("llamacpp:{name}")))
}
