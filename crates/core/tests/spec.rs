//! The spec: what is read, and what each kind of bad one is told.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::path::Path;

use berth_core::spec::{DeviceSelector, FlagValue, Source, Spec, json_schema};
use berth_core::units::Bytes;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn the_example_for_ray_is_a_spec() {
    let text = std::fs::read_to_string(root().join("examples/ray.toml")).unwrap();
    let spec = Spec::parse("ray.toml", &text).unwrap();
    assert_eq!(spec.cluster.ray.name_label.as_deref(), Some("machine"));
    assert_eq!((spec.cluster.ray.written.len(), spec.deployments.len()), (4, 2));
    let small = &spec.deployments[1];
    assert_eq!((small.replicas.max, small.scale.unwrap().target_ongoing_requests), (12, 5.0));
}

#[test]
fn the_annotated_example_is_a_spec() {
    let text = std::fs::read_to_string(root().join("examples/two-models.toml")).unwrap();
    let spec = Spec::parse("two-models.toml", &text).unwrap();
    assert_eq!(spec.cluster.host_budget, Some(Bytes(1_342_177_280)));
    let [gemma, smollm] = spec.deployments.as_slice() else { panic!("two models") };
    assert_eq!((gemma.name.as_str(), smollm.name.as_str()), ("gemma3-270m", "smollm2"));
    assert_eq!(gemma.devices, [DeviceSelector::Host]);
    assert_eq!(smollm.flags["ctx-size"], FlagValue::Int(8192));
}

#[test]
fn the_schema_file_is_that_of_the_types() {
    let kept = std::fs::read_to_string(root().join("berth.schema.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert!(kept == json_schema(), "run `cargo run -- schema > berth.schema.json`");
}

#[test]
fn short_specs_have_sensible_defaults() {
    let spec = Spec::parse("s", "[models.a]\nsource = \"hub:o/n/f.gguf\"").unwrap();
    assert_eq!(spec.gateway.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(spec.cluster.first_port, 18_100);
    let a = &spec.deployments[0];
    assert_eq!((a.replicas.min, a.replicas.max), (1, 1));
    assert_eq!(a.source, Source::Hub { repo: "o/n".into(), file: "f.gguf".into() });
}

/// Servers that somebody else runs: one or several, and what the model is called there.
#[test]
fn external_servers_are_one_or_several() {
    for (written, expected) in [
        ("\"http://a:1\"", vec![("a", 1, "m")]),
        ("{ url = \"http://a:1\", name = \"n\" }", vec![("a", 1, "n")]),
        ("[\"http://a:1\", \"http://b:2\"]", vec![("a", 1, "m"), ("b", 2, "m")]),
        (
            "[\"http://a:1\", { url = \"http://b:2\", name = \"n\" }]",
            vec![("a", 1, "m"), ("b", 2, "n")],
        ),
    ] {
        let spec = Spec::parse("s", &format!("[models.m]\nexternal = {written}\n")).unwrap();
        let found: Vec<_> = spec
            .external
            .iter()
            .map(|one| (one.host.as_str(), one.port, one.name.as_str()))
            .collect();
        assert_eq!(found, expected, "{written}");
    }
}

/// Each bad spec with the lines that the user reads: place and message, then the hint.
#[test]
fn bad_specs_are_told_what_to_write() {
    const MODEL: &str = "[models.a]\nsource = \"a.gguf\"\n";
    const NODES: &str = "[[cluster.nodes]]\nnames = \"node-[0-3]\"\ngpu = \"A10\"\n";
    for (text, expected) in [
        (
            "[models.m]\nexternal = [\"http://a:1\", \"http://a:1/\"]\n".to_owned(),
            "s:2:12: `http://a:1` stands there twice | leave one of them out",
        ),
        (
            "[models.m]\nexternal = [\"http://a\"]\n".to_owned(),
            "s:2:12: `http://a` is no address of a server | write \"http://10.0.0.7:11434\": host and port, and no path",
        ),
        (
            "[models.m]\nexternal = { address = \"http://a:1\" }\n".to_owned(),
            "s:2:12: expected \"http://HOST:PORT\", { url = \"http://HOST:PORT\", name = \"...\" }, or a list of them | ",
        ),
        (
            "".to_owned(),
            "s:1:1: there is no model in this spec | add a section such as\n    [models.tiny]\n    source = \"models/tiny.gguf\"",
        ),
        ("[clutser]\n".to_owned(), "s:1:2: unknown key `clutser` | did you mean `cluster`?"),
        (
            "[cluster]\nhost_budgt = \"1 GiB\"\n".to_owned(),
            "s:2:1: unknown key `host_budgt` | did you mean `host_budget`?",
        ),
        (
            "[cluster]\nzzz = 1\n".to_owned(),
            "s:2:1: unknown key `zzz` | there are: backend, host_budget, headroom, first_port, nodes, ray",
        ),
        (
            "[models.a]\nsuorce = \"a.gguf\"\n".to_owned(),
            "s:2:1: unknown key `suorce` | did you mean `source`?",
        ),
        ("[models.a]\n".to_owned(), "s:1:9: the model `a` has no source | add source = \"...\": where its weights are"),
        ("[models.a]\nsource = \"a\"\nsource = \"b\"\n".to_owned(), "s:3:1: duplicate key | "),
        ("[models.a\n".to_owned(), "s:1:10: unclosed table, expected `]` | "),
        (
            "[cluster]\nhost_budget = \"12 parsecs\"\n".to_owned(),
            "s:2:15: `12 parsecs` is not an amount of memory: write a number with a unit, as in \"1.5 GiB\" or \"800 MB\" | ",
        ),
        (
            "[cluster]\nhost_budget = -1\n".to_owned(),
            "s:2:15: expected an amount of memory, as in \"1.5 GiB\" | ",
        ),
        (
            "[cluster]\nbackend = \"loacl\"\n".to_owned(),
            "s:2:11: unknown variant `loacl`, expected `local` or `ray` | did you mean `local`?",
        ),
        (
            format!("[cluster]\nfirst_port = 80\n{MODEL}"),
            "s:2:14: first_port must be between 1024 and 64535 | ",
        ),
        (
            format!("[gateway]\nlisten = \"0.0.0.0:80\"\n{MODEL}"),
            "s:2:10: 0.0.0.0:80 is reachable from other machines | listen on 127.0.0.1; or name a file of keys, keys = \"keys.toml\" (`berth key` makes them); or set allow_remote = true in [gateway] if anybody who reaches it may use the models",
        ),
        (
            format!("[gateway]\nlisten = \"localhost\"\n{MODEL}"),
            "s:2:10: invalid socket address syntax | write address and port, as in \"127.0.0.1:8080\"",
        ),
        (
            "[models.\"a b\"]\nsource = \"a.gguf\"\n".to_owned(),
            "s:1:9: `a b` can't be a model's name | use letters, digits, `-`, `_`, `.` and `:`, at most 128 of them",
        ),
        (
            format!("{MODEL}replicas = {{ min = 3, max = 1 }}\n"),
            "s:3:12: replicas: min = 3 is more than max = 1 | ",
        ),
        (
            format!("{MODEL}replicas = 0\n"),
            "s:3:12: replicas: at least 1; take the model out to run none | ",
        ),
        (
            format!("{MODEL}engine = \"vlm\"\n"),
            "s:3:10: unknown variant `vlm` | did you mean `vllm`?",
        ),
        (
            "[[cluster.nodes]]\nnames = \"n[0-16]\"\ngpu = \"A1O\"\n[models.a]\nsource = \"a.gguf\"\n".to_owned(),
            "s:3:7: `A1O` is no kind of GPU that berth knows | did you mean `A10`?",
        ),
        (
            format!("{NODES}{MODEL}nodes = \"node-16\"\n"),
            "s:6:9: there is no node `node-16` | did you mean `node-1`?",
        ),
        (
            format!("{NODES}{MODEL}nodes = {{ zone = \"a\" }}\n"),
            "s:6:9: no node has a label `zone` | give nodes some in [[cluster.nodes]], or in labels of the strategy",
        ),
        (
            format!("{NODES}labels = {{ rack = \"a\" }}\n{MODEL}spread = \"rak\"\n"),
            "s:7:10: node-0 has no label `rak` | did you mean `rack`?",
        ),
        (
            format!("{NODES}{MODEL}spread = \"rack\"\n"),
            "s:6:10: node-0 has no label `rack` | give it one: labels = { rack = \"...\" } in [[cluster.nodes]]",
        ),
        (
            format!("{NODES}{MODEL}spread = {{ over = \"node\", most = 0 }}\n"),
            "s:6:10: most = 0 would leave no place at all | write most = 1 for one instance in each",
        ),
        (
            format!("{MODEL}spread = \"node\"\n"),
            "s:3:10: this machine alone has nothing to choose between | write the machines down in [[cluster.nodes]], or leave it out",
        ),
        (
            format!("{NODES}{MODEL}spread = {{ ovr = \"rack\" }}\n"),
            "s:6:10: expected `node`, a label, or { over = \"rack\", most = 2 } | ",
        ),
        (
            format!("{NODES}{MODEL}beside = \"b\"\n"),
            "s:6:10: there is no model `b` | did you mean `a`?",
        ),
        (
            format!("{NODES}{MODEL}beside = \"a\"\n"),
            "s:6:10: `a` would wait for itself beside `a` | one of the two is enough: the other comes first",
        ),
        (
            format!("{NODES}[[cluster.nodes]]\nnames = \"node-3\"\n{MODEL}"),
            "s:5:9: there is a node `node-3` already | ",
        ),
        (
            format!("{MODEL}[strategies.x]\nwithout = [\"b\"]\n"),
            "s:4:12: there is no model `b` to leave out | ",
        ),
        (
            format!("{MODEL}[strategies.x.models.a]\nreplica = 2\n"),
            "s:4:1: unknown key `replica` | did you mean `replicas`?",
        ),
        (
            format!("{NODES}{MODEL}[strategies.x.models.a]\nnodes = \"!in(node-[0-3])\"\n"),
            "s:7:9: no node is !in(node-0, node-1, node-2, node-3) | no node has a label: give them some in [[cluster.nodes]]",
        ),
        (
            "[models.a]\nengine = \"vllm\"\nsource = \"a\"\nflags = { gpu-memory-utilisation = 0.9 }\n".to_owned(),
            "s:4:11: the memory that `gpu-memory-utilisation` takes is not modelled; did you mean `--gpu-memory-utilization`? | leave it out, or write it in extra_args: its memory is not counted then",
        ),
        (
            "[models.a]\nengine = \"vllm\"\nsource = \"a\"\nflags = { port = 1 }\n".to_owned(),
            "s:4:11: `port` is set by berth itself | leave it out: the plan decides it",
        ),
        (
            "[models.a]\nengine = \"ollama\"\nsource = \"a\"\n".to_owned(),
            "s:1:9: what `a` is made of can't be read from Ollama's library | add facts = { model = \"medgemma-4b\", type = \"q8_0\" }: a model that berth knows",
        ),
        (
            "[models.a]\nengine = \"ollama\"\nsource = \"a\"\nfacts = { model = \"medgema-4b\", type = \"q8_0\" }\n".to_owned(),
            "s:4:19: berth knows no model `medgema-4b` | did you mean `medgemma-4b`?",
        ),
        (
            format!("{MODEL}demand = {{ requests_per_second = nan }}\n"),
            "s:3:10: a demand is a number from 0 up to a thousand million | write demand = { requests_per_second = 2.5, prompt_tokens = 1000, answer_tokens = 250 }",
        ),
        (
            format!("[gateway]\naliases = {{ gpt = \"b\" }}\n{MODEL}"),
            "s:2:19: there is no model `b` | did you mean `a`?",
        ),
        (
            format!("[gateway]\naliases = {{ a = \"a\" }}\n{MODEL}"),
            "s:2:13: `a` is a model's own name | leave it out, or choose another name",
        ),
        (
            format!("{MODEL}[[gateway.rules]]\nto = \"a\"\n"),
            "s:3:1: this rule says of no request that it is meant | add path_prefix, header or model: without one every request would match",
        ),
        (
            format!("{MODEL}[[gateway.rules]]\npath_prefix = \"team\"\nto = \"a\"\n"),
            "s:3:1: path_prefix is not the beginning of a path | write it with a slash before it and none after it, as in \"/team-a\"",
        ),
        (
            "[engines.vllm]\nversion = \"0.9\"\n[models.a]\nsource = \"a.gguf\"\n".to_owned(),
            "s:2:11: vLLM 0.9 is not modelled | 0.26 to 0.33 are, as in \"0.26.0\"",
        ),
        (
            format!("{MODEL}extra_args = [\"--api_key\", \"k\"]\n"),
            "s:3:15: `--api_key` can't be set: it would open what berth keeps closed, or run another model | leave it out; clients reach the models through the gateway",
        ),
        (
            format!("{MODEL}flags = {{ gpt-oss-20b-default = true }}\n"),
            "s:3:11: `gpt-oss-20b-default` can't be set: it would open what berth keeps closed, or run another model | leave it out; clients reach the models through the gateway",
        ),
        (
            format!("{MODEL}devices = [\"gpu1\"]\n"),
            "s:3:12: `gpu1` does not name a device | write \"host\", \"gpu:0\" or a GPU's UUID (\"GPU-...\")",
        ),
        (
            "[models.a]\nsource = \"hub:only-a-name\"\n".to_owned(),
            "s:2:10: `hub:only-a-name` does not name a file on a hub | write hub:OWNER/NAME/FILE.gguf",
        ),
        (
            "[models.a]\nsource = \"hub:../../x.gguf\"\n".to_owned(),
            "s:2:10: `hub:../../x.gguf` does not name a file on a hub | write hub:OWNER/NAME/FILE.gguf",
        ),
        (
            "[models.a]\nsource = \"hub:o/n/../../x.gguf\"\n".to_owned(),
            "s:2:10: `hub:o/n/../../x.gguf` does not name a file on a hub | write hub:OWNER/NAME/FILE.gguf",
        ),
        (
            format!("{MODEL}[models.a.flags]\nctx-sise = 1\n"),
            "s:4:1: llama-server has no flag `ctx-sise` | did you mean `ctx-size`?",
        ),
        (
            format!("{MODEL}[models.a.flags]\nzzz = 1\n"),
            "s:4:1: llama-server has no flag `zzz` | if yours is newer than b10434 and has it, write it in extra_args",
        ),
        (
            format!("{MODEL}[models.a.flags]\n--ctx-size = 1\n"),
            "s:4:1: write flags without their dashes | write `ctx-size`",
        ),
        (
            format!("{MODEL}[models.a.flags]\nport = 1\n"),
            "s:4:1: `port` is set by berth itself | leave it out: the plan decides it",
        ),
        (
            format!("{MODEL}[models.a.flags]\nctx-size = \"long\"\n"),
            "s:4:1: `--ctx-size long`: expected a whole number | llama-server would refuse it",
        ),
        (
            format!("{MODEL}extra_args = [\"--new\", \"--host\", \"0.0.0.0\"]\n"),
            "s:3:24: `--host` is set by berth itself | leave it out: the plan decides it",
        ),
        (
            format!("{MODEL}[models.a.flags]\nc = 1\nctx-size = 2\n"),
            "s:5:1: `ctx-size` is given twice, under two of its names | keep one of them",
        ),
        (
            format!("{MODEL}sleep_level = 1\n"),
            "s:3:15: only vLLM can be put to sleep | leave sleep_level out",
        ),
        (
            format!("{NODES}[models.a]\nsource = \"a/b\"\nengine = \"vllm\"\nsleep_level = 3\n"),
            "s:7:15: vLLM has sleep levels 1 and 2 | 1 keeps weights in host memory, 2 reads them again; leave it out for none",
        ),
        (
            format!(
                "{NODES}[models.a]\nsource = \"a/b\"\nengine = \"vllm\"\nsleep_level = 1\n\
                 flags = {{ enable_sleep_mode = false }}\n"
            ),
            "s:7:15: it can't sleep with enable_sleep_mode = false | leave the flag out",
        ),
    ] {
        let error = Spec::parse("s", &text).expect_err(&text);
        let told: Vec<String> = error
            .problems
            .iter()
            .map(|problem| format!("{problem} | {}", problem.hint.clone().unwrap_or_default()))
            .collect();
        assert_eq!(told, [expected], "{text}");
    }
}

/// All problems are told at once, in the order of the file.
#[test]
fn all_problems_are_told() {
    let text =
        "[gateway]\nlisten = \"0.0.0.0:80\"\n[models.a]\nsource = \"hub:x\"\ndevices = [\"x\"]\n";
    let error = Spec::parse("s", text).unwrap_err();
    let lines: Vec<usize> = error.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [2, 4, 5]);
}
