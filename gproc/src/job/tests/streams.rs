//! Input, outputs, signals and ends of jobs.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_as_its_program_does() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        for (text, expected) in [
            ("exit 0", End::Exited(0)),
            ("exit 3", End::Exited(3)),
            ("exit 255", End::Exited(255)),
            ("kill -TERM $$", End::Killed(libc::SIGTERM)),
            ("kill -KILL $$", End::Killed(libc::SIGKILL)),
            ("kill -40 $$", End::Killed(40)),
        ] {
            let end = cluster.start(script(node, text)).await.end().await;
            assert_eq!(end, expected, "{text} on {node}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_stay_apart_and_are_complete() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        let text = "echo out; echo err >&2; echo $GLU_NODE $GLU_NPID $GLU_VNN";
        let mut job = cluster.start(script(node, text)).await;
        assert_eq!(job.end().await, End::Exited(0));
        assert_eq!(job.text(), format!("out\n{node} 77 0\n"));
        assert_eq!(job.err, b"err\n");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_file_for_both_outputs_keeps_the_order() {
    let cluster = Cluster::new();
    let mut request = script(THERE, "for i in 1 2 3; do echo o$i; echo e$i >&2; done");
    request.stdio[2] = Stdio::SameAsOut;
    let mut job = cluster.start(request).await;
    assert_eq!(job.end().await, End::Exited(0));
    assert_eq!(job.text(), "o1\ne1\no2\ne2\no3\ne3\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_passes_unchanged() {
    let cluster = Cluster::new();
    let input: Vec<u8> = (0..8_u32 << 18)
        .flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    for node in [HERE, THERE] {
        let mut job = cluster.start(program(node, &["cat"])).await;
        assert_eq!(job.feed(&input).await, End::Exited(0));
        assert!(job.out == input, "cat on {node} changed its input");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_input_is_bounded_and_does_not_keep_the_job() {
    let cluster = Cluster::new();
    let mut job = cluster.start(script(THERE, "read line; echo $line")).await;
    let input = b"first\n".repeat(1 << 20);
    assert_eq!(job.feed(&input).await, End::Exited(0));
    assert_eq!(job.out, b"first\n");

    let mut job = cluster
        .start(script(THERE, "exec <&-; echo closed; sleep 600"))
        .await;
    job.until_out_has("closed").await;
    // A program that starts at this moment may hold the pipe until its exec: then a piece is lost in it.
    while !job.input_closed {
        job.send(&ToJob::Input(Bytes::from_static(b"x"))).await;
        assert_eq!(job.step().await, None);
    }
    job.signal(libc::SIGTERM, true).await;
    assert_eq!(job.end().await, End::Killed(libc::SIGTERM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_hears_how_much_of_its_input_was_read() {
    let cluster = Cluster::new();
    let input = b"0123456789".repeat(10_000);
    for node in [HERE, THERE] {
        for (text, taken) in [
            ("true", 0),
            ("head -c 7 >/dev/null", 7),
            ("dd bs=1 count=20 2>/dev/null >/dev/null", 20),
            // Closed by the job before its end, and read to the end.
            ("head -c 3 >/dev/null; exec <&-; echo closed", 3),
            ("cat >/dev/null", 100_000),
        ] {
            let request = script(node, text);
            let mut job = cluster.start_with(request, vec![Extra::TellInput]).await;
            assert_eq!(job.feed(&input).await, End::Exited(0), "{text}");
            assert_eq!(job.input_taken, Some(taken), "{text} on {node}");
        }
        // The end of the input has come before that of the job.
        let text = "head -c 4 >/dev/null; sleep 0.2";
        let mut job = cluster
            .start_with(script(node, text), vec![Extra::TellInput])
            .await;
        assert_eq!(job.feed(b"short input").await, End::Exited(0));
        assert_eq!(job.input_taken, Some(4));
        let mut job = cluster.start(script(node, "true")).await;
        assert_eq!(job.feed(&input).await, End::Exited(0));
        assert_eq!(
            job.input_taken, None,
            "who has not asked may not know the answer"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn null_devices_are_not_carried() {
    let cluster = Cluster::new();
    let text = "for fd in 0 1 2; do readlink /proc/self/fd/$fd >&3; done 3>\"$OUT\"";
    let file = cluster.dir.path().join("links");
    let mut request = script(THERE, text);
    let variable = format!("OUT={}", file.display());
    request.env.push(Bytes::from(variable));
    request.stdio = [Stdio::Null; 3];
    assert_eq!(cluster.start(request).await.end().await, End::Exited(0));
    let links = std::fs::read_to_string(file).expect("the job wrote it");
    assert_eq!(links.lines().next(), Some("/dev/null"));
    assert_eq!(links.lines().nth(2), Some("/dev/null"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_the_program_or_its_group() {
    let cluster = Cluster::new();
    let text = "trap 'echo got; exit 7' USR1; sleep 600 & echo ready; wait";
    for node in [HERE, THERE] {
        let mut job = cluster.start(script(node, text)).await;
        job.until_out_has("ready").await;
        job.signal(libc::SIGUSR1, false).await;
        assert_eq!(job.end().await, End::Exited(7), "on {node}");
        assert_eq!(job.text(), "ready\ngot\n");
    }
    let mut job = cluster
        .start(script(
            THERE,
            "trap '' INT; echo ready; sleep 600; echo woken",
        ))
        .await;
    job.until_out_has("ready").await;
    job.signal(libc::SIGTERM, true).await;
    assert_eq!(job.end().await, End::Killed(libc::SIGTERM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ignored_signals_stay_ignored_and_others_have_their_default() {
    let cluster = Cluster::new();
    let mut request = script(THERE, "kill -HUP $$; echo alive; kill -PIPE $$");
    request.ignored = 1 << (libc::SIGHUP - 1);
    let mut job = cluster.start(request).await;
    assert_eq!(job.end().await, End::Killed(libc::SIGPIPE));
    assert_eq!(job.text(), "alive\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_stops_the_job_but_not_its_signals() {
    let cluster = Cluster::new();
    let mut job = cluster.start(program(THERE, &["yes"])).await;
    let mut got = 0;
    // No credit is given, so the window is all that comes.
    while got < OUTPUT_WINDOW as usize {
        let frame = timeout(DEADLINE, job.reader.next::<FromJob>(FRAME_BYTES_MAX)).await;
        match frame
            .expect("in time")
            .expect("well formed")
            .expect("not over")
        {
            FromJob::Output { bytes, .. } => got += bytes.len(),
            FromJob::Started { .. } | FromJob::Ping => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(got, OUTPUT_WINDOW as usize);
    job.signal(libc::SIGTERM, false).await;
    job.send(&ToJob::Closed(Stream::Out)).await;
    assert!(matches!(job.end().await, End::Killed(_)));
    assert!(job.out.is_empty(), "more than the window came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_output_is_sigpipe_for_the_job() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        let mut job = cluster.start(program(node, &["yes"])).await;
        job.until_out_has("y\n").await;
        job.send(&ToJob::Closed(Stream::Out)).await;
        assert_eq!(job.end().await, End::Killed(libc::SIGPIPE));
    }
}

/// Starts a daemonised grandchild, which ignores what can be ignored; the test gets its pid as the first line.
const DAEMONISED: &str =
    "setsid sh -c 'trap \"\" HUP TERM; (echo $$; exec sleep 600) & exec sleep 600' & ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_its_owner() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        let text = format!("{DAEMONISED} wait");
        let mut job = cluster.start(script(node, &text)).await;
        job.until_out_has("\n").await;
        let grandchild = job.text().trim().to_owned();
        let program = job.pid.to_string();
        assert!(runs(&grandchild) && runs(&program));
        drop(job);
        wait_until("the owner's end has ended the job", || {
            !runs(&grandchild) && !runs(&program)
        })
        .await;
    }
    wait_until("no guest is counted", || cluster.agents[1].guests() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_its_program() {
    let cluster = Cluster::new();
    let text = format!("{DAEMONISED} read x; exit 4");
    let mut job = cluster.start(script(THERE, &text)).await;
    job.until_out_has("\n").await;
    let grandchild = job.text().trim().to_owned();
    assert_eq!(job.feed(b"x\n").await, End::Exited(4));
    assert!(!runs(&grandchild), "it ends before its job is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_jobs_at_once() {
    let cluster = Cluster::new();
    let all = (0..100).map(|vnn: u32| {
        let mut request = script(HERE, "echo $GLU_VNN; exit 5");
        request.nodes.clear();
        request.vnn = vnn;
        let cluster = &cluster;
        async move {
            let mut job = cluster.start(request).await;
            assert_eq!(job.end().await, End::Exited(5));
            assert_eq!(job.text(), format!("{vnn}\n"));
        }
    });
    futures::future::join_all(all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_job_gets_the_owners_own_descriptors() {
    let cluster = Cluster::new();
    let null = File::open("/dev/null").expect("exists");
    let mut file = tempfile::tempfile().expect("a file");
    for (node, direct) in [(HERE, true), (THERE, false)] {
        let stream = cluster.connect().await;
        let hello = frame(&Hello::Run(Box::new(script(
            node,
            "echo direct; cat; echo e >&2",
        ))));
        let fds = [null.as_raw_fd(), file.as_raw_fd(), file.as_raw_fd()];
        send_with(&stream, &hello, &fds);
        let (reader, writer) = stream.into_split();
        let mut job = Job::new(reader, writer);
        assert_eq!(job.feed(b"").await, End::Exited(0));
        let mut text = String::new();
        file.rewind().expect("seeks");
        file.read_to_string(&mut text).expect("reads");
        file.set_len(0).expect("truncates");
        file.rewind().expect("seeks");
        let expected = if direct {
            ("direct\ne\n", "")
        } else {
            ("", "direct\n")
        };
        assert_eq!((&*text, &*job.text()), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_carries_both_ways() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        let text = "echo question >&$PMI_FD; read answer <&$PMI_FD; echo $answer; echo last >&3";
        let mut job = cluster
            .start_with(script(node, text), vec![Extra::Wire])
            .await;
        while job.wire != b"question\n" {
            assert_eq!(job.step().await, None);
        }
        job.send(&ToJob::Wire(Bytes::from_static(b"answer\n")))
            .await;
        assert_eq!(job.end().await, End::Exited(0));
        assert_eq!(
            (&*job.text(), &*job.wire),
            ("answer\n", &b"question\nlast\n"[..])
        );
        // Who reads nothing is not written to without end.
        let mut job = cluster
            .start_with(script(node, "sleep 1000"), vec![Extra::Wire])
            .await;
        assert_eq!(job.step().await, None);
        let piece = ToJob::Wire(vec![b'x'; DATA_BYTES_MAX].into());
        for _ in 0..16 {
            job.send(&piece).await;
        }
        let pid = job.pid.to_string();
        wait_until("the job of an owner that breaks the rules ends", || {
            !runs(&pid)
        })
        .await;
    }
}

/// Prints what a job costs; `cargo test -- --nocapture latency`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_of_a_null_job() {
    let cluster = Cluster::new();
    let rounds = 50;
    let mut line = String::new();
    let start = Instant::now();
    for _ in 0..rounds {
        let status = std::process::Command::new("true").status();
        assert!(status.expect("runs").success());
    }
    line += &format!("local spawn {:?}", start.elapsed() / rounds);
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.expect("exists");
    for (node, direct) in [(HERE, true), (HERE, false), (THERE, false)] {
        let start = Instant::now();
        for _ in 0..rounds {
            let mut job = if direct {
                let stream = cluster.connect().await;
                let hello = frame(&Hello::Run(Box::new(program(node, &["true"]))));
                send_with(&stream, &hello, &[null.as_raw_fd(); 3]);
                let (reader, writer) = stream.into_split();
                Job::new(reader, writer)
            } else {
                cluster.start(program(node, &["true"])).await
            };
            assert_eq!(job.end().await, End::Exited(0));
        }
        let kind = if direct { "own descriptors" } else { "pipes" };
        line += &format!(", node {node} with {kind} {:?}", start.elapsed() / rounds);
    }
    println!("null job: {line}");
}
