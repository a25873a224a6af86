//! Where checkpoints are: files of the cluster's tree, one each, that only root may read (CK4). All of this blocks, and
//! touches the tree: never call it on a thread of the runtime (J4).
//!
//! ```text
//! .glu/checkpoints/       root's, 0700
//!   node3/                those of the jobs whose home is node 3
//!     12582999.2          the second checkpoint of that job
//!     .12582999.3         the third, which is being written
//! ```
//!
//! CK3: a file gets its name when all of it is durable, and older ones go after that. The file says itself where it ends.
//! It is a word that names the format, and [`Part`]s behind their lengths; what is new is a new part.

use super::super::wire::{Carried, Image, InputAt, Pipe};
use consistency::NodeId;
use consistency::wire::{decode, encode};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Names the format.
const MAGIC: [u8; 8] = *b"GLUCKPT1";
/// Upper limit of a part: a piece of an image, with room for more.
const PART_BYTES_MAX: usize = 1 << 20;
/// Where they are in the tree.
const DIR: [&str; 2] = [".glu", "checkpoints"];
const BUFFER_BYTES: usize = 1 << 20;

/// What a job can be started from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Saved {
    pub(in super::super) pipes: Vec<Pipe>,
    pub(in super::super) terminal: Option<Carried>,
    pub(in super::super) input_file: Option<InputAt>,
    pub(in super::super) images: Vec<Image>,
}

/// A part of a file. These are on disks: append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Part {
    /// Its program's pid.
    Pid(i32),
    Pipe(Pipe),
    Image(Image),
    /// That was all, so many parts before this one.
    End(u64),
    Terminal(Carried),
    InputFile(InputAt),
}

/// The checkpoints of the jobs of one home.
#[derive(Clone, Debug)]
pub(in super::super) struct Shelf {
    mount: PathBuf,
    home: NodeId,
}

impl Shelf {
    pub(in super::super) fn new(mount: &Path, home: NodeId) -> Self {
        Self {
            mount: mount.to_owned(),
            home,
        }
    }

    pub(in super::super) fn mount(&self) -> &Path {
        &self.mount
    }

    fn dir(&self) -> PathBuf {
        let all = self.mount.join(DIR[0]).join(DIR[1]);
        all.join(format!("node{}", self.home))
    }

    fn path(&self, pid: i32, number: u64) -> PathBuf {
        self.dir().join(format!("{pid}.{number}"))
    }

    /// Fails if the tree is not there: what is written below its mount point then is another directory.
    pub(in super::super) fn check(&self) -> io::Result<()> {
        let kind = nix::sys::statfs::statfs(&self.mount)?.filesystem_type();
        if kind == nix::sys::statfs::FUSE_SUPER_MAGIC {
            Ok(())
        } else {
            Err(io::Error::other("the cluster's tree is not mounted"))
        }
    }

    fn prepare(&self) -> io::Result<()> {
        let there = |made: io::Result<()>| match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        let root = self.mount.join(DIR[0]);
        there(fs::create_dir(&root))?;
        let mut private = DirBuilder::new();
        private.mode(0o700);
        there(private.create(root.join(DIR[1])))?;
        // CK4: somebody may have opened it.
        fs::set_permissions(root.join(DIR[1]), Permissions::from_mode(0o700))?;
        there(private.create(self.dir()))
    }

    /// Keeps a checkpoint, and then none that is older; returns its size.
    pub(in super::super) fn put(&self, pid: i32, number: u64, saved: &Saved) -> io::Result<u64> {
        self.prepare()?;
        let half = self.dir().join(format!(".{pid}.{number}"));
        remove(&half)?;
        let written = write(&half, pid, saved).and_then(|bytes| {
            fs::rename(&half, self.path(pid, number))?;
            File::open(self.dir())?.sync_all()?;
            Ok(bytes)
        });
        match written {
            Ok(bytes) => {
                self.remove(|of, older| of == pid && older != number)?;
                Ok(bytes)
            }
            Err(error) => {
                // Else the next one finds less room still.
                remove(&half).ok();
                Err(error)
            }
        }
    }

    /// Returns a checkpoint.
    pub(in super::super) fn get(&self, pid: i32, number: u64) -> io::Result<Saved> {
        let file = File::open(self.path(pid, number))?;
        read(BufReader::with_capacity(BUFFER_BYTES, file), pid)
    }

    /// Removes what there is of a job.
    pub(in super::super) fn clear(&self, pid: i32) -> io::Result<()> {
        self.remove(|of, _| of == pid)
    }

    /// Removes what there is of all jobs of this home.
    pub(in super::super) fn clear_all(&self) -> io::Result<()> {
        self.remove(|_, _| true)
    }

    fn remove(&self, which: impl Fn(i32, u64) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(self.dir()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let parts = name.to_str().and_then(|name| {
                let (pid, number) = name.trim_start_matches('.').split_once('.')?;
                Some((pid.parse().ok()?, number.parse().ok()?))
            });
            if parts.is_some_and(|(pid, number)| which(pid, number)) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes what all homes but those that are wanted have left in a tree.
///
/// # Errors
/// Of the file system.
pub fn forget_homes(mount: &Path, keep: impl Fn(NodeId) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(mount.join(DIR[0]).join(DIR[1])) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("node"));
        let home = number.and_then(|number| number.parse().ok()).map(NodeId);
        if let Some(home) = home.filter(|home| !keep(*home)) {
            let shelf = Shelf::new(mount, home);
            shelf.clear_all()?;
            // Its home may be back, and writing.
            fs::remove_dir(shelf.dir()).ok();
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn write(path: &Path, pid: i32, saved: &Saved) -> io::Result<u64> {
    let mut options = File::options();
    let options = options.write(true).create_new(true).mode(0o600);
    let mut file = BufWriter::with_capacity(BUFFER_BYTES, options.open(path)?);
    file.write_all(&MAGIC)?;
    let mut bytes = MAGIC.len() as u64;
    let mut put = |part: Part| {
        let part = encode(&part);
        let len = u32::try_from(part.len()).map_err(io::Error::other)?;
        file.write_all(&len.to_le_bytes())?;
        bytes += 4 + u64::from(len);
        file.write_all(&part)
    };
    put(Part::Pid(pid))?;
    for pipe in &saved.pipes {
        put(Part::Pipe(pipe.clone()))?;
    }
    if let Some(terminal) = &saved.terminal {
        put(Part::Terminal(terminal.clone()))?;
    }
    if let Some(input_file) = saved.input_file {
        put(Part::InputFile(input_file))?;
    }
    for image in &saved.images {
        put(Part::Image(image.clone()))?;
    }
    let more = saved.terminal.iter().len() + saved.input_file.iter().len();
    let before = 1 + saved.pipes.len() + more + saved.images.len();
    put(Part::End(before as u64))?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(bytes)
}

fn read(mut file: impl Read, pid: i32) -> io::Result<Saved> {
    let damaged = |why: &str| io::Error::new(ErrorKind::InvalidData, why.to_owned());
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(damaged("it is no checkpoint, or one of a newer Glu"));
    }
    let mut saved = Saved {
        pipes: Vec::new(),
        terminal: None,
        input_file: None,
        images: Vec::new(),
    };
    for parts in 0.. {
        let mut len = [0; 4];
        file.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > PART_BYTES_MAX {
            return Err(damaged("a part of it is too long"));
        }
        let mut part = vec![0; len];
        file.read_exact(&mut part)?;
        match decode(&part).map_err(|error| damaged(&error.to_string()))? {
            Part::Pid(of) if of == pid => {}
            Part::Pid(_) => return Err(damaged("it is another job's")),
            Part::Pipe(pipe) => saved.pipes.push(pipe),
            Part::Image(image) => saved.images.push(image),
            Part::Terminal(terminal) => saved.terminal = Some(terminal),
            Part::InputFile(input_file) => saved.input_file = Some(input_file),
            Part::End(all) if all == parts => break,
            Part::End(_) => return Err(damaged("parts of it are missing")),
        }
    }
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::super::super::super::protocol::Stream;
    use super::super::super::super::terminal::WindowSize;
    use super::super::super::super::terminal::tests::like_none;
    use super::*;

    fn saved(fill: u8) -> Saved {
        let image = |name: &str, len: usize| Image {
            name: name.to_owned(),
            bytes: vec![fill; len].into(),
        };
        Saved {
            pipes: vec![Pipe {
                stream: Some(Stream::Out),
                inode: 7,
                open: true,
            }],
            terminal: Some(Carried {
                leader: 4,
                foreground: 5,
                like: like_none(),
                unread: vec![fill; 3].into(),
            }),
            input_file: Some(InputAt {
                at: fill.into(),
                holder: None,
            }),
            images: vec![image("a.img", 0), image("b.img", 60 << 10)],
        }
    }

    fn names(shelf: &Shelf) -> Vec<String> {
        let entries = fs::read_dir(shelf.dir()).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names
            .map(|name| name.into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn ck3_the_newest_takes_the_place_of_older_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::new(dir.path(), NodeId(3));
        assert!(shelf.get(9, 1).is_err());
        for number in [1, 2] {
            let fill = u8::try_from(number).expect("small");
            let bytes = shelf.put(9, number, &saved(fill)).expect("kept");
            let file = fs::metadata(shelf.path(9, number)).expect("there");
            assert_eq!(file.len(), bytes);
            assert_eq!(shelf.get(9, number).expect("read"), saved(fill));
        }
        shelf.put(99, 1, &saved(3)).expect("kept");
        assert_eq!(names(&shelf), ["9.2", "99.1"]);
        assert!(shelf.get(99, 1).is_ok() && shelf.get(9, 1).is_err());
        shelf.clear(9).expect("removed");
        assert_eq!(names(&shelf), ["99.1"]);
    }

    #[test]
    fn ck3_what_is_not_whole_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::new(dir.path(), NodeId(3));
        shelf.put(9, 1, &saved(1)).expect("kept");
        let whole = fs::read(shelf.path(9, 1)).expect("there");
        assert!(read(&whole[..], 9).is_ok());
        assert!(read(&whole[..], 8).is_err(), "another job's");
        for len in [0, 7, 8, 12, 20, whole.len() - 1] {
            assert!(read(&whole[..len], 9).is_err(), "{len} bytes of it");
        }
        // A part is missing in its middle.
        let at = whole.windows(5).position(|five| five == *b"a.img");
        let at = at.expect("there") - 6;
        let rest = [&whole[..at], &whole[at + 12..]].concat();
        assert!(read(&rest[..], 9).is_err());
        // What a daemon that has died was writing goes when that is written again, or with its job.
        fs::write(shelf.dir().join(".9.2"), "half").expect("written");
        assert!(shelf.get(9, 2).is_err());
        shelf.put(9, 2, &saved(2)).expect("kept");
        assert_eq!(names(&shelf), ["9.2"]);
        fs::write(shelf.dir().join(".9.3"), "half").expect("written");
        shelf.clear(9).expect("removed");
        assert!(names(&shelf).is_empty());
    }

    #[test]
    fn ck4_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::new(dir.path(), NodeId(3));
        shelf.put(9, 1, &saved(1)).expect("kept");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let all = dir.path().join(".glu/checkpoints");
        assert_eq!(mode(&shelf.path(9, 1)), 0o600);
        assert_eq!((mode(&all), mode(&shelf.dir())), (0o700, 0o700));
        fs::set_permissions(&all, Permissions::from_mode(0o755)).expect("changed");
        shelf.put(9, 2, &saved(1)).expect("kept");
        assert_eq!(mode(&all), 0o700);
    }

    #[test]
    fn ck5_homes_that_are_gone_leave_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        forget_homes(dir.path(), |_| false).expect("nothing is there");
        for home in [3, 4] {
            let shelf = Shelf::new(dir.path(), NodeId(home));
            shelf.put(9, 1, &saved(1)).expect("kept");
        }
        forget_homes(dir.path(), |home| home == NodeId(4)).expect("removed");
        let left = fs::read_dir(dir.path().join(".glu/checkpoints")).expect("there");
        let left: Vec<_> = left
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(left, ["node4"]);
    }

    #[test]
    fn golden_bytes() {
        let check = |part: &Part, golden: &[u8]| {
            assert_eq!(encode(part), golden, "{part:?} changed on disk");
        };
        let saved = saved(1);
        check(&Part::Pid(9), &[0, 18]);
        check(&Part::Pipe(saved.pipes[0].clone()), &[1, 1, 0, 7, 1]);
        check(&Part::Image(saved.images[0].clone()), b"\x02\x05a.img\x00");
        check(&Part::End(4), &[3, 4]);
        let mut terminal = saved.terminal.expect("there");
        terminal.like.size = WindowSize::default();
        terminal.like.modes.characters = [7].as_slice().to_owned().into();
        let modes = &mut terminal.like.modes;
        (modes.input, modes.output, modes.control, modes.local) = (1, 2, 3, 4);
        let golden = [4, 8, 10, 0, 0, 0, 0, 1, 2, 3, 4, 1, 7, 3, 1, 1, 1];
        check(&Part::Terminal(terminal), &golden);
        check(
            &Part::InputFile(saved.input_file.expect("there")),
            &[5, 1, 0],
        );
    }
}
