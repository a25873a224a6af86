//! Trees of many files: looked at cold and warm, on the node that made them and on another.

use super::{Bench, Row, drop_caches, shell, time};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files in one directory of the git tree.
const FILES_PER_DIR: u32 = 100;
/// Each cold look needs files that nobody has looked at.
const COLD_SAMPLES: u32 = 3;

impl Bench {
    pub(super) fn trees(&mut self) {
        self.git_status();
        self.listings();
        self.small_files();
    }

    fn git_status(&mut self) {
        let (one, two) = (self.cluster.path(1), self.cluster.path(2));
        let local = self.local.clone();
        let dirs = self.scaled(20_000 / FILES_PER_DIR);
        for dir in [&one, &local] {
            let tree = dir.join("git");
            for sub in 0..dirs {
                fill(
                    &tree.join(sub.to_string()),
                    FILES_PER_DIR,
                    b"the same in all\n",
                );
            }
            git(dir, "init");
            git(dir, "add .");
            git(
                dir,
                "-c user.name=bench -c user.email=bench@localhost commit -m all",
            );
        }
        let status = |dir: &Path| git(dir, "status --porcelain");
        for (name, here) in [
            ("git status of 20,000 files, node that made them", &one),
            ("git status of 20,000 files, other node", &two),
        ] {
            // The first one fills the caches, and the index with what stat(2) says here.
            status(here);
            status(&local);
            self.row(name, "", 5, 1, status, here, &local);
        }
    }

    fn listings(&mut self) {
        let files = self.scaled(10_000);
        let list = |dir: &Path| shell(&format!("ls -l '{}'", dir.display()));
        let made = self.make("list", files, b"x");
        self.cold(
            "ls -l of 10,000 files, other node, first",
            files,
            &made,
            list,
        );
        let (there, local) = &made[0];
        self.row(
            "ls -l of 10,000 files, other node, again",
            "",
            5,
            files,
            list,
            there,
            local,
        );
    }

    fn small_files(&mut self) {
        let files = self.scaled(1_000);
        let read = |dir: &Path| {
            for number in 0..files {
                let bytes = fs::read(dir.join(number.to_string()));
                assert_eq!(bytes.expect("read").len(), 4096);
            }
        };
        let made = self.make("small", files, &[7; 4096]);
        self.cold("1,000 x 4 KiB read, other node, first", files, &made, read);
    }

    /// Makes directories of `files` files on the first node and locally; returns where the second node has them, and
    /// the local ones.
    fn make(&self, name: &str, files: u32, content: &[u8]) -> Vec<(PathBuf, PathBuf)> {
        let (one, two) = (self.cluster.path(1), self.cluster.path(2));
        let sample = |sample: u32| {
            let name = format!("{name}{sample}");
            fill(&one.join(&name), files, content);
            fill(&self.local.join(&name), files, content);
            (two.join(&name), self.local.join(name))
        };
        let made = (0..COLD_SAMPLES).map(sample).collect();
        // The control can be forgotten only once it is on its disk.
        nix::unistd::sync();
        made
    }

    /// Measures what is cold only once in each directory. The control's kernel has to read its disk, or what the machine
    /// below has cached of that.
    fn cold(
        &mut self,
        name: &'static str,
        ops: u32,
        made: &[(PathBuf, PathBuf)],
        work: impl Fn(&Path),
    ) {
        let (mut here, mut control): (Vec<Duration>, Vec<Duration>) = (Vec::new(), Vec::new());
        for (there, local) in made {
            here.push(time(|| work(there)));
            drop_caches("3");
            control.push(time(|| work(local)));
        }
        self.add(Row {
            name,
            goal: "",
            here,
            control,
            ops,
        });
    }
}

fn fill(dir: &Path, files: u32, content: &[u8]) {
    fs::create_dir_all(dir).expect("mkdir");
    for number in 0..files {
        fs::write(dir.join(number.to_string()), content).expect("create");
    }
}

fn git(dir: &Path, command: &str) {
    let tree = dir.join("git");
    let quiet = "-c safe.directory='*' -c gc.auto=0 -c init.defaultBranch=main";
    shell(&format!("cd '{}' && git {quiet} {command}", tree.display()));
}
