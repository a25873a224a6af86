//! What the process of a node does.

use super::kernel::Mount;
use super::made::{self, Dir, OwnOp};
use super::model::{FileOp, Of, Who};
use super::shared::{Phase, Shared};
use crate::error::Errno;
use bytes::Bytes;
use consistency::NodeId;
use std::sync::Arc;
use std::time::Duration;
use tests::Dice;
use tests::linear::models::{NamesOp, NamesRet};
use tokio::time::sleep;

/// Files whose content is replaced as a whole.
pub(super) const FILES: u32 = 2;
/// Names that come, go and move.
const NAMES: u8 = 3;
/// Pause before something is asked again that failed.
const AGAIN: Duration = Duration::from_millis(50);
/// How often the tasks that are due with a program run before it.
const DAEMON_FIRST: u32 = 8;
/// Who makes the files.
const FIRST: u16 = 1;

/// The process of a node.
pub(super) struct Program {
    pub(super) shared: Arc<Shared>,
    pub(super) who: Who,
    pub(super) mount: Mount,
    pub(super) dice: Dice,
    /// Makes values that nobody else makes.
    pub(super) values: u64,
}

fn path(file: u32) -> String {
    format!("f{file}")
}

fn content(file: u32, value: u64) -> Bytes {
    // The second file does not fit into its record.
    let times = if file == 0 { 1 } else { made::LONG / 8 };
    Bytes::from(value.to_le_bytes().repeat(times))
}

impl Program {
    pub(super) async fn run(&mut self) {
        loop {
            let phase = self.shared.state().phase;
            match phase {
                Phase::SetUp if self.who.node == FIRST => self.set_up().await,
                Phase::SetUp => sleep(Duration::from_millis(20)).await,
                Phase::Work => self.work().await,
                Phase::LastLook => {
                    self.last_look().await;
                    return;
                }
            }
        }
    }

    async fn set_up(&self) {
        for file in 0..FILES {
            let made = async {
                self.mount.create(&path(file)).await?;
                self.mount.write(&path(file), content(file, 0)).await?;
                self.mount.fsync(&path(file)).await
            };
            if let Err(errno) = made.await {
                self.shared
                    .fail(format!("the files cannot be made: {errno}"));
                return;
            }
        }
        self.shared.state().phase = Phase::Work;
    }

    async fn work(&mut self) {
        let pause = match self.dice.below(40_u8) {
            0 => 1_500,
            1..4 => 100,
            _ => 15,
        };
        sleep(Duration::from_millis(self.dice.below(pause))).await;
        // Of a machine that stood still for longer than a term the daemon runs before the program, which else finds names
        // that its kernel still has (docs/semantics.md, S5).
        for _ in 0..DAEMON_FIRST {
            tokio::task::yield_now().await;
        }
        let what = self.dice.below(8_u8);
        if what < 3 {
            let op = match self.dice.below(13_u8) {
                0 | 1 => OwnOp::Begin(self.dice.below(4_u8)),
                2 => OwnOp::Sync,
                7 => OwnOp::SyncFile,
                8 => OwnOp::Read,
                10..=12 => OwnOp::Remove,
                3..=6 => {
                    let nodes = self.shared.state().own.nodes();
                    let draw = self.dice.below(8_u32) as usize;
                    match made::other(&nodes, self.who, draw) {
                        Some(other) => OwnOp::Look(other),
                        None => OwnOp::Make,
                    }
                }
                _ => OwnOp::Make,
            };
            self.own(op).await;
        } else if what < 6 {
            let file = self.dice.below(FILES + 1).min(FILES - 1);
            let op = match self.dice.below(20_u8) {
                0..9 => FileOp::Read,
                9..16 => FileOp::Write(self.value()),
                _ => FileOp::Sync,
            };
            self.file(file, op).await;
        } else {
            let name = self.dice.below(NAMES);
            let op = match self.dice.below(7_u8) {
                0 | 1 => NamesOp::Create(name),
                2 => NamesOp::Unlink(name),
                3 => NamesOp::Rename(name, (name + 1) % NAMES),
                _ => NamesOp::Lookup(name),
            };
            self.name(op).await;
        }
    }

    fn value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    /// Everything must be there, and answer.
    async fn last_look(&mut self) {
        for file in 0..FILES {
            for op in [FileOp::Read, FileOp::Write(self.value()), FileOp::Sync] {
                while !self.file(file, op).await {
                    sleep(AGAIN).await;
                }
            }
        }
        let all = self.shared.state().own.all();
        for dir in all.iter().filter(|dir| dir.safe > 0) {
            let names = dir.kept.iter().copied().chain([dir.safe]);
            for name in names.filter(|name| *name > dir.unsure) {
                while !self.look_for(dir, name).await {
                    sleep(AGAIN).await;
                }
            }
            for name in 1..=dir.gone {
                while !self.look_removed(dir, name).await {
                    sleep(AGAIN).await;
                }
            }
        }
        for name in 0..NAMES {
            while !self.name(NamesOp::Lookup(name)).await {
                sleep(AGAIN).await;
            }
        }
        self.shared.finished(NodeId(self.who.node));
    }

    /// Returns whether the outcome is known.
    async fn file(&self, file: u32, op: FileOp) -> bool {
        let who = self.who;
        let place = self.shared.call_file(Of { file, who, op });
        let path = path(file);
        let done = match op {
            FileOp::Read => self.mount.read(&path).await.map(|bytes| {
                let value = bytes
                    .first_chunk()
                    .map_or(0, |value| u64::from_le_bytes(*value));
                if bytes != content(file, value) {
                    let len = bytes.len();
                    self.shared.fail(format!(
                        "node {}: {path} has {len} bytes that nobody wrote so",
                        who.node
                    ));
                }
                value
            }),
            FileOp::Write(value) => {
                let written = self.mount.write(&path, content(file, value)).await;
                written.map(|()| value)
            }
            FileOp::Sync => self.mount.fsync(&path).await.map(|()| 0),
            FileOp::Lose => unreachable!("nobody asks for it"),
        };
        match done {
            Ok(value) => {
                self.shared.return_file(who, place, value);
                true
            }
            Err(errno) => self.unknown(&format!("{op:?} of {path}"), errno),
        }
    }

    async fn name(&self, op: NamesOp) -> bool {
        let place = self.shared.call_name(self.who, op);
        let path = |name: u8| format!("n{name}");
        let mount = &self.mount;
        let done = match op {
            NamesOp::Create(name) => {
                let made = mount.create(&path(name)).await;
                made.map(|ino| NamesRet::Inode(ino.0))
            }
            NamesOp::Unlink(name) => mount.unlink(&path(name)).await.map(|()| NamesRet::Done),
            NamesOp::Rename(from, to) => {
                let moved = mount.rename(&path(from), &path(to)).await;
                moved.map(|()| NamesRet::Done)
            }
            NamesOp::Lookup(name) | NamesOp::Listed(name) => {
                let found = mount.lookup(&path(name)).await;
                found.map(|ino| NamesRet::Inode(ino.0))
            }
        };
        let ret = match done {
            Ok(ret) => ret,
            Err(Errno::ENOENT) => NamesRet::NotFound,
            Err(Errno(libc::EEXIST)) => NamesRet::Exists,
            Err(errno) => return self.unknown(&format!("{op:?}"), errno),
        };
        self.shared.return_name(self.who, place, ret);
        true
    }

    /// In a directory that this node has made, or another one.
    async fn own(&self, op: OwnOp) {
        self.own_once(op).await;
        if let OwnOp::Begin(names) = op {
            for _ in 0..names {
                self.own_once(OwnOp::Make).await;
            }
        }
    }

    async fn own_once(&self, op: OwnOp) {
        let (who, mount) = (self.who, &self.mount);
        let present = |node: u16| self.shared.state().own.present(node).cloned();
        self.shared
            .state()
            .tell(NodeId(who.node), || format!("{op:?}"));
        let dir = present(who.node);
        let number = dir.as_ref().map(|dir| dir.number);
        let done = match (op, dir) {
            (OwnOp::Begin(_), _)
            | (OwnOp::Make | OwnOp::Remove | OwnOp::Sync | OwnOp::SyncFile, None) => {
                let number = self.shared.state().own.next();
                let made = mount.mkdir(&Dir::path(number)).await;
                made.map(|ino| self.if_alive(|own| own.begin(who.node, number, ino)))
            }
            (OwnOp::Make, Some(dir)) => {
                let next = dir.made + 1;
                let made = mount.create_in(dir.ino, &made::name(next)).await;
                match made {
                    Ok(_) => {
                        self.if_alive(|own| own.made(who.node, dir.number, next));
                        self.fill(&dir, next).await
                    }
                    Err(errno) => {
                        // It may come to be there, or not: nothing comes after it.
                        self.if_alive(|own| own.end(who.node));
                        Err(errno)
                    }
                }
            }
            (OwnOp::Remove, Some(dir)) => {
                let oldest = dir.unsure + 1;
                if oldest + 2 > dir.made {
                    return;
                }
                self.if_alive(|own| own.removing(who.node, dir.number, oldest));
                match mount.unlink_in(dir.ino, &made::name(oldest)).await {
                    Ok(()) => {
                        self.if_alive(|own| own.removed(who.node, dir.number, oldest));
                        self.look_removed(&dir, oldest).await;
                        Ok(())
                    }
                    Err(errno) => {
                        // It may come to be gone, or not: nothing comes after it.
                        self.if_alive(|own| own.end(who.node));
                        Err(errno)
                    }
                }
            }
            (OwnOp::Sync, Some(dir)) => {
                let synced = mount.fsyncdir(dir.ino).await;
                synced.map(|()| {
                    self.if_alive(|own| {
                        own.safe(dir.number, dir.made);
                        own.gone(dir.number, dir.removed);
                    });
                })
            }
            (OwnOp::SyncFile, Some(dir)) => {
                // What is lost before is not synced.
                let intact = self.is_intact();
                let path = made::name(dir.written);
                let synced = match dir.written {
                    written if written <= dir.unsure => Ok(()),
                    _ => mount.fsync_in(dir.ino, &path).await,
                };
                if synced.is_ok() && intact && dir.written > dir.unsure {
                    self.if_alive(|own| own.keep(dir.number, dir.written));
                }
                self.read_back().await;
                synced
            }
            (OwnOp::Read, _) => {
                self.read_back().await;
                Ok(())
            }
            (OwnOp::Look(other), _) => {
                if let Some(dir) = present(other).filter(|dir| dir.made > 0) {
                    if dir.removed > 0 {
                        self.look_removed(&dir, dir.removed).await;
                    }
                    self.look_for(&dir, dir.made).await;
                }
                Ok(())
            }
        };
        let lost = || present(who.node).map(|dir| dir.number) != number;
        match done {
            // S4: it went with the session, or with its directory.
            Err(Errno::ENOENT | Errno::ESTALE) if lost() => {}
            Err(errno) => drop(self.unknown(&format!("{op:?}"), errno)),
            Ok(()) => {}
        }
    }

    /// Writes into the file that was made last.
    async fn fill(&self, dir: &Dir, name: u64) -> Result<(), Errno> {
        let node = self.who.node;
        let content = made::content(dir.number, name);
        if !content.is_empty() {
            let path = made::name(name);
            if let Err(errno) = self.mount.write_in(dir.ino, &path, content).await {
                self.if_alive(|own| own.end(node));
                return Err(errno);
            }
        }
        self.if_alive(|own| own.written(node, dir.number, name));
        Ok(())
    }

    /// Returns whether the node has lost nothing since the world looked last.
    fn is_intact(&self) -> bool {
        let session = self.mount.session();
        let state = self.shared.state();
        session.is_some() && state.hosts[&NodeId(self.who.node)].session == session
    }

    /// Looks for what this node has written last.
    async fn read_back(&self) {
        let present = self.shared.state().own.present(self.who.node).cloned();
        if let Some(dir) = present.filter(|dir| dir.written > dir.unsure) {
            self.look_for(&dir, dir.written).await;
        }
    }

    /// Looks for a name in what `dir` was before, and at what is in it; returns whether there was an answer.
    async fn look_for(&self, dir: &Dir, name: u64) -> bool {
        let path = made::name(name);
        let found = async {
            let ino = self.mount.lookup(&Dir::path(dir.number)).await?;
            self.mount.lookup_in(ino, &path).await?;
            if self.is_others(dir) {
                self.if_alive(|own| own.safe(dir.number, name));
            }
            self.mount.read_in(ino, &path).await
        };
        let content = made::content(dir.number, name);
        let missed = match found.await {
            Ok(found) if found == content => {
                if self.is_others(dir) {
                    self.if_alive(|own| own.keep(dir.number, name));
                }
                return true;
            }
            Ok(found) if found.is_empty() => made::Own::miss_content,
            Ok(found) => {
                let len = found.len();
                self.if_alive_fail(format!("{path} of {dir:?} has {len} bytes of others"));
                return true;
            }
            Err(Errno::ENOENT | Errno::ESTALE) => made::Own::miss,
            Err(errno) => return self.unknown(&format!("look for {path}"), errno),
        };
        let why = {
            let mut state = self.shared.state();
            let lives = state.lives(self.who);
            lives.then(|| missed(&mut state.own, dir, name)).flatten()
        };
        if let Some(why) = why {
            self.if_alive_fail(why);
        }
        true
    }

    /// Looks whether a name is gone that was removed when `dir` was so; returns whether there was an answer.
    async fn look_removed(&self, dir: &Dir, name: u64) -> bool {
        let path = made::name(name);
        let found = async {
            let ino = self.mount.lookup(&Dir::path(dir.number)).await?;
            self.mount.lookup_in(ino, &path).await
        };
        match found.await {
            // With the directory, if its maker has lost that.
            Err(Errno::ENOENT | Errno::ESTALE) => {
                if self.is_others(dir) {
                    self.if_alive(|own| own.gone(dir.number, name));
                }
                true
            }
            Ok(_) => {
                let why = {
                    let mut state = self.shared.state();
                    let lives = state.lives(self.who);
                    lives.then(|| state.own.come_back(dir, name)).flatten()
                };
                if let Some(why) = why {
                    self.if_alive_fail(why);
                }
                true
            }
            Err(errno) => self.unknown(&format!("look whether {path} is gone"), errno),
        }
    }

    /// What a node itself sees of its own is not safe by that.
    fn is_others(&self, dir: &Dir) -> bool {
        let state = self.shared.state();
        let own = state.own.present(self.who.node);
        own.is_none_or(|own| own.number != dir.number)
    }

    fn if_alive_fail(&self, why: String) {
        let mut state = self.shared.state();
        if state.lives(self.who) {
            state.fail(format!("node {}: {why}", self.who.node));
        }
    }

    fn if_alive(&self, note: impl FnOnce(&mut made::Own)) {
        let mut state = self.shared.state();
        if state.lives(self.who) {
            note(&mut state.own);
        }
    }

    /// EIO says that nobody knows (S5), ENOSPC that a chunk found no room (D7).
    fn unknown(&self, what: &str, errno: Errno) -> bool {
        let mut state = self.shared.state();
        state.tell(NodeId(self.who.node), || format!("{what}: {errno}"));
        let refused = state.hosts[&NodeId(self.who.node)].refused;
        let full = errno == Errno(libc::ENOSPC) && refused;
        if state.lives(self.who) && errno != Errno::EIO && !full {
            state.fail(format!("node {}: {what}: {errno}", self.who.node));
        }
        false
    }
}
