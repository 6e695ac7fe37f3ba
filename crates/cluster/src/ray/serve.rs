//! Serve's applications: what runs, and changing it.
//!
//! A `PUT` carries all applications that shall be there: one that is left out is deleted. So what is put is
//! what is there with one's own applications exchanged, and those of others as they were put.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::client::{Ray, RayError, strange};

/// Lines of a log that are read whole: vLLM logs some thousand before it is ready.
const MOST_LINES: u32 = 20_000;
/// Letters of a log's line that are shown.
const MOST_OF_A_LINE: usize = 160;
const APPLICATIONS: &str = "/api/serve/applications/";

/// What Serve says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Serving {
    /// Its applications, by name.
    pub applications: BTreeMap<String, Application>,
    /// What was put beside the applications: where proxies are, and how they listen.
    pub settings: Map<String, Value>,
}

/// One application.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Application {
    /// What was put; none for one that was deployed by a program.
    pub config: Option<Value>,
    /// How it is.
    pub status: AppStatus,
    /// What Serve says of it.
    pub message: String,
    /// The replicas of all its deployments.
    pub replicas: Vec<Replica>,
}

impl Application {
    /// The replica that counts: the one that runs, or is on its way to, rather than one that is being stopped.
    pub fn replica(&self) -> Option<&Replica> {
        let running = self.replicas.iter().find(|one| one.state == "RUNNING");
        let coming = || self.replicas.iter().find(|one| one.state != "STOPPING");
        running.or_else(coming).or(self.replicas.first())
    }
}

/// How an application is, in Serve's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppStatus {
    /// On its way.
    #[default]
    Deploying,
    /// Up.
    Running,
    /// Up, and not well.
    Unhealthy,
    /// Serve has given up.
    DeployFailed,
    /// On its way out.
    Deleting,
}

/// One replica.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replica {
    /// Serve's id of it.
    pub id: String,
    /// `STARTING`, `RUNNING`, `STOPPING`...
    pub state: String,
    /// Ray's id of its node; none before it has one.
    pub node_id: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
}

/// Reads what Serve runs.
///
/// # Errors
/// Where Ray can't be read.
pub fn read(ray: &Ray) -> Result<Serving, RayError> {
    parse(&ray.get(APPLICATIONS)?)
}

/// What Serve's answer says.
///
/// # Errors
/// Where it is none of Serve's.
pub fn parse(answer: &Value) -> Result<Serving, RayError> {
    let listed = answer["applications"]
        .as_object()
        .ok_or_else(|| strange(APPLICATIONS, "there are no applications"))?;
    let of = |(name, app): (&String, &Value)| (name.clone(), application(app));
    let mut settings = Map::new();
    for name in ["proxy_location", "http_options", "grpc_options", "target_capacity"] {
        if !answer[name].is_null() {
            settings.insert(name.to_owned(), answer[name].clone());
        }
    }
    Ok(Serving { applications: listed.iter().map(of).collect(), settings })
}

fn application(app: &Value) -> Application {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let replica = |replica: &Value| Replica {
        id: text(&replica["replica_id"]).unwrap_or_default(),
        state: text(&replica["state"]).unwrap_or_default(),
        node_id: text(&replica["node_id"]),
        pid: replica["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()),
    };
    let deployments = || app["deployments"].as_object().into_iter().flatten();
    let replicas = deployments()
        .flat_map(|(_, one)| one["replicas"].as_array().into_iter().flatten())
        .map(replica)
        .collect();
    let messages = deployments().filter_map(|(_, one)| one["message"].as_str());
    let messages = app["message"].as_str().into_iter().chain(messages);
    let messages: Vec<&str> = messages.filter(|text| !text.is_empty()).collect();
    let status = match app["status"].as_str() {
        Some("RUNNING") => AppStatus::Running,
        Some("UNHEALTHY") => AppStatus::Unhealthy,
        Some("DEPLOY_FAILED") => AppStatus::DeployFailed,
        Some("DELETING") => AppStatus::Deleting,
        _ => AppStatus::Deploying,
    };
    let config = Some(app["deployed_app_config"].clone()).filter(|config| !config.is_null());
    Application { config, status, message: messages.join("\n"), replicas }
}

/// The last line of an engine's own log, which its module keeps among Ray's; none where Ray doesn't give it.
pub fn last_line(ray: &Ray, instance: &str, replica: &Replica) -> Option<String> {
    let text = file(ray, instance, replica, "log", 1)?;
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|letter| !letter.is_control()).take(MOST_OF_A_LINE).collect())
}

/// An engine's own log, of which the start is early; none where Ray doesn't give it.
pub fn log(ray: &Ray, instance: &str, replica: &Replica) -> Option<String> {
    file(ray, instance, replica, "log", MOST_LINES)
}

/// The processes of an engine, as its supervisor lists them; none where Ray doesn't give the list.
pub fn processes(ray: &Ray, instance: &str, replica: &Replica) -> Option<Vec<u32>> {
    serde_json::from_str(&file(ray, instance, replica, "processes", 1)?).ok()
}

/// The end of a file that an engine's module keeps among Ray's logs.
fn file(ray: &Ray, instance: &str, replica: &Replica, kind: &str, lines: u32) -> Option<String> {
    let (node, pid) = (replica.node_id.as_ref()?, replica.pid?);
    let file = format!("berth/{instance}-{pid}.{kind}");
    let of = format!("node_id={node}&filename={file}&lines={lines}&timeout=2");
    ray.text(&format!("/api/v0/logs/file?{of}")).ok()
}

/// All that is to be put so that of one's own applications just `wanted` are there. `is_own` says which
/// are. Applications that a program deployed are none of a config's, and Serve leaves them alone.
pub fn desired(
    serving: &Serving,
    is_own: impl Fn(&Value) -> bool,
    wanted: impl IntoIterator<Item = Value>,
) -> Value {
    let there = serving.applications.values();
    let there = there.filter(|app| app.status != AppStatus::Deleting);
    let wanted: Vec<Value> = wanted.into_iter().collect();
    // Ray refuses two of one name; a lease that ended is taken over so.
    let is_replaced = |config: &Value| wanted.iter().any(|one| one["name"] == config["name"]);
    let others = there.filter_map(|app| app.config.clone());
    let others = others.filter(|config| !is_own(config) && !is_replaced(config));
    let applications: Vec<Value> = others.chain(wanted.iter().cloned()).collect();
    let mut all = serving.settings.clone();
    if all.is_empty() {
        // Serve isn't up yet, and would open a proxy without a key on every address of every machine.
        all.insert("proxy_location".to_owned(), json!("HeadOnly"));
        all.insert("http_options".to_owned(), json!({ "host": "127.0.0.1" }));
    }
    all.insert("applications".to_owned(), json!(applications));
    Value::Object(all)
}

/// Puts all applications in place.
///
/// # Errors
/// Where Ray refuses.
pub fn put(ray: &Ray, desired: &Value) -> Result<(), RayError> {
    let body = serde_json::to_vec(desired).unwrap_or_default();
    ray.put(APPLICATIONS, "application/json", &body)
}
