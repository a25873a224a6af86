//! The file that a job has as input, one of the cluster's tree that it has opened itself (`Extra::InputFile`) or its owner's own, and
//! how far it has read: in the end its owner is to be there (J6).
//!
//! The place belongs to the open file, not to a process. Who hosts the job has the same open file, at home since the start, later from
//! a copy at its gate: so the place is known also when nothing of the job is left. Of a frozen job it is told with the images, of one
//! that has ended before its end.

use super::super::sys;
use super::pipes::members;
use super::wire::InputAt;
use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::fd::AsFd;
use std::path::Path;

/// Such a file of a copy.
#[derive(Debug)]
pub(super) struct Of {
    /// `None`: no process of it has the file open any more.
    file: Option<File>,
    /// Where it was when the copy came.
    came: u64,
}

impl Of {
    /// Has what a copy has that waits at its gate.
    pub(super) fn new(came: &InputAt) -> io::Result<Self> {
        let share = |(pid, number)| {
            let process = crate::sys::pidfd_open(pid)?;
            sys::descriptor_of(process.as_fd(), number).map(File::from)
        };
        let file = came.holder.map(share).transpose()?;
        let came = came.at;
        Ok(Self { file, came })
    }

    /// Tells of a frozen copy.
    pub(super) fn look(&self, dir: &Path, pid: i32) -> io::Result<InputAt> {
        match &self.file {
            Some(file) => look(file, dir, pid),
            None => Ok(self.left()),
        }
    }

    /// Tells of one that has ended.
    pub(super) fn left(&self) -> InputAt {
        let place = self.file.as_ref().map(|mut file| file.stream_position());
        let at = place.and_then(Result::ok).unwrap_or(self.came);
        InputAt { at, holder: None }
    }
}

/// Tells of a frozen job.
pub(super) fn look(mut file: &File, dir: &Path, pid: i32) -> io::Result<InputAt> {
    let at = file.stream_position()?;
    for pid in members(dir, pid)? {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            if let Some(number) = number
                && sys::is_same_file(file.as_fd(), pid, number)?
            {
                let holder = Some((pid, number));
                return Ok(InputAt { at, holder });
            }
        }
    }
    Ok(InputAt { at, holder: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_place_is_known_when_nobody_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("input");
        fs::write(&path, "0123456789").expect("writes");
        // The cgroup of nobody but the program.
        fs::write(dir.path().join("cgroup.procs"), "").expect("writes");
        let open = || File::open(&path).expect("opens");
        let (mut file, other) = (open(), open());
        let mut sleep = Command::new("sleep");
        let input = file.try_clone().expect("shares it");
        let program = sleep.arg("600").stdin(Stdio::from(input)).spawn();
        drop(sleep);
        let mut program = program.expect("sleep starts");
        let pid = program.id().cast_signed();
        file.seek(io::SeekFrom::Start(3)).expect("seeks");
        let came = look(&file, dir.path(), pid).expect("looks");
        let holder = Some((pid, 0));
        assert_eq!(came, InputAt { at: 3, holder });
        // Another opening of the same file has a place of its own.
        let apart = look(&other, dir.path(), pid).expect("looks");
        let holder = None;
        assert_eq!(apart, InputAt { at: 0, holder });
        let of = Of::new(&came).expect("shares it");
        file.seek(io::SeekFrom::Start(7)).expect("seeks");
        drop(file);
        program.kill().expect("it lives");
        program.wait().expect("it has ended");
        assert_eq!(of.left(), InputAt { at: 7, holder });
        // Nobody had it any more when it came.
        assert_eq!(Of::new(&of.left()).expect("nothing to share").left().at, 7);
    }
}
