//! What all gateways of a state have in flight: the one in this process, and those of their own, which say so in files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_control::controller::Requests;
use berth_core::inventory::InstanceId;
use berth_gateway::Gateway;
use serde::{Deserialize, Serialize};

use crate::files::write_whole;

/// A gateway that has said nothing for this long is gone.
const SILENT: Duration = Duration::from_secs(3);

/// Whoever counts requests: a gateway, and the folder where others say what they have.
pub(crate) struct Counted {
    pub(crate) gateway: Gateway,
    pub(crate) folder: PathBuf,
}

impl Requests for Counted {
    fn in_flight(&self, id: &InstanceId) -> u64 {
        let elsewhere = reports(&self.folder).filter_map(|said| said.in_flight.get(&id.0).copied());
        self.gateway.routes().in_flight(&id.0) + elsewhere.sum::<u64>()
    }

    fn ended(&self, id: &InstanceId) -> u64 {
        let elsewhere = reports(&self.folder).filter_map(|said| said.ended.get(&id.0).copied());
        self.gateway.routes().ended(&id.0) + elsewhere.sum::<u64>()
    }

    fn waiting(&self, model: &str) -> u64 {
        let elsewhere = reports(&self.folder).filter_map(|said| said.waiting.get(model).copied());
        self.gateway.routes().waiting(model) + elsewhere.sum::<u64>()
    }
}

/// What a gateway of its own says.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Report {
    /// Requests in flight, by instance.
    in_flight: BTreeMap<String, u64>,
    /// Requests that have ended, by instance.
    ended: BTreeMap<String, u64>,
    /// Requests that wait for room, by model.
    waiting: BTreeMap<String, u64>,
}

/// Where gateways that go by a file of routes say what they have in flight.
pub(crate) fn folder(routes: &Path) -> PathBuf {
    routes.with_file_name("gateways")
}

/// What gateways of their own have said just now.
fn reports(folder: &Path) -> impl Iterator<Item = Report> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| {
        let age = file.metadata().ok()?.modified().ok()?.elapsed().unwrap_or_default();
        let text = fs::read_to_string(file.path()).ok().filter(|_| age < SILENT)?;
        serde_json::from_str(&text).ok()
    })
}

/// Says what a gateway of its own has in flight, for as long as it lives.
pub(crate) struct Said(PathBuf);

impl Said {
    pub(crate) fn new(routes: &Path) -> io::Result<Self> {
        let folder = folder(routes);
        fs::create_dir_all(&folder)?;
        // Machines may share the folder, and have processes of the same number.
        let now = berth_control::clock::now_ms();
        Ok(Self(folder.join(format!("{}-{now}.json", std::process::id()))))
    }

    pub(crate) fn say(&self, gateway: &Gateway) -> io::Result<()> {
        let routes = gateway.routes();
        let report = Report {
            in_flight: routes.all_in_flight(),
            ended: routes.all_ended(),
            waiting: routes.all_waiting(),
        };
        let text = serde_json::to_string(&report)?;
        write_whole(&self.0, &text)
    }
}

impl Drop for Said {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
mod tests {
    use berth_gateway::Settings;

    use super::*;

    #[test]
    fn what_other_gateways_say_counts() {
        let state = tempfile::tempdir().unwrap();
        let routes = state.path().join("routes.json");
        let gateway = Gateway::new(Settings::default());
        let said = Said::new(&routes).unwrap();
        said.say(&gateway).unwrap();
        let folder = folder(&routes);
        let counted = Counted { gateway, folder: folder.clone() };
        let id = InstanceId("a-0".to_owned());
        assert_eq!((counted.in_flight(&id), counted.waiting("a")), (0, 0));
        for number in 0..2 {
            let text = r#"{"in_flight":{"a-0":3,"b-0":9},"ended":{"a-0":5},"waiting":{"a":2}}"#;
            fs::write(folder.join(format!("{number}.json")), text).unwrap();
        }
        fs::write(folder.join("broken.json"), "{").unwrap();
        assert_eq!((counted.in_flight(&id), counted.waiting("a"), counted.ended(&id)), (6, 4, 10));
        drop(said);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 3, "it has taken back what it said");
    }
}
