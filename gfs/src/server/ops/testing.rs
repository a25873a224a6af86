//! A small shell over the state machine, so that a test of an operation is one line.
//!
//! Commands: `touch P`, `tmpfile LABEL`, `mkdir P`, `symlink TARGET P`, `mkfifo P`, `open P` (create unless it is there), `ln P Q`,
//! `rm P`, `rmdir P`, `mv P Q`, `mv-n P Q`, `swap P Q`, `chmod OCTAL P`, `chown UID:GID P`, `chattr NAME=VALUE P`, `chattr-d NAME P`,
//! `reap P`. A path that is gone stands for the inode it last named; `#N` is inode number N; in front of a
//! name `./` changes nothing.
//!
//! Every change that a [`World`] runs is also checked against its plan, and the state against itself.

use crate::server::machine::StateMachine;
use crate::server::ops::Plan;
use crate::server::state::{Body, Command, MetaState, Reply};
use consistency::wire::lease::Scope;
use consistency::wire::meta::{
    Attr, Extent, FileKind, FlushContent, FlushFile, FsError, Name, NewNode, Op, OpReply,
    RenameMode, SetAttr, XattrMode,
};
use consistency::{ChunkId, InodeNo, NodeId, OpSeq, SessionId, Timestamp};
use std::collections::BTreeMap;

/// A state with a session in it.
pub(crate) struct World {
    pub(crate) state: MetaState,
    pub(crate) session: SessionId,
    seq: OpSeq,
    /// Every path that ever was, with the inode it last named.
    paths: BTreeMap<String, InodeNo>,
}

impl World {
    /// Makes a state by commands separated by `;`.
    pub(crate) fn new(setup: &str) -> Self {
        let mut world = Self {
            state: MetaState::default(),
            session: SessionId(0),
            seq: OpSeq(0),
            paths: BTreeMap::new(),
        };
        match world.apply(Body::OpenSession {
            node: NodeId(1),
            attempt: 1,
        }) {
            Reply::Session { session, .. } => world.session = session,
            other => panic!("no session but {other:?}"),
        }
        world.setup(setup);
        world
    }

    /// Runs commands that must succeed.
    #[track_caller]
    pub(crate) fn setup(&mut self, commands: &str) {
        for command in commands
            .split(';')
            .map(str::trim)
            .filter(|command| !command.is_empty())
        {
            self.sh(command)
                .unwrap_or_else(|error| panic!("{command}: {error}"));
        }
    }

    /// Runs a command.
    pub(crate) fn sh(&mut self, command: &str) -> Result<OpReply, FsError> {
        if let Some(path) = command.strip_prefix("reap ") {
            let ino = self.ino(path);
            self.apply(Body::Reap(vec![ino]));
            return Ok(OpReply::Changed(Vec::new()));
        }
        let op = self.op(command);
        let reply = self.run(&op)?;
        if let (Some(label), OpReply::Created { entry, .. }) =
            (command.strip_prefix("tmpfile "), &reply)
        {
            self.paths.insert(label.to_owned(), entry.attr.ino);
        }
        Ok(reply)
    }

    /// Puts a command through the state machine.
    pub(crate) fn apply(&mut self, body: Body) -> Reply {
        let now = Timestamp::from_nanos(1_000_000_000);
        let reply = self.state.apply(&Command { now, body });
        assert_eq!(self.state.check(), Ok(()));
        self.note_paths();
        reply
    }

    /// Gives a file a chunk of 600 bytes.
    pub(crate) fn give_chunk(&mut self, path: &str, chunk: ChunkId, replicas: &[NodeId]) {
        let (ino, now) = (self.ino(path), self.state.now());
        let extent = Extent {
            offset: 0,
            len: 600,
            chunk,
            chunk_offset: 0,
            replicas: replicas.to_vec(),
        };
        let flush = FlushFile {
            ino,
            mode: 0o644,
            uid: 7,
            gid: 8,
            size: 600,
            atime: now,
            mtime: now,
            ctime: now,
            content: FlushContent::Extents {
                cut: None,
                add: vec![extent],
                chunks: vec![(chunk, 600)],
            },
            written: false,
        };
        self.run(&Op::Flush(vec![flush])).expect("flushed");
    }

    /// Runs a change, and checks that it did what its plan said, no more and no less.
    pub(crate) fn run(&mut self, op: &Op) -> Result<OpReply, FsError> {
        let plan = self.state.plan(op);
        let before = self.state.clone();
        self.seq = OpSeq(self.seq.0 + 1);
        let reply = self.apply(Body::Change {
            session: self.session,
            seq: self.seq,
            done_below: self.seq,
            op: op.clone(),
        });
        let Reply::Op { now, result, .. } = reply else {
            panic!("{op:?} answered with {reply:?}");
        };
        assert!(now > before.now, "{op:?} at {now:?}");
        check_against_plan(op, &plan, &before, &self.state, &result);
        result
    }

    /// Returns the operation that a command stands for.
    pub(crate) fn op(&self, command: &str) -> Op {
        let words: Vec<&str> = command.split_whitespace().collect();
        let create = |path: &str, node, exclusive| {
            let (parent, name) = self.place(path);
            Op::Create {
                parent,
                name: Some(name),
                node,
                mode: 0o644,
                umask: 0o022,
                uid: 7,
                gid: 8,
                exclusive,
            }
        };
        let unlink = |path: &str, dir| {
            let (parent, name) = self.place(path);
            Op::Unlink { parent, name, dir }
        };
        let rename = |from: &str, to: &str, mode| {
            let ((parent, name), (new_parent, new_name)) = (self.place(from), self.place(to));
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode,
            }
        };
        match words[..] {
            ["touch", path] => create(path, NewNode::File, true),
            ["open", path] => create(path, NewNode::File, false),
            ["tmpfile", _] => Op::Create {
                parent: InodeNo::ROOT,
                name: None,
                node: NewNode::File,
                mode: 0o644,
                umask: 0o022,
                uid: 7,
                gid: 8,
                exclusive: true,
            },
            ["mkdir", path] => create(path, NewNode::Dir, true),
            ["symlink", target, path] => {
                create(path, NewNode::Symlink(target.to_owned().into()), true)
            }
            ["mkfifo", path] => {
                let kind = FileKind::Fifo;
                create(path, NewNode::Special { kind, rdev: 0 }, true)
            }
            ["ln", from, to] => {
                let (parent, name) = self.place(to);
                let ino = self.ino(from);
                Op::Link { ino, parent, name }
            }
            ["rm", path] => unlink(path, false),
            ["rmdir", path] => unlink(path, true),
            ["mv", from, to] => rename(from, to, RenameMode::Replace),
            ["mv-n", from, to] => rename(from, to, RenameMode::NoReplace),
            ["swap", from, to] => rename(from, to, RenameMode::Exchange),
            ["chmod", mode, path] => Op::SetAttr {
                ino: self.ino(path),
                set: SetAttr {
                    mode: Some(u32::from_str_radix(mode, 8).expect("octal")),
                    ..SetAttr::default()
                },
            },
            ["chown", owner, path] => {
                let (uid, gid) = owner.split_once(':').expect("UID:GID");
                Op::SetAttr {
                    ino: self.ino(path),
                    set: SetAttr {
                        uid: uid.parse().ok(),
                        gid: gid.parse().ok(),
                        ..SetAttr::default()
                    },
                }
            }
            ["chattr", setting, path] => {
                let (name, value) = setting.split_once('=').expect("NAME=VALUE");
                Op::SetXattr {
                    ino: self.ino(path),
                    name: Name::new(name.as_bytes().to_vec()).expect("valid"),
                    value: value.as_bytes().to_vec().into(),
                    mode: XattrMode::Any,
                    kill_sgid: false,
                }
            }
            ["chattr-d", name, path] => Op::RemoveXattr {
                ino: self.ino(path),
                name: Name::new(name.as_bytes().to_vec()).expect("valid"),
            },
            _ => panic!("no such command: {command}"),
        }
    }

    /// Returns the inode that a path names or last named.
    #[track_caller]
    pub(crate) fn ino(&self, path: &str) -> InodeNo {
        if let Some(number) = path.strip_prefix('#') {
            return InodeNo(number.parse().expect("a number"));
        }
        *self
            .paths
            .get(path)
            .unwrap_or_else(|| panic!("there never was {path:?}"))
    }

    /// Returns the attributes of what a path names or last named.
    #[track_caller]
    pub(crate) fn attr(&self, path: &str) -> Attr {
        let ino = self.ino(path);
        self.state
            .attr(ino)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn place(&self, path: &str) -> (InodeNo, Name) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("/", path));
        let name = Name::new(name.as_bytes().to_vec()).expect("valid");
        (self.ino(parent), name)
    }

    fn note_paths(&mut self) {
        for (path, attr) in tree(&self.state) {
            self.paths.insert(path, attr.ino);
        }
    }

    /// Returns the tree in one line: directories end with `/`, links show their count as `*N`; inodes without
    /// a name are counted behind `!`.
    pub(crate) fn tree(&self) -> String {
        match (self.names(), self.state.orphans().count()) {
            (names, 0) => names,
            (names, orphans) => format!("{names} !{orphans}").trim_start().to_owned(),
        }
    }

    /// Returns the tree in one line without the inodes that have no name.
    pub(crate) fn names(&self) -> String {
        let show = |(path, attr): (String, Attr)| match attr.kind {
            FileKind::Dir => format!("{path}/"),
            _ if attr.nlink > 1 => format!("{path}*{}", attr.nlink),
            _ => path,
        };
        let words = tree(&self.state).into_iter().skip(1).map(show);
        words.collect::<Vec<_>>().join(" ")
    }

    /// Returns the best name there is for an inode.
    fn path_of(&self, ino: InodeNo) -> String {
        let path = self.paths.iter().find(|(_, named)| **named == ino);
        path.map_or_else(|| format!("#{ino}"), |(path, _)| path.clone())
    }
}

/// Returns all paths in ascending order, the root first.
fn tree(state: &MetaState) -> Vec<(String, Attr)> {
    let root = state.attr(InodeNo::ROOT).expect("the root exists");
    let mut paths = vec![("/".to_owned(), root)];
    let mut at = 0;
    while let Some((path, attr)) = paths.get(at).cloned() {
        if attr.kind == FileKind::Dir {
            let listing = state.readdir(attr.ino, 0, 4096).expect("a directory lists");
            for entry in listing.entries {
                let name = String::from_utf8_lossy(entry.name.as_bytes()).into_owned();
                let path = if at == 0 {
                    name
                } else {
                    format!("{path}/{name}")
                };
                paths.push((path, entry.fact.expect("always there").attr));
            }
        }
        at += 1;
    }
    paths[1..].sort_by(|(a, _), (b, _)| a.cmp(b));
    paths
}

/// Checks that a change agreed with its plan: it failed in the same way, or changed each claimed inode and no
/// other one, and reported exactly those.
#[track_caller]
pub(crate) fn check_against_plan(
    op: &Op,
    plan: &Result<Plan, FsError>,
    before: &MetaState,
    after: &MetaState,
    result: &Result<OpReply, FsError>,
) {
    let mut changed = Vec::new();
    for (ino, old) in &before.inodes {
        let new = after.inodes.get(ino).expect("only a reap frees inodes");
        // Nobody caches how many copies there should be.
        let mut old = old.clone();
        old.copies = new.copies;
        if *new == old {
            continue;
        }
        // What a session has changed or made comes with its times, and may name an inode twice. A read changes one time
        // only.
        if !matches!(
            op,
            Op::Flush(_) | Op::Make(_) | Op::Names(_) | Op::Accessed(_)
        ) {
            let version = old.attr.version.next();
            assert_eq!(new.attr.version, version, "{op:?}: version of {ino}");
            assert!(new.attr.ctime > old.attr.ctime, "{op:?}: ctime of {ino}");
        }
        changed.push(*ino);
    }
    match (plan, result) {
        (Err(planned), Err(got)) => {
            assert_eq!(planned, got, "{op:?}");
            assert_eq!(changed, [], "{op:?} failed and changed something");
        }
        (Ok(plan), Ok(reply)) => {
            let mut claimed: Vec<InodeNo> = plan.claims.iter().map(|(ino, _)| *ino).collect();
            claimed.sort_unstable();
            match reply {
                OpReply::Changed(facts) => {
                    let mut told: Vec<InodeNo> = facts.iter().map(|fact| fact.attr.ino).collect();
                    told.sort_unstable();
                    assert_eq!(told, changed, "{op:?} tells of other changes than it made");
                    for fact in facts {
                        assert_eq!(Ok(&fact.attr), after.attr(fact.attr.ino).as_ref(), "{op:?}");
                    }
                    // Where both names stand for one inode nothing changes in the end.
                    if !told.is_empty() {
                        assert_eq!(
                            claimed, changed,
                            "{op:?} changes other inodes than it claims"
                        );
                    }
                }
                OpReply::Created { new: true, .. } => assert_eq!(claimed, changed, "{op:?}"),
                OpReply::Created { new: false, .. } => assert_eq!(changed, [], "{op:?}"),
                OpReply::ChunkIds(_) => assert_eq!(changed, [], "{op:?}"),
                OpReply::Made { made: results, .. } => {
                    let named: Vec<[InodeNo; 2]> = match op {
                        Op::Make(made) => made.iter().map(|one| [one.parent; 2]).collect(),
                        Op::Names(changes) => {
                            let changes = changes.iter();
                            changes.map(|one| [one.parent(), one.ino()]).collect()
                        }
                        _ => panic!("{op:?} answered with {reply:?}"),
                    };
                    let pairs = named.into_iter().zip(results);
                    let taken = pairs.filter(|(_, result)| result.is_ok());
                    let mut dirs: Vec<InodeNo> = taken.flat_map(|(named, _)| named).collect();
                    dirs.retain(|dir| before.inodes.contains_key(dir));
                    dirs.sort_unstable();
                    dirs.dedup();
                    assert_eq!(
                        dirs, changed,
                        "{op:?} changed other directories than it named"
                    );
                }
                OpReply::Flushed(results) => {
                    let Op::Flush(files) = op else {
                        panic!("{op:?} answered with {reply:?}");
                    };
                    let pairs = files.iter().zip(results);
                    let mut taken: Vec<InodeNo> = pairs
                        .filter_map(|(file, result)| result.is_ok().then_some(file.ino))
                        .collect();
                    taken.sort_unstable();
                    taken.dedup();
                    assert_eq!(taken, changed, "{op:?} changed other files than it took");
                }
                other => panic!("{op:?} answered with {other:?}"),
            }
        }
        // Flush and AllocateChunks have no plan that could fail.
        (Ok(plan), Err(_)) if plan.claims.is_empty() => {
            assert_eq!(changed, [], "{op:?} failed and changed something");
        }
        (plan, result) => panic!("{op:?} was planned as {plan:?} and came to {result:?}"),
    }
}

/// Checks what a command makes of a tree: the tree in one line (see [`World::tree`]), or an error's name.
#[track_caller]
pub(crate) fn check(setup: &str, command: &str, expected: &str) {
    let mut world = World::new(setup);
    let got = match world.sh(command) {
        Ok(_) => world.tree(),
        Err(error) => format!("{error:?}"),
    };
    assert_eq!(got, expected, "{setup}; {command}");
}

/// Checks which inodes a command claims, as `PATH` (attributes), `PATH[NAMES]`, `PATH[*]` (all names), in order.
#[track_caller]
pub(crate) fn check_plan(setup: &str, command: &str, expected: &str) {
    let world = World::new(setup);
    let show = |(ino, scope): &(InodeNo, Scope)| {
        let names = |names: &[Name]| {
            let text = |name: &Name| String::from_utf8_lossy(name.as_bytes()).into_owned();
            names.iter().map(text).collect::<Vec<_>>().join(",")
        };
        let path = world.path_of(*ino);
        match scope {
            Scope::Attr => path,
            Scope::Names(list) => format!("{path}[{}]", names(list)),
            Scope::All => format!("{path}[*]"),
            Scope::Data => format!("{path}(data)"),
            Scope::Flush => format!("{path}(flush)"),
        }
    };
    let got = match world.state.plan(&world.op(command)) {
        Ok(plan) => plan.claims.iter().map(show).collect::<Vec<_>>().join(" "),
        Err(error) => format!("{error:?}"),
    };
    assert_eq!(got, expected, "{setup}; {command}");
}

/// Checks which times and link counts a command changes, as `PATH:amcn` with a letter for each of atime,
/// mtime, ctime and nlink, in order of the paths before the command.
#[track_caller]
pub(crate) fn check_stamps(setup: &str, command: &str, expected: &str) {
    let mut world = World::new(setup);
    let before = world.state.clone();
    let names: BTreeMap<InodeNo, String> = before
        .inodes
        .keys()
        .map(|ino| (*ino, world.path_of(*ino)))
        .collect();
    world.setup(command);
    let mut got = Vec::new();
    for (ino, old) in &before.inodes {
        let (old, new) = (&old.attr, world.state.attr(*ino).expect("still there"));
        let letters: String = [
            ('a', old.atime != new.atime),
            ('m', old.mtime != new.mtime),
            ('c', old.ctime != new.ctime),
            ('n', old.nlink != new.nlink),
        ]
        .into_iter()
        .filter_map(|(letter, differs)| differs.then_some(letter))
        .collect();
        if !letters.is_empty() {
            got.push(format!("{}:{letters}", names[ino]));
        }
    }
    got.sort();
    assert_eq!(got.join(" "), expected, "{setup}; {command}");
}
