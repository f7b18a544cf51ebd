//! How much memory this machine has, and how much of it a process can still have.

use std::path::Path;

/// Most bytes of what the kernel says.
const MOST_BYTES: usize = 64 << 10;

fn read(path: &Path) -> Option<String> {
    crate::files::read_small(path, MOST_BYTES).ok().and_then(|bytes| String::from_utf8(bytes).ok())
}

/// One line of what the kernel says, in bytes.
fn line(name: &str) -> Option<u64> {
    let meminfo = read(Path::new("/proc/meminfo"))?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

/// Bytes that there are.
pub(super) fn all() -> Option<u64> {
    line("MemTotal")
}

/// Bytes that a new process can have without swapping: what the kernel says, or what a limit of this process leaves.
pub(super) fn available() -> Option<u64> {
    let of_machine = line("MemAvailable")?;
    let of_group = || {
        let group = read(Path::new("/proc/self/cgroup"))?;
        let path = group.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        let folder = Path::new("/sys/fs/cgroup").join(path);
        let number = |name: &str| read(&folder.join(name))?.trim().parse::<u64>().ok();
        Some(number("memory.max")?.saturating_sub(number("memory.current")?))
    };
    Some(of_group().map_or(of_machine, |of_group: u64| of_group.min(of_machine)))
}
