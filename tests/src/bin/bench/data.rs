//! Content of large files, and copies.

use super::{Bench, MIB, shell};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

impl Bench {
    pub(super) fn data(&mut self) {
        let (one, two, local) = (
            self.cluster.path(1),
            self.cluster.path(2),
            self.local.clone(),
        );
        let mib = vec![0x5A_u8; MIB];
        self.row(
            "1 MiB sequential write, 128 MiB + fsync",
            ">= 0.7 x",
            3,
            128,
            |dir| {
                let mut file = File::create(dir.join("seq")).expect("create");
                for _ in 0..128 {
                    file.write_all(&mib).expect("write");
                }
                file.sync_all().expect("fsync");
            },
            &one,
            &local,
        );
        self.row(
            "1 MiB sequential read, cached",
            ">= 0.7 x",
            5,
            128,
            |dir| read_all(&dir.join("seq")),
            &one,
            &local,
        );
        self.row_pair(
            "1 MiB sequential read, other node, first",
            "",
            128,
            || read_all(&two.join("seq")),
            || read_all(&local.join("seq")),
        );
        self.row(
            "4 KiB random read, cached",
            "",
            5,
            20_000,
            |dir| {
                let file = File::open(dir.join("seq")).expect("open");
                let mut bytes = [0_u8; 4096];
                let mut at = 1_u64;
                for _ in 0..20_000 {
                    at = at
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    file.read_exact_at(&mut bytes, (at >> 33) % (128 * 256 - 1) * 4096)
                        .expect("read");
                }
            },
            &one,
            &local,
        );
        let sources = super::build::sources();
        let mut round = 0;
        self.row(
            "untar of the demo's sources",
            "<= 2 x the time",
            5,
            1,
            |dir| {
                round += 1;
                let to = dir.join(format!("src{round}"));
                fs::create_dir(&to).expect("mkdir");
                shell(&format!(
                    "tar -C '{}' -cf - . | tar -C '{}' -xf -",
                    sources.display(),
                    to.display()
                ));
            },
            &one,
            &local,
        );
    }

    /// A copy on the node that wrote the source, made durable; the control is a copy on ext4. On the cluster the chunks
    /// are shared, unless that is forbidden.
    pub(super) fn copies(&mut self) {
        let (one, local) = (self.cluster.path(1), self.local.clone());
        let mib = vec![0xA5_u8; MIB];
        for dir in [&one, &local] {
            let mut file = File::create(dir.join("source")).expect("create");
            for _ in 0..self.scaled(256) {
                file.write_all(&mib).expect("write");
            }
            file.sync_all().expect("fsync");
        }
        let rows = [
            ("cp of 256 MiB + sync", "auto"),
            ("cp of 256 MiB + sync, --reflink=never", "never"),
        ];
        for (name, reflink) in rows {
            let copy = |dir: &Path| {
                let command = format!("cp --reflink={reflink} source target && sync target");
                shell(&format!("cd '{}' && {command} && rm target", dir.display()));
            };
            self.row(name, "", 5, 1, copy, &one, &local);
        }
    }
}

fn read_all(path: &Path) {
    let mut file = File::open(path).expect("open");
    let mut bytes = vec![0_u8; MIB];
    while file.read(&mut bytes).expect("read") > 0 {}
}
