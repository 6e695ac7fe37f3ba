//! The folder in which berth keeps what must outlive it.

use std::io;
use std::path::{Path, PathBuf};

use berth_core::inventory::InstanceId;

/// Paths inside the state folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Opens a state folder, making it where it isn't there; what is made here only its owner may
    /// look into.
    ///
    /// # Errors
    /// Where it can't be made.
    pub fn open(root: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for dir in [root.to_path_buf(), root.join("instances"), root.join("logs")] {
            builder.create(dir)?;
        }
        Ok(Self { root: std::path::absolute(root)? })
    }

    /// A state folder that has a journal already; none where there is none, and none is made.
    pub fn existing(root: &Path) -> Option<Self> {
        let found = Self { root: std::path::absolute(root).ok()? };
        found.journal().exists().then_some(found)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The journal.
    pub fn journal(&self) -> PathBuf {
        self.root.join("berth.db")
    }

    /// What gateways route by.
    pub fn routes(&self) -> PathBuf {
        self.root.join("routes.json")
    }

    /// Held by the one berth that acts.
    pub fn controller_lock(&self) -> PathBuf {
        self.root.join("controller.lock")
    }

    /// Held by an instance's processes as long as one of them lives.
    pub fn instance_lock(&self, id: &InstanceId) -> PathBuf {
        self.root.join("instances").join(format!("{}.lock", file_name(id)))
    }

    /// What an instance's engine printed.
    pub fn log(&self, id: &InstanceId) -> PathBuf {
        self.root.join("logs").join(format!("{}.log", file_name(id)))
    }

    /// What its engine printed at the start before this one.
    pub fn earlier_log(&self, id: &InstanceId) -> PathBuf {
        self.root.join("logs").join(format!("{}.earlier.log", file_name(id)))
    }
}

/// Ids are made of letters, digits, `-`, `_`, `.` and `:`; the last is awkward in file names.
fn file_name(id: &InstanceId) -> String {
    id.0.replace(':', "+")
}
