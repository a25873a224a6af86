//! The namespace operations against the kernel's own file system: the same random commands, the same errors,
//! the same tree.

use super::testing::World;
use crate::error::Errno;
use crate::server::state::tests::Dice;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// A directory that is removed at the end. On tmpfs where there is one: overlays count links differently.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_owned()
        } else {
            std::env::temp_dir()
        };
        let path = base.join(format!("glu-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("mkdir {}: {error}", path.display()));
        Self(path)
    }

    fn run(&self, command: &str) -> io::Result<()> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let at = |path: &str| self.0.join(path);
        let rename = |from: &str, to: &str, flags| {
            renameat2(AT_FDCWD, &at(from), AT_FDCWD, &at(to), flags).map_err(io::Error::from)
        };
        match words[..] {
            ["touch", path] => fs::File::create_new(at(path)).map(drop),
            ["mkdir", path] => fs::create_dir(at(path)),
            ["symlink", target, path] => symlink(target, at(path)),
            ["mkfifo", path] => Ok(nix::unistd::mkfifo(&at(path), Mode::S_IRWXU)?),
            ["ln", from, to] => fs::hard_link(at(from), at(to)),
            ["rm", path] => Ok(nix::unistd::unlink(&at(path))?),
            ["rmdir", path] => fs::remove_dir(at(path)),
            ["mv", from, to] => rename(from, to, RenameFlags::empty()),
            ["mv-n", from, to] => rename(from, to, RenameFlags::RENAME_NOREPLACE),
            ["swap", from, to] => rename(from, to, RenameFlags::RENAME_EXCHANGE),
            _ => panic!("no such command: {command}"),
        }
    }

    /// Returns the tree as [`World::tree`] shows it, and the link counts of its directories.
    fn tree(&self) -> (String, BTreeMap<String, u64>) {
        let (mut words, mut counts) = (Vec::new(), BTreeMap::new());
        let mut todo = vec![String::new()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(self.0.join(&dir)).expect("lists") {
                let name = entry
                    .expect("lists")
                    .file_name()
                    .into_string()
                    .expect("ours");
                let path = if dir.is_empty() {
                    name
                } else {
                    format!("{dir}/{name}")
                };
                let meta = fs::symlink_metadata(self.0.join(&path)).expect("is there");
                if meta.is_dir() {
                    words.push((path.clone(), format!("{path}/")));
                    counts.insert(path.clone(), meta.nlink());
                    todo.push(path);
                } else if meta.nlink() > 1 {
                    words.push((path.clone(), format!("{path}*{}", meta.nlink())));
                } else {
                    words.push((path.clone(), path));
                }
            }
        }
        words.sort();
        let words: Vec<String> = words.into_iter().map(|(_, word)| word).collect();
        (words.join(" "), counts)
    }

    /// Returns true if a path can stand in front of a name: not missing, and not a link to follow.
    fn is_parent(&self, path: &str) -> bool {
        fs::symlink_metadata(self.0.join(path))
            .is_ok_and(|meta| !meta.is_symlink() && !meta.file_type().is_fifo())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

fn random_path(dice: &mut Dice, scratch: &Scratch) -> String {
    let mut path = (*dice.pick(&["a", "b", "c"])).to_owned();
    while path.len() < 7 && dice.below(2) == 0 && scratch.is_parent(&path) {
        path = format!("{path}/{}", dice.pick(&["a", "b", "c"]));
    }
    path
}

#[test]
fn behaves_like_the_kernel() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let (mut world, mut dice) = (World::new(""), Dice::new(seed));
    let scratch = Scratch::new("namespace");
    let mut outcomes: BTreeMap<String, u32> = BTreeMap::new();
    for step in 0..4_000 {
        let (from, to) = (
            random_path(&mut dice, &scratch),
            random_path(&mut dice, &scratch),
        );
        let verbs = [
            "touch",
            "mkdir",
            "mkdir",
            "symlink x",
            "mkfifo",
            "rm",
            "rmdir",
            "ln",
            "mv",
            "mv",
            "mv-n",
            "swap",
        ];
        let command = match *dice.pick(&verbs) {
            verb @ ("mv" | "mv-n" | "swap") => format!("{verb} {from} {to}"),
            // A missing source has no inode number that could be sent.
            "ln" if fs::symlink_metadata(scratch.0.join(&from)).is_err() => continue,
            "ln" => format!("ln {from} {to}"),
            verb => format!("{verb} {to}"),
        };
        let expected = scratch
            .run(&command)
            .map_err(|error| error.raw_os_error().expect("an errno"));
        let got = world
            .sh(&command)
            .map(|_| ())
            .map_err(|error| Errno::from(error).0);
        assert_eq!(
            got,
            expected,
            "SEED={seed}, step {step}: {command} in {}",
            world.tree()
        );
        let outcome = got.map_or_else(
            |errno| format!("{:?}", Errno(errno)),
            |()| "done".to_owned(),
        );
        *outcomes
            .entry(format!("{} {outcome}", &command[..2]))
            .or_default() += 1;

        let (tree, counts) = scratch.tree();
        assert_eq!(world.names(), tree, "SEED={seed}, step {step}: {command}");
        for (path, nlink) in counts {
            // Some file systems do not count subdirectories and show 1.
            if nlink > 1 {
                let ours = u64::from(world.attr(&path).nlink);
                assert_eq!(ours, nlink, "SEED={seed}, step {step}: {command}: {path}");
            }
        }
    }
    // The commands met what they were made for.
    assert!(outcomes.len() >= 25, "{outcomes:#?}");
}
