//! Names and attributes of few files.

use super::Bench;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::path::Path;

impl Bench {
    pub(super) fn metadata(&mut self) {
        let (one, two, local) = (
            self.cluster.path(1),
            self.cluster.path(2),
            self.local.clone(),
        );
        for dir in [&one, &local] {
            fs::create_dir_all(dir.join("meta")).expect("mkdir");
            fs::write(dir.join("meta/f"), vec![7_u8; 4096]).expect("write");
        }
        self.row(
            "cached stat",
            ">= 0.8 x ext4",
            9,
            100_000,
            |dir| {
                std::env::set_current_dir(dir.join("meta")).expect("chdir");
                for _ in 0..100_000 {
                    black_box(fs::metadata("f").expect("stat"));
                }
            },
            &one,
            &local,
        );
        self.row(
            "cached stat by the whole path",
            "",
            5,
            100_000,
            |dir| {
                let path = dir.join("meta/f");
                for _ in 0..100_000 {
                    black_box(fs::metadata(&path).expect("stat"));
                }
            },
            &one,
            &local,
        );
        self.row(
            "cached open+read+close, 4 KiB",
            ">= 0.9 x ext4",
            7,
            10_000,
            |dir| {
                std::env::set_current_dir(dir.join("meta")).expect("chdir");
                let mut bytes = [0_u8; 4096];
                for _ in 0..10_000 {
                    File::open("f")
                        .and_then(|mut file| file.read_exact(&mut bytes))
                        .expect("read");
                }
            },
            &one,
            &local,
        );
        self.row(
            "cached open+close",
            "",
            7,
            10_000,
            |dir| {
                std::env::set_current_dir(dir.join("meta")).expect("chdir");
                for _ in 0..10_000 {
                    black_box(File::open("f").expect("open"));
                }
            },
            &one,
            &local,
        );
        std::env::set_current_dir("/").expect("chdir");
        let mut round = 0;
        self.row(
            "create+close 10,000 small files",
            "<= 2 x the time",
            1,
            10_000,
            |dir| {
                round += 1;
                let dir = dir.join(format!("meta/create{round}"));
                fs::create_dir(&dir).expect("mkdir");
                for i in 0..10_000 {
                    fs::write(dir.join(i.to_string()), "small").expect("create");
                }
            },
            &one,
            &local,
        );
        // The files just made by node 1 were never looked up by node 2.
        let made = two.join("meta/create1");
        let control = local.join("meta/create2");
        self.row_pair(
            "uncached lookup+stat, other node",
            "",
            10_000,
            || stat_all(&made),
            || stat_all(&control),
        );
    }
}

fn stat_all(dir: &Path) {
    for i in 0..10_000 {
        black_box(fs::metadata(dir.join(i.to_string())).expect("stat"));
    }
}
