//! The dashboard's HTTP.

use std::collections::BTreeSet;
use std::sync::Arc;

use berth_core::inventory::{DeviceKind, Node};
use hyper::Method;
use serde_json::{Map, Value, json};

use super::replica::keep;
use super::{App, Hold, Inner, Replica, Shared};
use crate::http::{Answer, Answers, Asked};

pub(super) struct Dashboard(pub(super) Arc<Shared>);

impl Answers for Dashboard {
    async fn answer(&self, asked: Asked) -> Answer {
        let shared = &self.0;
        let path = asked.path.split('?').next().unwrap_or_default().to_owned();
        match (&asked.method, path.as_str()) {
            (_, "/api/version") => Answer::json(
                200,
                &json!({ "version": "4", "ray_version": "2.60.0", "emulated": true }),
            ),
            (_, "/api/v0/nodes") => Answer::json(200, &nodes(shared)),
            (_, "/nodes") => Answer::json(200, &summary(shared)),
            (_, "/api/v0/actors") => {
                Answer::json(200, &json!({ "data": { "result": { "result": [] } } }))
            }
            (_, "/api/v0/logs/file") => log(shared, &asked.path),
            (&Method::GET, "/api/serve/applications/") => Answer::json(200, &serving(shared)),
            (&Method::PUT, "/api/serve/applications/") => put(shared, &asked.json()),
            (method, path) if path.starts_with("/api/packages/gcs/") => {
                package(shared, method, path)
            }
            (&Method::POST, path) if path.starts_with("/emulator/nodes/") => {
                lose(shared, path.trim_start_matches("/emulator/nodes/"), &asked.json())
            }
            (&Method::POST, path) if path.starts_with("/emulator/gpus/") => {
                take(shared, path.trim_start_matches("/emulator/gpus/"), &asked.json())
            }
            _ => Answer::text(404, "not found"),
        }
    }
}

/// Has a stranger hold so much of a GPU: `{"bytes": 1073741824}` to `NODE/GPU`.
fn take(shared: &Shared, path: &str, body: &Value) -> Answer {
    let card = path.split_once('/').map(|(node, gpu)| (node.to_owned(), gpu.to_owned()));
    let card = card.filter(|card| shared.starting.contains_key(card));
    let (Some(card), Some(bytes)) = (card, body["bytes"].as_u64()) else {
        return Answer::text(400, "POST {\"bytes\": 0} to NODE/GPU of those that there are\n");
    };
    shared.inner().hold(&card, "a stranger", bytes);
    shared.changed.notify_waiters();
    Answer::text(200, "")
}

fn package(shared: &Shared, method: &Method, path: &str) -> Answer {
    let mut inner = shared.inner();
    match *method {
        Method::PUT => {
            inner.packages.insert(path.to_owned());
            Answer::text(200, "")
        }
        _ if inner.packages.contains(path) => Answer::text(200, ""),
        _ => Answer::text(404, "not found"),
    }
}

/// The last line of an instance's log, `filename=berth/ID-PID.log`, or its processes, `.processes`.
fn log(shared: &Shared, path: &str) -> Answer {
    let of = |key: &str| path.split(['?', '&']).find_map(|part| part.strip_prefix(key));
    let inner = shared.inner();
    let text = of("filename=berth/").and_then(|file| {
        let (instance, rest) = file.rsplit_once('-')?;
        let (pid, kind) = rest.split_once('.')?;
        let app = inner.apps.values().find(|app| app.config["args"]["instance"] == instance)?;
        let replica = app.replica.as_ref().filter(|one| one.pid.to_string() == pid)?;
        if of("node_id=") != Some(inner.id(&replica.node).as_str()) {
            return None;
        }
        match kind {
            "processes" => Some(json!(processes(&inner, instance, &replica.node)).to_string()),
            _ => inner.logs.get(instance).cloned(),
        }
    });
    text.map_or_else(|| Answer::text(404, "no such file"), |text| Answer::text(200, text))
}

/// The processes that an instance has beside its replica's: those on its node's GPUs.
fn processes(inner: &Inner, instance: &str, node: &str) -> Vec<u32> {
    let here = inner.held.iter().filter(|((of, _), _)| of == node);
    here.filter_map(|(_, held)| held.get(instance)).map(|hold| hold.pid).collect()
}

/// Loses a machine, or brings it back: `{"alive": false}`.
fn lose(shared: &Shared, name: &str, body: &Value) -> Answer {
    let (Some(alive), Some(_)) = (body["alive"].as_bool(), shared.node(name)) else {
        return Answer::text(400, "POST {\"alive\": false} to a node that there is\n");
    };
    let mut inner = shared.inner();
    if alive {
        if inner.lost.remove(name) {
            *inner.lives.entry(name.to_owned()).or_default() += 1;
        }
    } else {
        inner.lost.insert(name.to_owned());
    }
    drop(inner);
    shared.changed.notify_waiters();
    Answer::text(200, "")
}

fn nodes(shared: &Shared) -> Value {
    let inner = shared.inner();
    let node = |node: &Node| {
        let gpus = node.devices.iter().filter(|device| device.is_gpu()).count();
        let id = inner.id(&node.name);
        let mut labels = node.labels.clone();
        labels.insert("ray.io/node-id".to_owned(), id.clone());
        json!({
            "node_id": id,
            "node_ip": node.address,
            "state": if inner.lost.contains(&node.name) { "DEAD" } else { "ALIVE" },
            "resources_total": { "CPU": 32.0, "GPU": gpus as f64 },
            "labels": labels,
        })
    };
    let all: Vec<Value> = shared.setup.nodes.iter().map(node).collect();
    json!({ "result": true, "data": { "result": { "total": all.len(), "result": all } } })
}

fn summary(shared: &Shared) -> Value {
    let inner = shared.inner();
    // The reporter knows whole MiB.
    let mib = |bytes: u64| bytes >> 20;
    let node = |node: &Node| {
        let gpus = node.devices.iter().filter_map(|device| {
            let DeviceKind::Gpu { index, name } = &device.kind else { return None };
            let card = (node.name.clone(), device.id.0.clone());
            let held: u64 = inner.held(&card).map(|hold| hold.bytes).sum();
            let process = |hold: &Hold| {
                json!({ "pid": hold.pid, "gpuMemoryUsage": mib(hold.bytes), "gpuUtilization": 0 })
            };
            let processes: Vec<Value> = inner.held(&card).map(process).collect();
            Some(json!({
                "index": index, "name": name, "uuid": device.id,
                "memoryTotal": mib(device.total.0),
                "memoryUsed": mib(device.used_by_others.0 + held),
                "processesPids": processes,
            }))
        });
        let gpus: Vec<Value> = gpus.collect();
        json!({
            "hostname": node.name, "ip": node.address, "gpus": gpus,
            "raylet": { "nodeId": inner.id(&node.name), "state": "ALIVE" },
        })
    };
    let all: Vec<Value> = shared.setup.nodes.iter().map(node).collect();
    json!({ "result": true, "data": { "summary": all } })
}

fn serving(shared: &Shared) -> Value {
    let inner = shared.inner();
    let app = |(name, app): (&String, &App)| {
        let replica = |replica: &Replica| {
            json!({
                "replica_id": name, "state": replica.state, "pid": replica.pid,
                "node_id": inner.id(&replica.node),
            })
        };
        let replicas: Vec<Value> = app.replica.iter().map(replica).collect();
        let value = json!({
            "name": name, "status": app.status, "message": app.message,
            "deployed_app_config": app.config,
            "deployments": { "Engine": { "message": "", "replicas": replicas } },
        });
        (name.clone(), value)
    };
    let apps: Map<String, Value> = inner.apps.iter().map(app).collect();
    let mut answer = inner.settings.clone();
    answer.insert("applications".to_owned(), Value::Object(apps));
    Value::Object(answer)
}

/// What is not in the config goes, what is new or has changed comes.
fn put(shared: &Arc<Shared>, config: &Value) -> Answer {
    let Some(wanted) = config["applications"].as_array() else {
        return Answer::text(400, "applications: Field required");
    };
    let name = |config: &Value| config["name"].as_str().unwrap_or("default").to_owned();
    let names: BTreeSet<String> = wanted.iter().map(name).collect();
    if names.len() < wanted.len() {
        return Answer::text(
            400,
            "applications: Found multiple configs for the same application name",
        );
    }
    let mut inner = shared.inner();
    let gone: Vec<String> =
        inner.apps.keys().filter(|name| !names.contains(*name)).cloned().collect();
    let gone: Vec<Option<App>> = gone.iter().map(|name| inner.apps.remove(name)).collect();
    drop(inner);
    drop(gone);
    for config in wanted {
        let is_same = shared.inner().apps.get(&name(config)).is_some_and(|app| {
            let without = |config: &Value| {
                let mut config = config.clone();
                config["deployments"][0]["user_config"] = Value::Null;
                config
            };
            without(&app.config) == without(config)
        });
        if !is_same {
            deploy(shared, config, false);
        } else if let Some(app) = shared.inner().apps.get_mut(&name(config)) {
            app.config = config.clone();
        }
    }
    shared.changed.notify_waiters();
    Answer::text(200, "")
}

/// Puts an application in place. One that runs already has started some time ago.
pub(super) fn deploy(shared: &Arc<Shared>, config: &Value, runs_already: bool) {
    let name = config["name"].as_str().unwrap_or("default").to_owned();
    let is_engine = config["args"]["command"].is_array();
    let status = if is_engine { "DEPLOYING" } else { "RUNNING" };
    let app =
        App { config: config.clone(), status, message: String::new(), replica: None, task: None };
    let before = shared.inner().apps.insert(name.clone(), app);
    drop(before);
    if is_engine {
        let task =
            tokio::spawn(keep(Arc::clone(shared), name.clone(), config.clone(), runs_already));
        if let Some(app) = shared.inner().apps.get_mut(&name) {
            app.task = Some(task.abort_handle());
        }
    }
}
