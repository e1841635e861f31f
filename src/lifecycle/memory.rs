//! How much memory the process may use: its control group's limit.

use std::fs;
use std::path::Path;

/// The least limit in the process's control groups, in bytes; `None` without one.
///
/// Source: Linux, Documentation/admin-guide/cgroup-v2.rst (`memory.max`) and cgroup-v1/memory.rst
/// (`memory.limit_in_bytes`). In a container the group that can be seen at the mount's root is its own.
pub fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_below(Path::new("/sys/fs/cgroup"), &groups)
}

fn limit_below(mount: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        // `0::/path` in version 2, `7:memory:/path` in version 1.
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next(), parts.next());
        let (root, file) = match controllers {
            Some("") => (mount.to_owned(), "memory.max"),
            Some(names) if names.split(',').any(|name| name == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let inside = path.unwrap_or_default().trim_start_matches('/');
        // A group is also under the limits of those above it.
        for group in Path::new(inside).ancestors() {
            let text = fs::read_to_string(root.join(group).join(file));
            // `max`, or in version 1 a number near 2⁶³, is none.
            let limit = text.ok().and_then(|text| text.trim().parse::<u64>().ok());
            if let Some(limit) = limit.filter(|limit| *limit < 1 << 60) {
                least = Some(least.map_or(limit, |least| least.min(limit)));
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        let mount = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = mount.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
            fs::write(path, text).expect("it can be written");
        };
        let limit = |groups: &str| limit_below(mount.path(), groups);
        assert_eq!(limit("0::/\n"), None);
        write("memory.max", "max\n");
        write("pod/memory.max", "268435456\n");
        write("pod/one/memory.max", "max\n");
        assert_eq!(limit("0::/pod/one\n"), Some(256 << 20));
        write("pod/one/memory.max", "134217728\n");
        assert_eq!(limit("0::/pod/one\n"), Some(128 << 20));
        write("memory/old/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("9:cpu:/old\n7:memory:/old\n"), None);
        write("memory/old/memory.limit_in_bytes", "64000000\n");
        assert_eq!(limit("9:cpu:/old\n7:memory:/old\n"), Some(64_000_000));
    }
}
