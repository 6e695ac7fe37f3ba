//! What a Ray cluster's answers come to: as Ray 2.60 gives them, with GPUs as its reporter has them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use berth_cluster::ray::doctor::{self, Examined, Severity};
use berth_cluster::ray::nodes::{Naming, inventory};
use berth_cluster::ray::serve::{AppStatus, Serving, desired, parse};
use berth_cluster::ray::{Ray, RayError};
use berth_core::inventory::{DeviceProcess, Inventory};
use berth_core::spec::Spec;
use berth_core::units::Bytes;
use serde_json::{Value, json};

fn node(id: &str, ip: &str, state: &str, gpus: f64, labels: Value) -> Value {
    json!({
        "node_id": id, "node_ip": ip, "state": state, "labels": labels,
        "resources_total": { "CPU": 8.0, "GPU": gpus, "node_type": 1.0 },
    })
}

fn nodes() -> Value {
    let listed = [
        node("id2", "10.0.0.2", "ALIVE", 2.0, json!({ "machine": "n10", "zone": "b" })),
        node("id1", "10.0.0.1", "ALIVE", 1.0, json!({ "machine": "n2", "zone": "a" })),
        node("id0", "10.0.0.1", "DEAD", 1.0, json!({ "machine": "n2" })),
    ];
    json!({ "data": { "result": { "total": 4, "result": listed, "partial_failure_warning": "slow" } } })
}

/// As the dashboard writes it: names in its own way.
fn summary() -> Value {
    json!({ "data": { "summary": [{
        "hostname": "b", "raylet": { "nodeId": "id2", "labels": { "machine": "n10" } },
        "gpus": [
            { "index": 0, "name": "NVIDIA A10", "uuid": "GPU-0", "memoryTotal": 23028.0, "memoryUsed": 512.0,
              "processesPids": [
                  { "pid": 7, "gpuMemoryUsage": 300, "gpuUtilization": null },
                  // The reporter's word for one that it knows nothing of.
                  { "pid": 8, "gpuMemoryUsage": 0, "gpuUtilization": 3 },
              ] },
            { "index": 1, "name": "NVIDIA A10", "uuid": "GPU-1", "memoryTotal": 23028.0, "memoryUsed": 0.0 },
        ],
    }] } })
}

fn seen(naming: Naming<'_>) -> Inventory {
    inventory(&nodes(), &summary(), naming).unwrap()
}

/// A reporter that has stopped is none, whatever it said last.
#[test]
fn what_is_late_is_not_known() {
    for (behind, is_seen) in [(0.0, true), (59.0, true), (61.0, false)] {
        let mut summary = summary();
        let nodes = summary["data"]["summary"].as_array_mut().unwrap();
        nodes[0]["now"] = json!(1_000_000.0 - behind);
        nodes.push(json!({ "raylet": { "nodeId": "id1" }, "now": 1_000_000.0 }));
        let naming = Naming { label: Some("machine"), written: &[] };
        let seen = inventory(&self::nodes(), &summary, naming).unwrap();
        let devices = seen.nodes[1].devices.iter();
        assert_eq!(devices.clone().any(|device| device.is_seen), is_seen, "{behind}");
        let is_told = seen.notes.iter().any(|note| note.contains("of n10 is 61 s old"));
        assert_eq!(is_told, !is_seen, "{:?}", seen.notes);
    }
}

#[test]
fn nodes_are_what_is_alive() {
    let seen = seen(Naming { label: Some("machine"), written: &[] });
    let names: Vec<&str> = seen.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["n2", "n10"], "dead ones are left out, and numbers are numbers");
    let gpus = &seen.nodes[1].devices;
    assert_eq!((gpus[0].id.0.as_str(), gpus[0].used_by_others.0), ("gpu:0", 512 << 20));
    assert_eq!(gpus[0].processes, Some(vec![DeviceProcess { pid: 7, bytes: Bytes::mib(300) }]));
    assert_eq!(gpus[1].processes, None);
    for says in
        ["Ray lists 3 of its 4 nodes", "Ray says of its nodes: slow", "add n2 to [[cluster.nodes]]"]
    {
        assert!(seen.notes.iter().any(|note| note.contains(says)), "{:?} lacks {says}", seen.notes);
    }
    for found_by in ["n10", "10.0.0.2", "id2", "{ zone = \"b\" }", "{ zone = \"!a\" }"] {
        let rule =
            if found_by.starts_with('{') { found_by.to_owned() } else { format!("\"{found_by}\"") };
        let text = format!(
            "[cluster]\nbackend = \"ray\"\n[models.m]\nsource = \"m.gguf\"\nnodes = {rule}\n"
        );
        let spec = Spec::parse("s", &text).unwrap();
        let meant = seen.nodes.iter().filter(|node| spec.deployments[0].nodes.matches(node));
        assert_eq!(meant.map(|node| node.name.as_str()).collect::<Vec<_>>(), ["n10"], "{found_by}");
    }
}

#[test]
fn what_is_no_answer_of_rays_is_an_error() {
    for answer in [Value::Null, json!([]), json!({ "data": { "result": { "result": 7 } } })] {
        let error = inventory(&answer, &Value::Null, Naming::default()).unwrap_err();
        assert!(matches!(error, RayError::Strange { .. }), "{error}");
    }
    assert!(parse(&json!({ "apps": {} })).is_err());
}

/// What others deployed stays as it was put; what a program deployed is none of a config's.
#[test]
fn others_applications_are_carried_along() {
    let app = |name: &str, owner: &str, status: &str| {
        json!({
            "status": status, "message": "",
            "deployed_app_config": { "name": name, "args": { "owner": owner }, "unknown": 1 },
            "deployments": { "D": { "replicas": [{ "replica_id": "r", "state": "RUNNING", "pid": 7, "node_id": "id1" }] } },
        })
    };
    let program = json!({ "status": "RUNNING", "deployed_app_config": null, "deployments": {} });
    let serving = parse(&json!({
        "proxy_location": "EveryNode",
        "applications": {
            "mine": app("mine", "me", "RUNNING"),
            "theirs": app("theirs", "they", "UNHEALTHY"),
            "leaving": app("leaving", "they", "DELETING"),
            "program": program,
        },
    }))
    .unwrap();
    assert_eq!(serving.applications["mine"].status, AppStatus::Running);
    assert_eq!(serving.applications["mine"].replicas[0].pid, Some(7));
    let is_own = |config: &Value| config["args"]["owner"] == "me";
    let all = desired(&serving, is_own, [json!({ "name": "new" })]);
    let names: Vec<&Value> =
        all["applications"].as_array().unwrap().iter().map(|config| &config["name"]).collect();
    assert_eq!(names, ["theirs", "new"]);
    assert_eq!(all["applications"][0]["unknown"], 1, "untouched");
    assert_eq!(all["proxy_location"], "EveryNode");
    // Two of one name Ray refuses: what ended is replaced.
    let all = desired(&serving, is_own, [json!({ "name": "theirs", "mine": true })]);
    assert_eq!(all["applications"], json!([{ "name": "theirs", "mine": true }]));
    // Where Serve isn't up, nothing is opened to the world.
    let fresh = desired(&Serving::default(), is_own, []);
    assert_eq!(fresh["http_options"]["host"], "127.0.0.1");
}

#[test]
fn a_doctor_finds_what_ray_does_not_say() {
    let text = "[cluster]\nbackend = \"ray\"\n\
                [models.a]\nsource = \"m.gguf\"\nnodes = { node_type = \"!dedicated\" }\n\
                [models.b]\nsource = \"m.gguf\"\nnodes = { zon = \"a\" }\n\
                [models.c]\nsource = \"m.gguf\"\nnodes = \"n3\"\n";
    let spec = Spec::parse("s", text).unwrap();
    let actor = json!({
        "state": "PENDING_CREATION", "name": "SERVE_REPLICA::x", "required_resources": { "GPU": 4.0 },
        "label_selector": { "zone": "c" },
    });
    let examined = Examined {
        version: "2.49.1".to_owned(),
        nodes: nodes(),
        actors: json!({ "data": { "result": { "result": [actor] } } }),
        inventory: seen(Naming { label: Some("machine"), written: &[] }),
        ..Examined::default()
    };
    let found = doctor::diagnose(&examined, &spec.deployments, Some("machine"));
    let said: Vec<String> = found
        .iter()
        .map(|one| {
            format!(
                "{:?}: {} | {}",
                one.severity,
                one.message,
                one.hint.clone().unwrap_or_default()
            )
        })
        .collect();
    for says in [
        "Error: Ray 2.49.1 is older than 2.60",
        "n10 has a *resource* of that name",
        "b asks for a label `zon`, which no node has | did you mean `zone`?",
        "no node is n3, where c may run | there are: n2, n10",
        "SERVE_REPLICA::x waits for a node with {\"GPU\":4.0} and labels {\"zone\":\"c\"}",
    ] {
        assert!(said.iter().any(|text| text.contains(says)), "{said:#?} lacks {says}");
    }
    assert!(found.windows(2).all(|pair| pair[0].severity <= pair[1].severity), "the worst first");
    assert_eq!(found[0].severity, Severity::Error);
}

/// Answers every request with the next of some answers; gives its address.
fn answering(answers: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..length]).to_lowercase();
            let refused = "HTTP/1.1 401 no\r\ncontent-length: 5\r\nconnection: close\r\n\r\ntoken";
            let has_token = request.contains("authorization: bearer secret");
            stream.write_all(if has_token { answer } else { refused }.as_bytes()).unwrap();
        }
    });
    format!("http://{address}/")
}

#[test]
fn tokens_and_retries() {
    const BUSY: &str = "HTTP/1.1 503 no\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbusy";
    const FINE: &str = "HTTP/1.1 200 ok\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    const GONE: &str = "HTTP/1.1 404 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let with =
        |answers, token: Option<&str>| Ray::new(&answering(answers), token.map(str::to_owned));
    let busy_twice = with(&[BUSY, BUSY, FINE], Some("secret"));
    assert_eq!(busy_twice.get("/x").unwrap(), json!({}));
    let refused = with(&[FINE], None).get("/x").unwrap_err();
    assert!(matches!(refused, RayError::Unauthorized { .. }), "{refused}");
    assert!(refused.hint().contains("token_file"));
    assert!(!with(&[GONE], Some("secret")).has("/x").unwrap());
    let nobody = Ray::new("http://127.0.0.1:1", Some("secret".to_owned())).get("/x").unwrap_err();
    assert!(nobody.is_passing() && !nobody.to_string().contains("secret"), "{nobody}");
}
