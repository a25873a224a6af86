//! K3: a read of a file that has grown elsewhere tells of it, unless the kernel has asked since.

use super::cluster::Cluster;
use super::mount::{Mount, ROOT};
use crate::tree::{OpenFlags, Tree};
use consistency::InodeNo;

const PAGE: u64 = 4096;

async fn read(mount: &Mount, ino: InodeNo, fh: u64) -> Option<u64> {
    let how = OpenFlags(libc::O_RDONLY);
    let read = mount.client.read(ROOT, ino, fh, 0, 1 << 20, how).await;
    read.expect("readable").grown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn k3_a_read_tells_of_growth_once() {
    let cluster = Cluster::start().await;
    let (writer, reader) = (cluster.node(2).await, cluster.node(3).await);
    writer.create("f").await.expect("created");
    writer.write("f", 0, &[1; 100]).await.expect("written");
    let (ino, opened) = reader.open("f", libc::O_RDONLY).await.expect("there");
    reader.fstat(ino).await.expect("there");
    assert_eq!(read(&reader, ino, opened.fh).await, None);

    let grow = async |size: u64| writer.truncate("f", size).await.map(drop).expect("resized");
    grow(200).await;
    let same = read(&reader, ino, opened.fh).await;
    assert_eq!(same, None, "a page ends where it did");
    grow(PAGE + 1).await;
    assert_eq!(read(&reader, ino, opened.fh).await, Some(PAGE + 1));
    assert_eq!(read(&reader, ino, opened.fh).await, None, "it is known");

    grow(3 * PAGE).await;
    reader.fstat(ino).await.expect("there");
    assert_eq!(
        read(&reader, ino, opened.fh).await,
        None,
        "the kernel has asked"
    );

    grow(10).await;
    assert_eq!(read(&reader, ino, opened.fh).await, None);
    grow(2 * PAGE).await;
    let again = read(&reader, ino, opened.fh).await;
    assert_eq!(again, Some(2 * PAGE), "less than before, more than it has");
    reader.client.release(ino, opened.fh).await;
}
