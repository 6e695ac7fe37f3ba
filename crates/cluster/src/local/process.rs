//! Starting, finding and stopping engines.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use berth_core::Digest;
use berth_core::inventory::{InstanceId, ProcessMemory, RunningInstance};
use berth_core::plan::PlannedInstance;
use berth_core::units::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};

use super::{StateDir, lock};
use crate::procfs;

/// The variable that marks an engine: `STATE_ID INSTANCE CONFIG`.
const MARKER: &str = "BERTH_INSTANCE";

/// Why an engine did not become a process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A process of this instance still lives.
    #[error("{0} still runs: it holds its lock")]
    StillRuns(InstanceId),
    /// The lock or the log can't be used.
    #[error("can't write {path}")]
    State {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program can't be started.
    #[error("can't start {binary}")]
    Exec {
        /// The program.
        binary: String,
        /// Why.
        source: io::Error,
    },
}

/// Starts an instance's engine.
///
/// The engine gets a process group of its own, so that a Ctrl-C at the terminal reaches berth and
/// not the engine, and its lock as standard input: whoever finds the lock free knows that no
/// process of the instance lives, even where berth was killed between starting and noting it.
///
/// The process is given as it would be found: for a moment after its start the process table does
/// not show its environment yet.
///
/// # Errors
/// Where a process of the instance still lives, or where the engine can't be started.
pub fn spawn(
    instance: &PlannedInstance,
    state_id: &str,
    dir: &StateDir,
) -> Result<(Child, RunningInstance), SpawnError> {
    let lock_path = dir.instance_lock(&instance.id);
    let state = |path: std::path::PathBuf| move |source| SpawnError::State { path, source };
    let lock = lock::try_lock(&lock_path)
        .map_err(state(lock_path))?
        .ok_or_else(|| SpawnError::StillRuns(instance.id.clone()))?;
    let log_path = dir.log(&instance.id);
    // The log of the start before is kept: it says why there is another one. There may be none.
    drop(std::fs::rename(&log_path, dir.earlier_log(&instance.id)));
    let log = OpenOptions::new().create(true).write(true).truncate(true).open(&log_path);
    let log = log.map_err(state(log_path.clone()))?;
    let log_too = log.try_clone().map_err(state(log_path))?;
    let mut command = Command::new(&instance.binary);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_withheld(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    let child = command
        .args(&instance.args)
        // ggml calls a debugger as it aborts, which may hang: what has failed shall end.
        .env("GGML_NO_BACKTRACE", "1")
        .env(MARKER, format!("{state_id} {} {}", instance.id, instance.config()))
        .stdin(Stdio::from(lock))
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(log_too))
        .current_dir(&instance.folder)
        .process_group(0)
        .spawn()
        .map_err(|source| SpawnError::Exec { binary: instance.binary.clone(), source })?;
    let running = RunningInstance {
        id: instance.id.clone(),
        config: instance.config(),
        node: procfs::host_name(),
        pid: child.id(),
        pids: vec![child.id()],
        group: child.id(),
        // A child that is not waited for keeps its entry.
        started_ticks: procfs::started_ticks(child.id()).unwrap_or(0),
        memory: ProcessMemory::default(),
        doing: None,
    };
    Ok((child, running))
}

/// Variables that an engine doesn't get: those that would change what the plan says (llama-server
/// takes any flag from `LLAMA_ARG_...`), and secrets that it has no use for.
fn is_withheld(name: &str) -> bool {
    name.starts_with("LLAMA_")
        || matches!(name, "HF_TOKEN" | "HUGGING_FACE_HUB_TOKEN" | "BERTH_WEBHOOK")
}

/// The instances of this state folder that run, found in the process table.
pub fn running(state_id: &str) -> Vec<RunningInstance> {
    marked(|id| id == state_id)
}

/// The instances of any state folder that run on this machine.
pub fn running_of_any() -> Vec<RunningInstance> {
    marked(|_| true)
}

fn marked(is_meant: impl Fn(&str) -> bool) -> Vec<RunningInstance> {
    let mut groups: BTreeMap<(InstanceId, Digest), Vec<procfs::Marked>> = BTreeMap::new();
    for process in procfs::processes_with(MARKER) {
        let mut words = process.value.splitn(3, ' ');
        let (Some(id), Some(instance), Some(config)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if is_meant(id) && procfs::is_alive(process.pid, process.started_ticks) {
            let key = (InstanceId(instance.to_owned()), Digest::from_hex(config));
            groups.entry(key).or_default().push(process);
        }
    }
    groups.into_iter().filter_map(|((id, config), group)| instance(id, config, &group)).collect()
}

/// The processes of an instance, whatever configuration they were started with.
pub fn pids(state_id: &str, id: &InstanceId) -> Vec<u32> {
    let prefix = format!("{state_id} {id} ");
    let marked = procfs::processes_with(MARKER).into_iter();
    marked.filter(|process| process.value.starts_with(&prefix)).map(|process| process.pid).collect()
}

/// What processes hold together; `None` where none of them can be read.
pub fn memory(pids: &[u32]) -> Option<ProcessMemory> {
    let parts: Vec<ProcessMemory> = pids.iter().filter_map(|pid| procfs::memory(*pid)).collect();
    let sum = |part: fn(&ProcessMemory) -> Bytes| parts.iter().map(part).sum();
    (!parts.is_empty()).then(|| ProcessMemory {
        resident: sum(|memory| memory.resident),
        resident_peak: sum(|memory| memory.resident_peak),
        anonymous: sum(|memory| memory.anonymous),
    })
}

/// One instance from its processes: the root is the one whose parent is not of the group.
fn instance(id: InstanceId, config: Digest, group: &[procfs::Marked]) -> Option<RunningInstance> {
    let is_child = |process: &&procfs::Marked| group.iter().any(|p| p.pid == process.parent);
    let root = group.iter().find(|process| !is_child(process)).or(group.first())?;
    let pids: Vec<u32> = group.iter().map(|process| process.pid).collect();
    Some(RunningInstance {
        id,
        config,
        node: procfs::host_name(),
        pid: root.pid,
        group: root.group,
        started_ticks: root.started_ticks,
        memory: memory(&pids).unwrap_or_default(),
        pids,
        doing: None,
    })
}

/// Whether the instance's root is still the process that was seen.
pub fn is_alive(instance: &RunningInstance) -> bool {
    procfs::is_alive(instance.pid, instance.started_ticks)
}

/// Asks an instance's processes to end.
pub fn terminate(instance: &RunningInstance) {
    signal(instance, Signal::TERM);
}

/// Ends an instance's processes.
pub fn kill(instance: &RunningInstance) {
    signal(instance, Signal::KILL);
}

/// Signals the instance's group, if the process that was seen still lives: then the group is still
/// this one.
fn signal(instance: &RunningInstance, signal: Signal) {
    if !is_alive(instance) {
        return;
    }
    let Some(group) = i32::try_from(instance.group).ok().and_then(Pid::from_raw) else { return };
    if let Err(error) = kill_process_group(group, signal) {
        tracing::warn!(instance = %instance.id, %error, "could not be signalled");
    }
}
