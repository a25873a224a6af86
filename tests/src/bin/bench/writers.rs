//! Two nodes that write at the same time. The control is the same work by two threads on one node.

use super::{Bench, Row, time};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

const BLOCK: [u8; 4096] = [3; 4096];
const SAMPLES: u32 = 5;

/// What one of two does in a directory: its number, and how often.
type Work = fn(&Path, u32, u32);

impl Bench {
    pub(super) fn writers(&mut self) {
        let rows: [(&'static str, Work); 3] = [
            (
                "two nodes, 500 x 4 KiB files each, own directories",
                |dir, who, count| {
                    files(&dir.join(who.to_string()), who, count);
                },
            ),
            (
                "two nodes, 500 x 4 KiB files each, one directory",
                |dir, who, count| {
                    files(&dir.join("common"), who, count);
                },
            ),
            ("two nodes, 500 x 4 KiB each, by turns in one file", blocks),
        ];
        let count = self.scaled(500);
        let (one, two) = (self.cluster.path(1), self.cluster.path(2));
        for (number, (name, work)) in rows.into_iter().enumerate() {
            let mut sample = 0;
            let mut together = |dirs: [&Path; 2]| {
                sample += 1;
                let dirs = dirs.map(|dir| dir.join(format!("writers{number}-{sample}")));
                for sub in ["0", "1", "common"] {
                    fs::create_dir_all(dirs[0].join(sub)).expect("mkdir");
                }
                fs::write(dirs[0].join("file"), "").expect("create");
                time(|| {
                    thread::scope(|scope| {
                        for (who, dir) in (0..).zip(&dirs) {
                            scope.spawn(move || work(dir, who, count));
                        }
                    });
                })
            };
            let (mut here, mut control) = (Vec::new(), Vec::new());
            for _ in 0..SAMPLES {
                here.push(together([&one, &two]));
                control.push(together([&one, &one]));
            }
            self.add(Row {
                name,
                goal: "",
                here,
                control,
                ops: 2 * count,
            });
        }
    }
}

fn files(dir: &Path, who: u32, count: u32) {
    for number in 0..count {
        fs::write(dir.join(format!("{who}-{number}")), BLOCK).expect("write");
    }
}

fn blocks(dir: &Path, who: u32, count: u32) {
    let file = OpenOptions::new().write(true).open(dir.join("file"));
    let file = file.expect("open");
    for number in 0..count {
        let at = u64::from(2 * number + who) * BLOCK.len() as u64;
        file.write_all_at(&BLOCK, at).expect("write");
    }
}
