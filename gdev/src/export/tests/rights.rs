//! NR1: who may do what.

use super::*;

#[tokio::test]
async fn files_are_used_as_their_caller() {
    let fake = Fake::new(false);
    let open = fake.ino("open").await;
    let opened = fake.open(USER, "open/private", libc::O_RDONLY).await;
    assert_eq!(opened, Err(Errno::EACCES));
    let opened = fake.open(USER, "open/file", libc::O_WRONLY).await;
    assert_eq!(opened, Err(Errno::EACCES));
    let fh = fake
        .open(USER, "open/file", libc::O_RDONLY)
        .await
        .expect("opened");
    assert_eq!(fake.read(fh, 3, 100).await.expect("read"), "tent");
    assert_eq!(fake.write(fh, 0, "x", 0).await, Err(Errno(libc::EBADF)));
    // What is made belongs to its caller, with his umask; the bits of a set user are left out.
    let mode = NewMode {
        mode: 0o6666,
        umask: 0o027,
    };
    let flags = OpenFlags(libc::O_RDWR | libc::O_CREAT);
    let made = fake
        .tree
        .create(USER, open, &name("mine"), mode, flags)
        .await;
    let (entry, opened) = made.expect("made");
    let real = fs::metadata(fake.at("open/mine")).expect("there");
    assert_eq!(
        (real.uid(), real.gid(), real.mode() & 0o7777),
        (4321, 4321, 0o640)
    );
    assert_eq!(fake.write(opened.fh, 0, "hello", 0).await, Ok(5));
    assert_eq!(fake.write(opened.fh, 0, "!", libc::O_APPEND).await, Ok(1));
    assert_eq!(fs::read(fake.at("open/mine")).expect("read"), b"hello!");
    let ino = entry.attr.expect("there").ino;
    let set = SetAttrRequest {
        mode: Some(0o4711),
        size: Some(2),
        ..SetAttrRequest::default()
    };
    let stranger = Caller { uid: 5, ..USER };
    let refused = fake.tree.setattr(stranger, ino, set).await;
    assert_eq!(refused.expect_err("not his"), Errno::EACCES);
    let attr = fake.tree.setattr(USER, ino, set).await.expect("his").attr;
    assert_eq!((attr.mode, attr.size), (0o711, 2));
    let real = fs::metadata(fake.at("open/mine")).expect("there");
    assert_eq!(real.mode() & 0o7777, 0o711);
    let give = SetAttrRequest {
        uid: Some(5),
        ..SetAttrRequest::default()
    };
    let refused = fake.tree.setattr(USER, ino, give).await;
    assert_eq!(refused.expect_err("for root"), Errno::EPERM);
    // One that may be executed but not read is opened to be executed.
    chown(fake.at("open/mine"), Some(0), None).expect("given away");
    let read = fake.open(USER, "open/mine", libc::O_RDONLY).await;
    assert_eq!(read, Err(Errno::EACCES));
    assert!(fake.open(USER, "open/mine", 0x20).await.is_ok());
    assert_eq!(
        fake.open(USER, "open/private", 0x20).await,
        Err(Errno::EACCES)
    );
    let unlinked = fake.tree.unlink(USER, open, &name("mine"), false).await;
    assert_eq!(unlinked, Ok(()));
    chown(fake.at("open"), Some(0), Some(0)).expect("set");
    fs::set_permissions(fake.at("open"), fs::Permissions::from_mode(0o755)).expect("set");
    let refused = fake.tree.unlink(USER, open, &name("file"), false).await;
    assert_eq!(refused, Err(Errno::EACCES));
}

#[tokio::test]
async fn what_is_read_only_cannot_be_changed() {
    let fake = Fake::new(true);
    let (open, file) = (fake.ino("open").await, fake.ino("open/file").await);
    let refused = Errno(libc::EROFS);
    let mode = NewMode::exactly(0o755);
    let made = fake
        .tree
        .make(ROOT, open, &name("x"), NewNode::Dir, mode)
        .await;
    assert_eq!(made.expect_err("read only"), refused);
    let flags = OpenFlags(libc::O_RDONLY | libc::O_CREAT);
    let made = fake.tree.create(ROOT, open, &name("x"), mode, flags).await;
    assert_eq!(made.expect_err("read only"), refused);
    let opened = fake.open(ROOT, "open/file", libc::O_RDWR).await;
    assert_eq!(opened, Err(refused));
    let set = SetAttrRequest {
        mode: Some(0),
        ..SetAttrRequest::default()
    };
    let set = fake.tree.setattr(ROOT, file, set).await;
    assert_eq!(set.expect_err("read only"), refused);
    assert_eq!(
        fake.tree.unlink(ROOT, open, &name("file"), false).await,
        Err(refused)
    );
    // Nor through what is open.
    let fh = fake
        .open(ROOT, "open/file", libc::O_RDONLY)
        .await
        .expect("opened");
    let set = SetAttrRequest {
        size: Some(0),
        fh: Some(fh),
        ..SetAttrRequest::default()
    };
    let set = fake.tree.setattr(ROOT, file, set).await;
    assert_eq!(set.expect_err("read only"), refused);
    assert_eq!(fake.read(fh, 0, 9).await.expect("read"), "content");
}
