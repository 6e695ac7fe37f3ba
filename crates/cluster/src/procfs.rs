//! What the operating system says about memory, processes and ports.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::sync::OnceLock;

use berth_core::inventory::{Cpu, Device, DeviceId, DeviceKind, ProcessMemory};
use berth_core::units::Bytes;
use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};
use procfs::{Current, ProcResult};

use crate::cgroup;

/// A process that carries a marker in its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// When the kernel started it, in clock ticks after boot.
    pub started_ticks: u64,
    /// The marker's value.
    pub value: String,
}

/// The processes whose environment has `variable`, in the order of their ids. Processes that end
/// meanwhile, and those of other users, are left out.
pub fn processes_with(variable: &str) -> Vec<Marked> {
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    let mut marked: Vec<Marked> = processes
        .filter_map(Result::ok)
        .filter_map(|process| {
            let environ: HashMap<OsString, OsString> = process.environ().ok()?;
            let value = environ.get(std::ffi::OsStr::new(variable))?.to_str()?.to_owned();
            let stat = process.stat().ok()?;
            Some(Marked {
                pid: u32::try_from(stat.pid).ok()?,
                parent: u32::try_from(stat.ppid).ok()?,
                group: u32::try_from(stat.pgrp).ok()?,
                started_ticks: stat.starttime,
                value,
            })
        })
        .collect();
    marked.sort_by_key(|process| process.pid);
    marked
}

/// When the kernel started a process, in clock ticks after boot; `None` where it has ended.
pub fn started_ticks(pid: u32) -> Option<u64> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some(stat.starttime)
}

/// Whether the process is still that one, and not ended and unreaped.
pub fn is_alive(pid: u32, started_ticks: u64) -> bool {
    let stat = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()?.stat().ok());
    stat.is_some_and(|stat| stat.starttime == started_ticks && !matches!(stat.state, 'Z' | 'X'))
}

/// What a process holds; `None` where it has ended.
pub fn memory(pid: u32) -> Option<ProcessMemory> {
    let status = Process::new(i32::try_from(pid).ok()?).ok()?.status().ok()?;
    let kib = |value: Option<u64>| Bytes::kib(value.unwrap_or(0));
    Some(ProcessMemory {
        resident: Bytes::kib(status.vmrss?),
        resident_peak: kib(status.vmhwm),
        anonymous: kib(status.rssanon),
    })
}

/// What a process is called, and what it holds of memory that no other process shares; `None` where it has ended.
pub fn name_and_private(pid: u32) -> Option<(String, Bytes)> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let statm = process.statm().ok()?;
    let private = statm.resident.saturating_sub(statm.shared) * procfs::page_size();
    // A name may say anything, to a terminal too.
    let name = process.stat().ok()?.comm.replace(|c: char| c.is_control(), "?");
    Some((name, Bytes(private)))
}

/// Processes that the kernel has killed for want of memory since it started; `None` where it doesn't count them.
pub fn oom_kills() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/vmstat").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The ids of all processes.
pub fn all_pids() -> Vec<u32> {
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    let pids = processes.filter_map(Result::ok).map(|process| process.pid);
    pids.filter_map(|pid| u32::try_from(pid).ok()).collect()
}

/// The host's memory as a device: the machine's, or the control group's where that allows less.
/// `own` is what berth's instances hold themselves: their pages are not others'. Pages of mapped
/// files count as available already.
///
/// # Errors
/// Where /proc/meminfo can't be read.
pub fn host(own: Bytes) -> ProcResult<Device> {
    let info = procfs::Meminfo::current()?;
    let mut total = Bytes(info.mem_total);
    let mut available = Bytes(info.mem_available.unwrap_or(info.mem_free));
    for limit in cgroup::limits() {
        total = total.min(limit.total);
        available = available.min(limit.available);
    }
    Ok(Device {
        id: DeviceId::host(),
        kind: DeviceKind::Host,
        total,
        used_by_others: total - available - own,
        is_seen: true,
        processes: None,
        cpu: cpu(),
    })
}

/// This machine's processor; where it can't be read, one without extensions. Read once: the kernel asks every core
/// for its frequency to answer.
pub fn cpu() -> Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    *CPU.get_or_init(|| {
        let info = procfs::CpuInfo::current().ok();
        let flags = info.as_ref().and_then(|info| info.flags(0)).unwrap_or_default();
        Cpu { amx: flags.contains(&"amx_int8") && flags.contains(&"amx_tile") }
    })
}

/// Listening TCP ports with the socket of each.
///
/// # Errors
/// Where /proc/net/tcp can't be read.
pub fn listening_ports() -> ProcResult<BTreeMap<u16, BTreeSet<u64>>> {
    let mut ports: BTreeMap<u16, BTreeSet<u64>> = BTreeMap::new();
    let entries = procfs::net::tcp()?.into_iter().chain(procfs::net::tcp6().unwrap_or_default());
    for entry in entries.filter(|entry| entry.state == TcpState::Listen) {
        ports.entry(entry.local_address.port()).or_default().insert(entry.inode);
    }
    Ok(ports)
}

/// The sockets that a process has open.
pub fn sockets(pid: u32) -> HashSet<u64> {
    let process = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok());
    let Some(Ok(fds)) = process.map(|process| process.fd()) else { return HashSet::new() };
    fds.filter_map(Result::ok)
        .filter_map(|fd| match fd.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect()
}

/// This machine's name.
pub fn host_name() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = read.map(|name| name.trim().to_owned()).unwrap_or_default();
    if name.is_empty() { "localhost".to_owned() } else { name }
}
