//! The memory limit of the process: that of its control group, or of one around it.

use std::path::Path;

/// A limit of version 1 that is none is a little below this.
const NO_LIMIT: u64 = 1 << 62;

/// The memory limit of the process in bytes; nothing where no control group has one below the physical memory.
pub fn memory_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let physical = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| physical_memory(&text));
    smallest_limit(Path::new("/sys/fs/cgroup"), &groups, physical)
}

/// `MemTotal`, in bytes.
fn physical_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// The smallest limit of the groups that `/proc/self/cgroup` names and of those around them. In a container the group's own folder is
/// mounted as the root, so that counts as well.
fn smallest_limit(root: &Path, groups: &str, physical: Option<u64>) -> Option<u64> {
    let mut limits = Vec::new();
    let mut add = |folder: &Path, file: &str| {
        let text = std::fs::read_to_string(folder.join(file)).ok();
        limits.extend(text.and_then(|text| text.trim().parse::<u64>().ok()));
    };
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        path.ancestors().for_each(|path| add(&root.join(path), file));
    }
    add(root, "memory.max");
    add(&root.join("memory"), "memory.limit_in_bytes");
    let most = physical.unwrap_or(NO_LIMIT);
    limits.into_iter().filter(|limit| *limit > 0 && *limit <= most).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_of_a_group_and_its_parents_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("it is made");
            std::fs::write(path, text).expect("it is written");
        };
        let limit = |groups: &str, physical| smallest_limit(folder.path(), groups, physical);
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "1000\n");
        assert_eq!(limit("0::/a/b\n", None), Some(1_000), "that of a parent");
        write("a/b/memory.max", "500\n");
        assert_eq!(limit("0::/a/b\n", None), Some(500));
        assert_eq!(limit("0::/a/b\n", Some(400)), None, "more than there is");
        assert_eq!(limit("0::/\n", None), None);
        write("memory/pod/memory.limit_in_bytes", "700\n");
        assert_eq!(limit("5:cpu:/x\n4:memory,hugetlb:/pod/none\n", None), Some(700), "version 1");
        write("memory.max", "300\n");
        assert_eq!(limit("", None), Some(300), "mounted as the root");
        assert_eq!(physical_memory("MemFree: 1 kB\nMemTotal:       2 kB\n"), Some(2_048));
    }
}
