//! Hostile owners, lost hosts, and the socket itself.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_owners_cost_their_connection_only() {
    let cluster = Cluster::new();
    let null = File::open("/dev/null").expect("exists");
    let run = frame(&Hello::Run(Box::new(script(HERE, "sleep 600"))));
    for (first, descriptors) in [
        (&b"\xff\xff\xff\xff"[..], 0),
        (b"\x01\0\0\0\x63", 0),
        (b"", 0),
        (&run, 1),
        (&run, 4),
        (&run, 64),
    ] {
        let mut stream = cluster.connect().await;
        if descriptors > 0 {
            send_with(&stream, first, &vec![null.as_raw_fd(); descriptors]);
        } else {
            stream.write_all(first).await.expect("sends");
        }
        stream.shutdown().await.ok();
        let mut answer = Vec::new();
        let closed = timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        // A reset is as good as an end.
        closed.expect("the server closes the connection").ok();
        assert_eq!(answer, b"", "{first:?} with {descriptors} descriptors");
    }

    let too_much = ToJob::Input(Bytes::from(vec![0; DATA_BYTES_MAX]));
    let credit = ToJob::Credit {
        stream: Stream::Out,
        bytes: u32::MAX,
    };
    let start = ToJob::Start(Box::new(vouched(script(THERE, "true"))));
    for node in [HERE, THERE] {
        for (frame, times) in [
            // More than the window and what the pipe takes.
            (&too_much, 9),
            (&credit, 1),
            (&start, 1),
            (&ToJob::Input(Bytes::new()), 1),
        ] {
            let mut job = cluster.start(script(node, "echo $$; sleep 600")).await;
            job.until_out_has("\n").await;
            for _ in 0..times {
                job.send(frame).await;
            }
            let pid = job.text().trim().to_owned();
            wait_until("the job of a hostile owner has ended", || !runs(&pid)).await;
        }
    }
    let mut job = cluster.start(script(HERE, "echo up; read x; exit 9")).await;
    job.until_out_has("up").await;
    job.signal(-1, false).await;
    job.signal(1_000_000, true).await;
    assert_eq!(
        job.feed(b"").await,
        End::Exited(9),
        "the server still serves"
    );
}

/// Accepts a job, says that it runs, and then nothing; keeps the stream or drops it.
struct Mute {
    keep: bool,
}

#[async_trait]
impl Service for Mute {
    async fn call(&self, _from: NodeId, _body: Bytes) -> Option<Bytes> {
        None
    }

    async fn accept(&self, _from: NodeId, mut stream: ByteStream) {
        let started = FromJob::Started {
            node: THERE,
            pid: 1,
            relayed: true,
        };
        stream.writer.write_all(&frame(&started)).await.ok();
        if self.keep {
            // Takes what comes and never answers.
            let mut nowhere = tokio::io::sink();
            tokio::io::copy(&mut stream.reader, &mut nowhere).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_host_is_told() {
    let cluster = Cluster::with_silence(PING_EVERY + Duration::from_millis(500));
    for (keep, why) in [
        (true, "nothing came from it"),
        (false, "its daemon has ended"),
    ] {
        cluster
            .router_there
            .register(ServiceId::Job, Arc::new(Mute { keep }));
        let mut job = cluster.start(script(THERE, "true")).await;
        let (kind, text) = failed(job.end().await);
        assert_eq!(kind, Failure::Cluster);
        assert!(text.starts_with("node 2 was lost with the job: "), "{text}");
        assert!(text.contains(why), "{text}");
    }
}

/// A node of an older revision: it knows no extras.
struct Older(Arc<dyn Service>);

#[async_trait]
impl Service for Older {
    async fn call(&self, _from: NodeId, _body: Bytes) -> Option<Bytes> {
        None
    }

    async fn accept(&self, from: NodeId, stream: ByteStream) {
        let mut reader = FrameReader::new(stream.reader);
        let first = reader.next_whole(FIRST_BYTES_MAX).await;
        let first = first.expect("well formed").expect("a frame");
        if first[4] == 0 {
            let first = std::io::Cursor::new(first);
            let reader = AsyncReadExt::chain(first, reader.into_rest());
            let (reader, writer) = (Box::new(reader), stream.writer);
            self.0.accept(from, ByteStream { reader, writer }).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_an_older_revision_gets_no_extras() {
    let cluster = Cluster::new();
    let older = Older(cluster.agents[1].service());
    cluster
        .router_there
        .register(ServiceId::Job, Arc::new(older));
    let mut job = cluster
        .start_with(script(THERE, "echo runs"), vec![Extra::TellInput])
        .await;
    assert_eq!(job.end().await, End::Exited(0));
    assert_eq!((&*job.text(), job.input_taken), ("runs\n", None));

    let terminal = Extra::Terminal(super::super::terminal::tests::like_none());
    let mut job = cluster
        .start_with(script(THERE, "true"), vec![terminal.clone()])
        .await;
    let (kind, text) = failed(job.end().await);
    assert_eq!(kind, Failure::Cluster);
    assert!(text.contains("its Glu is older"), "{text}");

    let private = Extra::Private("net".parse().expect("a word"));
    let mut job = cluster
        .start_with(script(THERE, "true"), vec![private])
        .await;
    let (_, text) = failed(job.end().await);
    assert!(
        text.contains("a network or IPC of their own: its Glu is older"),
        "{text}"
    );

    let mut job = cluster
        .start_with(script(HERE, "true"), vec![terminal; 17])
        .await;
    let (_, text) = failed(job.end().await);
    assert_eq!(text, "a job may want 16 things, not 17");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_told() {
    let cluster = Cluster::new();
    let mut stream = cluster.connect().await;
    stream
        .write_all(&frame(&Hello::Nodes))
        .await
        .expect("sends");
    let mut answer = Vec::new();
    let read = timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    read.expect("in time").expect("reads");
    let nodes = read_frame::<NodesReply>(&mut &*answer, FIRST_BYTES_MAX);
    let nodes = nodes
        .expect("well formed")
        .expect("a reply")
        .expect("known");
    let nodes: Vec<_> = nodes
        .iter()
        .map(|(node, up, load)| (*node, *up, load.cpus))
        .collect();
    assert_eq!(nodes, [(HERE, true, 2), (THERE, true, 2)]);
}

#[test]
fn a_socket_that_was_left_is_replaced() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let _context = runtime.enter();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path: &Path = &dir.path().join("sock");
    drop(bind(path).expect("binds"));
    bind(path).expect("binds again");
}
