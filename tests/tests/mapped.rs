//! Mappings of a file that grows and shrinks on another node, by whom neither stat nor read is called.
//!
//! Needs root and /dev/fuse.

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;
use tests::Cluster;

const PAGE: usize = 4096;
const PAGES: usize = 64;

/// A file mapped shared, far beyond its end.
struct Mapping(NonNull<c_void>);

impl Mapping {
    /// `write`: it may be stored into as well, so that its pages have one owner.
    #[allow(unsafe_code)]
    fn new(path: &Path, write: bool) -> Self {
        let file = OpenOptions::new().read(true).write(write).open(path);
        let len = NonZeroUsize::new(PAGES * PAGE).expect("not zero");
        let mut protection = ProtFlags::PROT_READ;
        protection.set(ProtFlags::PROT_WRITE, write);
        let file = file.expect("open");
        // SAFETY: a new mapping, which only the kernel reads.
        let map = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &file, 0) };
        Self(map.expect("mmap"))
    }

    /// Loads bytes; EFAULT where a load by the program itself would be its death by SIGBUS.
    fn load(&self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let from = RemoteIoVec {
            base: self.0.as_ptr().addr() + offset,
            len,
        };
        let read = process_vm_readv(
            nix::unistd::getpid(),
            &mut [IoSliceMut::new(&mut bytes)],
            &[from],
        )?;
        bytes.truncate(read);
        Ok(bytes)
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped, once.
        let unmapped = unsafe { munmap(self.0, PAGES * PAGE) };
        unmapped.expect("munmap");
    }
}

#[track_caller]
fn check_loads(mapping: &Mapping, offset: usize, expected: &[u8]) {
    match mapping.load(offset, expected.len()) {
        Ok(loaded) => assert_eq!(loaded, expected, "at {offset}"),
        Err(error) => panic!("at {offset}: {error}"),
    }
}

/// Two nodes, each with a file open for a test: node 1 to write, node 2 a mapping.
fn on_two_nodes(test: impl Fn(&File, &Mapping)) {
    let cluster = Cluster::up(2);
    for write in [false, true] {
        let name = format!("mapped-{write}");
        let path = cluster.path(1).join(&name);
        fs::write(&path, [b'a'; 100]).expect("create");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let mapping = Mapping::new(&cluster.path(2).join(&name), write);
        check_loads(&mapping, 0, &[b'a'; 100]);
        test(&file.expect("open"), &mapping);
    }
}

#[test]
fn what_is_written_behind_the_end_in_its_page_is_seen() {
    on_two_nodes(|file, mapping| {
        for round in 1..20_u8 {
            let at = 100 + usize::from(round) * 50;
            file.write_all_at(&[round; 50], at as u64).expect("write");
            check_loads(mapping, at, &[round; 50]);
        }
        check_loads(mapping, 0, &[b'a'; 100]);
    });
}

/// K3: the first page tells what is in the others, as a database's does.
#[test]
fn who_has_loaded_of_a_larger_file_can_load_all_of_it() {
    on_two_nodes(|file, mapping| {
        for round in 1..PAGES {
            let header = u64::try_from(round).expect("small").to_ne_bytes();
            let end = round * PAGE + 17;
            let number = u8::try_from(round).expect("small");
            file.write_all_at(&[number; 17], (end - 17) as u64)
                .expect("write");
            file.write_all_at(&header, 0).expect("write");
            check_loads(mapping, 0, &header);
            check_loads(mapping, round * PAGE, &[number; 17]);
        }
    });
}

#[test]
fn a_file_that_shrinks_and_grows_again_can_be_loaded() {
    on_two_nodes(|file, mapping| {
        for pages in [9, 1, 30, 2, 3] {
            file.set_len(10).expect("shrink");
            check_loads(mapping, 0, &[b'a'; 10]);
            file.set_len((pages * PAGE) as u64).expect("grow");
            check_loads(mapping, 0, &[b'a'; 10]);
            check_loads(mapping, pages * PAGE - 5, &[0; 5]);
        }
    });
}
