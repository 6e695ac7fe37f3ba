//! What all gateways of a state have in flight: the one in this process, and those of their own, which say so in files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_control::controller::Requests;
use berth_core::inventory::InstanceId;
use berth_gateway::Gateway;

/// A gateway that has said nothing for this long is gone.
const SILENT: Duration = Duration::from_secs(3);

/// Whoever counts requests: a gateway, and the folder where others say what they have.
pub(crate) struct Counted {
    pub(crate) gateway: Gateway,
    pub(crate) folder: PathBuf,
}

impl Requests for Counted {
    fn in_flight(&self, id: &InstanceId) -> u64 {
        self.gateway.routes().in_flight(&id.0) + elsewhere(&self.folder, id)
    }

    fn waiting(&self, model: &str) -> u64 {
        self.gateway.routes().waiting(model)
    }
}

/// Where gateways that go by a file of routes say what they have in flight.
pub(crate) fn folder(routes: &Path) -> PathBuf {
    routes.with_file_name("gateways")
}

/// What gateways of their own have in flight on an instance.
fn elsewhere(folder: &Path, id: &InstanceId) -> u64 {
    let Ok(files) = fs::read_dir(folder) else { return 0 };
    let said = files.flatten().filter_map(|file| {
        let age = file.metadata().ok()?.modified().ok()?.elapsed().unwrap_or_default();
        let text = fs::read_to_string(file.path()).ok().filter(|_| age < SILENT)?;
        serde_json::from_str::<BTreeMap<String, u64>>(&text).ok()?.get(&id.0).copied()
    });
    said.sum()
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
        let text = serde_json::to_string(&gateway.routes().all_in_flight())?;
        write_whole(&self.0, &text)
    }
}

impl Drop for Said {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// Writes a file so that whoever reads it sees all of it or what was there before.
pub(crate) fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut written = fs::File::create(&new)?;
    written.write_all(text.as_bytes())?;
    fs::rename(new, file)
}
