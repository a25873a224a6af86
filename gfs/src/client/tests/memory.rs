//! What cached inodes cost.

use super::mount::name;
use crate::client::NODE_BYTES_MAX;
use crate::client::names::{DirNames, Known};
use crate::client::node::Node;
use consistency::lease::Client;
use consistency::wire::lease::{Grant, Mode};
use consistency::wire::meta::{Attr, FileKind};
use consistency::{Duration, InodeNo, Instant, LeaseId, SessionId, Timestamp, Version};
use dashmap::DashMap;
use std::sync::Arc;

/// Counts what each thread has allocated and not given back.
#[allow(unsafe_code)]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        static BYTES: Cell<i64> = const { Cell::new(0) };
    }

    struct Counting;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    // SAFETY: everything is handed on to the system's allocator as it is.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            BYTES.set(BYTES.get() + bytes(layout));
            // SAFETY: the caller keeps to the contract, which is the same.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
            BYTES.set(BYTES.get() - bytes(layout));
            // SAFETY: the caller keeps to the contract, which is the same.
            unsafe { System.dealloc(ptr, layout) }
        }
    }

    fn bytes(layout: Layout) -> i64 {
        layout.size().try_into().unwrap_or(i64::MAX)
    }

    /// May be negative: a thread also gives back what others have allocated.
    pub(super) fn allocated() -> i64 {
        BYTES.get()
    }
}

fn attr(ino: InodeNo) -> Attr {
    let time = Timestamp::from_nanos(1);
    Attr {
        ino,
        kind: FileKind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 4096,
        blocks: 8,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        version: Version(1),
    }
}

/// As after a walk through a tree with 1,000 files in each directory.
#[test]
fn a_cached_inode_is_small() {
    const INODES: usize = 250_000;
    let before = counting::allocated();
    let nodes: DashMap<InodeNo, Arc<Node>> = DashMap::new();
    let mut leases = Client::new();
    leases.session_opened(Instant(0), SessionId(1), Duration::from_millis(1_000));
    let mut dirs: Vec<DirNames> = Vec::new();
    for (index, ino) in (1_000_000..).take(INODES).enumerate() {
        let ino = InodeNo(ino);
        let stamp = leases.begin_request();
        let grant = Grant {
            lease: LeaseId((1 << 40) + index as u64 + 1),
            mode: Mode::Shared,
        };
        assert!(leases.install(Instant(0), stamp, ino, grant));
        leases.end_request(stamp);
        let node = Arc::new(Node::new(ino));
        {
            let mut state = node.state();
            state.attr = Some(attr(ino));
            state.lookups = 1;
        }
        nodes.insert(ino, node);
        if index % 1_000 == 0 {
            dirs.push(DirNames::default());
        }
        let dir = dirs.last_mut().expect("pushed");
        let name = name(&format!("source-file-{index}.rs"));
        assert!(dir.learn(&name, Known::Present(ino, FileKind::File)));
        assert!(dir.give_to_kernel(&name));
    }
    let taken = usize::try_from(counting::allocated() - before).expect("more than before");
    let each = taken / INODES;
    println!(
        "a cached inode takes {each} bytes, {} of them the node",
        size_of::<Node>()
    );
    assert!(each <= NODE_BYTES_MAX, "{each} bytes for each inode");
    drop((nodes, leases, dirs));
    assert!(counting::allocated() <= before + (1 << 16), "given back");
}
