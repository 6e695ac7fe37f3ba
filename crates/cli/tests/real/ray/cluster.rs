//! A real Ray cluster on this machine: a head and three workers, each with four GPUs that it only counts and
//! an address of its own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use crate::harness::{fetched, send, wait_until};

pub(crate) const WORKERS: usize = 3;

pub(crate) struct RayCluster {
    folder: tempfile::TempDir,
    gcs: u16,
    dashboard: u16,
    environment: &'static [(&'static str, &'static str)],
    /// The head, then the workers.
    nodes: Vec<Child>,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl RayCluster {
    /// Starts a head and so many workers, and waits until all are there. Engines inherit `environment`.
    pub(crate) fn start(
        workers: usize,
        environment: &'static [(&'static str, &'static str)],
    ) -> Self {
        // Sockets are in there, and their names must be short.
        let folder = tempfile::Builder::new().prefix("ray").tempdir_in("/tmp").unwrap();
        let (gcs, dashboard) = (free_port(), free_port());
        let mut cluster = Self { folder, gcs, dashboard, environment, nodes: Vec::new() };
        let head = cluster.ray(&[
            "--head",
            "--node-ip-address=127.0.0.1",
            &format!("--port={gcs}"),
            "--dashboard-host=127.0.0.1",
            &format!("--dashboard-port={dashboard}"),
            &format!("--ray-client-server-port={}", free_port()),
            &format!("--temp-dir={}", cluster.folder.path().display()),
            "--labels=machine=n0,role=dedicated",
            "--min-worker-port=30000",
            "--max-worker-port=30199",
        ]);
        cluster.nodes.push(head);
        wait_until("Ray's head answers", || cluster.ask("/api/version").is_some());
        for worker in 1..=workers {
            let child = cluster.worker(worker);
            cluster.nodes.push(child);
            // Two that start at once pick the same ports.
            cluster.wait_for_nodes(worker + 1);
        }
        cluster
    }

    fn ray(&self, args: &[&str]) -> Child {
        let log = std::fs::File::create(
            self.folder.path().join(format!("start-{}.log", self.nodes.len())),
        );
        let log = log.unwrap();
        Command::new(fetched("ray/bin/ray"))
            .args(["start", "--block", "--num-cpus=8", "--num-gpus=4"])
            .args(["--object-store-memory=80000000", "--disable-usage-stats"])
            .args(args)
            .envs(self.environment.iter().copied())
            .env("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
            .env_remove("RAY_ADDRESS")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap()
    }

    fn worker(&self, worker: usize) -> Child {
        let ports = 30_000 + 200 * worker;
        self.ray(&[
            &format!("--address=127.0.0.1:{}", self.gcs),
            &format!("--node-ip-address={}", Self::address(worker)),
            &format!("--labels=machine=n{worker}"),
            &format!("--min-worker-port={ports}"),
            &format!("--max-worker-port={}", ports + 199),
            // On one machine all agents would listen on the same port, and all but the first give up.
            &format!("--dashboard-agent-listen-port={}", free_port()),
        ])
    }

    fn address(worker: usize) -> String {
        format!("127.0.0.{}", 10 + worker)
    }

    /// The dashboard.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.dashboard)
    }

    pub(crate) fn ask(&self, path: &str) -> Option<Value> {
        let answer = ureq::get(format!("{}{path}", self.url())).call().ok()?;
        serde_json::from_str(&answer.into_body().read_to_string().ok()?).ok()
    }

    /// Puts Serve's applications as somebody else would.
    pub(crate) fn put(&self, config: &Value) {
        let url = format!("{}/api/serve/applications/", self.url());
        ureq::put(url).send(config.to_string()).map(drop).unwrap();
    }

    /// Ray's ids of the nodes that are alive, with their machines.
    pub(crate) fn machines(&self) -> BTreeMap<String, String> {
        let nodes = self.ask("/api/v0/nodes?detail=true").unwrap_or_default();
        let nodes = nodes["data"]["result"]["result"].as_array().cloned().unwrap_or_default();
        let alive = nodes.iter().filter(|node| node["state"] == "ALIVE");
        let text = |value: &Value| value.as_str().map(str::to_owned);
        alive
            .filter_map(|node| Some((text(&node["node_id"])?, text(&node["labels"]["machine"])?)))
            .collect()
    }

    pub(crate) fn wait_for_nodes(&self, count: usize) {
        wait_until(&format!("Ray has {count} nodes"), || self.machines().len() == count);
    }

    /// The applications with their replicas' machines and processes.
    pub(crate) fn applications(&self) -> BTreeMap<String, Vec<(String, i32)>> {
        let machines = self.machines();
        let answer = self.ask("/api/serve/applications/").unwrap_or_default();
        let replicas = |app: &Value| {
            let deployments = app["deployments"].as_object().cloned().unwrap_or_default();
            let all = deployments
                .values()
                .flat_map(|one| one["replicas"].as_array().cloned().unwrap_or_default());
            all.filter_map(|one| {
                let machine = machines.get(one["node_id"].as_str()?)?.clone();
                Some((machine, i32::try_from(one["pid"].as_i64()?).ok()?))
            })
            .collect()
        };
        let apps = answer["applications"].as_object().cloned().unwrap_or_default();
        apps.iter().map(|(name, app)| (name.clone(), replicas(app))).collect()
    }

    /// What was put of all applications.
    pub(crate) fn configs(&self) -> Vec<Value> {
        let answer = self.ask("/api/serve/applications/").unwrap_or_default();
        let apps = answer["applications"].as_object().cloned().unwrap_or_default();
        apps.values().map(|app| app["deployed_app_config"].clone()).collect()
    }

    /// What was put of an application.
    pub(crate) fn config(&self, name: &str) -> Value {
        let answer = self.ask("/api/serve/applications/").unwrap_or_default();
        answer["applications"][name]["deployed_app_config"].clone()
    }

    /// Ends a worker's raylet at once, as a lost machine would.
    pub(crate) fn kill_node(&mut self, worker: usize) {
        let raylet = self
            .process(&["raylet/raylet", &format!("--node_ip_address={}", Self::address(worker))]);
        send(raylet.unwrap(), Signal::KILL);
        drop(self.nodes[worker].wait());
        self.wait_for_nodes(WORKERS);
    }

    /// Brings a worker back, as a node with a new id.
    pub(crate) fn start_node(&mut self, worker: usize) {
        self.nodes[worker] = self.worker(worker);
        self.wait_for_nodes(WORKERS + 1);
    }

    /// Has the dashboard answer nobody, or again.
    pub(crate) fn signal_dashboard(&self, signal: Signal) {
        send(self.process(&["dashboard/dashboard.py"]).unwrap(), signal);
    }

    /// A process of this cluster whose command line has all of some words.
    fn process(&self, words: &[&str]) -> Option<i32> {
        let own = self.folder.path().to_str().unwrap();
        let is_meant = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            command.contains(own) && words.iter().all(|word| command.contains(word))
        };
        pids().into_iter().find(is_meant)
    }
}

fn pids() -> Vec<i32> {
    let entries = Path::new("/proc").read_dir().unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

impl Drop for RayCluster {
    fn drop(&mut self) {
        for node in self.nodes.iter_mut().rev() {
            let group = Pid::from_raw(i32::try_from(node.id()).unwrap()).unwrap();
            kill_process_group(group, Signal::TERM).ok();
        }
        for node in &mut self.nodes {
            drop(node.wait());
        }
        while let Some(left) = self.process(&[]) {
            kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).ok();
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
