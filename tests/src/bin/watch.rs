//! Prints what inotify tells of the directories given and all below them, a line each, until it is killed.
//!
//! For tests, which run it inside a node: `EVENT DIR/NAME`, with `/` at the end of a directory and the cookie of a move.

use nix::sys::inotify::{AddWatchFlags as Event, InitFlags, Inotify, WatchDescriptor};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

const WATCHED: Event = Event::IN_CREATE
    .union(Event::IN_DELETE)
    .union(Event::IN_DELETE_SELF)
    .union(Event::IN_MOVED_FROM)
    .union(Event::IN_MOVED_TO)
    .union(Event::IN_ATTRIB)
    .union(Event::IN_MODIFY)
    .union(Event::IN_CLOSE_WRITE);

struct Watcher {
    inotify: Inotify,
    dirs: HashMap<WatchDescriptor, PathBuf>,
}

impl Watcher {
    fn add(&mut self, dir: &Path) -> anyhow::Result<()> {
        let watch = self.inotify.add_watch(dir, WATCHED)?;
        self.dirs.insert(watch, dir.to_owned());
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                // It may be gone again.
                drop(self.add(&entry.path()));
            }
        }
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let mut watcher = Watcher {
        inotify: Inotify::init(InitFlags::IN_CLOEXEC)?,
        dirs: HashMap::new(),
    };
    for dir in std::env::args_os().skip(1) {
        watcher.add(Path::new(&dir))?;
    }
    let mut moves = Vec::new();
    loop {
        for event in watcher.inotify.read_events()? {
            let Some(dir) = watcher.dirs.get(&event.wd).cloned() else {
                continue;
            };
            let path = event
                .name
                .map_or_else(|| dir.clone(), |name| dir.join(name));
            let is_dir = event.mask.contains(Event::IN_ISDIR);
            for (name, _) in (event.mask & WATCHED).iter_names() {
                let mut line = format!("{name} {}", path.display());
                if is_dir {
                    line.push('/');
                }
                if event.cookie != 0 {
                    if !moves.contains(&event.cookie) {
                        moves.push(event.cookie);
                    }
                    let number = moves.iter().position(|cookie| *cookie == event.cookie);
                    line.push_str(&format!(" move {}", number.unwrap_or_default()));
                }
                println!("{line}");
            }
            if is_dir && event.mask.intersects(Event::IN_CREATE | Event::IN_MOVED_TO) {
                // It may be gone again.
                drop(watcher.add(&path));
            }
        }
    }
}
