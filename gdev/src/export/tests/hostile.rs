//! NR2: what a hostile node may send.

use super::*;

/// Everything that a request can name, and bytes that are none.
#[tokio::test]
async fn hostile_requests_are_refused() {
    let fake = Fake::new(false);
    let who = User {
        uid: 0,
        gid: 0,
        groups: vec![],
    };
    let ask = async |path: &Path, what: fn(At) -> What| {
        let path = path.strip_prefix("/").expect("absolute");
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
        let path = FilePath::try_from(Bytes::copy_from_slice(bytes)).expect("a path");
        let request = Request {
            who: who.clone(),
            what: what(At { path, ident: None }),
        };
        fake.agent.answer(request).await
    };
    // No link is followed, wherever it leads, at the end or on the way; nothing is looked up above an export.
    let stale = Reply::Failed(libc::ESTALE);
    for path in [
        "open/absolute/file",
        "open/relative/file",
        "secret",
        "secret/file",
    ] {
        assert_eq!(ask(&fake.at(path), What::Stat).await, stale, "{path}");
    }
    assert_eq!(ask(Path::new("/etc/passwd"), What::Stat).await, stale);
    let link = ask(&fake.at("open/absolute"), What::Stat).await;
    assert!(matches!(link, Reply::Stat(stat) if stat.attr.kind == FileKind::Symlink));
    let listed = |dir| What::List {
        dir,
        after: u64::MAX,
        limit: u32::MAX,
    };
    assert_eq!(
        ask(&fake.at("open"), listed).await,
        Reply::Failed(libc::EINVAL)
    );
    let not_dir = Reply::Failed(libc::ENOTDIR);
    assert_eq!(ask(&fake.at("open/absolute"), listed).await, not_dir);
    // A path that leads out, or is none, is no message.
    let good = encode(&Request {
        who: who.clone(),
        what: What::Stat(At {
            path: FilePath::try_from(Bytes::from_static(b"aaaa")).expect("a path"),
            ident: None,
        }),
    });
    let place = good
        .windows(4)
        .position(|four| four == b"aaaa")
        .expect("there");
    for bad in [
        b"..aa", b"../a", b"a/..", b"/etc", b"a//b", b"a\0aa", b"././", b"a/./",
    ] {
        let mut body = good.clone();
        body[place..place + 4].copy_from_slice(bad);
        let told = fake.agent.call(NodeId(1), body.into()).await;
        let fine = bad == b"..aa";
        assert_eq!(told.is_some(), fine, "{}", bad.escape_ascii());
    }
    // Any change of any byte of any request is refused or answered, and leaves what is not exported as it is.
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut dice = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 1).expect("63 bits")
    };
    let inside = fake
        .at("open")
        .strip_prefix("/")
        .expect("absolute")
        .to_owned();
    let requests = wire::samples(inside.to_str().expect("text"), None);
    for _ in 0..20_000 {
        let mut request = requests[dice() % requests.len()].clone();
        request.who.uid = if dice() % 2 == 0 { 0 } else { 4321 };
        let mut body = encode(&request);
        for _ in 0..dice() % 4 {
            let (at, byte) = (dice() % body.len(), dice().to_le_bytes()[0]);
            match dice() % 3 {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => body.truncate(at.max(1)),
            }
        }
        drop(fake.agent.call(NodeId(1), body.into()).await);
    }
    let secret = fs::read(fake.at("secret/file")).expect("read");
    assert_eq!(secret, b"secret");
    let top = fs::read_dir(fake.dir.path()).expect("listed");
    let top = top.map(|entry| {
        entry
            .expect("a name")
            .file_name()
            .into_string()
            .expect("text")
    });
    let expected = ["deep", "open", "secret"].map(str::to_owned);
    assert_eq!(BTreeSet::from_iter(top), BTreeSet::from(expected));
    // A session that begins with what opens no file.
    let open = OpenFile {
        who,
        at: At {
            path: FilePath::default(),
            ident: None,
        },
        how: FileHow::default(),
        create: None,
    };
    let (transport, _) = fake.net.join(NodeId(3));
    let stream = transport.open(OWNER, ServiceId::Export).await;
    let mut stream = stream.expect("opened");
    frames::send(&mut stream.writer, &open).await.expect("sent");
    let told: FileOpened = frames::receive(&mut stream.reader).await.expect("told");
    assert_eq!(told, FileOpened::Refused(libc::EINVAL));
}
