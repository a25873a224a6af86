use super::*;
use crate::wire::session::{Answer, Ask};
use consistency::wire::encode;
use consistency::{InodeNo, Version};
use std::fmt::Write;

const IDENT: Ident = Ident {
    dev: 1,
    ino: 2,
    born: 3,
};

fn at(path: &str) -> At {
    At {
        path: FilePath::try_from(Bytes::copy_from_slice(path.as_bytes())).expect("a path"),
        ident: Some(IDENT),
    }
}

fn name(name: &'static str) -> Name {
    Name::new(name).expect("a name")
}

fn who() -> User {
    User {
        uid: 5,
        gid: 6,
        groups: vec![7],
    }
}

/// One request of each kind, about what is in a directory.
pub(in crate::export) fn samples(dir: &str, ident: Option<Ident>) -> Vec<Request> {
    let at = |path: String| At { ident, ..at(&path) };
    let (to, link) = (at(format!("{dir}/a")), at(format!("{dir}/l")));
    let dir = at(dir.to_owned());
    let mode = Mode {
        mode: 0o640,
        umask: 0o22,
    };
    let all = [
        What::Lookup {
            dir: dir.clone(),
            name: name("n"),
        },
        What::Stat(to.clone()),
        What::Change {
            at: to.clone(),
            change: Change {
                mode: Some(0o600),
                size: Some(9),
                atime: Some(NewTime::Now),
                mtime: Some(NewTime::At(Timestamp { secs: 1, nanos: 2 })),
                ..Change::default()
            },
        },
        What::Readlink(link),
        What::List {
            dir: dir.clone(),
            after: 4,
            limit: 8,
        },
        What::Make {
            dir: dir.clone(),
            name: name("d"),
            node: NewNode::Dir,
            mode,
        },
        What::Link {
            at: to.clone(),
            dir: dir.clone(),
            name: name("n"),
        },
        What::Unlink {
            dir: dir.clone(),
            name: name("n"),
            is_dir: true,
        },
        What::Rename {
            dir: dir.clone(),
            name: name("n"),
            to,
            to_name: name("m"),
            mode: RenameMode::NoReplace,
        },
        What::SyncDir(dir.clone()),
        What::StatFs(dir.clone()),
        What::Getxattr {
            at: dir.clone(),
            name: name("user.a"),
        },
        What::Listxattr(dir.clone()),
        What::Setxattr {
            at: dir.clone(),
            name: name("user.a"),
            value: Bytes::from_static(b"v"),
            mode: XattrMode::Create,
        },
        What::Removexattr {
            at: dir,
            name: name("user.a"),
        },
    ];
    let request = |what| Request { who: who(), what };
    all.into_iter().map(request).collect()
}

fn stat() -> Stat {
    let time = |secs| Timestamp { secs, nanos: 1 };
    Stat {
        ident: IDENT,
        attr: Attr {
            ino: InodeNo(2),
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 5,
            gid: 6,
            rdev: 0,
            size: 7,
            blocks: 8,
            atime: time(1),
            mtime: time(2),
            ctime: time(3),
            btime: time(4),
            version: Version(1),
        },
    }
}

/// All messages, a line each.
fn shown() -> String {
    let mut text = String::new();
    let mut line = |what: String, bytes: Vec<u8>| {
        let bytes = bytes.iter().map(|byte| format!("{byte:02x}"));
        writeln!(text, "{what} {}", String::from_iter(bytes)).expect("to a string");
    };
    for request in samples("home", Some(IDENT)) {
        let label = format!("{:?}", request.what);
        let label = label.split([' ', '(']).next().unwrap_or_default();
        line(format!("request {label}"), encode(&request));
    }
    let lock = FileLock {
        flock: false,
        start: 1,
        len: 2,
        kind: LockKind::Exclusive,
    };
    let entry = Entry {
        name: name("n"),
        ident: stat().ident,
        kind: FileKind::Dir,
        cookie: 9,
    };
    for (label, reply) in [
        ("Failed", Reply::Failed(13)),
        ("Done", Reply::Done),
        ("Stat", Reply::Stat(stat())),
        ("Data", Reply::Data(Bytes::from_static(b"x"))),
        ("Listing", Reply::Listing(vec![entry])),
        ("Names", Reply::Names(vec![name("user.a")])),
        ("StatFs", Reply::StatFs(StatFs::default())),
    ] {
        line(format!("reply {label}"), encode(&reply));
    }
    let create = Create {
        name: name("n"),
        mode: Mode {
            mode: 0o600,
            umask: 0,
        },
        exclusive: true,
    };
    for create in [None, Some(create)] {
        let open = OpenFile {
            who: who(),
            at: at("home"),
            how: FileHow {
                write: true,
                durable: true,
                ..FileHow::default()
            },
            create,
        };
        line("open".into(), encode(&open));
    }
    line("opened".into(), encode(&FileOpened::Opened(stat())));
    line("refused".into(), encode(&FileOpened::Refused(13)));
    let change = Ask::Change {
        who: who(),
        change: Change::default(),
    };
    let data = Bytes::from_static(b"x");
    for (label, ask) in [
        ("Append", Ask::Append { data }),
        ("Stat", Ask::Stat),
        ("Change", change),
        ("Lock", Ask::Lock(lock)),
        ("TestLock", Ask::TestLock(lock)),
    ] {
        line(format!("ask {label}"), encode(&ask));
    }
    let answers = [Answer::Stat(Box::new(stat())), Answer::Lock(Some(lock))];
    for answer in answers {
        line("answer".into(), encode(&answer));
    }
    text
}

#[test]
fn golden_bytes() {
    let golden = include_str!("golden.txt");
    let now = shown();
    assert_eq!(now, golden, "changed on the wire; now:\n{now}");
}

#[test]
fn what_is_sent_is_read_again() {
    for request in samples("home", Some(IDENT)) {
        let read = consistency::wire::decode::<Request>(&encode(&request));
        assert_eq!(read.expect("decodes"), request);
    }
}
