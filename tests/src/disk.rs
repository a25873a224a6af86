//! A disk that fails: ext4 on a loop device over a sparse file on a small tmpfs.
//!
//! Filled, it answers ENOSPC. With the tmpfs filled, the device has no room for blocks that were never written: EIO.
//! Frozen, it hangs.

use super::{Cluster, scratch_dir};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// See the module page. It is unmounted when dropped: no node may use it then.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Makes a disk on which so much can be written.
    ///
    /// # Panics
    /// It cannot be made or mounted.
    #[must_use]
    #[track_caller]
    pub fn new(mib: u64) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = scratch_dir().join(format!("disk-{}-{number}", std::process::id()));
        let disk = Self { dir };
        for part in ["back", "fs"] {
            fs::create_dir_all(disk.dir.join(part)).expect("mkdir");
        }
        let size = format!("size={mib}m");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &size, "none"],
            &[&disk.back()],
        );
        let image = disk.back().join("image");
        let file = File::create_new(&image).expect("create");
        file.set_len(mib << 21).expect("a sparse file");
        run("mkfs.ext4", &["-q", "-m", "0"], &[&image]);
        run("mount", &["-o", "loop,discard"], &[&image, &disk.path()]);
        disk
    }

    /// Boots a node again with all its state on this disk.
    ///
    /// # Panics
    /// That cannot be done.
    #[track_caller]
    pub fn take_over(&self, cluster: &Cluster, node: u32) {
        cluster.kill(node);
        let state = cluster.state().join(format!("node{node}/state"));
        run(
            "cp",
            &["-a", "--sparse=always"],
            &[&state.join("."), &self.path()],
        );
        fs::remove_dir_all(&state).expect("remove");
        std::os::unix::fs::symlink(self.path(), &state).expect("symlink");
        cluster.start(node);
    }

    fn path(&self) -> PathBuf {
        self.dir.join("fs")
    }

    /// From now on it has no room: ENOSPC.
    ///
    /// # Panics
    /// It cannot be filled.
    #[track_caller]
    pub fn fill(&self) {
        let file = File::create_new(self.path().join("filler")).expect("create");
        // Taken, not written: that would break it.
        let (mut at, mut len) = (0, 64 << 20);
        while len >= 1 << 12 {
            match fallocate(&file, FallocateFlags::empty(), at, len) {
                Ok(()) => at += len,
                Err(Errno::ENOSPC) => len /= 2,
                Err(error) => panic!("{}: {error}", self.dir.display()),
            }
        }
    }

    /// From now on what is new on it cannot be written: EIO.
    ///
    /// # Panics
    /// It does not break.
    #[track_caller]
    pub fn fail(&self) {
        let mut file = File::create_new(self.back().join("filler")).expect("create");
        let block = vec![1; 1 << 16];
        let full = loop {
            if let Err(error) = file.write_all(&block) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    }

    /// Makes room again.
    ///
    /// # Panics
    /// It was not filled.
    #[track_caller]
    pub fn make_room(&self) {
        fs::remove_file(self.path().join("filler")).expect("remove");
    }

    /// From now on who writes to it hangs, until [`Self::thaw`]: a process that does cannot be killed meanwhile.
    ///
    /// # Panics
    /// It cannot be frozen.
    #[track_caller]
    pub fn freeze(&self) {
        run("fsfreeze", &["-f"], &[&self.path()]);
    }

    /// Goes on where it hung.
    ///
    /// # Panics
    /// It was not frozen.
    #[track_caller]
    pub fn thaw(&self) {
        run("fsfreeze", &["-u"], &[&self.path()]);
    }

    fn back(&self) -> PathBuf {
        self.dir.join("back")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Else nothing on it could end.
        let _thawed = status("fsfreeze", &["-u"], &[&self.path()]);
        let unmounted = [self.path(), self.back()].map(|dir| status("umount", &["-l"], &[&dir]));
        if !std::thread::panicking() {
            assert_eq!(unmounted, [true; 2], "{}", self.dir.display());
            fs::remove_dir_all(&self.dir).expect("only empty directories are left");
        }
    }
}

fn status(program: &str, options: &[&str], paths: &[&Path]) -> bool {
    let status = Command::new(program).args(options).args(paths).output();
    status.is_ok_and(|output| output.status.success())
}

#[track_caller]
fn run(program: &str, options: &[&str], paths: &[&Path]) {
    let output = Command::new(program).args(options).args(paths).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
}
