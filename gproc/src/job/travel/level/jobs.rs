//! What a job wants and has, as procfs shows it. All of this blocks.

use crate::level::demand::Gauge;
use crate::text;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Demand is averaged over at least so long.
const WINDOW_MIN: Duration = Duration::from_millis(900);
/// This node's processes.
const PROC: &str = "/proc";

/// Returns the demand of processes; `None`: it is not known yet.
pub(super) fn demand(gauge: &mut Gauge, pids: &[i32]) -> Option<f64> {
    gauge.measure(WINDOW_MIN, Path::new(PROC), || Some(pids.iter().copied()))
}

/// Returns the processes of a job.
pub(super) fn members(dir: Option<PathBuf>, pid: i32) -> Vec<i32> {
    let mut pids = Vec::new();
    let mut dirs: Vec<PathBuf> = dir.into_iter().collect();
    while let Some(dir) = dirs.pop() {
        let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
        // A job may have made some of its own.
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.extend(below.map(|entry| entry.path()));
    }
    if pids.is_empty() {
        pids.push(pid);
    }
    pids
}

fn file(pid: i32, name: &str) -> PathBuf {
    Path::new(PROC).join(pid.to_string()).join(name)
}

/// Returns the memory of a process that is in use, in KiB.
pub(super) fn memory_kib(pid: i32) -> u64 {
    let status = fs::read(file(pid, "status")).unwrap_or_default();
    text::number(&status, b"VmRSS:").unwrap_or(0)
}

/// Returns the name of a process.
pub(super) fn comm(pid: i32) -> String {
    let comm = fs::read_to_string(file(pid, "comm")).unwrap_or_default();
    comm.trim_end_matches('\n').to_owned()
}

/// Returns the path of its program; none if it cannot be named.
pub(super) fn path(pid: i32) -> String {
    let path = fs::read_link(file(pid, "exe")).unwrap_or_default();
    path.to_string_lossy().into_owned()
}
