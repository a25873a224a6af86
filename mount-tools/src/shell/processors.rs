//! The processors of all nodes where programs count them: in `/sys/devices/system/cpu`.
//!
//! `/proc/stat` of the cluster numbers them through, a node's behind those of the nodes before it. Here each has a
//! directory of its number. That of one of this node's leads into the kernel's own, which is mounted beside; one of
//! another node is empty. What else the kernel tells is unchanged.
//!
//! They are those that there were when the shell began. Where a process may run, sched_getaffinity(2) says: on its own
//! node, which is why nproc(1) counts that node's, and `nproc --all` all.

use super::view::bind;
use anyhow::{Context, Result};
use consistency::NodeId;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Where the kernel has its processors.
const SYSTEM: &str = "/sys/devices/system/cpu";
/// Files that say which there are.
const LISTS: [&str; 3] = ["online", "possible", "present"];

/// How many there are, and which of them are this node's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Processors {
    all: usize,
    own: Range<usize>,
}

impl Processors {
    /// Counts those of the cluster, seen from one of its nodes.
    pub(super) fn count(root: &Path, node: NodeId) -> Result<Self> {
        let stat = root.join("stat");
        let stat = fs::read_to_string(&stat).with_context(|| stat.display().to_string())?;
        let of = |other: &NodeId| {
            let cpus = root.join(format!("cluster/node{other}/cpus"));
            // One that does not answer has none in `stat` either.
            let cpus = fs::read_to_string(cpus).ok();
            cpus.and_then(|cpus| cpus.trim().parse().ok()).unwrap_or(0)
        };
        let nodes = crate::table::nodes(root)?;
        let before: usize = nodes.range(..node).map(of).sum();
        Ok(Self {
            all: numbered(&stat),
            own: before..before + of(&node),
        })
    }

    /// Shows them in this mount namespace. `view` is a directory that only this shell has.
    pub(super) fn show(&self, view: &Path) -> Result<()> {
        // Some systems have no such place.
        if self.all == 0 || !Path::new(SYSTEM).is_dir() {
            return Ok(());
        }
        let (kernels, shown) = (view.join("kernel-cpu"), view.join("cpu"));
        fs::create_dir(&kernels)?;
        bind(Path::new(SYSTEM), &kernels)?;
        self.make(&kernels, &shown)
            .with_context(|| format!("cannot show the processors in {}", shown.display()))?;
        bind(&shown, Path::new(SYSTEM))
    }

    /// Makes the directory.
    fn make(&self, kernels: &Path, shown: &Path) -> io::Result<()> {
        fs::create_dir(shown)?;
        let mut own = Vec::new();
        for entry in fs::read_dir(kernels)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            if let Some(number) = name
                .strip_prefix("cpu")
                .and_then(|it| it.parse::<u32>().ok())
            {
                own.push((number, entry.path()));
            } else if LISTS.contains(&name) {
                fs::write(shown.join(name), list(self.all))?;
            } else {
                symlink(entry.path(), shown.join(name))?;
            }
        }
        // `stat` has those that are not switched off.
        own.retain(|(_, path)| {
            fs::read(path.join("online")).map_or(true, |online| online != b"0\n")
        });
        own.sort_unstable();
        let mut own = own.into_iter();
        for number in 0..self.all {
            let dir = shown.join(format!("cpu{number}"));
            fs::create_dir(&dir)?;
            let of_kernel = self.own.contains(&number).then(|| own.next()).flatten();
            let Some((_, of_kernel)) = of_kernel else {
                continue;
            };
            for entry in fs::read_dir(of_kernel)? {
                let entry = entry?;
                symlink(entry.path(), dir.join(entry.file_name()))?;
            }
        }
        Ok(())
    }
}

/// Counts the lines of single processors in `stat`.
fn numbered(stat: &str) -> usize {
    let lines = stat.lines().filter_map(|line| line.strip_prefix("cpu"));
    lines
        .filter(|rest| rest.starts_with(|it: char| it.is_ascii_digit()))
        .count()
}

/// Names all as the kernel does.
fn list(all: usize) -> String {
    match all {
        1 => "0\n".into(),
        _ => format!("0-{}\n", all - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            fs::write(path, text).expect("written");
        }
        root
    }

    #[test]
    fn a_nodes_processors_stand_behind_those_of_the_nodes_before() {
        let root = tree(&[
            (
                "stat",
                "cpu  9 9\ncpu0 1\ncpu1 1\ncpu2 1\ncpu3 1\nctxt 7\ncpux 1\n",
            ),
            ("cluster/node1/cpus", "1\n"),
            // It does not answer.
            ("cluster/node2/load", ""),
            ("cluster/node3/cpus", "2\n"),
            ("cluster/node4/cpus", "1\n"),
        ]);
        let count = |node| Processors::count(root.path(), NodeId(node)).expect("counted");
        assert_eq!(count(1), Processors { all: 4, own: 0..1 });
        assert_eq!(count(3), Processors { all: 4, own: 1..3 });
        assert_eq!(count(4), Processors { all: 4, own: 3..4 });
        assert_eq!(numbered(""), 0);
        assert_eq!(list(1), "0\n");
    }

    #[test]
    fn each_has_a_directory_and_this_nodes_lead_to_the_kernels() {
        let kernels = tree(&[
            ("cpu0/topology/core_id", "5\n"),
            ("cpu1/online", "0\n"),
            ("cpu10/online", "1\n"),
            ("cpufreq/boost", "1\n"),
            ("online", "0,10\n"),
            ("possible", "0-10\n"),
            ("offline", "1\n"),
        ]);
        let shown = tempfile::tempdir().expect("a directory");
        let shown = shown.path().join("cpu");
        let processors = Processors { all: 6, own: 2..4 };
        processors.make(kernels.path(), &shown).expect("made");
        let mut names: Vec<_> = fs::read_dir(&shown)
            .expect("listed")
            .map(|entry| {
                entry
                    .expect("listed")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .collect();
        names.sort();
        let expected = "cpu0 cpu1 cpu2 cpu3 cpu4 cpu5 cpufreq offline online possible";
        assert_eq!(names.join(" "), expected);
        let read = |path: &str| fs::read_to_string(shown.join(path)).ok();
        assert_eq!(read("online").as_deref(), Some("0-5\n"));
        assert_eq!(read("possible").as_deref(), Some("0-5\n"));
        assert_eq!(read("offline").as_deref(), Some("1\n"));
        assert_eq!(read("cpufreq/boost").as_deref(), Some("1\n"));
        assert_eq!(read("cpu2/topology/core_id").as_deref(), Some("5\n"));
        assert_eq!(read("cpu3/online").as_deref(), Some("1\n"));
        for other in [0, 1, 4, 5] {
            let dir = shown.join(format!("cpu{other}"));
            assert!(!dir.is_symlink(), "htop(1) counts directories alone");
            assert_eq!(fs::read_dir(dir).expect("listed").count(), 0, "{other}");
        }
    }
}
