use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

/// Hands the accepted stream to the test.
struct Taking(Mutex<Option<oneshot::Sender<ByteStream>>>);

#[async_trait]
impl Service for Taking {
    async fn call(&self, _: NodeId, _: Bytes) -> Option<Bytes> {
        None
    }

    async fn accept(&self, from: NodeId, stream: ByteStream) {
        assert_eq!(from, NodeId(1));
        let sender = self.0.lock().expect("no holder panics").take();
        sender.expect("one stream").send(stream).ok();
    }
}

/// Opens a stream from node 1 and returns both ends.
async fn open(cluster: &Cluster, to: u16) -> (ByteStream, ByteStream) {
    let (sender, receiver) = oneshot::channel();
    let taking = Arc::new(Taking(Mutex::new(Some(sender))));
    cluster.node(to).router.register(ServiceId::Job, taking);
    let transport = &cluster.node(1).transport;
    let here = transport.open(NodeId(to), ServiceId::Job).await;
    (here.expect("taken"), receiver.await.expect("accepted"))
}

#[tokio::test]
async fn the_first_bytes_of_a_stream_go_along() {
    let cluster = Cluster::of(2);
    for to in [2, 1] {
        let (sender, receiver) = oneshot::channel();
        let taking = Arc::new(Taking(Mutex::new(Some(sender))));
        cluster.node(to).router.register(ServiceId::Job, taking);
        let transport = &cluster.node(1).transport;
        let first = Bytes::from(vec![7; 1 << 20]);
        let opened = transport.open_with(NodeId(to), ServiceId::Job, first.clone());
        let open_and_end = async {
            let mut here = opened.await.expect("taken");
            here.writer.write_all(b"more").await.expect("open");
            here.writer.shutdown().await.expect("open");
            here
        };
        let (_here, got) = tokio::join!(open_and_end, async {
            let mut there = receiver.await.expect("accepted");
            let mut got = Vec::new();
            there.reader.read_to_end(&mut got).await.expect("ends");
            got
        });
        assert!(got == [&first[..], b"more"].concat(), "{} bytes", got.len());
    }
}

#[tokio::test]
async fn a_stream_closes_one_side_at_a_time() {
    let cluster = Cluster::of(2);
    for to in [2, 1] {
        let (mut here, mut there) = open(&cluster, to).await;
        here.writer.write_all(b"question").await.expect("open");
        here.writer.shutdown().await.expect("open");
        let mut text = String::new();
        there.reader.read_to_string(&mut text).await.expect("ends");
        assert_eq!(text, "question");

        there.writer.write_all(b"answer").await.expect("still open");
        let mut start = [0_u8; 6];
        here.reader.read_exact(&mut start).await.expect("open");
        there
            .writer
            .write_all(b" and more")
            .await
            .expect("still open");
        there.writer.shutdown().await.expect("still open");
        text.clear();
        here.reader.read_to_string(&mut text).await.expect("ends");
        assert_eq!((&start, text.as_str()), (b"answer", " and more"));
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_up_its_writer_alone() {
    const TOTAL: usize = 32 << 20;
    let cluster = Cluster::of(2);
    let (mut here, mut there) = open(&cluster, 2).await;
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let writing = tokio::spawn(async move {
        let piece = [7_u8; 16 << 10];
        while count.load(Ordering::SeqCst) < TOTAL {
            let n = here.writer.write(&piece).await.expect("open");
            count.fetch_add(n, Ordering::SeqCst);
        }
        here.writer.shutdown().await.expect("open");
    });
    // The stream's header is read, and the window is not yet opened again by so little.
    let window = (2 << 20) - frame::HEADER_BYTES;
    until("the window to fill", || {
        written.load(Ordering::SeqCst) >= window
    })
    .await;
    for _ in 0..50 {
        cluster.node(1).call(2, "small").await.expect("answered");
        let large = vec![1; 100 << 10];
        cluster.node(1).call(2, large).await.expect("answered");
    }
    assert_eq!(written.load(Ordering::SeqCst), window, "the writer waits");

    let mut total = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = there.reader.read(&mut buffer).await.expect("open");
        assert!(buffer[..n].iter().all(|&byte| byte == 7));
        total += n;
        if n == 0 {
            break;
        }
    }
    writing.await.expect("no panic");
    assert_eq!(total, written.load(Ordering::SeqCst), "all of it");
}

#[tokio::test]
async fn a_stream_that_is_dropped_ends_for_its_peer() {
    let cluster = Cluster::of(2);
    let (here, mut there) = open(&cluster, 2).await;
    drop(here);
    let mut rest = Vec::new();
    there.reader.read_to_end(&mut rest).await.expect("an end");
    // What is written to nobody fails, at the latest when that has come around.
    let started = Instant::now();
    while there.writer.write_all(b"x").await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "waited for an error");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn streams_end_with_the_connection() {
    let cluster = Cluster::of(2);
    let (mut here, mut there) = open(&cluster, 2).await;
    cluster.node(2).transport.close().await;
    let mut byte = [0];
    here.reader
        .read(&mut byte)
        .await
        .expect_err("closed by the peer");
    there.reader.read(&mut byte).await.expect_err("closed here");
}
