//! Limits on memory that a container or a systemd slice sets (control groups, version 2).

use std::path::{Path, PathBuf};

use berth_core::units::Bytes;

const ROOT: &str = "/sys/fs/cgroup";

/// What a control group allows its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// All that they may hold together.
    pub total: Bytes,
    /// What of it they could still get, counting the page cache that would give way.
    pub available: Bytes,
}

/// The limits of this process's group and of those above it; none where there are none.
pub fn limits() -> Vec<Limit> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let group = PathBuf::from(ROOT).join(path.trim_start_matches('/'));
    group.ancestors().take_while(|dir| dir.starts_with(ROOT)).filter_map(limit).collect()
}

fn limit(group: &Path) -> Option<Limit> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    // "max" is no number, and no limit.
    let total: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let cache = stat.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        matches!(name, "inactive_file" | "active_file").then(|| bytes.parse::<u64>().ok())?
    });
    let held = used.saturating_sub(cache.sum());
    Some(Limit { total: Bytes(total), available: Bytes(total.saturating_sub(held)) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

    use super::*;

    #[test]
    fn reads_a_groups_files() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(limit(folder.path()), None);
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 500\ninactive_file 150\nactive_file 50\n");
        assert_eq!(limit(folder.path()), Some(Limit { total: Bytes(1000), available: Bytes(500) }));
        write("memory.max", "max\n");
        assert_eq!(limit(folder.path()), None);
    }
}
