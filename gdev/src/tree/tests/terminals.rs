//! Devices that make their readers wait.

use super::*;

#[tokio::test]
async fn a_terminal_is_waited_for() {
    let fake = Fake::new();
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let name = nix::unistd::ttyname(&pty.slave).expect("it has a name");
    let mut raw = nix::sys::termios::tcgetattr(&pty.slave).expect("termios");
    nix::sys::termios::cfmakeraw(&mut raw);
    let now = nix::sys::termios::SetArg::TCSANOW;
    nix::sys::termios::tcsetattr(&pty.slave, now, &raw).expect("set");
    let path = name.strip_prefix("/dev").expect("below /dev");
    let path = path.to_str().expect("text");
    let other = fake.open(USER, 2, path, libc::O_RDWR).await;
    assert_eq!(other, Err(Errno::EACCES), "its mode is for its user");
    let fh = fake.open(ROOT_USER, 2, path, libc::O_RDWR).await;
    let fh = fh.expect("opened");
    let root = DevTree::root(NodeId(1));
    let read = |flags| {
        let flags = OpenFlags(libc::O_RDWR | flags);
        fake.tree.read(ROOT_USER, root, fh, 0, 100, flags)
    };
    let type_in = |text: &str| {
        let typed = nix::unistd::write(&pty.master, text.as_bytes());
        assert_eq!(typed, Ok(text.len()));
    };
    let nothing = read(libc::O_NONBLOCK).await;
    assert_eq!(nothing.expect_err("nothing typed"), Errno(libc::EAGAIN));
    // Whoever gives up waiting takes nothing with him.
    for _ in 0..50 {
        let given_up = tokio::time::timeout(Duration::from_micros(300), read(0)).await;
        assert!(given_up.is_err());
    }
    let (reply, ()) = tokio::join!(read(0), async { type_in("typed") });
    assert_eq!(reply.expect("read").data, "typed");
    // Not even what comes just as he goes.
    let mut got = Vec::new();
    for number in 0..200_u8 {
        type_in(&char::from(b'a' + number % 26).to_string());
        let patience = Duration::from_micros(u64::from(number) * 2);
        if let Ok(reply) = tokio::time::timeout(patience, read(0)).await {
            got.extend(reply.expect("read").data);
        }
    }
    while let Ok(reply) = read(libc::O_NONBLOCK).await {
        got.extend(reply.data);
    }
    let typed = (0..200_u8).map(|number| b'a' + number % 26);
    assert_eq!(got, Vec::from_iter(typed));
    // What is written waits for room.
    let flood: Bytes = vec![b'x'; 100_000].into();
    let flags = OpenFlags(libc::O_RDWR);
    let write = |data| {
        fake.tree
            .write(ROOT_USER, root, fh, 0, data, flags, false, false)
    };
    let master = pty.master.try_clone().expect("a copy");
    let drain = tokio::task::spawn_blocking(move || {
        let (mut drained, mut bytes) = (0, [0; 4096]);
        while drained < 100_000 {
            drained += nix::unistd::read(&master, &mut bytes).expect("read");
        }
    });
    assert_eq!(write(flood).await, Ok(100_000));
    drain.await.expect("drained");
    // TCGETS2 tells that it is raw; TCGETS says nothing of its size.
    let ioctl = |command, size| {
        fake.tree
            .ioctl(ROOT_USER, root, fh, command, Bytes::new(), size)
    };
    let termios = ioctl(0x802c_542a, 44).await.expect("termios");
    assert_eq!((termios.len(), termios[12] & 0x0a), (44, 0));
    assert_eq!(ioctl(0x5401, 0).await, Err(Errno(libc::ENOTTY)));
    // Those of the early days under numbers that say it: TIOCSWINSZ and TIOCGWINSZ, FIONREAD, TCFLSH with a value.
    let size = Bytes::from_static(&[24, 0, 80, 0, 0, 0, 0, 0]);
    let set = |command, input| fake.tree.ioctl(ROOT_USER, root, fh, command, input, 0);
    assert_eq!(set(0x4008_5414, size.clone()).await, Ok(Bytes::new()));
    assert_eq!(ioctl(0x8008_5413, 8).await, Ok(size));
    assert_eq!(nix::unistd::write(&pty.master, b"typed"), Ok(5));
    let unread = Bytes::from(5_u32.to_ne_bytes().to_vec());
    // The kernel brings it over in a task of its own.
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while ioctl(0x8004_541b, 4).await.as_ref() != Ok(&unread) {
        assert!(std::time::Instant::now() < end, "it does not come");
        tokio::task::yield_now().await;
    }
    let all = Bytes::from_static(&[2, 0, 0, 0]);
    assert_eq!(set(0x4004_540b, all).await, Ok(Bytes::new()));
    assert_eq!(ioctl(0x8004_541b, 4).await, Ok(vec![0; 4].into()));
    drop(pty);
    let hung_up = read(0).await;
    assert!(matches!(&hung_up, Err(Errno(libc::EIO))) || hung_up.expect("read").data.is_empty());
}

#[tokio::test]
async fn who_polls_is_woken() {
    let fake = Fake::new();
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let name = nix::unistd::ttyname(&pty.slave).expect("it has a name");
    let path = name.strip_prefix("/dev").expect("below /dev").to_owned();
    let path = path.to_str().expect("text");
    let fh = fake.open(ROOT_USER, 2, path, libc::O_RDWR).await;
    let fh = fh.expect("opened");
    let root = DevTree::root(NodeId(1));
    let readable = libc::POLLIN as u32;
    let poll = async |wake| fake.tree.poll(root, fh, wake).await.expect("polled");
    let arm = || {
        let (woken, told) = tokio::sync::oneshot::channel();
        (
            Wake::new(move || woken.send(()).expect("somebody waits")),
            told,
        )
    };
    assert_eq!(poll(None).await & readable, 0);
    let (wake, mut told) = arm();
    assert_eq!(poll(Some(wake)).await & readable, 0);
    // A terminal that stays writable wakes nobody.
    let early = tokio::time::timeout(Duration::from_millis(50), &mut told).await;
    assert!(early.is_err());
    assert_eq!(nix::unistd::write(&pty.master, b"line\n"), Ok(5));
    let patience = Duration::from_secs(10);
    let woken = tokio::time::timeout(patience, told).await;
    woken.expect("in time").expect("woken");
    assert_eq!(poll(None).await & readable, readable);
    // An edge is told, be it as readable as before.
    let (wake, told) = arm();
    assert_eq!(poll(Some(wake)).await & readable, readable);
    assert_eq!(nix::unistd::write(&pty.master, b"more\n"), Ok(5));
    let woken = tokio::time::timeout(patience, told).await;
    woken.expect("in time").expect("woken");
    // The disks of this world are always ready.
    let null = fake.open(USER, 2, "null", RDONLY).await.expect("opened");
    assert_eq!(fake.tree.poll(root, null, None).await, Ok(gfs::tree::READY));
}
