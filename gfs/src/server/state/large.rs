//! One directory with very many names: every operation on it costs about the same, however many there are.
//! `LARGE_DIRECTORY` sets how many.

use super::*;
use consistency::wire::meta::{Name, NewNode, Op, READDIR_ENTRIES_MAX};
use std::time::Instant;

fn name(number: u32) -> Name {
    Name::new(format!("name-{number}")).expect("valid")
}

fn run(state: &mut MetaState, seq: u64, op: Op) {
    let command = Command {
        now: Timestamp::default(),
        body: Body::Change {
            session: SessionId(1),
            seq: OpSeq(seq),
            done_below: OpSeq(seq),
            op,
        },
    };
    let Reply::Op { result: Ok(_), .. } = state.apply(&command) else {
        panic!("operation {seq} failed");
    };
}

#[test]
fn a_directory_of_very_many_names() {
    let names = std::env::var("LARGE_DIRECTORY");
    let names: u32 = names.map_or(50_000, |n| n.parse().expect("a number"));
    let mut state = MetaState::default();
    state.apply(&Command {
        now: Timestamp::default(),
        body: Body::OpenSession {
            node: NodeId(1),
            attempt: 1,
        },
    });
    let began = Instant::now();
    for number in 0..names {
        let create = Op::Create {
            parent: InodeNo::ROOT,
            name: Some(name(number)),
            node: NewNode::File,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            exclusive: true,
        };
        run(&mut state, u64::from(number) + 1, create);
        if (number + 1) % (names / 5).max(1) == 0 {
            println!("{} made in {:?}", number + 1, began.elapsed());
        }
    }
    // Every name once, and in between others come and go.
    let (began, mut after, mut listed, mut seq) = (Instant::now(), 0, 0, u64::from(names));
    loop {
        let page = state.readdir(InodeNo::ROOT, after, READDIR_ENTRIES_MAX);
        let page = page.expect("lists");
        let stay = |name: &Name| name.as_bytes().starts_with(b"name-");
        listed += page
            .entries
            .iter()
            .filter(|entry| stay(&entry.name))
            .count();
        after = page.entries.last().map_or(after, |entry| entry.cookie);
        if page.end {
            break;
        }
        seq += 1;
        let new = Name::new(format!("other-{seq}")).expect("valid");
        let rename = Op::Link {
            ino: InodeNo(InodeNo::ROOT.0 + 1),
            parent: InodeNo::ROOT,
            name: new.clone(),
        };
        run(&mut state, seq, rename);
        seq += 1;
        let unlink = Op::Unlink {
            parent: InodeNo::ROOT,
            name: new,
            dir: false,
        };
        run(&mut state, seq, unlink);
    }
    assert_eq!(listed, names as usize);
    println!("listed in {:?}", began.elapsed());
    // What commands wait for when a snapshot begins.
    let began = Instant::now();
    let copy = state.clone();
    let copied = began.elapsed();
    assert!(copy.inodes.ptr_eq(&state.inodes), "a copy copies no record");
    seq += 1;
    let began = Instant::now();
    let link = Op::Link {
        ino: InodeNo(InodeNo::ROOT.0 + 1),
        parent: InodeNo::ROOT,
        name: name(names),
    };
    run(&mut state, seq, link);
    println!(
        "copied in {copied:?}, first change after that in {:?}",
        began.elapsed()
    );
    let began = Instant::now();
    let snapshot = copy.snapshot();
    println!(
        "snapshot of {} bytes in {:?}",
        snapshot.len(),
        began.elapsed()
    );
    let began = Instant::now();
    let restored = MetaState::restore(&snapshot).expect("it was just made");
    println!("restored in {:?}", began.elapsed());
    drop((copy, snapshot, restored));
    let began = Instant::now();
    for number in 0..=names {
        let unlink = Op::Unlink {
            parent: InodeNo::ROOT,
            name: name(number),
            dir: false,
        };
        seq += 1;
        run(&mut state, seq, unlink);
    }
    println!("removed in {:?}", began.elapsed());
    assert!(state.dir(InodeNo::ROOT).expect("there").is_empty());
}
