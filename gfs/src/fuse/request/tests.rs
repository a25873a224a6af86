//! Decoding, message by message.

use super::*;

/// Makes a message of fields of 1, 2, 4 and 8 bytes.
fn message(opcode: Opcode, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    let len = u32::try_from(IN_HEADER_BYTES + body.len()).expect("a short message");
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&opcode.0.to_ne_bytes());
    for number in [6_u64, 9] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    for number in [1000_u32, 100, 77, 0] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    bytes.extend_from_slice(&body);
    bytes
}

fn decoded(bytes: &[u8]) -> Result<Operation, Malformed> {
    let (head, arguments) = header(bytes)?;
    decode(head, arguments)
        .map(|request| request.operation)
        .map_err(|refused| refused.why)
}

fn check(opcode: Opcode, fields: &[&[u8]], expected: &str) {
    let got = format!("{:?}", decoded(&message(opcode, fields)));
    assert_eq!(got, expected, "{opcode:?}");
}

const Z4: &[u8] = &[0; 4];
const Z8: &[u8] = &[0; 8];

fn four(number: u32) -> [u8; 4] {
    number.to_ne_bytes()
}

fn eight(number: u64) -> [u8; 8] {
    number.to_ne_bytes()
}

#[test]
fn a_header_says_who_asks_for_what() {
    let bytes = message(Opcode::READLINK, &[]);
    let (head, _) = header(&bytes).expect("a whole header");
    let caller = Caller {
        uid: 1000,
        gid: 100,
        pid: 77,
    };
    let expected = Header {
        unique: 6,
        opcode: Opcode::READLINK,
        ino: InodeNo(9),
        caller,
    };
    assert_eq!(head, expected);
}

#[test]
fn no_cut_message_is_taken_for_a_whole_one() {
    let whole = message(Opcode::WRITE, &[Z8, Z8, &four(3), Z4, Z8, Z4, Z4, b"abc"]);
    assert!(decoded(&whole).is_ok());
    for len in 0..whole.len() {
        assert!(decoded(&whole[..len]).is_err(), "{len} bytes");
    }
    // A length field that promises more than there is, or less than a header.
    for len in [whole.len() + 1, 39, 0, usize::MAX] {
        let mut lying = whole.clone();
        lying[..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
        assert!(decoded(&lying).is_err(), "length {len}");
    }
}

#[test]
fn extensions_are_no_arguments() {
    let mut bytes = message(Opcode::LOOKUP, &[b"name\0", &[b'x'; 8]]);
    bytes[36..38].copy_from_slice(&1_u16.to_ne_bytes());
    let got = format!("{:?}", decoded(&bytes));
    assert_eq!(got, r#"Ok(Lookup { name: "name" })"#);
}

#[test]
fn arguments_are_read() {
    check(Opcode::LOOKUP, &[b"a\0"], r#"Ok(Lookup { name: "a" })"#);
    check(Opcode::FORGET, &[&eight(3)], "Ok(Forget([(i9, 3)]))");
    check(
        Opcode::BATCH_FORGET,
        &[&four(2), Z4, &eight(5), &eight(1), &eight(6), &eight(2)],
        "Ok(Forget([(i5, 1), (i6, 2)]))",
    );
    check(
        Opcode::GETATTR,
        &[&four(1), Z4, &eight(8)],
        "Ok(Getattr { fh: Some(8) })",
    );
    check(
        Opcode::GETATTR,
        &[Z4, Z4, &eight(8)],
        "Ok(Getattr { fh: None })",
    );
    check(
        Opcode::STATX,
        &[&four(1), Z4, &eight(8), Z4, &four(0xfff)],
        "Ok(Statx { fh: Some(8) })",
    );
    let copy = [3_u64, 4096, 12, 5, 8192, u64::MAX, 0].map(eight);
    let fields: Vec<&[u8]> = copy.iter().map(|field| &field[..]).collect();
    let files = "from: FileAt { ino: i9, handle: 3, offset: 4096 }, to: FileAt { ino: i12, handle: 5, offset: 8192 }";
    check(
        Opcode::COPY_FILE_RANGE,
        &fields,
        &format!("Ok(CopyFileRange {{ {files}, len: 4294967295, wide: false }})"),
    );
    check(
        Opcode::COPY_FILE_RANGE_64,
        &fields,
        &format!("Ok(CopyFileRange {{ {files}, len: 18446744073709551615, wide: true }})"),
    );
    check(
        Opcode::TMPFILE,
        &[&four(2), &four(0o100_640), Z4, Z4, b"/\0"],
        "Ok(Tmpfile { mode: NewMode { mode: 416, umask: 0 }, flags: OpenFlags(2) })",
    );
    check(
        Opcode::MKDIR,
        &[&four(0o40755), &four(0o22), b"d\0"],
        r#"Ok(Make { name: "d", node: Dir, mode: NewMode { mode: 493, umask: 18 } })"#,
    );
    check(
        Opcode::SYMLINK,
        &[b"l\0to\0"],
        r#"Ok(Make { name: "l", node: Symlink(b"to"), mode: NewMode { mode: 511, umask: 0 } })"#,
    );
    check(
        Opcode::RENAME2,
        &[&eight(4), &four(2), Z4, b"a\0b\0"],
        r#"Ok(Rename { name: "a", new_parent: i4, new_name: "b", mode: Exchange })"#,
    );
    check(
        Opcode::READ,
        &[&eight(1), &eight(2), &four(3), Z4, Z8, &four(4), Z4],
        "Ok(Read { fh: 1, offset: 2, size: 3, flags: OpenFlags(4) })",
    );
    check(
        Opcode::WRITE,
        &[&eight(1), &eight(2), &four(3), &four(5), Z8, Z4, Z4, b"abc"],
        r#"Ok(Write { fh: 1, offset: 2, data: b"abc", flags: OpenFlags(0), from_cache: true, kill_suidgid: true })"#,
    );
    check(
        Opcode::SETXATTR,
        &[&four(2), &four(2), &four(1), Z4, b"user.a\0vv"],
        r#"Ok(Setxattr { name: "user.a", value: b"vv", mode: Replace, kill_sgid: true })"#,
    );
    check(
        Opcode::POLL,
        &[&eight(1), &eight(2), &four(1), &four(5)],
        "Ok(Poll { fh: 1, wake: Some(2) })",
    );
    check(
        Opcode::POLL,
        &[&eight(1), &eight(2), Z4, &four(5)],
        "Ok(Poll { fh: 1, wake: None })",
    );
    check(Opcode(4711), &[], "Ok(Unsupported)");
}

#[test]
fn what_cannot_be_is_refused() {
    check(Opcode::LOOKUP, &[b"a"], "Err(Endless)");
    check(Opcode::LOOKUP, &[b"a/b\0"], "Err(Name(Invalid))");
    check(
        Opcode::BATCH_FORGET,
        &[&four(u32::MAX), Z4],
        r#"Err(Short("nodeid"))"#,
    );
    check(
        Opcode::RENAME2,
        &[&eight(4), &four(3), Z4, b"a\0b\0"],
        r#"Err(Value("the flags of renameat2"))"#,
    );
    check(Opcode::SYMLINK, &[b"l\0\0"], "Err(Name(NameTooLong))");
    check(
        Opcode::MKNOD,
        &[&four(libc::S_IFDIR), Z4, Z8, b"n\0"],
        r#"Err(Value("the file type"))"#,
    );
    // TCGETS carries nothing, as far as its number says.
    check(
        Opcode::IOCTL,
        &[Z8, Z4, &four(0x5401), Z8, Z4, Z4],
        "Err(Ioctl)",
    );
}

#[test]
fn setattr_sets_what_is_valid() {
    let setattr = |valid: u32, nanos: u32| {
        let times = [&eight(60)[..], &eight(u64::MAX), Z8].concat();
        let nanos = [&four(nanos)[..], &four(7), Z4].concat();
        let tail = [&four(0o100_644)[..], Z4, &four(1), &four(2), Z4].concat();
        let fields = [&four(valid)[..], Z4, &eight(3), &eight(4), Z8];
        let bytes = message(Opcode::SETATTR, &[&fields.concat(), &times, &nanos, &tail]);
        match decoded(&bytes) {
            Ok(Operation::Setattr(set)) => Ok(set),
            Ok(other) => panic!("{other:?} is no SETATTR"),
            Err(why) => Err(why),
        }
    };
    let nothing = SetAttrRequest::default();
    assert_eq!(setattr(0, 0), Ok(nothing));
    let sizes = SetAttrRequest {
        size: Some(4),
        fh: Some(3),
        ..nothing
    };
    assert_eq!(setattr(fattr::SIZE | fattr::FH, 0), Ok(sizes));
    let owner = SetAttrRequest {
        mode: Some(0o644),
        uid: Some(1),
        gid: Some(2),
        kill_suidgid: true,
        ..nothing
    };
    let bits = fattr::MODE | fattr::UID | fattr::GID | fattr::KILL_SUIDGID;
    assert_eq!(setattr(bits, 0), Ok(owner));
    let times = SetAttrRequest {
        atime: Some(TimeOrNow::Now),
        mtime: Some(TimeOrNow::At(Timestamp { secs: -1, nanos: 7 })),
        ..nothing
    };
    let bits = fattr::ATIME | fattr::ATIME_NOW | fattr::MTIME;
    assert_eq!(setattr(bits, 0), Ok(times));
    assert_eq!(
        setattr(fattr::ATIME, 1_000_000_000),
        Err(Malformed::Value("nanoseconds"))
    );
}

/// No bytes make the decoder panic, or take what is not there for arguments. `FUZZ_CASES` sets how many are tried.
#[test]
fn any_bytes_are_decoded_or_refused() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let seed = number("SEED").unwrap_or_else(|| u64::from(time.subsec_nanos()));
    println!("SEED={seed}");
    let mut dice = seed;
    let mut roll = move || {
        dice = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (dice ^ (dice >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    };
    for _ in 0..number("FUZZ_CASES").unwrap_or(200_000) {
        let opcode = Opcode(u32::try_from(roll() % 60).expect("small"));
        let fields: Vec<[u8; 8]> = (0..roll() % 16)
            .map(|_| match roll() % 5 {
                0 => [0; 8],
                1 => *b"name\0sub",
                2 => eight(u64::MAX),
                3 => eight(roll() % 8),
                _ => eight(roll()),
            })
            .collect();
        let fields: Vec<&[u8]> = fields.iter().map(<[u8; 8]>::as_slice).collect();
        let mut bytes = message(opcode, &fields);
        for _ in 0..roll() % 3 {
            let at = usize::try_from(roll()).unwrap_or(0) % bytes.len();
            bytes[at] = roll().to_le_bytes()[0];
        }
        let end = bytes.len() - usize::try_from(roll() % 9).expect("small");
        let bytes = &bytes[..if roll() % 4 == 0 { end } else { bytes.len() }];
        match decoded(bytes) {
            Ok(Operation::Write { data, .. }) => assert!(data.len() < bytes.len()),
            Ok(Operation::Forget(forgotten)) => assert!(forgotten.len() * 8 <= bytes.len()),
            Ok(_) | Err(_) => {}
        }
    }
}
