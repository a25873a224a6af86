//! The bytes of each message, which do not change.

use super::super::limits::Limits;
use super::*;
use std::fmt::Debug;

#[track_caller]
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T, golden: &[u8]) {
    assert_eq!(frame(message), golden, "{message:?} changed on the wire");
    let mut reader = golden;
    let back = read_frame::<T>(&mut reader, FRAME_BYTES_MAX).expect("well formed");
    assert_eq!(back.as_ref(), Some(message));
}

#[test]
fn golden_bytes() {
    check(&Hello::Nodes, &[1, 0, 0, 0, 1]);
    check(&Hello::Jobs, &[1, 0, 0, 0, 3]);
    let job = RunningJob {
        uid: 1,
        started: 2,
        command: vec![Bytes::from_static(b"ls")],
        count: 3,
        begun: 2,
        members: vec![Member {
            vnn: 4,
            node: NodeId(5),
            pid: 6,
        }],
        gang: Some(5),
    };
    let news = |npid, job| JobNews { npid, job };
    let news = JobsNews {
        home: NodeId(2),
        daemon: 7,
        jobs: vec![news(8, Some(job)), news(9, None)],
        more: true,
    };
    #[rustfmt::skip]
    check(&news, &[22, 0, 0, 0, 2, 7, 2, 8, 1, 1, 2, 1, 2, b'l', b's', 3, 2, 1, 4, 5, 6, 1, 5, 9, 0, 1]);
    let request = Request {
        argv: vec![Bytes::from_static(b"ls")],
        env: vec![Bytes::from_static(b"A=1")],
        cwd: Bytes::from_static(b"/"),
        umask: 0o22,
        ignored: 1,
        stdio: [Stdio::Null, Stdio::Pipe, Stdio::SameAsOut],
        nodes: vec![NodeId(2)],
        npid: 7,
        vnn: 0,
    };
    let start = Start {
        request,
        credentials: Credentials {
            uid: 1,
            gid: 2,
            groups: vec![3],
        },
        limits: vec![Limit {
            resource: 7,
            soft: 4,
            hard: 5,
        }],
        nice: -1,
    };
    #[rustfmt::skip]
    check(&ToJob::Start(Box::new(start)), &[
        30, 0, 0, 0, 0, 1, 2, b'l', b's', 1, 3, b'A', b'=', b'1', 1, b'/', 18, 1, 0, 1, 2, 1, 2, 7, 0,
        1, 2, 1, 3, 1, 7, 4, 5, 1,
    ]);
    check(
        &ToJob::Input(Bytes::from_static(b"x")),
        &[3, 0, 0, 0, 1, 1, b'x'],
    );
    check(&ToJob::InputEnd, &[1, 0, 0, 0, 2]);
    let signal = ToJob::Signal {
        number: 15,
        group: true,
    };
    check(&signal, &[3, 0, 0, 0, 3, 30, 1]);
    let credit = ToJob::Credit {
        stream: Stream::Err,
        bytes: 9,
    };
    check(&credit, &[3, 0, 0, 0, 4, 1, 9]);
    check(&ToJob::Closed(Stream::Out), &[2, 0, 0, 0, 5, 0]);
    check(&ToJob::Closed(Stream::Other(7)), &[3, 0, 0, 0, 5, 3, 7]);
    check(&ToJob::Ping, &[1, 0, 0, 0, 6]);
    let started = FromJob::Started {
        node: NodeId(3),
        pid: 4,
        relayed: true,
    };
    check(&started, &[4, 0, 0, 0, 0, 3, 4, 1]);
    let output = FromJob::Output {
        stream: Stream::Out,
        bytes: Bytes::from_static(b"y"),
    };
    check(&output, &[4, 0, 0, 0, 1, 0, 1, b'y']);
    check(&FromJob::InputCredit(5), &[2, 0, 0, 0, 2, 5]);
    check(&FromJob::InputClosed, &[1, 0, 0, 0, 3]);
    check(&FromJob::Ended(End::Exited(1)), &[3, 0, 0, 0, 4, 0, 2]);
    check(&FromJob::Ended(End::Killed(9)), &[3, 0, 0, 0, 4, 1, 18]);
    let failed = FromJob::Ended(End::Failed {
        kind: Failure::NotFound,
        message: "m".into(),
    });
    check(&failed, &[5, 0, 0, 0, 4, 2, 2, 1, b'm']);
    check(&FromJob::Ping, &[1, 0, 0, 0, 5]);
}

#[test]
fn golden_bytes_of_terminals() {
    use super::super::terminal::InputFile;
    let size = WindowSize {
        rows: 1,
        columns: 2,
        x_pixels: 3,
        y_pixels: 4,
    };
    let modes = Modes {
        input: 5,
        output: 6,
        control: 7,
        local: 8,
        characters: Bytes::from_static(b"c"),
    };
    let terminal = super::super::terminal::Terminal {
        size,
        modes: modes.clone(),
    };
    let file = InputFile {
        path: Bytes::from_static(b"f"),
        inode: 2,
        offset: 3,
    };
    let extras = vec![
        Extra::Terminal(terminal),
        Extra::TellInput,
        Extra::InputFile(file),
        Extra::HostName(Bytes::from_static(b"h")),
    ];
    let request = Request {
        argv: vec![Bytes::from_static(b"ls")],
        env: Vec::new(),
        cwd: Bytes::from_static(b"/"),
        umask: 0,
        ignored: 0,
        stdio: [Stdio::Pipe, Stdio::Pipe, Stdio::SameAsOut],
        nodes: Vec::new(),
        npid: 7,
        vnn: 0,
    };
    #[rustfmt::skip]
    check(&Hello::RunWith(Box::new(request.clone()), extras.clone()), &[
        37, 0, 0, 0, 2, 1, 2, b'l', b's', 0, 1, b'/', 0, 0, 1, 1, 2, 0, 7, 0,
        4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, b'c', 1, 2, 1, b'f', 2, 3, 3, 1, b'h',
    ]);
    let start = Start {
        request,
        credentials: Credentials {
            uid: 1,
            gid: 2,
            groups: Vec::new(),
        },
        limits: Vec::new(),
        nice: 0,
    };
    #[rustfmt::skip]
    check(&ToJob::StartWith(Box::new(start), extras), &[
        42, 0, 0, 0, 7, 1, 2, b'l', b's', 0, 1, b'/', 0, 0, 1, 1, 2, 0, 7, 0,
        1, 2, 0, 0, 0, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, b'c', 1, 2, 1, b'f', 2, 3, 3, 1, b'h',
    ]);
    check(&ToJob::Resize(size), &[5, 0, 0, 0, 8, 1, 2, 3, 4]);
    check(&FromJob::Stopped(20), &[2, 0, 0, 0, 6, 40]);
    let left = FromJob::InputLeft {
        taken: 9,
        unread: Bytes::from_static(b"u"),
    };
    check(&left, &[4, 0, 0, 0, 7, 9, 1, b'u']);
    check(
        &FromJob::Modes(modes),
        &[7, 0, 0, 0, 8, 5, 6, 7, 8, 1, b'c'],
    );
    check(&FromJob::InputFromFile, &[1, 0, 0, 0, 9]);
    check(&Extra::Wire, &[1, 0, 0, 0, 4]);
    let wire = Bytes::from_static(b"w");
    check(&ToJob::Wire(wire.clone()), &[3, 0, 0, 0, 9, 1, b'w']);
    let output = FromJob::Output {
        stream: Stream::Wire,
        bytes: wire,
    };
    check(&output, &[4, 0, 0, 0, 1, 2, 1, b'w']);
    check(&Extra::FollowInput, &[1, 0, 0, 0, 5]);
    let limits = Limits {
        mem_bytes: Some(7),
        cpus: Some(2),
    };
    check(&Extra::Limits(limits), &[5, 0, 0, 0, 6, 1, 7, 1, 2]);
    check(&FromJob::OutOfMemory(2), &[2, 0, 0, 0, 12, 2]);
    check(&Extra::Gather(3), &[2, 0, 0, 0, 7, 3]);
    check(&Extra::Gang, &[1, 0, 0, 0, 8]);
    let entered = FromJob::Entered {
        token: 4,
        processes: vec![5, 6],
    };
    check(&entered, &[5, 0, 0, 0, 13, 4, 2, 5, 6]);
    check(&ToJob::Passed(4), &[2, 0, 0, 0, 12, 4]);
    check(&FromJob::InputRead(300), &[4, 0, 0, 0, 11, 251, 44, 1]);
}

#[test]
fn golden_bytes_of_moves() {
    let arrival = Arrival {
        pid: 9,
        pipes: Vec::new(),
    };
    check(&ToJob::Receive(Box::new(arrival)), &[3, 0, 0, 0, 10, 18, 0]);
    let ask = |asked| ToJob::Ask { pid: 9, asked };
    check(&ask(Asked::Where), &[3, 0, 0, 0, 11, 18, 0]);
    check(&ask(Asked::Ties), &[3, 0, 0, 0, 11, 18, 1]);
    check(&ask(Asked::Go(NodeId(2))), &[4, 0, 0, 0, 11, 18, 2, 2]);
    check(&ask(Asked::Level), &[3, 0, 0, 0, 11, 18, 3]);
    check(&ask(Asked::Why), &[3, 0, 0, 0, 11, 18, 4]);
    let (from, to, because) = (NodeId(3), NodeId(2), Because::Crowded);
    check(
        &ask(Asked::GoFor(to, because)),
        &[5, 0, 0, 0, 11, 18, 5, 2, 3],
    );
    let moved = Moved {
        from,
        to,
        because: Some(because),
        took_ms: 9,
    };
    check(
        &ask(Asked::Heard(moved)),
        &[8, 0, 0, 0, 11, 18, 6, 3, 2, 1, 3, 9],
    );
    check(&ask(Asked::TiesThere), &[3, 0, 0, 0, 11, 18, 7]);
    let at = NodeId(3);
    check(
        &FromJob::Told(Told::Where { at, moves: 4 }),
        &[4, 0, 0, 0, 10, 0, 3, 4],
    );
    check(
        &FromJob::Told(Told::Ties(vec!["t".into()])),
        &[5, 0, 0, 0, 10, 1, 1, 1, b't'],
    );
    check(&FromJob::Told(Told::Gone(Ok(()))), &[3, 0, 0, 0, 10, 2, 0]);
    let level = Level {
        locked: false,
        asked: true,
    };
    check(
        &FromJob::Told(Told::Level(level)),
        &[4, 0, 0, 0, 10, 3, 0, 1],
    );
    check(
        &FromJob::Told(Told::Why("w".into())),
        &[4, 0, 0, 0, 10, 4, 1, b'w'],
    );
    check(&FromJob::Told(Told::Heard), &[2, 0, 0, 0, 10, 5]);
    check(&ask(Asked::Keep), &[3, 0, 0, 0, 11, 18, 8]);
    check(&ask(Asked::Checkpoint), &[3, 0, 0, 0, 11, 18, 9]);
    check(
        &ask(Asked::Restart(NodeId(2))),
        &[4, 0, 0, 0, 11, 18, 10, 2],
    );
    check(
        &ask(Asked::GoFirst(NodeId(2))),
        &[4, 0, 0, 0, 11, 18, 11, 2],
    );
    let cost = Cost {
        pause_ms: 4,
        bytes: 5,
        memory: Went::PostCopy,
    };
    check(
        &ask(Asked::HeardOf(moved, cost)),
        &[11, 0, 0, 0, 11, 18, 12, 3, 2, 1, 3, 9, 4, 5, 1],
    );
    let memory = [Went::Whole, Went::PostCopy, Went::PreCopy];
    assert_eq!(memory.map(|went| went as u8), [0, 1, 2]);
    check(&ask(Asked::LastMove), &[3, 0, 0, 0, 11, 18, 13]);
    check(&ask(Asked::Processors), &[3, 0, 0, 0, 11, 18, 14]);
    let (offered, programs) = (vec!["f".into()], vec![7]);
    check(
        &FromJob::Told(Told::Processors { offered, programs }),
        &[7, 0, 0, 0, 10, 9, 1, 1, b'f', 1, 7],
    );
    let last = FromJob::Told(Told::LastMove(Some((moved, cost))));
    check(&last, &[11, 0, 0, 0, 10, 8, 1, 3, 2, 1, 3, 9, 4, 5, 1]);
    let kept = |number| FromJob::Told(Told::Kept(number));
    check(&kept(Ok(3)), &[4, 0, 0, 0, 10, 6, 0, 3]);
    check(&kept(Err(5)), &[4, 0, 0, 0, 10, 6, 1, 10]);
    let newest = Some(Kept {
        number: 1,
        made: 2,
        bytes: 3,
    });
    let restarts = 4;
    check(
        &FromJob::Told(Told::Checkpoint(Checkpoint { newest, restarts })),
        &[7, 0, 0, 0, 10, 7, 1, 1, 2, 3, 4],
    );
    let (every_s, restart) = (Some(60), true);
    check(
        &Extra::Checkpoints(super::super::terminal::Checkpoints { every_s, restart }),
        &[4, 0, 0, 0, 9, 1, 60, 1],
    );
    let (net, ipc) = (true, false);
    let private = super::super::private::Private { net, ipc };
    check(&Extra::Private(private), &[3, 0, 0, 0, 10, 1, 0]);
    check(&Extra::Forked(9), &[2, 0, 0, 0, 11, 9]);
    check(&FromJob::Note("n".into()), &[3, 0, 0, 0, 14, 1, b'n']);
}

#[test]
fn the_frame_that_tells_of_a_start_is_known() {
    let started = FromJob::Started {
        node: NodeId(3),
        pid: 4,
        relayed: true,
    };
    assert_eq!(FromJob::started(&frame(&started)), Some((NodeId(3), 4)));
    assert_eq!(FromJob::started(&frame(&FromJob::Ping)), None);
    assert_eq!(FromJob::started(&[]), None);
}

#[test]
fn the_last_frame_is_known_undecoded() {
    let last = frame(&FromJob::Ended(End::Exited(0)));
    assert!(FromJob::is_last(&last));
    assert!(!FromJob::is_last(&frame(&FromJob::Ping)));
    assert!(!FromJob::is_last(&[]));
}

#[test]
fn hostile_frames_are_refused() {
    let mut too_long: &[u8] = &[255, 255, 255, 255, 0];
    let error = read_frame::<ToJob>(&mut too_long, FRAME_BYTES_MAX).expect_err("too long");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let mut no_variant: &[u8] = &[1, 0, 0, 0, 99];
    let error = read_frame::<ToJob>(&mut no_variant, FRAME_BYTES_MAX).expect_err("unknown");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let mut cut_off: &[u8] = &[9, 0, 0, 0, 1];
    let error = read_frame::<ToJob>(&mut cut_off, FRAME_BYTES_MAX).expect_err("cut off");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn the_largest_data_fits_a_frame() {
    let bytes = Bytes::from(vec![7; DATA_BYTES_MAX]);
    let input = frame(&ToJob::Input(bytes.clone()));
    assert!(input.len() - 4 <= FRAME_BYTES_MAX);
    let output = frame(&FromJob::Output {
        stream: Stream::Err,
        bytes,
    });
    assert!(output.len() - 4 <= FRAME_BYTES_MAX);
}
