//! How much memory there is for this process: the machine's, or what its control groups allow.

use std::path::{Path, PathBuf};

/// Bytes; `None` where neither the kernel nor a control group says.
pub(super) fn available() -> Option<u64> {
    let physical = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| physical(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = |path: PathBuf| std::fs::read_to_string(path).ok().and_then(|text| limit(&text));
    let limits = limit_files(&groups, Path::new("/sys/fs/cgroup")).into_iter().filter_map(limit);
    limits.chain(physical).min()
}

fn physical(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A limit of either version; `max`, and the number that version 1 writes for none, are none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

/// Where limits may stand: of the process's groups (`/proc/self/cgroup`) and of all above them. Inside a container the
/// group's path may be the host's; then only the top, which is the container's own, is there.
fn limit_files(groups: &str, root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (top, name) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            named if named.split(',').any(|one| one == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(path.trim_start_matches('/'));
        files.extend(group.ancestors().map(|above| top.join(above).join(name)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_kernel_writes_them() {
        assert_eq!(physical("MemTotal:       24684084 kB\nMemFree: 1 kB\n"), Some(24_684_084 << 10));
        assert_eq!(physical("MemFree: 1 kB\n"), None);
        assert_eq!(limit("1073741824\n"), Some(1 << 30));
        assert_eq!((limit("max\n"), limit("9223372036854771712\n")), (None, None));
    }

    #[test]
    fn limits_of_both_versions_are_looked_for_up_to_the_top() {
        let files = limit_files("4:cpu,memory:/a/b\n3:cpuset:/x\n0::/c\n", Path::new("/g"));
        let expected = [
            "/g/memory/a/b/memory.limit_in_bytes",
            "/g/memory/a/memory.limit_in_bytes",
            "/g/memory/memory.limit_in_bytes",
            "/g/c/memory.max",
            "/g/memory.max",
        ];
        assert_eq!(files, expected.map(PathBuf::from));
    }
}
