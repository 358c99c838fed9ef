//! What a process takes, as the system counts it.

use std::fs;

/// Bytes of memory of its own (`RssAnon`): without the mapped files, which the system takes back when it needs room.
/// `None` once the process is gone.
pub(crate) fn own_bytes(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
